"""The face of laws: fit one, and a law that forecasts, judges, refits and describes itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Self

from metaopt_hpo import markup
from metaopt_hpo.scaling import build, law
from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.scaling.describe import describe
from metaopt_hpo.scaling.fitting.reading import Use
from metaopt_hpo.scaling.forecast import CurveLike, Forecast, forecast
from metaopt_hpo.scaling.policy import Finished, Verdict, verdict

if TYPE_CHECKING:
    from metaopt_hpo.trials.table import TrialTable


class Law(law.Law):
    """Loss over (size, tokens, batch, lr), fitted to a table of trials. Build one with `fit`.

    Its data and its predictions are those of `scaling.law.Law`.

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> p = law.predict(size=1e9, tokens=1e11)
        >>> p.lr.low < p.lr.value < p.lr.high
        True
        >>> law.verdict(size=1e9, tokens=1e11, lr=0.1, batch=2**20, incumbent=2.3).action
        'stop'
    """

    @classmethod
    def of(cls, fitted: law.Law) -> Self:
        """A law with its conveniences, from its data."""
        kept = [f.name for f in fields(fitted) if not f.name.startswith("_")]
        return cls(**{name: getattr(fitted, name) for name in kept})

    def forecast(
        self, *, size: float, tokens: float, lr: float, batch: float, curve: CurveLike | None = None
    ) -> Forecast:
        """Distribution of one configuration's final loss; see `scaling.forecast`."""
        return forecast(self, size=size, tokens=tokens, lr=lr, batch=batch, curve=curve)

    def verdict(
        self,
        *,
        size: float,
        tokens: float,
        lr: float,
        batch: float,
        incumbent: float | None = None,
        curve: CurveLike | None = None,
        finished: Iterable[Finished | tuple[float, float, float]] = (),
    ) -> Verdict:
        """Launch, keep, stop or abstain; see `scaling.policy.verdict`."""
        return verdict(
            self,
            size=size,
            tokens=tokens,
            lr=lr,
            batch=batch,
            incumbent=incumbent,
            curve=curve,
            finished=finished,
        )

    def refit(self, table: TrialTable) -> Law:
        """The law after more trials, in a fraction of the time: see `scaling.build.refit`."""
        return Law.of(build.refit(self, table))

    def _repr_html_(self) -> str:
        """For notebooks: what `describe` says; `metaopt_hpo.plot(law)` draws it."""
        return markup.said(self.describe(), caption="Law across model sizes")

    def describe(self) -> str:
        """The law in words and numbers, a few lines."""
        return describe(self)


def fit(
    table: TrialTable,
    *,
    allow_weak: bool = False,
    prior: law.Law | None = None,
    base: BaseLike | Sequence[BaseLike] | None = None,
    use: Use = "fixed",
    strategy: str | None = None,
    extra: str | Sequence[str] = (),
    size: str | Sequence[str] = "size",
    bowl: str = "cubic",
    floor: str = "power",
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Law:
    """Fit one law to all trials of a table.

    Args:
        table: trials of at least three sizes, each with at least three lr in some cells.
        allow_weak: fit even from two sizes, or from optima that all lie at the grid's edge; the law then
            carries a caution instead.
        prior: a law whose exponents are believed within its intervals, along every axis that it knows; its optimum is
            where the fit begins. It lifts the same refusals, and three trials are enough. Where trials that bear a law
            of their own contradict it, it is left out, with a warning.
        base: tables or laws of like models to borrow strength from (`scaling.base`): a few cheap pilots then move
            their optimum, exponents and curvature to this table's own. A table, a law, a name of the library's fitted
            laws, or a list of them; it lifts the refusals too. Not together with `prior`.
        use: which trials' lr counts: "fixed" (schedules set from outside), "plateau" (adaptive strategies at
            the step size they settled on), "all".
        strategy: only trials of this strategy.
        extra: hyperparameters that are further coordinates of the optimum and of its loss, in numbers (weight_decay,
            beta2, width, …) or in words ("schedule", "optimizer", …: one offset for each value but the most frequent).
        size: what counts as size: the table's own, or a hyperparameter that holds another count ("total_params"). Of
            several, ordered validation chooses one, which `law.size_counts` and a warning name.
        bowl, floor: names of the forms of the loss about the optimum (`scaling.forms.bowl`) and of the loss floor
            (`scaling.forms.floor`).
        draws: bootstrap draws (hierarchical: sizes, cells, runs).
        level: coverage of intervals.
        seed: of the bootstrap.

    Raises:
        LawRefused: with `.code` and `.reason`.

    Examples:
        >>> from metaopt_hpo import TrialRecord, TrialTable
        >>> rates = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        >>> table = TrialTable.from_records(
        ...     TrialRecord(size=n, tokens=1e9, batch=2**16, lr=x, loss=3 * n**-0.01 * (1 + (x / 4e-3 - 1) ** 2 / 50))
        ...     for n in (1e6, 4e6, 16e6)
        ...     for x in rates
        ... )
        >>> from metaopt_hpo import fit
        >>> law = fit(table, draws=20, allow_weak=True)
        >>> f"{law.predict(size=64e6, tokens=1e9).lr.value:.0e}"
        '4e-03'
    """
    return Law.of(
        build.fit(
            table,
            allow_weak=allow_weak,
            prior=prior,
            base=base,
            use=use,
            strategy=strategy,
            extra=extra,
            size=size,
            bowl=bowl,
            floor=floor,
            draws=draws,
            level=level,
            seed=seed,
        )
    )
