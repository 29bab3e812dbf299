"""metaopt-hpo for Optuna: strategies as a search space, token-grid reports, laws that propose and prune.

Names load when first used: the pruner and the sampler need no torch, `TrialRun` and `suggest_strategy` do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import optuna as _optuna  # noqa: F401  said once, here, instead of as a traceback from the middle of a module
except ImportError as error:
    raise ImportError(
        'metaopt_hpo_optuna needs Optuna, which is not installed; run: pip install "metaopt-hpo[optuna]"'
    ) from error

_HOMES = {
    "OptunaEngine": "engine",
    "ScalingLawPruner": "pruner",
    "ScalingLawSampler": "sampler",
    "StudyWarning": "fields",
    "TrialRun": "trial_run",
    "add_records": "study_table",
    "trial_table": "study_table",
    "repeat_seed": "strategy",
    "retry_stale_trials": "leases",
    "suggest_strategy": "strategy",
    "trial_folder": "checkpoints",
}

__all__ = [
    "OptunaEngine",
    "ScalingLawPruner",
    "ScalingLawSampler",
    "StudyWarning",
    "TrialRun",
    "add_records",
    "repeat_seed",
    "retry_stale_trials",
    "suggest_strategy",
    "trial_folder",
    "trial_table",
]

if TYPE_CHECKING:
    from metaopt_hpo_optuna.checkpoints import trial_folder
    from metaopt_hpo_optuna.engine import OptunaEngine
    from metaopt_hpo_optuna.fields import StudyWarning
    from metaopt_hpo_optuna.leases import retry_stale_trials
    from metaopt_hpo_optuna.pruner import ScalingLawPruner
    from metaopt_hpo_optuna.sampler import ScalingLawSampler
    from metaopt_hpo_optuna.strategy import repeat_seed, suggest_strategy
    from metaopt_hpo_optuna.study_table import add_records, trial_table
    from metaopt_hpo_optuna.trial_run import TrialRun


_EARLIER = {"retry_lost_trials": "retry_stale_trials"}
"""Names of earlier versions."""


def __getattr__(name: str) -> Any:
    name = _EARLIER.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
