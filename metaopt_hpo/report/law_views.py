"""What the report's figures about rates and the fitted law show, as plain data: drawn by `figures`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.outcome import Outcome
from metaopt_hpo.comparison.results import PILOT
from metaopt_hpo.report import words
from metaopt_hpo.scaling import Prediction
from metaopt_hpo.trials.record import TrialRecord

CURVE_POINTS = 61


@dataclass(frozen=True)
class SizeCurve:
    """Loss against lr at one size: the trials, and where a law was fitted its curve and optimum."""

    size: float
    is_target: bool
    lr: tuple[float, ...]
    loss: tuple[float, ...]
    label: tuple[str, ...]
    """Of each trial: who proposed it, and its seed."""
    failed_lr: tuple[float, ...]
    """lr of the trials that diverged or failed."""
    law_lr: tuple[float, ...]
    law_loss: tuple[float, ...]
    optimum: tuple[float, float] | None
    """(lr, loss) at the bottom of the law's curve."""


@dataclass(frozen=True)
class LossAtRate:
    """Loss against lr, one curve for each size, ascending."""

    curves: tuple[SizeCurve, ...]

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        if any(c.lr for c in self.curves):
            return ""
        return "No completed trial had its learning rate set from outside, so there is no loss against rate to show."

    @property
    def summary(self) -> str:
        """The figure in words."""
        parts = []
        for c in self.curves:
            if c.lr:
                i = int(np.argmin(c.loss))
                where = f"the law's optimum at {words.scientific(c.optimum[0])}" if c.optimum else ""
                where = f", {where}" if where else ""
                parts.append(
                    f"{words.count(c.size)} parameters: lowest loss {words.loss(c.loss[i])} "
                    f"at rate {words.scientific(c.lr[i])}{where}"
                )
        failed = sum(len(c.failed_lr) for c in self.curves)
        text = f"{'; '.join(parts)}."
        if failed:
            text += f" {words.plural(failed, 'trial')} diverged or failed (crosses along the top)."
        return text


def loss_at_rate(outcome: Outcome) -> LossAtRate:
    """Trials whose lr was set from outside, pruned ones left out: a truncated run's loss is no final loss."""
    plan = outcome.comparison.plan
    law = outcome.law.law if outcome.law else None
    records = [r for r in outcome.comparison.table.records() if _external(r)]
    curves = []
    for size in sorted({*plan.pilot_sizes, plan.size}):
        own = [r for r in records if r.size == size]
        done = sorted(
            (r for r in own if r.state == "complete" and math.isfinite(r.loss) and r.loss > 0),
            key=lambda r: r.lr,
        )
        failed = sorted(r.lr for r in own if r.state in ("diverged", "failed"))
        law_lr: tuple[float, ...] = ()
        law_loss: tuple[float, ...] = ()
        optimum = None
        if law is not None:
            low, high = plan.lr_bounds
            grid = np.geomspace(low, high, CURVE_POINTS)
            law_lr = tuple(float(v) for v in grid)
            law_loss = tuple(float(v) for v in law.loss(size, plan.tokens, plan.batch, grid))
            p = law.predict(size=size, tokens=plan.tokens, batch=plan.batch)
            optimum = (p.lr.value, p.loss.value)
        curves.append(
            SizeCurve(
                size=size,
                is_target=size == plan.size,
                lr=tuple(r.lr for r in done),
                loss=tuple(r.loss for r in done),
                label=tuple(f"{_proposer(r)}, seed {r.seed}" for r in done),
                failed_lr=tuple(failed),
                law_lr=law_lr,
                law_loss=law_loss,
                optimum=optimum,
            )
        )
    return LossAtRate(tuple(curves))


def _external(r: TrialRecord) -> bool:
    """Whether the trial's lr is the rate it trained with, not where an adaptive strategy started."""
    if math.isfinite(r.found_lr):
        return False
    if r.method == PILOT:
        return True
    try:
        return method(r.method).kind != "self-tuning"
    except ValueError:
        return True


def _proposer(r: TrialRecord) -> str:
    if r.method == PILOT:
        return "smaller model"
    try:
        return method(r.method).title
    except ValueError:
        return r.method


@dataclass(frozen=True)
class Found:
    """Rates that one method's best trials had at the target size, one a seed."""

    method: str
    title: str
    lr: tuple[float, ...]


@dataclass(frozen=True)
class OptimalRate:
    """Optimal lr against size: the law with its interval, the smaller models' own optima, and the target's."""

    target: float
    size: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    level: float
    pilots: tuple[tuple[float, int, float], ...]
    """(size, seed, lr of the best trial)."""
    prediction: Prediction | None
    found: tuple[Found, ...]
    found_lr: float
    """Geometric mean over seeds of the reference's."""
    reference_title: str
    refusal: str
    cautions: tuple[str, ...]
    description: str
    """The law's own words, a few lines; empty without one."""

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        if self.pilots or self.prediction is not None:
            return ""
        if self.refusal:
            return "No smaller model finished a trial, so there is nothing to show across sizes."
        return "No smaller models were run, so there is no law across sizes."

    @property
    def summary(self) -> str:
        """The figure in words."""
        found = (
            f"the best trials of {self.reference_title} there had {words.scientific(self.found_lr)}"
            if math.isfinite(self.found_lr)
            else f"{self.reference_title} found no rate there"
        )
        if self.prediction is None:
            return f"No law was fitted, so there is no prediction. At the target, {found}."
        lr = self.prediction.lr
        text = (
            f"For {words.count(self.target)} parameters the law predicts a learning rate of "
            f"{words.scientific(lr.value)} ({self.level:.0%} interval {words.scientific(lr.low)} to "
            f"{words.scientific(lr.high)}); {found}"
        )
        if math.isfinite(self.found_lr):
            ratio = self.found_lr / lr.value
            away = f"{max(ratio, 1 / ratio):.2g}× {'higher' if ratio > 1 else 'lower'}"
            inside = "inside" if self.found_lr in lr else "outside"
            text += f", {away} and {inside} the interval"
        return text + "."


def optimal_rate(outcome: Outcome) -> OptimalRate:
    """The law between the smallest model and a little beyond the target; its absence where it was refused."""
    plan = outcome.comparison.plan
    known = outcome.law
    law = known.law if known else None
    records = outcome.comparison.table.records()
    best: dict[tuple[float, int], TrialRecord] = {}
    for r in records:
        if r.method == PILOT and r.state == "complete" and math.isfinite(r.loss):
            key = (r.size, r.seed)
            if key not in best or r.loss < best[key].loss:
                best[key] = r
    sizes: tuple[float, ...] = ()
    estimates = []
    cautions: tuple[str, ...] = ()
    if law is not None and known is not None:
        first = min((*plan.pilot_sizes, *(s for s, _ in best), plan.size))
        sizes = tuple(float(v) for v in np.geomspace(first / 1.2, plan.size * 1.2, CURVE_POINTS))
        estimates = [law.predict(size=s, tokens=plan.tokens, batch=plan.batch).lr for s in sizes]
        warnings = known.prediction.warnings if known.prediction else law.warnings
        cautions = tuple(dict.fromkeys(w.message for w in warnings))
    found = tuple(
        Found(m.name, m.title, tuple(t.lr for t in m.trajectories if math.isfinite(t.lr) and t.lr > 0))
        for m in outcome.methods
    )
    return OptimalRate(
        target=plan.size,
        size=sizes,
        value=tuple(e.value for e in estimates),
        low=tuple(e.low for e in estimates),
        high=tuple(e.high for e in estimates),
        level=law.level if law is not None else math.nan,
        pilots=tuple((s, seed, r.lr) for (s, seed), r in sorted(best.items())),
        prediction=known.prediction if known else None,
        found=found,
        found_lr=known.found_lr if known else math.nan,
        reference_title=outcome.reference.title,
        refusal=known.refusal if known else "",
        cautions=cautions,
        description=law.describe() if law is not None else "",
    )
