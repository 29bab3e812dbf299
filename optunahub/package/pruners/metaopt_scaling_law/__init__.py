"""ScalingLawPruner of metaopt-hpo, as an OptunaHub package."""

from metaopt_hpo_optuna import ScalingLawPruner

__all__ = ["ScalingLawPruner"]
