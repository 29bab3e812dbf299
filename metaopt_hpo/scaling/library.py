"""Published laws, and laws fitted here from tables whose licence allows it: data files with origin and domain.

A published law is a set of monomials; what its authors did not publish is absent and asking for it is an
error. Some give exponents only: they need an anchor, one known optimum. Errors in the files were measured on
tables that the law was not fitted on (`docs/studies/laws/build_library.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from metaopt_hpo.scaling.api import Law
from metaopt_hpo.scaling.estimates import positive
from metaopt_hpo.scaling.library_files import LibraryError as LibraryError
from metaopt_hpo.scaling.library_files import entry, fitted
from metaopt_hpo.scaling.library_files import names as names


@dataclass(frozen=True)
class Monomial:
    """coefficient · size^a · tokens^b · compute^c · batch^d, compute = 6·size·tokens FLOPs.

    `coefficient` is NaN where only exponents were published.
    """

    coefficient: float
    exponents: Mapping[str, float]

    def __call__(self, values: Mapping[str, float]) -> float:
        total = math.log(self.coefficient) if self.coefficient > 0 else math.nan
        for name, power in self.exponents.items():
            if name not in values:
                raise LibraryError(f"this law depends on {name}: give it")
            total += power * math.log(values[name])
        if not total < 709.0:  # the largest float is e^709.78
            raise LibraryError(
                "the law gives no finite number there: it is too far from the runs that it rests on"
            )
        return math.exp(total)


@dataclass(frozen=True)
class PublishedLaw:
    """A law from the literature.

    Attributes:
        name, title, source: what it is and where it stands.
        units: what its authors counted.
        domain: ranges of the runs it rests on, by name; empty where not published.
        lr, batch: monomials, None where the source has none.
        loss: terms of E + Σ coefficient·x^-exponent as monomials, the constant included; empty where none.
        errors: measured here on tables it was not fitted on: {table: {"cells", "mean", "max"}} in relative excess.
        note: what a user must know.
    """

    name: str
    title: str
    source: str
    units: str
    domain: Mapping[str, tuple[float, float]]
    lr: Monomial | None
    batch: Monomial | None
    loss: tuple[Monomial, ...]
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""

    def _values(self, size: float, tokens: float, batch: float | None) -> dict[str, float]:
        values = {"size": positive("size", size), "tokens": positive("tokens", tokens)}
        values["compute"] = 6.0 * values["size"] * values["tokens"]
        if batch is not None:
            values["batch"] = positive("batch", batch)
        return values

    def predict_lr(
        self,
        size: float,
        tokens: float,
        *,
        batch: float | None = None,
        anchor: tuple[float, float, float] | None = None,
    ) -> float:
        """Optimal lr.

        Args:
            size, tokens, batch: where.
            anchor: (size, tokens, lr) of a known optimum, needed by laws that publish exponents only.
        """
        if self.lr is None:
            raise LibraryError(f"{self.name} says nothing of lr")
        values = self._values(size, tokens, batch)
        if not math.isnan(self.lr.coefficient):
            return self.lr(values)
        if anchor is None:
            raise LibraryError(f"{self.name} publishes exponents only: give anchor=(size, tokens, lr)")
        shape = Monomial(1.0, self.lr.exponents)
        return (
            positive("lr of the anchor", anchor[2]) * shape(values) / shape(self._values(*anchor[:2], batch))
        )

    def predict_batch(
        self, size: float, tokens: float, *, anchor: tuple[float, float, float] | None = None
    ) -> float:
        """Optimal batch in tokens; `anchor` is (size, tokens, batch)."""
        if self.batch is None:
            raise LibraryError(f"{self.name} says nothing of the batch")
        values = self._values(size, tokens, None)
        if not math.isnan(self.batch.coefficient):
            return self.batch(values)
        if anchor is None:
            raise LibraryError(f"{self.name} publishes exponents only: give anchor=(size, tokens, batch)")
        shape = Monomial(1.0, self.batch.exponents)
        known = positive("batch of the anchor", anchor[2])
        return known * shape(values) / shape(self._values(anchor[0], anchor[1], None))

    def predict_loss(self, size: float, tokens: float) -> float:
        """Loss at the optimum, in the units of the law's own data."""
        if not self.loss:
            raise LibraryError(f"{self.name} says nothing of the loss")
        values = self._values(size, tokens, None)
        return math.fsum(term(values) for term in self.loss)

    @property
    def complete(self) -> bool:
        """Whether lr and batch can be predicted without an anchor."""
        return all(
            m is not None and m.coefficient > 0 and "batch" not in m.exponents for m in (self.lr, self.batch)
        )


@dataclass(frozen=True)
class FittedLaw:
    """A law fitted here, with where its table came from."""

    name: str
    title: str
    source: str
    licence: str
    units: str
    law: Law
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def load(name: str) -> PublishedLaw | FittedLaw:
    """The law of this name.

    Raises:
        LibraryError: there is none.
    """
    data = entry(name)
    if data["kind"] == "fitted":
        law = Law.from_json(json.dumps(data["law"]))
        return FittedLaw(
            name, data["title"], data["source"], data["licence"], data["units"], law, data.get("errors", {})
        )
    return PublishedLaw(
        name,
        data["title"],
        data["source"],
        data["units"],
        {k: (float(v[0]), float(v[1])) for k, v in data["domain"].items()},
        _monomial(data.get("lr")),
        _monomial(data.get("batch")),
        tuple(m for m in map(_monomial, data.get("loss", ())) if m is not None),
        data.get("errors", {}),
        data.get("note", ""),
    )


def prior(name: str) -> Law:
    """A fitted law for `fit(..., prior=…)`.

    Raises:
        LibraryError: the name is that of a published law, which carries no intervals.
    """
    return Law.of(fitted(name))


def _monomial(data: Mapping[str, object] | None) -> Monomial | None:
    if data is None:
        return None
    raw = dict(data)
    coefficient = raw.pop("coefficient", None)
    value = math.nan if coefficient is None else float(str(coefficient))
    return Monomial(value, {k: float(str(v)) for k, v in raw.items()})
