"""Exponents of the optimal lr, momentum and batch: `predicted` by a bound, `fitted` to trials, and `published`."""

from metaopt_hpo.theory.fitted import ExponentsRefused, FittedExponents, fit_exponents
from metaopt_hpo.theory.predicted import (
    LocalExponents,
    PredictedExponents,
    local_exponents,
    predicted_exponents,
)
from metaopt_hpo.theory.published import PublishedExponent, published_exponents, side_by_side

__all__ = [
    "ExponentsRefused",
    "FittedExponents",
    "LocalExponents",
    "PredictedExponents",
    "PublishedExponent",
    "fit_exponents",
    "local_exponents",
    "predicted_exponents",
    "published_exponents",
    "side_by_side",
]
