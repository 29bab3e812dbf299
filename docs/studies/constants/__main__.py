"""`python -m studies.constants --data DIR` measures the constants of README.md beside this."""

from studies.constants.command import main
from studies.run import run

if __name__ == "__main__":
    run(main)
