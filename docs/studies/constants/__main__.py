"""`python -m studies.constants --data DIR` prints the table of constants of docs/laws.md."""

from studies.constants.table import main
from studies.run import run

if __name__ == "__main__":
    run(main)
