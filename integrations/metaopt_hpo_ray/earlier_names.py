"""Names of earlier versions: of what they pickled with a Tuner, and of what programs import from them.

Tune pickles scheduler, searcher and callbacks by module, class and attribute, and `Tuner.restore` has to find them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

CLASSES = {
    "keeper": {
        "CurveKeeper": "metaopt_hpo_ray.journal_callback:JournalCallback",
        "JOURNAL": "metaopt_hpo_ray.journal:JOURNAL",
    },
    "judge": {"Judge": "metaopt_hpo.scaling.policy.launching:LaunchOrder"},
    "trial_book": {"TrialBook": "metaopt_hpo.trials.logbook:Logbook"},
    "state": {
        "TrialBook": "metaopt_hpo.trials.logbook:Logbook",
        "header": "metaopt_hpo.trials.logbook_file:header",
    },
    "inner": {"Inner": "metaopt_hpo_ray.wrapped:Wrapped"},
    "reports": {"Results": "metaopt_hpo.trials.logged_results:Results"},
    "saved_state": {"SavedAsJson": "metaopt_hpo.trials.saved_state:SavedAsJson"},
    "sizes": {"size_of": "metaopt_hpo.training.size:size_of"},
}
"""Module of this package → name in it → where that is."""

PUBLIC = {"CurveKeeper": "JournalCallback"}
"""Earlier names of this package's own."""

ATTRIBUTES = {"_judge": "_order", "_inner": "_wrapped", "_results": "results"}


class Restored:
    """An object whose attributes may have been pickled under earlier names."""

    def _rebuild(self) -> None:
        """A method of earlier versions, which their journals held; nobody calls it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({ATTRIBUTES.get(name, name): value for name, value in state.items()})


class _Moved(ModuleType):
    """A module that is no more; it loads what was in it from where that is."""

    def __getattr__(self, name: str) -> Any:
        where = CLASSES[self.__name__.rpartition(".")[2]].get(name)
        if where is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module, _, found = where.partition(":")
        return getattr(import_module(module), found)


def find_earlier_names() -> None:
    """Let pickles of earlier versions be loaded."""
    package = __name__.rpartition(".")[0]
    for module in CLASSES:
        sys.modules.setdefault(f"{package}.{module}", _Moved(f"{package}.{module}"))
