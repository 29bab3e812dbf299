"""`python -m studies.race` runs what is missing of the race and prints its table."""

from studies.race.command import race
from studies.run import run

if __name__ == "__main__":
    run(race)
