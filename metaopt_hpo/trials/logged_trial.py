"""One trial of a logbook: what is known of it, its curve, and what it has cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

from metaopt_hpo.trials.record import Curve, TrialRecord, TrialState, Tuning

REPORTED = (
    "size",
    "batch",
    "lr",
    "strategy",
    "tuning",
    "target_tokens",
    "initial_loss",
    "seed",
    "workload",
    "seconds",
    "memory",
    "grad_noise",
    "found_lr",
    "found_lr_spread",
    "unique_tokens",
)
"""Fields of the trial record that every report of a run may carry; no table needs a checkpoint."""

LR_PATH = "lr_path"
"""Parameter of a trial whose lr was changed during its run: "tokens:lr" of each, in order; `lr` is the last."""

STATES = get_args(TrialState)

_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("size", "tokens", "batch", "lr", "launched_at"), (int, float)),
    **dict.fromkeys(("trial", "strategy", "tuning", "state", "reason", "note", "why_launched"), str),
    **dict.fromkeys(("launched", "cut", "spared"), bool),
    **dict.fromkeys(("params", "work", "starts", "extra"), dict),
    "seed": int,
}
_EXTRA_TEXTS = ("strategy", "tuning", "workload")

Cell = tuple[int, int]
"""Size and planned tokens in quarter octaves."""


@dataclass(slots=True)
class LoggedTrial:
    """One trial. NaN means "not known"."""

    trial: str
    size: float = math.nan
    tokens: float = math.nan
    """Planned tokens."""
    batch: float = math.nan
    lr: float = math.nan
    strategy: str = ""
    tuning: Tuning = ""
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    points: dict[float, tuple[float, float, float, float]] = field(default_factory=dict)
    """tokens → (loss, step size, gradient norm, FLOPs of the run): one point for each token count."""
    work: dict[str, float] = field(default_factory=dict)
    """process → FLOPs it has spent on this trial."""
    starts: dict[str, float] = field(default_factory=dict)
    """process → tokens it went on from, where it does not say what it spent."""
    last: tuple[float, float] = (0.0, math.nan)
    """(tokens, loss) last reported, which after a retry is not the farthest."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the trial record, as last reported."""
    state: TrialState = "running"
    reason: str = ""
    note: str = ""
    """What happened to it on the way: a checkpoint that was lost, say."""
    launched: bool = False
    """False while it has never been given resources."""
    launched_at: float = math.nan
    """Seconds since the epoch."""
    why_launched: str = ""
    cut: bool = False
    """True where it ended because the experiment did: a restore takes it up again."""
    spared: bool = False
    """True where the law would have stopped it and it is let finish, to see whether the law is right."""

    @property
    def described(self) -> bool:
        """True where size, planned tokens, batch and lr are known, so that a law can judge it."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """What of size, tokens, batch and lr is not known; a strategy that finds its lr itself needs none."""
        needed = ("size", "tokens", "batch") if self.self_tuning else ("size", "tokens", "batch", "lr")
        return [name for name in needed if not getattr(self, name) > 0]

    @property
    def self_tuning(self) -> bool:
        """True where the run finds its learning rate itself, as far as is known."""
        if self.tuning:
            return self.tuning == "self"
        found = self.extra.get("found_lr")
        return found is not None and found > 0

    @property
    def cell(self) -> Cell:
        """Where it stands among sizes and tokens: trials of one cell compete, also where a sweep draws sizes."""
        return quarter_octave(self.size), quarter_octave(self.tokens)

    @property
    def cost(self) -> float:
        """FLOPs spent by all processes that worked at this trial; never goes back."""
        return math.fsum(self.work.values())

    @property
    def closed(self) -> bool:
        """True once the trial has ended."""
        return self.state != "running"

    def record(self, *, study: str = "", maximize: bool = False) -> TrialRecord:
        """The trial as a record, its curve in order of tokens."""
        rows = sorted((t, *p) for t, p in self.points.items() if t > 0)
        curve = None
        if rows:
            tokens, loss, step_size, grad_norm, cost = (tuple(c) for c in zip(*rows, strict=True))
            curve = Curve(tokens=tokens, loss=loss, step_size=step_size, grad_norm=grad_norm, cost=cost)
        return TrialRecord(
            size=self.size,
            tokens=self.last[0],
            batch=self.batch,
            lr=self.lr,
            loss=self.last[1] if self.state != "diverged" else math.nan,
            trial=self.trial,
            study=study,
            engine="ray",
            strategy=self.strategy,
            tuning=self.tuning,
            state=self.state,
            reason="; ".join(x for x in (self.launch_note, self.note, self.reason) if x),
            seed=self.seed,
            target_tokens=self.tokens,
            cost=self.cost,
            direction="maximize" if maximize else "minimize",
            params=dict(self.params),
            curve=curve,
            **self.extra,
        )

    @property
    def launch_note(self) -> str:
        """When it was launched and why; "" where that is not known."""
        if not self.why_launched:
            return ""
        try:
            when = datetime.fromtimestamp(self.launched_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (ValueError, OverflowError, OSError):  # a damaged journal's
            return f"launched: {self.why_launched}"
        return f"launched {when}: {self.why_launched}"

    def note_lr(self, lr: float) -> None:
        """Keep where a trial's lr was changed during its run, as population based training does."""
        if not lr > 0 or not self.lr > 0 or math.isclose(lr, self.lr, rel_tol=1e-9):
            return
        path = self.params.get(LR_PATH, f"0:{self.lr:.6g}")
        self.params = {**self.params, LR_PATH: f"{path} {self.last[0]:g}:{lr:.6g}"}
        self.lr = float(lr)

    def spent(self, process: str, tokens: float, said: float | None) -> float:
        """FLOPs a process has spent: what it said, else 6·size for each token since where it went on."""
        if said is not None:
            return float(said)
        if process not in self.starts:
            # the first process begins at nothing; a later one at the last point before its own first
            self.starts[process] = max((t for t in self.points if t < tokens), default=0.0)
        return 6.0 * self.size * max(0.0, tokens - self.starts[process]) if self.size > 0 else 0.0

    def to_state(self) -> dict[str, Any]:
        """The entry as plain data."""
        return {
            "trial": self.trial,
            "size": self.size,
            "tokens": self.tokens,
            "batch": self.batch,
            "lr": self.lr,
            "strategy": self.strategy,
            "tuning": self.tuning,
            "seed": self.seed,
            "params": dict(self.params),
            "points": [[t, *p] for t, p in self.points.items()],
            "work": dict(self.work),
            "starts": dict(self.starts),
            "last": list(self.last),
            "extra": dict(self.extra),
            "state": self.state,
            "reason": self.reason,
            "note": self.note,
            "launched": self.launched,
            "launched_at": self.launched_at,
            "why_launched": self.why_launched,
            "cut": self.cut,
            "spared": self.spared,
        }

    @classmethod
    def from_state(cls, data: Mapping[str, Any]) -> LoggedTrial:
        """The entry `to_state` described.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: not such a state.
        """
        values = dict(data)
        check_values(values)
        values["points"] = {float(t): _point(p) for t, *p in values["points"]}
        values["last"] = (float(values["last"][0]), float(values["last"][1]))
        if values["state"] not in STATES:
            raise ValueError(f"state {values['state']!r}")
        return cls(**values)


def _point(values: list[Any]) -> tuple[float, float, float, float]:
    loss, step_size, grad_norm, cost = map(float, values)
    return loss, step_size, grad_norm, cost


def check_values(values: Mapping[str, Any]) -> None:
    """Raise unless fields of an entry that come from a file are of their kinds.

    Raises:
        TypeError: one is not.
        OverflowError: a number is too large.
    """
    for name, value in values.items():
        kind = _KINDS.get(name)
        if kind is not None and not (
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        ):
            raise TypeError(f"{name} cannot be {value!r:.60}")
        if isinstance(value, int):
            float(value)
    for name in ("work", "starts", "extra"):
        for key, value in values.get(name, {}).items():
            wanted = str if name == "extra" and key in _EXTRA_TEXTS else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise TypeError(f"{key} of {name} cannot be {value!r:.60}")
            if not isinstance(value, str):
                float(value)


def quarter_octave(value: float) -> int:
    """Number of the quarter octave a positive, finite number lies in; any other has one of its own."""
    return round(4 * math.log2(value)) if 0 < value < math.inf else -(10**6)
