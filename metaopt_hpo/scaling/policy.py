"""The one policy that every integration calls: verdicts on runs, and which configuration to run next.

Pure functions of a law (or table) and a context: no framework, no clock, randomness only from the seed given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from metaopt_hpo.scaling.estimates import LawRefused, positive
from metaopt_hpo.scaling.forecast import CurveLike, forecast
from metaopt_hpo.scaling.law import Law

if TYPE_CHECKING:
    from metaopt_hpo.trials.table import TrialTable

Action = Literal["launch", "keep", "stop", "abstain"]

STOP_BELOW = 0.05
"""A run is stopped, or not launched, when its chance of beating the incumbent is below this."""

TRUST_FACTOR = 64.0
"""Further than this outside the fitted sizes or tokens the law gives no verdict."""

MARGIN = 0.01
"""Without an incumbent a run is measured against the law's own best: within this relative loss counts as good."""

START_LRS = 5
"""Distinct lr a cell should hold before the next cell is begun, while no law can be fitted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a run: `probability` is that of beating the incumbent, `reason` one sentence."""

    action: Action
    probability: float
    reason: str


def verdict(
    law: Law,
    *,
    size: float,
    tokens: float,
    lr: float,
    batch: float,
    incumbent: float | None = None,
    curve: CurveLike | None = None,
    stop_below: float = STOP_BELOW,
) -> Verdict:
    """Launch or keep a run that may win, stop one that cannot, abstain where the law does not know.

    Args:
        law: a fitted law.
        size, tokens, lr, batch: the run, `tokens` being those it is to see in all.
        incumbent: the loss to beat at the same size and tokens. None measures the run against the law's own
            best there: good is within 1 % of it.
        curve: the run's reports so far; None before it starts.
        stop_below: chance of winning below which the run is stopped (default 0.05: one winner in twenty lost).
    """
    if incumbent is not None:
        positive("incumbent", incumbent)
    f = forecast(law, size=size, tokens=tokens, lr=lr, batch=batch, curve=curve)
    started = curve is not None
    if f.factor > TRUST_FACTOR:
        return Verdict("abstain", 0.5, f"{f.factor:.3g} times outside the fitted sizes or tokens")
    if incumbent is None:
        own = math.log1p(MARGIN)
        sd = math.sqrt(max(f.excess, 0.0) * 0.5 * own + law.noise**2)
        p = 0.5 * math.erfc((f.excess - own) / (sd * math.sqrt(2.0)))
        goal = f"within {MARGIN:.0%} of the best at this size"
    else:
        p = f.probability_below(incumbent)
        goal = f"a loss below {incumbent:.4g}"
    if p < stop_below:
        return Verdict("stop", p, f"{p:.1%} chance of {goal}; {f.loss.value:.4g} expected")
    action: Action = "keep" if started else "launch"
    return Verdict(action, p, f"{p:.0%} chance of {goal}; {f.loss.value:.4g} expected")


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration to run."""

    size: float
    tokens: float
    batch: float
    lr: float

    @property
    def cost(self) -> float:
        """Training FLOPs, 6·N·D."""
        return 6.0 * self.size * self.tokens


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a proposal may choose from.

    Attributes:
        target: (size, tokens) for which lr and batch are wanted.
        candidates: (size, tokens) pairs that may be run; the target need not be among them.
        lr: (low, high) bounds.
        batch: (low, high) bounds; equal where the batch is fixed.
        budget: FLOPs left (default unlimited).
        incumbent: best loss at the target so far.
        running: configurations under way, not to be proposed twice.
        seed: of the candidates' random lr and batch.
        patience: stop learning when the target's expected excess through ignorance is below this relative loss
            (default 0.1 %, about the scatter of one run).
    """

    target: tuple[float, float]
    candidates: tuple[tuple[float, float], ...]
    lr: tuple[float, float]
    batch: tuple[float, float]
    budget: float = math.inf
    incumbent: float | None = None
    running: tuple[Config, ...] = ()
    seed: int = 0
    patience: float = 1e-3

    def __post_init__(self) -> None:
        for pair in (self.target, *self.candidates):
            positive("size", pair[0])
            positive("tokens", pair[1])
        for name in ("lr", "batch"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {(low, high)!r}")
        if not self.candidates:
            raise ValueError("candidates must hold at least one (size, tokens)")


@dataclass(frozen=True, slots=True)
class Proposal:
    """The configuration to run next.

    Attributes:
        config: what to run.
        gain: expected fall of the target's relative excess loss through this run.
        gain_per_flop: that, per training FLOP.
        reason: one sentence.
    """

    config: Config
    gain: float
    gain_per_flop: float
    reason: str


def propose(table: TrialTable | None, context: Context, *, law: Law | None = None) -> Proposal:
    """Which configuration teaches, or earns, most per FLOP.

    Args:
        table: trials so far; None or too few lead to a space-filling start at the cheapest candidates.
        context: what may be chosen.
        law: a law fitted to `table` already (a sampler keeps one); fitted here when None.

    Returns:
        A proposal; equal arguments give an equal proposal.
    """
    if law is None and table is not None and len(table):
        from metaopt_hpo.scaling.fitting import fit

        try:
            law = fit(table, allow_weak=True, draws=60, seed=context.seed)
        except LawRefused:
            law = None
    if law is None:
        return _explore(table, context)
    return _informed(law, context)


def sample_near_optimum(
    law: Law,
    *,
    size: float,
    tokens: float,
    lr_bounds: tuple[float, float],
    batch_bounds: tuple[float, float] | None = None,
    rng: np.random.Generator,
    temperature: float = 1.0,
) -> tuple[float, float]:
    """(lr, batch) drawn from the law's distribution of the optimum at (size, tokens), clipped to bounds.

    `temperature` scales the spread (ln units); a spread of at least 0.1 keeps a search moving.
    """
    p = law.predict(size=size, tokens=tokens)
    sx, sy, rho = p.spread
    z1, z2 = rng.standard_normal(2)
    x = math.log(p.lr.value) + temperature * max(sx, 0.1) * z1
    y = math.log(p.batch.value)
    if law.surface.has_batch:
        y += temperature * max(sy, 0.1) * (rho * z1 + math.sqrt(max(1.0 - rho * rho, 0.0)) * z2)
    low, high = batch_bounds if batch_bounds is not None else (math.exp(y), math.exp(y))
    return (
        float(min(max(math.exp(x), lr_bounds[0]), lr_bounds[1])),
        float(min(max(math.exp(y), low), high)),
    )


def spread_points(n: int, seed: int) -> np.ndarray:
    """n points of an additive recurrence in the unit square (plastic number): even at every length."""
    g = 1.32471795724474602596
    alpha = np.array([1.0 / g, 1.0 / g**2])
    shift = np.random.default_rng(seed).random(2)
    return np.asarray((shift + np.arange(1, n + 1)[:, None] * alpha) % 1.0)


def _between(bounds: tuple[float, float], u: float) -> float:
    return float(bounds[0] * (bounds[1] / bounds[0]) ** u)


def _explore(table: TrialTable | None, context: Context) -> Proposal:
    """Fill the cheapest candidates with spread-out lr until a law can be fitted."""
    counts: dict[tuple[float, float], int] = dict.fromkeys(context.candidates, 0)
    if table is not None:
        for s, t in zip(table.frame["size"], table.frame["tokens"], strict=True):
            if (s, t) in counts:
                counts[s, t] += 1
    for run in context.running:
        if (run.size, run.tokens) in counts:
            counts[run.size, run.tokens] += 1
    cheap = sorted(counts, key=lambda c: c[0] * c[1])
    affordable = [c for c in cheap if 6.0 * c[0] * c[1] <= context.budget] or cheap[:1]
    sizes: set[float] = set()
    for c in affordable:
        if c[0] in sizes:
            continue
        sizes.add(c[0])
        if counts[c] < START_LRS:
            break
    else:
        c = min(affordable, key=lambda c: (counts[c], c[0] * c[1]))
    u = spread_points(counts[c] + 1, context.seed)[-1]
    config = Config(c[0], c[1], _between(context.batch, u[1]), _between(context.lr, u[0]))
    return Proposal(
        config, math.nan, math.nan, "no law can be fitted yet: cover lr at the cheapest sizes first"
    )


def _informed(law: Law, context: Context) -> Proposal:
    size, tokens = context.target
    rng = np.random.default_rng(context.seed)
    x_draws, y_draws = law.optimum_draws(size, tokens)
    h = law.surface.h
    ignorance = float(0.5 * (h[0] * x_draws.var() + h[2] * y_draws.var()))
    target_cost = 6.0 * size * tokens
    cheapest = min(6.0 * s * t for s, t in context.candidates)
    busy = any((c.size, c.tokens) == (size, tokens) for c in context.running)
    if not busy and (ignorance < context.patience or context.budget < target_cost + cheapest):
        lr, batch = law.best_within(size, tokens, context.lr, context.batch)
        why = (
            "the law knows the target's optimum well enough"
            if ignorance < context.patience
            else "the budget is nearly spent"
        )
        return Proposal(
            Config(size, tokens, batch, lr), ignorance, ignorance / target_cost, f"{why}: run the target"
        )
    best: tuple[float, Config, float] | None = None
    for s, t in dict.fromkeys((*context.candidates, context.target)):
        cost = 6.0 * s * t
        if cost > context.budget:
            continue
        lrs, batches = _trial_points(law, s, t, context, rng)
        gain = _teaching(law, s, t, lrs, batches, x_draws, y_draws)
        same = sum((c.size, c.tokens) == (s, t) for c in context.running)
        gain = gain / (1.0 + same)
        i = int(np.argmax(gain))
        rate = float(gain[i]) / cost
        if best is None or rate > best[0]:
            best = (rate, Config(s, t, float(batches[i]), float(lrs[i])), float(gain[i]))
    if best is None:
        s, t = min(context.candidates, key=lambda c: c[0] * c[1])
        lr, batch = law.best_within(s, t, context.lr, context.batch)
        return Proposal(
            Config(s, t, batch, lr), 0.0, 0.0, "nothing affordable is left: the cheapest candidate"
        )
    rate, config, gain_value = best
    reason = f"teaches most per FLOP: the target's expected excess falls by {gain_value:.2%} of loss"
    return Proposal(config, gain_value, rate, reason)


def _trial_points(
    law: Law, size: float, tokens: float, context: Context, rng: np.random.Generator, n: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Configurations around the predicted optimum, wide enough to see both slopes of the bowl."""
    p = law.predict(size=size, tokens=tokens)
    lr = np.exp(math.log(p.lr.value) + rng.uniform(-1.4, 1.4, n))
    batch = np.full(n, p.batch.value)
    if law.surface.has_batch:
        batch = batch * np.exp(rng.uniform(-1.4, 1.4, n))
    return np.clip(lr, *context.lr), np.clip(batch, *context.batch)


def _teaching(
    law: Law, size: float, tokens: float, lrs: np.ndarray, batches: np.ndarray, tx: np.ndarray, ty: np.ndarray
) -> np.ndarray:
    """Expected fall of the target's excess after seeing each run, by linear regression over the draws."""
    x, y = law.optimum_draws(size, tokens)
    z = law.surface.excess(np.log(lrs)[:, None] - x[None, :], np.log(batches)[:, None] - y[None, :])
    # the floor of a cell is not known to the noise's precision, so part of a lone run's news is lost
    z = z - z.mean(axis=1, keepdims=True)
    noise = 2.0 * law.noise**2
    variance = (z * z).mean(axis=1) + noise
    out = np.zeros(len(lrs))
    for target, weight in ((tx, law.surface.h[0]), (ty, law.surface.h[2])):
        d = target - target.mean()
        out += 0.5 * weight * (z @ d / d.size) ** 2 / variance
    return np.asarray(out)
