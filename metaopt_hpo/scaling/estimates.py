"""What a law answers with: estimates with intervals, cautions, and the refusal to answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from metaopt_hpo import markup
from metaopt_hpo.errors import MetaOptError


class LawRefused(MetaOptError):
    """There is too little data for a law; `reason` says why and how to fix it.

    Attributes:
        code: stable name of the reason ("few-sizes", "one-lr", "edge", "no-minimum", "few-trials", "loss").
        reason: one sentence.

    Examples:
        >>> from metaopt_hpo import LawRefused, TrialRecord, TrialTable, fit
        >>> one = TrialTable.from_records([TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-3, loss=3.0)])
        >>> try:
        ...     fit(one)
        ... except LawRefused as refused:
        ...     print(refused.code)
        ...
        one-lr
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caution:
    """A warning object: `code` is stable, `message` one sentence for a person.

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> far = law.predict(size=1e12, tokens=1e14)
        >>> [type(w).__name__ for w in far.warnings][:1]
        ['Caution']
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at the law's level; `float(x)` gives the value.

    Examples:
        >>> from metaopt_hpo.scaling import Estimate
        >>> float(Estimate(2e-3, 1e-3, 4e-3))
        0.002
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best configuration at one size and number of tokens, as far as the law knows.

    `lr` and `batch` (tokens per step) minimise the law's loss; `loss` is what it expects there, with the interval of
    one run's loss. `spread` holds the standard deviations of (ln lr, ln batch) and their correlation, for samplers.
    `weight_decay` is the decoupled one (AdamW's, which multiplies it by lr; MetaOptimize multiplies it by the step size
    that it found), and `weight_decay_from` says what it rests on: the "trials" where they vary it and a fit names it
    (lr, batch and loss are then those at it), "given", or the published law.
    `divergence` is the chance that a run at that lr diverges, by where runs of the table did (0 where none did); lr is
    set with it in mind.

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> p = law.predict(size=4e8, tokens=4e10)
        >>> p.lr.low < float(p.lr) < p.lr.high
        True
    """

    size: float
    tokens: float
    lr: Estimate
    batch: Estimate
    loss: Estimate
    warnings: tuple[Caution, ...] = ()
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    divergence: float = 0.0
    weight_decay: Estimate | None = None
    weight_decay_from: str = ""

    def _repr_html_(self) -> str:
        """For notebooks: the three quantities with their intervals, and the warnings."""
        rows = [
            (name, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}", unit)
            for name, e, unit in (
                ("lr", self.lr, ""),
                ("batch", self.batch, "tokens per step"),
                ("loss", self.loss, "in the trials' unit"),
                ("weight decay", self.weight_decay, f"from: {self.weight_decay_from}"),
            )
            if e is not None
        ]
        return markup.table(
            ("", "predicted", "interval", "unit"),
            rows,
            caption=f"{self.size:.4g} parameters, {self.tokens:.4g} tokens",
            note=" ".join(f"Warning [{w.code}]: {w.message}." for w in self.warnings),
        )

    @property
    def steps(self) -> float:
        """Optimizer steps at the predicted batch."""
        return self.tokens / self.batch.value


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError naming the field unless it is positive and finite."""
    if type(value) is float and 0.0 < value < math.inf:  # the usual case: verdicts take microseconds
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a positive, finite number, got {value!r}")
    return number


@cache
def normal_quantile(level: float) -> float:
    """z with P(|Z| < z) = level for a standard normal Z: half the width of an interval of that level."""
    return NormalDist().inv_cdf(0.5 + 0.5 * level)


LARGEST = 700.0
"""ln of the largest number that is answered: the largest float is e^709.78."""


def no_answer(size: float, tokens: float) -> MetaOptError:
    """The error of a law whose formula leaves the floats."""
    return MetaOptError(
        f"the law gives no finite answer at size {size:g} and {tokens:g} tokens: they are too far from the runs it was "
        "fitted to, or the law is damaged"
    )
