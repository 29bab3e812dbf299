"""Where a trial's checkpoints are: a place of its own, which a retry of the trial inherits."""

from __future__ import annotations

import os

from optuna.trial import BaseTrial, Trial

from metaopt_hpo.training.distributed import from_rank_0, rank
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import CHECKPOINT
from metaopt_hpo_optuna.leases import patiently


def run_name(trial: BaseTrial) -> str:
    """A file name for a trial, unique among studies of different names."""
    study = trial.study.study_name if isinstance(trial, Trial) else "fixed"
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in study)
    return f"{safe}-trial-{trial.number}"


def owner(trial: BaseTrial) -> dict[str, str]:
    """Whose checkpoints a trial goes on from: its study, and its number or that of the first trial it retries."""
    if not isinstance(trial, Trial):
        return {"study": "", "trial": str(trial.number)}
    first = patiently(lambda: _compat.stored(trial)).system_attrs.get("failed_trial", trial.number)
    return {"study": trial.study.study_name, "trial": str(first)}


def inherited(trial: BaseTrial) -> str | None:
    """Where the trial of which this one is a retry had its checkpoints."""
    found = trial.user_attrs.get(CHECKPOINT)
    return found if isinstance(found, str) else None


def trial_folder(trial: BaseTrial | None, parent: str | os.PathLike[str]) -> str:
    """The folder for a framework's checkpoints of this trial: a new one in `parent`, a retry's predecessor's.

    Args:
        trial: the trial. None on ranks other than 0 of a distributed run whose process group is initialised.
        parent: folder that all workers see.

    Examples:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> from metaopt_hpo_optuna import trial_folder
        >>> trial_folder(study.ask(), "checkpoints").startswith("checkpoints")
        True
    """
    path = ""
    if rank() == 0:
        if trial is None:
            raise ValueError(
                "trial is None; only ranks other than 0 have no trial, and this is rank 0: in a distributed run call "
                "torch.distributed.init_process_group first"
            )
        path = inherited(trial) or os.path.join(os.fspath(parent), run_name(trial))
        if inherited(trial) is None:
            patiently(lambda: trial.set_user_attr(CHECKPOINT, path))
    path = from_rank_0(path)
    os.makedirs(path, exist_ok=True)
    return path
