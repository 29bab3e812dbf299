"""metaopt-hpo for Ray Tune: strategies as a search space, curves that survive kills, laws that launch and stop.

Names, which stand in `__init__.pyi`, load when first used. Importing the package makes the scheduler and the searcher
known to Tune by name ("scaling_law"), for `TuneConfig(scheduler="scaling_law")` and `tune.create_scheduler`.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

try:
    import ray.tune as _tune  # noqa: F401  said once, here, instead of as a traceback from the middle of a module
except ImportError as error:
    raise ImportError(
        'metaopt_hpo_ray needs Ray Tune, which is not installed; run: pip install "metaopt-hpo[ray]"'
    ) from error

from metaopt_hpo_ray.earlier_names import PUBLIC, find_earlier_names
from metaopt_hpo_ray.registration import register_by_name

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    name = PUBLIC.get(name, name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)


register_by_name()
find_earlier_names()
