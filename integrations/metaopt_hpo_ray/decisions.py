"""Decisions: what becomes of a trial after each event, entered in the book with its reason.

Between Tune's hooks (`scheduler`) and the law's verdicts (`scaling.policy.launching`). It may raise; the hooks may not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from metaopt_hpo.scaling.policy import Decision
from metaopt_hpo.scaling.policy.launching import LaunchOrder
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_results import REASON, STATE, Results, report
from metaopt_hpo.trials.quantities import flatten
from metaopt_hpo.trials.record import TrialState
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.columns import ENDED_BY_SCHEDULER, Columns, know, why_failed
from metaopt_hpo_ray.earlier_names import Restored
from metaopt_hpo_ray.launches import WAITING, Launches
from metaopt_hpo_ray.wrapped import Wrapped

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

logger = logging.getLogger(__name__)


class Decisions(Restored):
    """Launches and stops the trials of one experiment.

    Args:
        book: where everything is entered.
        order: verdicts and the order of launches.
        metric, progress: results that hold the loss and count tokens.
        columns: where a trial's config keeps size, tokens, batch and lr.
        wrapped: decides where the law cannot, or None.
        hold: False launches in Tune's own order.
        ahead: see `Launches`.
    """

    def __init__(
        self,
        book: Logbook,
        order: LaunchOrder,
        *,
        metric: str,
        progress: str,
        columns: Columns,
        wrapped: Wrapped | None,
        hold: bool,
        ahead: int | None = None,
    ) -> None:
        self.results = Results(metric, progress)
        """Reads what the trials report."""
        self.launches = Launches(book, order, ahead)
        self._book = book
        self._order = order
        self._columns = columns
        self._wrapped = wrapped
        self._hold = hold
        self._warned: set[str] = set()

    def add(self, trial: Trial) -> None:
        """A trial is there, for the first time or again."""
        key = trial.trial_id
        entry = know(self._book, trial, self._columns)
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            self.launches.ended(key)
            if trial.status == Trial.ERROR:
                self.error(trial)
            elif not entry.closed:  # Tune knows that it has ended, and the journal has lost it
                self.complete(trial, flatten(trial.last_result or {}))
            return
        if not entry.described:
            self._warn(
                "config",
                f"trial {key} has no {', '.join(entry.missing)} in its config, so it is neither held back nor judged; "
                "name the entries with ScalingLawScheduler(size=…, tokens=…, batch=…, lr=…)",
            )
        if entry.launched or not entry.described or not self._hold or entry.closed:
            self.launches.start(trial, "it is not held back")
        elif trial.status in WAITING:
            self.launches.hold(trial)

    def result(self, controller: TuneController, trial: Trial, result: Mapping[str, Any]) -> str:
        """CONTINUE or STOP, after a report."""
        key = trial.trial_id
        entry = self._book.entries.get(key)
        if entry is None:
            self.add(trial)
            entry = self._book.entries[key]
        if entry.state != "running" and entry.state != "failed":
            # it ended before a restore, of which Tune's own snapshot was too old to know: what it said then stands
            return TrialScheduler.STOP
        tokens, loss = self.results.tokens(result), self.results.loss(result)
        if loss is not None and not math.isfinite(loss):
            tokens = entry.last[0] if tokens is None else tokens
        if tokens is None or loss is None:
            missing = self.results.progress if tokens is None else self.results.metric
            self._warn(
                f"result {missing}",
                f"trial {key} reported no number as {missing!r}, so it cannot be judged; report it, or name another "
                f"result with ScalingLawScheduler({'progress' if tokens is None else 'metric'}=…)",
            )
            return TrialScheduler.CONTINUE
        report(self._book, key, tokens, loss, result)
        if result.get(STATE) == "diverged":
            return self._stop(key, Decision("stop", str(result.get(REASON, ""))), "diverged")
        decision = self._order.decision(key)
        if decision.action == "stop":
            return self._stop(key, decision, "pruned" if math.isfinite(entry.last[1]) else "diverged")
        if decision.spared:
            self._order.go_on(key, "keep", decision)
        if self._wrapped is None or entry.self_tuning:
            return TrialScheduler.CONTINUE  # a run that finds its own lr starts low: no rung may judge it
        stop = self._wrapped.stops(
            controller, trial, result, self.results.metric
        )  # asked each time, to fill its rungs
        if decision.action == "abstain" and stop:
            reason = f"ASHA stopped it after {entry.last[0]:g} tokens: {decision.reason}"
            return self._stop(key, replace(decision, reason=reason))
        return TrialScheduler.CONTINUE

    def complete(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """The trial has ended: by itself, by our decision, or by a criterion of the experiment.

        A report that meets a criterion, or says `done`, is not passed through `result`: it comes here.
        """
        key = trial.trial_id
        if key not in self._book.entries:
            self.add(trial)
        entry = self._book.entries[key]
        tokens, loss = self.results.tokens(result), self.results.loss(result)
        met = False
        if tokens is not None and tokens > 0 and loss is not None and not entry.closed:
            met = entry.last[0] != tokens
            report(self._book, key, tokens, loss, result)
        waited = ENDED_BY_SCHEDULER if _compat.stopped_as_it_waited(trial) else ""
        self.results.close(self._book, key, result, as_meant=met, ended_by=waited)
        self.launches.ended(key)
        self._order.learn()

    def error(self, trial: Trial) -> None:
        """The trial has failed; where a retry is left it is added again."""
        if trial.trial_id in self._book.entries:
            self._close(trial.trial_id, "failed", why_failed(trial))

    def remove(self, trial: Trial) -> None:
        """The trial ends without running (again)."""
        entry = self._book.entries.get(trial.trial_id)
        if entry is not None:
            reason = ENDED_BY_SCHEDULER if entry.points else "it was removed before it ran"
            self._close(trial.trial_id, "pruned", reason)

    def _close(self, key: str, state: TrialState, reason: str) -> None:
        self._book.close(key, state, reason)
        self.launches.ended(key)

    def _stop(self, key: str, decision: Decision, state: TrialState = "pruned") -> str:
        self._order.stop(key, decision, state)
        return TrialScheduler.STOP

    def _warn(self, kind: str, message: str) -> None:
        """Log once for each kind: an exception, or a thousand lines, would help nobody."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)
