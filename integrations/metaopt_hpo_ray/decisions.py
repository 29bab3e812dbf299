"""Decisions: what becomes of a trial after each event, entered in the book with its reason.

Between Tune's hooks (`scheduler`) and the law's verdicts (`judge`). It may raise; the hooks may not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from metaopt_hpo.trials.record import TrialState
from metaopt_hpo_ray.columns import REASON, STATE, Columns
from metaopt_hpo_ray.entry import DONE
from metaopt_hpo_ray.inner import Inner
from metaopt_hpo_ray.judge import Judge
from metaopt_hpo_ray.launches import WAITING, Launches
from metaopt_hpo_ray.reports import describe, outcome, report, why_failed
from metaopt_hpo_ray.state import TrialBook

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

logger = logging.getLogger(__name__)


class Decisions:
    """Launches and stops the trials of one experiment.

    Args:
        book: where everything is entered.
        judge: verdicts and the order of launches.
        metric, progress: results that hold the loss and count tokens.
        columns: where a trial's config keeps size, tokens, batch and lr.
        inner: decides where the law cannot, or None.
        hold: False launches in Tune's own order.
    """

    def __init__(
        self,
        book: TrialBook,
        judge: Judge,
        *,
        metric: str,
        progress: str,
        columns: Columns,
        inner: Inner | None,
        hold: bool,
    ) -> None:
        self.metric = metric
        self.launches = Launches(book, judge)
        self._book = book
        self._judge = judge
        self._columns = columns
        self._progress = progress
        self._inner = inner
        self._hold = hold
        self._warned: set[str] = set()

    def add(self, trial: Trial) -> None:
        """A trial is there, for the first time or again."""
        key = trial.trial_id
        self._book.add(key, **describe(trial.config, self._columns))
        entry = self._book.entries[key]
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            if self._judge.is_held(key):
                self._judge.ended(key)
            return
        if not entry.known:
            names = [n for n in ("size", "tokens", "batch", "lr") if not getattr(entry, n) > 0]
            self._warn(
                "config",
                f"trial {key} has no {', '.join(names)} in its config, so it is neither held back nor judged; "
                "name the entries with ScalingLawScheduler(size=…, tokens=…, batch=…, lr=…)",
            )
        if entry.launched or not entry.known or not self._hold or entry.closed:
            self.launches.start(trial)
        elif trial.status in WAITING:
            self.launches.hold(trial)

    def result(self, controller: TuneController, trial: Trial, result: Mapping[str, Any]) -> str:
        """CONTINUE or STOP, after a report."""
        key = trial.trial_id
        entry = self._book.entries.get(key)
        if entry is None:
            self.add(trial)
            entry = self._book.entries[key]
        tokens, loss = result.get(self._progress), result.get(self.metric)
        if tokens is None or loss is None:
            missing = self._progress if tokens is None else self.metric
            self._warn(
                "result",
                f"trial {key} reported no {missing!r}, so it cannot be judged; report it, or name another "
                f"result with ScalingLawScheduler({'progress' if tokens is None else 'metric'}=…)",
            )
            stop = self._inner is not None and self._inner.stops(controller, trial, result, self.metric)
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
        report(self._book, key, float(tokens), float(loss), result)
        if entry.state != "running" and entry.state != "failed":
            # decided before a restore that Tune's own snapshot was too old to know of
            return TrialScheduler.STOP
        if result.get(STATE) == "diverged":
            return self._stop(key, "diverged", str(result.get(REASON, "")))
        if not math.isfinite(entry.last[1]):
            return self._stop(key, "diverged", self._judge.judge(key).reason)
        if entry.tokens > 0 and entry.last[0] >= entry.tokens * DONE:
            return TrialScheduler.CONTINUE  # it ends by itself
        decision = self._judge.judge(key)
        if decision.action == "stop":
            return self._stop(key, "pruned", decision.reason)
        if decision.spared:
            self._book.spare(key)
            logger.info("trial %s: keep: %s", key, decision.reason)
        if self._inner is None:
            return TrialScheduler.CONTINUE
        stop = self._inner.stops(controller, trial, result, self.metric)  # asked each time, to fill its rungs
        if decision.action == "abstain" and stop:
            reason = f"ASHA stopped it after {entry.last[0]:g} tokens: {decision.reason}"
            return self._stop(key, "pruned", reason)
        return TrialScheduler.CONTINUE

    def complete(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """The trial has ended: by itself, by our decision, or by the experiment's stopper."""
        key = trial.trial_id
        if key not in self._book.entries:
            self.add(trial)
        self._close(key, *outcome(self._book.entries[key], result))
        self._judge.learn()

    def error(self, trial: Trial) -> None:
        """The trial has failed; where a retry is left it is added again."""
        if trial.trial_id in self._book.entries:
            self._close(trial.trial_id, "failed", why_failed(trial))

    def remove(self, trial: Trial) -> None:
        """The trial ends without running (again)."""
        if trial.trial_id in self._book.entries:
            self._close(trial.trial_id, "pruned", "it was removed before it ran")

    def _close(self, key: str, state: TrialState, reason: str) -> None:
        self._book.close(key, state, reason)
        self.launches.ended(key)

    def _stop(self, key: str, state: TrialState, reason: str) -> str:
        self._book.close(key, state, reason)
        logger.info("trial %s: stop (%s): %s", key, state, reason)
        return TrialScheduler.STOP

    def _warn(self, kind: str, message: str) -> None:
        """Log once for each kind: an exception, or a thousand lines, would help nobody."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)
