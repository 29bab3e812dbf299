"""Step sizes adapted inside one run: MetaOptimize (arXiv 2402.02342) as a torch optimizer; torch only."""

from __future__ import annotations

from metaopt_hpo.optim.kernels.compiled import KernelWarning
from metaopt_hpo.optim.metaoptimize import MetaOptimize
from metaopt_hpo.optim.muon import Muon, MuonMatrix
from metaopt_hpo.optim.rules import SGD, SGDM, AdamW, Lion, RMSprop, Rule, UnnormalisedAdamW
from metaopt_hpo.optim.watch import StepSizeWarning

__all__ = [
    "SGD",
    "SGDM",
    "AdamW",
    "KernelWarning",
    "Lion",
    "MetaOptimize",
    "Muon",
    "MuonMatrix",
    "RMSprop",
    "Rule",
    "StepSizeWarning",
    "UnnormalisedAdamW",
]
