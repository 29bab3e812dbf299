"""What convergence bounds say about scaling laws: pure functions, no training.

Public: `LMOBound` (bounds), `verify_rule` (rules against bounds), schedule factors, and exponents predicted and fitted.
"""

from metaopt_hpo.theory._tuning import Optimum, Ridge
from metaopt_hpo.theory.bounds import LMOBound
from metaopt_hpo.theory.exponents import (
    FittedExponents,
    LocalExponents,
    PredictedExponents,
    PublishedExponent,
    fit_exponents,
    local_exponents,
    predicted_exponents,
    published_exponents,
    side_by_side,
)
from metaopt_hpo.theory.rule_check import RuleCheck
from metaopt_hpo.theory.schedules import ScheduleFactors, last_iterate_value, schedule_factors
from metaopt_hpo.theory.verify import depth_path, rate_loss_profile, verify_rule

__all__ = [
    "FittedExponents",
    "LMOBound",
    "LocalExponents",
    "Optimum",
    "PredictedExponents",
    "PublishedExponent",
    "Ridge",
    "RuleCheck",
    "ScheduleFactors",
    "depth_path",
    "fit_exponents",
    "last_iterate_value",
    "local_exponents",
    "predicted_exponents",
    "published_exponents",
    "rate_loss_profile",
    "schedule_factors",
    "side_by_side",
    "verify_rule",
]
