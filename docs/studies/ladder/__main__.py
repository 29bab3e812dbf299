"""`python -m studies.ladder` runs what is missing of the ladder and prints its tables."""

from studies.ladder.command import ladder
from studies.run import run

if __name__ == "__main__":
    run(ladder)
