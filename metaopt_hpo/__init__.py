"""metaopt-hpo: find a large model's learning rate without paying for a search at the large size.

The public face is lazy (PEP 562): a name loads its room when it is first used, so that `from metaopt_hpo
import fit` imports no torch and `from metaopt_hpo import MetaOptimize` no pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaopt_hpo._version import __version__

if TYPE_CHECKING:
    from metaopt_hpo.comparison.design import ComparisonPlan
    from metaopt_hpo.comparison.outcome import judge
    from metaopt_hpo.comparison.protocol import compare
    from metaopt_hpo.comparison.results import Comparison
    from metaopt_hpo.errors import MetaOptError, MetaOptWarning
    from metaopt_hpo.optim import MetaOptimize
    from metaopt_hpo.plan.api import Plan, plan
    from metaopt_hpo.plan.recipes import Recipe
    from metaopt_hpo.report import write_report
    from metaopt_hpo.report.notebook import plot
    from metaopt_hpo.scaling import Law, LawRefused, fit
    from metaopt_hpo.strategies.wrap import wrap
    from metaopt_hpo.training import TrainingRun, model_size
    from metaopt_hpo.trials.record import TrialRecord, token_grid
    from metaopt_hpo.trials.table import TrialTable

_HOMES = {
    "Comparison": "comparison.results",
    "ComparisonPlan": "comparison.design",
    "Law": "scaling",
    "LawRefused": "scaling",
    "MetaOptError": "errors",
    "MetaOptWarning": "errors",
    "MetaOptimize": "optim",
    "Plan": "plan.api",
    "Recipe": "plan.recipes",
    "TrainingRun": "training",
    "TrialRecord": "trials.record",
    "TrialTable": "trials.table",
    "compare": "comparison.protocol",
    "fit": "scaling",
    "judge": "comparison.outcome",
    "model_size": "training",
    "plot": "report.notebook",
    "token_grid": "trials.record",
    "wrap": "strategies.wrap",
    "write_report": "report",
}

__all__ = [
    "Comparison",
    "ComparisonPlan",
    "Law",
    "LawRefused",
    "MetaOptError",
    "MetaOptWarning",
    "MetaOptimize",
    "Plan",
    "Recipe",
    "TrainingRun",
    "TrialRecord",
    "TrialTable",
    "__version__",
    "compare",
    "fit",
    "judge",
    "model_size",
    "plan",
    "plot",
    "token_grid",
    "wrap",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "plan":  # a room that is called
        return import_module(f"{__name__}.plan")
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
