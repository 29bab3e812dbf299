"""What a search says by default: one line at each fit, each refusal and each stop, as Optuna says one a trial.

The full story is in the decision log and in the trial table.
"""

from __future__ import annotations

import logging
import sys

LOGGERS = ("metaopt_hpo_ray", "metaopt_hpo.scaling.policy")


def show_decisions() -> None:
    """Let lines at INFO be seen, unless logging was configured: then it is the program's own affair."""
    for logger in map(logging.getLogger, LOGGERS):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        if not logger.hasHandlers():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("metaopt-hpo: %(message)s"))
            logger.addHandler(handler)
