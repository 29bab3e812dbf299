"""`python -m studies.one_run` runs what is missing of the study and makes its tables and its page."""

from studies.one_run.command import study
from studies.run import run

if __name__ == "__main__":
    run(study)
