"""A cluster without Ray: Tune's loop of add, choose, run, report over stub trials and a clock of its own."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

Curve = Sequence[tuple[float, float]]
"""(tokens, loss) in the order of reports; the last point is the end of the run."""


def stub_trial(key: str, **config: Any) -> Trial:
    """A trial that needs no Ray."""
    return Trial("__fake", trial_id=key, config=config, stub=True)


def result_of(trial: Trial, tokens: float, loss: float, **more: Any) -> dict[str, Any]:
    """What Tune hands to a scheduler for one report."""
    return {"trial_id": trial.trial_id, "tokens_seen": tokens, "loss": loss, "training_iteration": 1, **more}


class StubCluster:
    """`slots` trials run at once; a trial's time is its FLOPs. Follows `TuneController`, step by step."""

    def __init__(self, scheduler: TrialScheduler, curve: Callable[[Trial], Curve], *, slots: int) -> None:
        self.scheduler = scheduler
        self.slots = slots
        self.time = 0.0
        self.work = 0.0
        """FLOPs spent by all trials together."""
        self.decisions: list[str] = []
        self.started: list[str] = []
        """Trials in the order in which they were given resources."""
        self._curve = curve
        self._trials: list[Trial] = []
        self._events: list[tuple[float, int, Trial, int]] = []
        self._order = 0
        self._running = 0
        self._next: dict[str, int] = {}
        """Report that a paused trial makes when it goes on."""

    # -- what a scheduler may ask of a controller ------------------------------------------------------------

    def get_trials(self) -> list[Trial]:
        return self._trials

    def get_live_trials(self) -> set[Trial]:
        return {t for t in self._trials if not t.is_finished()}

    def stop_trial(self, trial: Trial) -> None:
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            return
        if trial.status == Trial.RUNNING:
            self._finish(trial)
        else:
            self.scheduler.on_trial_remove(self, trial)  # type: ignore[arg-type]
            trial.set_status(Trial.TERMINATED)

    # -- the loop --------------------------------------------------------------------------------------------

    def add(self, trial: Trial) -> None:
        self._trials.append(trial)
        self.scheduler.on_trial_add(self, trial)  # type: ignore[arg-type]

    def run(self) -> None:
        """Until every trial has ended."""
        while self._fill_or_wait():
            self.time, _, trial, point = heapq.heappop(self._events)
            if trial.status == Trial.RUNNING:
                self._report(trial, point)
        assert all(t.is_finished() for t in self._trials), "the scheduler left trials waiting for ever"

    def _fill_or_wait(self) -> bool:
        """True when something runs. Tune goes on asking while nothing does: a scheduler may be fitting a law."""
        for _ in range(2000):
            self._fill()
            if self._events:
                return True
            if all(t.is_finished() for t in self._trials):
                return False
            time.sleep(0.01)
        return False

    def _fill(self) -> None:
        pending = iter([t for t in self._trials if t.status == Trial.PENDING] if self._running == 0 else ())
        while self._running < self.slots:
            trial = self.scheduler.choose_trial_to_run(self)  # type: ignore[arg-type]
            if trial is None:
                trial = next((t for t in pending if t.status == Trial.PENDING), None)
            if trial is None or trial.status not in (Trial.PENDING, Trial.PAUSED):
                return
            trial.set_status(Trial.RUNNING)
            self._running += 1
            self.started.append(trial.trial_id)
            self._schedule(trial, self._next.pop(trial.trial_id, 0))

    def _schedule(self, trial: Trial, point: int) -> None:
        curve = self._curve(trial)
        before = curve[point - 1][0] if point else 0.0
        flops = 6.0 * trial.config["size"] * (curve[point][0] - before)
        self.work += flops
        self._order += 1
        heapq.heappush(self._events, (self.time + flops, self._order, trial, point))

    def _report(self, trial: Trial, point: int) -> None:
        curve = self._curve(trial)
        tokens, loss = curve[point]
        more = {"training_iteration": point + 1, "percent": 100 * tokens / curve[-1][0]}
        result = result_of(trial, tokens, loss, hostname="h", pid=1, **more)
        decision = self.scheduler.on_trial_result(self, trial, result)  # type: ignore[arg-type]
        self.decisions.append(decision)
        trial.run_metadata.last_result = result
        if decision == TrialScheduler.STOP or point + 1 == len(curve):
            self._finish(trial)
        elif decision == TrialScheduler.PAUSE:
            trial.set_status(Trial.PAUSED)
            self._running -= 1
            self._next[trial.trial_id] = point + 1
        else:
            self._schedule(trial, point + 1)

    def _finish(self, trial: Trial) -> None:
        self.scheduler.on_trial_complete(self, trial, trial.last_result or {})  # type: ignore[arg-type]
        trial.set_status(Trial.TERMINATED)
        self._running -= 1


# -- a world to search in ------------------------------------------------------------------------------------


def world_loss(size: float, tokens: float, lr: float, noise: float = 0.0) -> float:
    """A Chinchilla-like floor and a bowl in ln lr whose centre falls with size."""
    floor = 1.7 + 4.0 * (size / 1e6) ** -0.34 + 6.0 * (tokens / 1e6) ** -0.4
    u = math.log(lr / (6e-3 * (size / 1e6) ** -0.35))
    return floor * (1 + 0.02 * u * u + noise)


def world_curve(size: float, tokens: float, lr: float, noise: float = 0.0, points: int = 12) -> Curve:
    """Reports on the way: what a run of fewer tokens would have reached, a little above it until the end."""
    out = []
    for k in range(points):
        t = math.ceil(tokens * 2.0 ** (-(points - 1 - k) / 2))
        early = 0.02 * (1 - t / tokens)
        out.append((float(t), world_loss(size, t, lr, noise) * (1 + early)))
    return out
