"""Rival ways to adapt a step size inside a run, as strategies: thin wrappers of their authors' packages.

Nothing is rewritten: each strategy builds the optimizer of its PyPI package (extra `[baselines]`) with that
package's recommended settings, respects decay groups, clipping and training modes, and says what the package
cannot do. `hypergradient` is our own preset and `adalrs` our own reading of its paper, as neither has a package.
"""

from metaopt_hpo.strategies.rivals.adalrs import AdaLRS
from metaopt_hpo.strategies.rivals.adam_variants import ADOPT, AdamG
from metaopt_hpo.strategies.rivals.base import Rival, RivalRun
from metaopt_hpo.strategies.rivals.distance import DAdaptation, DoG, LDoG, Prodigy
from metaopt_hpo.strategies.rivals.hypergradients import GDTUO, HypergradientDescent
from metaopt_hpo.strategies.rivals.schedule_free import ProdigyScheduleFree, ScheduleFree
from metaopt_hpo.strategies.rivals.tuners import Mechanic, MoMo

__all__ = [
    "ADOPT",
    "GDTUO",
    "AdaLRS",
    "AdamG",
    "DAdaptation",
    "DoG",
    "HypergradientDescent",
    "LDoG",
    "Mechanic",
    "MoMo",
    "Prodigy",
    "ProdigyScheduleFree",
    "Rival",
    "RivalRun",
    "ScheduleFree",
]
