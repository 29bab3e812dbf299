"""metaopt-hpo for Optuna: strategies as a search space, token-grid reports, laws that propose and prune.

Names load when first used: the pruner and the sampler need no torch, `TrialRun` and `suggest_strategy` do. The
names stand in `__init__.pyi`.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

try:
    import optuna as _optuna  # noqa: F401  said once, here, instead of as a traceback from the middle of a module
except ImportError as error:
    raise ImportError(
        'metaopt_hpo_optuna needs Optuna, which is not installed; run: pip install "metaopt-hpo[optuna]"'
    ) from error

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_EARLIER = {"retry_lost_trials": "retry_stale_trials"}
"""Names of earlier versions."""


def __getattr__(name: str) -> Any:
    name = _EARLIER.get(name, name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)
