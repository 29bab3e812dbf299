"""Step sizes adapted inside one run: MetaOptimize (arXiv 2402.02342) as a torch optimizer; torch only."""

from __future__ import annotations

from metaopt_hpo.optim.metaoptimize import MetaOptimize, StepSizeWarning
from metaopt_hpo.optim.rules import SGD, SGDM, AdamW, Lion, RMSprop, Rule

__all__ = ["SGD", "SGDM", "AdamW", "Lion", "MetaOptimize", "RMSprop", "Rule", "StepSizeWarning"]
