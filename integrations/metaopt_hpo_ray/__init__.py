"""metaopt-hpo for Ray Tune: strategies as a search space, curves that survive kills, laws that launch and stop.

Names load when first used. Importing the package makes the scheduler and the searcher known to Tune by name
("scaling_law"), for `TuneConfig(scheduler="scaling_law")` and `tune.create_scheduler`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import ray.tune as _tune  # noqa: F401  said once, here, instead of as a traceback from the middle of a module
except ImportError as error:
    raise ImportError(
        'metaopt_hpo_ray needs Ray Tune, which is not installed; run: pip install "metaopt-hpo[ray]"'
    ) from error

from metaopt_hpo_ray.earlier_names import PUBLIC, find_earlier_names
from metaopt_hpo_ray.registration import register_by_name

_HOMES = {
    "JournalCallback": "journal_callback",
    "RayEngine": "engine",
    "ScalingLawScheduler": "scheduler",
    "ScalingLawSearch": "searcher",
    "TrialRun": "trial_run",
    "TuneWarning": "columns",
    "build_strategy": "strategy",
    "decision_log": "result_table",
    "resources_by_size": "strategy",
    "restore": "restoring",
    "size_of": "metaopt_hpo.training.size",
    "strategy_space": "strategy",
    "trial_table": "result_table",
    "tuner_configs": "configs",
    "with_resources": "strategy",
}

__all__ = [
    "JournalCallback",
    "RayEngine",
    "ScalingLawScheduler",
    "ScalingLawSearch",
    "TrialRun",
    "TuneWarning",
    "build_strategy",
    "decision_log",
    "resources_by_size",
    "restore",
    "size_of",
    "strategy_space",
    "trial_table",
    "tuner_configs",
    "with_resources",
]

if TYPE_CHECKING:
    from metaopt_hpo.training.size import size_of
    from metaopt_hpo_ray.columns import TuneWarning
    from metaopt_hpo_ray.configs import tuner_configs
    from metaopt_hpo_ray.engine import RayEngine
    from metaopt_hpo_ray.journal_callback import JournalCallback
    from metaopt_hpo_ray.restoring import restore
    from metaopt_hpo_ray.result_table import decision_log, trial_table
    from metaopt_hpo_ray.scheduler import ScalingLawScheduler
    from metaopt_hpo_ray.searcher import ScalingLawSearch
    from metaopt_hpo_ray.strategy import build_strategy, resources_by_size, strategy_space, with_resources
    from metaopt_hpo_ray.trial_run import TrialRun


def __getattr__(name: str) -> Any:
    name = PUBLIC.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(home if "." in home else f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_by_name()
find_earlier_names()
