"""`python -m studies.demo`: what `make demo` runs."""

from studies.demo.command import demo
from studies.run import run

if __name__ == "__main__":
    run(demo)
