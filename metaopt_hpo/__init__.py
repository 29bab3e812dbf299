"""metaopt-hpo: find a large model's learning rate without paying for a search at the large size.

The public face is lazy (PEP 562): a name loads its room when it is first used, so that `from metaopt_hpo
import fit` imports no torch and `from metaopt_hpo import MetaOptimize` no pandas. The names stand in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import lazy_loader

from metaopt_hpo._version import __version__

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "plan":  # a room that can be called
        return import_module(f"{__name__}.plan")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)
