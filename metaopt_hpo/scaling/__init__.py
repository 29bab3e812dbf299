"""Laws across sizes: fit a table of trials, predict the optimum of a larger model, give verdicts on runs."""

from __future__ import annotations

from metaopt_hpo.scaling.api import Law, fit
from metaopt_hpo.scaling.estimates import Caution, Estimate, LawRefused, Prediction
from metaopt_hpo.scaling.forecast import Forecast, forecast
from metaopt_hpo.scaling.policy import (
    Config,
    Context,
    Proposal,
    Verdict,
    propose,
    propose_batch,
    verdict,
)
from metaopt_hpo.scaling.schedule_fit import fit_schedule_law
from metaopt_hpo.scaling.schedule_law import ScheduledCurve, ScheduleLaw

__all__ = [
    "Caution",
    "Config",
    "Context",
    "Estimate",
    "Forecast",
    "Law",
    "LawRefused",
    "Prediction",
    "Proposal",
    "ScheduleLaw",
    "ScheduledCurve",
    "Verdict",
    "fit",
    "fit_schedule_law",
    "forecast",
    "propose",
    "propose_batch",
    "verdict",
]
