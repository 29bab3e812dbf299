"""From a target and a budget to the small runs worth making, and from those to a recipe.

`metaopt_hpo.plan` is this room and the function that makes a plan, `plan.api.plan`:

    >>> from metaopt_hpo import plan
    >>> made = plan(target="10M", tokens="200M", base=[], batch=2**16, tokens_per_parameter=[20])
    >>> len(made.pilots) > 0
    True
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that is called as the function it is about."""

    def __call__(self, **arguments: Any) -> Any:
        from metaopt_hpo.plan.api import plan

        return plan(**arguments)


sys.modules[__name__].__class__ = _Room
