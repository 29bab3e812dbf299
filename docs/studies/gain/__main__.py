"""`python -m studies.gain` races every method of an engine and prints what each one spent."""

from studies.gain.races import main
from studies.run import run

if __name__ == "__main__":
    run(main)
