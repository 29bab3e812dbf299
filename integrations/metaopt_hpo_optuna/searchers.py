"""Optuna's samplers as searchers over (lr, batch), for replaying searches on tables."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import Trial


class OptunaSearcher:
    """A sampler behind ask and tell, in an in-memory study with Optuna's own defaults."""

    def __init__(self, sampler: BaseSampler, bounds: Mapping[str, tuple[float, float]]) -> None:
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._bounds = dict(bounds)
        self._trial: Trial | None = None

    def ask(self) -> tuple[float, float]:
        """The next (lr, batch) to try."""
        self._trial = self._study.ask()
        values = [self._trial.suggest_float(n, *self._bounds[n], log=True) for n in ("lr", "batch")]
        return values[0], values[1]

    def tell(self, point: tuple[float, float], loss: float) -> None:
        """The loss of the point asked last."""
        if self._trial is None:
            raise RuntimeError("tell() needs an ask() before it")
        self._study.tell(self._trial, loss)
        self._trial = None


def tpe(bounds: Mapping[str, tuple[float, float]], seed: int) -> OptunaSearcher:
    """Tree-structured Parzen estimator."""
    return OptunaSearcher(TPESampler(seed=seed), bounds)


def gp(bounds: Mapping[str, tuple[float, float]], seed: int) -> OptunaSearcher:
    """Gaussian process."""
    return OptunaSearcher(GPSampler(seed=seed), bounds)
