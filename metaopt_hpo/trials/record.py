"""One trial as plain data: what a run leaves behind. No pandas, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

TrialState = Literal["complete", "stopped", "pruned", "diverged", "failed", "running"]
"""How a run ended: `complete` reached its planned tokens; `stopped` ended by itself before them (an early-stopping
callback, a loop that was satisfied); `pruned` was stopped by a decision; `diverged` produced a non-finite or
exploding loss; `failed` raised; `running` has not ended."""

Tuning = Literal["", "self", "external"]
"""Who sets the learning rate of a run, in AlgoPerf's terms: the run itself (`self`), or whoever started it
(`external`); empty where nobody recorded it."""

EnergySource = Literal["measured", "estimated", "unavailable"]

GRID_POINTS_PER_OCTAVE = 8
MAX_REPORTS = 100


def token_grid(
    stop: float, *, start: float = 1.0, stride: int = 1, max_points: int = MAX_REPORTS
) -> list[int]:
    """The points of the shared token grid t_k = ceil(2^(k/8)) in (start, stop].

    All sizes share the grid, so curves of any two trials meet at equal tokens and a framework's integer
    step is a token count. At most `max_points` are returned, the latest ones: early points carry least
    about the final loss, and frameworks re-read every report of a running trial.

    Args:
        stop: tokens at the end of the run.
        start: tokens below which nothing is reported.
        stride: keep only the points whose k is a multiple of it; strides that divide each other share points.
        max_points: upper bound on the number of points (default 100).

    Examples:
        >>> from metaopt_hpo import token_grid
        >>> token_grid(16, stride=8)
        [2, 4, 8, 16]
    """
    if not (math.isfinite(stop) and stop >= 1):
        raise ValueError(f"stop must be a finite number of tokens >= 1, got {stop!r}")
    if max_points < 1 or stride < 1:
        raise ValueError(f"max_points and stride must be at least 1, got {max_points!r} and {stride!r}")
    grid: list[int] = []
    k = math.floor(GRID_POINTS_PER_OCTAVE * math.log2(stop)) + 1
    while k >= 0 and len(grid) < max_points:
        t, on_stride = math.ceil(2.0 ** (k / GRID_POINTS_PER_OCTAVE)), k % stride == 0
        k -= 1
        if t <= start:
            break
        if t <= stop and on_stride and (not grid or t != grid[-1]):
            grid.append(t)
    return grid[::-1]


SPARSEST = 32
"""Every how many points of the token grid `report_grid` keeps at the least: one in four octaves."""


def report_grid(stop: float, *, start: float = 1.0, reports: int = 40) -> list[int]:
    """Points of the shared token grid at which a run is evaluated: few early, many late, at most `reports`.

    The last octaves before `stop` hold all eight points, the octaves before them four, two, one, and one in four. Every
    distance is a power of two on the grid, so that two runs share, at any number of tokens, the points of the one that
    has fewer there, whatever their lengths. The last step itself comes on top.

    Args:
        stop: tokens at the end of the run.
        start: tokens below which nothing is reported.
        reports: upper bound on the number of points (default 40: three dense octaves, so that no more than a
            twelfth of the run lies between two late points).
    """
    if reports < 1:
        raise ValueError(f"reports must be at least 1, got {reports!r}")
    octaves = math.ceil(math.log2(max(2.0, stop)))
    layouts = [(1, dense) for dense in range(octaves, 2, -1)] + [(s, 3) for s in (2, 4, 8)]
    grid: list[int] = []
    for finest, dense in layouts:
        grid = _thinned(stop, start, finest, dense)
        if len(grid) <= reports:
            return grid
    return grid[-reports:]


def _thinned(stop: float, start: float, finest: int, dense: int) -> list[int]:
    """Grid points, every `finest`-th in the last `dense` octaves, twice as sparse in each octave before them."""
    last = math.floor(GRID_POINTS_PER_OCTAVE * math.log2(max(1.0, stop)))
    grid: list[int] = []
    for k in range(last, -1, -1):
        back = (last - k) // GRID_POINTS_PER_OCTAVE
        stride = min(SPARSEST, finest * 2 ** min(max(0, back - dense + 1), 8))
        t = math.ceil(2.0 ** (k / GRID_POINTS_PER_OCTAVE))
        if k % stride == 0 and start < t <= stop and (not grid or t != grid[-1]):
            grid.append(t)
    return grid[::-1]


@dataclass(frozen=True, slots=True)
class Curve:
    """Intermediate reports of one run, equal-length tuples keyed by `tokens` (strictly increasing).

    `loss` is held-out loss (nats per token); the others are NaN where the run did not measure them.
    """

    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    step_size: tuple[float, ...] = ()
    """Mean step size α in force (geometric mean over blocks)."""
    grad_norm: tuple[float, ...] = ()
    grad_noise: tuple[float, ...] = ()
    """Gradient-noise scale tr Σ / |G|², in tokens (McCandlish et al. 2018, eq. 2.8), two-batch estimate."""
    cost: tuple[float, ...] = ()
    """Cumulative training FLOPs."""
    seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.tokens)
        for name in CURVE_FIELDS[1:]:
            values = getattr(self, name)
            if not values:
                object.__setattr__(self, name, (math.nan,) * n)
            elif len(values) != n:
                raise ValueError(f"curve field {name!r} has {len(values)} values for {n} token counts")
        if any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("curve tokens must increase strictly")


REACHED = 0.99
"""Share of its planned tokens from which a run has reached them, by the tokens it has *seen*: loops rarely end at
exactly the number planned."""

REACHED_BY_REPORT = 0.95
"""The same by the *last report* of a run that its framework says has ended by itself: a loop reports before its last
steps, part batches fall short, and tokens are often planned in round numbers."""

REACHED_ON_GRID = 0.75
"""The same by the last report before a batch less than planned, where reports may be as sparse as four an octave: a run
that went to its end has a later one."""

CURVE_FIELDS = ("tokens", "loss", "step_size", "grad_norm", "grad_noise", "cost", "seconds")


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One run. Units are those of `trials.schema`; NaN means "not measured" or "has none".

    Examples:
        >>> from metaopt_hpo import TrialRecord
        >>> record = TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-3, loss=3.2)
        >>> record.state, record.self_tuning
        ('complete', False)
    """

    size: float
    """Trainable non-embedding parameters."""
    tokens: float
    """Training tokens seen (examples, where there are no tokens)."""
    batch: float
    """Tokens per optimizer step."""
    lr: float
    """The knob: peak lr of a schedule, initial step size of an adaptive strategy."""
    loss: float
    """Held-out loss at the end of the run or so far, nats per token; always minimised."""
    trial: str = ""
    """Unique within `study`."""
    study: str = ""
    engine: str = ""
    method: str = ""
    """Search method that proposed the run: grid, random, tpe, metaoptimize, law …"""
    workload: str = ""
    strategy: str = ""
    tuning: Tuning = ""
    """Whether the strategy finds the learning rate itself: its `tunes_lr`, which only the strategy knows."""
    state: TrialState = "complete"
    reason: str = ""
    """Why it was pruned, diverged or failed; one sentence."""
    seed: int = 0
    initial_loss: float = math.nan
    """Held-out loss before the first step."""
    target_tokens: float = math.nan
    """Tokens the run was planned for; those it saw where it completed and does not say."""
    cost: float = math.nan
    """Training FLOPs actually spent (6·N·D unless measured)."""
    seconds: float = math.nan
    joules: float = math.nan
    energy_source: EnergySource = "unavailable"
    memory: float = math.nan
    """Peak memory, bytes: of the device's allocator on CUDA, of the process so far elsewhere."""
    grad_noise: float = math.nan
    """Gradient-noise scale near the end, tokens."""
    found_lr: float = math.nan
    """Step size that a self-tuning run settled on: the median over its plateau (25–70 % of its tokens)."""
    found_lr_spread: float = math.nan
    """Standard deviation of ln step size over that plateau."""
    unique_tokens: float = math.nan
    """Different tokens in the training data; below `tokens` where the run saw its data more than once."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Direction of the metric where it came from; a maximised metric is stored negated."""
    params: dict[str, float | int | str | bool] = field(default_factory=dict)
    """Every other hyperparameter."""
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if self.state == "complete" and math.isnan(self.target_tokens):
            object.__setattr__(self, "target_tokens", self.tokens)

    @property
    def planned_tokens(self) -> float:
        """Tokens the run was planned for, or those seen where it does not say."""
        return self.target_tokens if math.isfinite(self.target_tokens) else self.tokens

    @property
    def self_tuning(self) -> bool:
        """True where the run found its learning rate itself, so that `lr` is only where it started."""
        return self.tuning == "self" or (not self.tuning and self.found_lr > 0)

    @property
    def epochs(self) -> float:
        """How often the run saw its data; NaN where its unique tokens were not recorded."""
        return self.tokens / self.unique_tokens

    @property
    def steps(self) -> float:
        """Optimizer steps K = D / B."""
        return self.tokens / self.batch
