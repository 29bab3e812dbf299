"""What convergence bounds say about scaling laws: pure functions, no training.

Public: `LMOBound` (bounds), `verify_rule` (rules against bounds), schedule factors, and exponents predicted and fitted.
"""

from metaopt_hpo.theory.bounds import LMOBound, Optimum, Ridge
from metaopt_hpo.theory.schedules import ScheduleFactors, last_iterate_value, schedule_factors
from metaopt_hpo.theory.verify import RuleCheck, depth_path, rate_loss_profile, verify_rule

__all__ = [
    "LMOBound",
    "Optimum",
    "Ridge",
    "RuleCheck",
    "ScheduleFactors",
    "depth_path",
    "last_iterate_value",
    "rate_loss_profile",
    "schedule_factors",
    "verify_rule",
]
