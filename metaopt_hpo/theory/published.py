"""Published exponents of lr in tokens, as cited, beside a bound's and a fit's; nothing here is tuned to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metaopt_hpo.scaling import library
from metaopt_hpo.theory.fitted import FittedExponents
from metaopt_hpo.theory.predicted import predicted_exponents


@dataclass(frozen=True, slots=True)
class PublishedExponent:
    """What a source reports about lr against tokens, as cited; never a value this project is tuned to.

    Examples:
        >>> from metaopt_hpo.theory import published_exponents
        >>> published_exponents()[0].source != ""
        True
    """

    source: str
    reference: str
    tokens: float
    """Exponent of lr in D along the source's own batch path."""
    b: float
    """Exponent of batch in D along that path; 0 where batch was fixed."""
    note: str = ""

    @property
    def bound(self) -> float:
        """What the bound predicts at fixed momentum along the same path: (b − 1)/2."""
        return predicted_exponents().along(self.b)

    @property
    def gap(self) -> float:
        """Observed minus bound."""
        return self.tokens - self.bound


BESIDES_LIBRARY: tuple[PublishedExponent, ...] = (
    PublishedExponent("HyperP (Muon)", "arXiv:2603.28743", -0.32, 0.0, "B^0.56 at fixed tokens (bound 0.5)"),
    PublishedExponent(
        "von Rütte et al.", "diffusion LM, constant lr", 0.28, 0.82, "lr ~ B^0.34 along that path"
    ),
)
"""Published exponents that are no law of the library: they come without a way to predict."""


def published_exponents() -> tuple[PublishedExponent, ...]:
    """Everything published that separates tokens from size: the law library's laws and the exponents besides.

    Laws that follow compute (DeepSeek) confound D with N and are left out.

    Examples:
        >>> from metaopt_hpo.theory import published_exponents
        >>> len(published_exponents()) > 1
        True
    """
    found = []
    for name in library.names():
        law = library.load(name)
        if not isinstance(law, library.PublishedLaw) or law.lr is None or "compute" in law.lr.exponents:
            continue
        b = law.batch.exponents.get("tokens", 0.0) if law.batch is not None else 0.0
        total = law.lr.exponents.get("tokens", 0.0) + b * law.lr.exponents.get("batch", 0.0)
        found.append(PublishedExponent(law.title, law.source, total, b, law.note))
    return (*found, *BESIDES_LIBRARY)


def side_by_side(
    fitted: FittedExponents, *, b: float, published: Sequence[PublishedExponent] | None = None
) -> list[tuple[str, float, float, float]]:
    """Rows (source, exponent of lr in D, bound at the source's b, gap): the fit along B ~ D^b first, then published.

    `published` defaults to `published_exponents()`.

    Examples:
        >>> from metaopt_hpo import TrialRecord, TrialTable
        >>> table = TrialTable.from_records(
        ...     TrialRecord(size=1e6, tokens=d, batch=b, lr=x, loss=3 + (x / (4e-3 * (1e4 * b / d) ** 0.5) - 1) ** 2)
        ...     for d in (1e9, 4e9, 1.6e10)
        ...     for b in (1e5, 4e5)
        ...     for x in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ... )
        >>> from metaopt_hpo.theory import fit_exponents, side_by_side
        >>> rows = side_by_side(fit_exponents(table, bootstrap=100), b=0.0)
        >>> len(rows[0])
        4
    """
    mine = fitted.along(b).value
    bound = predicted_exponents().along(b)
    rows = [(f"fitted, b = {b:g}", mine, bound, mine - bound)]
    others = published_exponents() if published is None else published
    return rows + [(p.source, p.tokens, p.bound, p.gap) for p in others]
