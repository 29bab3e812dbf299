"""ScalingLawSampler of metaopt-hpo, as an OptunaHub package."""

from metaopt_hpo_optuna import ScalingLawSampler

__all__ = ["ScalingLawSampler"]
