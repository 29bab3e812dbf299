"""ScalingLawScheduler: Tune's hooks around `Decisions`. It launches by promise per cost and stops by verdict.

Nothing here raises from a hook: that would end the experiment.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from metaopt_hpo.scaling import Law
from metaopt_hpo.scaling.policy import STOP_BELOW
from metaopt_hpo.scaling.policy.launching import LaunchOrder
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_results import METRIC, PROGRESS
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.saved_state import SavedAsJson
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray.columns import Columns, agreed_metric
from metaopt_hpo_ray.decisions import Decisions
from metaopt_hpo_ray.earlier_names import Restored
from metaopt_hpo_ray.journal import Journal, open_journal, own, warn_unkept
from metaopt_hpo_ray.shown import show_decisions
from metaopt_hpo_ray.wrapped import Wrapped

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from metaopt_hpo.scaling.base.sources import BaseLike

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ScalingLawScheduler(Restored, SavedAsJson, FIFOScheduler):
    """Spend a cluster on the trials that a law across model sizes gives a chance.

    The smallest sizes run first and teach the law; larger trials wait. Once there is a law they are launched
    in order of promise per cost, not launched at all where the law gives them no chance, and stopped at points
    of the token grid once their curve says so. After five stops in a row, at a size and above, the next trial is let
    finish, one at a time, so that a law that is wrong meets the evidence. Divergence (NaN, infinity) stops a
    trial. Every decision is logged with its reason, which is also the `reason` of the trial's row in the trial
    table.

    `tuner_configs` puts the scheduler to work so that its state survives `Tuner.restore`; without it, or a
    `JournalCallback` of this scheduler among the callbacks, a restored experiment starts with an empty law.

    Args:
        metric: result to judge (default "loss"); a loss, so mode is always "min".
        mode: "min", or None.
        size, tokens, batch, lr: entry of a trial's config that holds the quantity, nested ones with slashes;
            for the first three a number that all trials share. A trial that lacks one is never held or judged.
        progress: result that counts training tokens (default "tokens_seen", which `TrialRun` reports).
        law: a law to begin with.
        evidence: a trial table of earlier work, or records; every fit includes it.
        wrapped: an `ASHAScheduler` that decides where the law cannot judge, or None.
        pilot_sizes: how many of the smallest sizes may run before there is a law (default 3, the fewest a law
            can be fitted to).
        stop_below: chance of winning below which a trial is stopped (default 0.05).
        grace: fraction of its tokens for which a trial is never stopped by the law (default 0: from when finished
            runs' curves say how runs fall, a quarter of the run where there are none).
        hold: False launches in Tune's own order and only stops.
        ahead: how many trials of each kind of resources may be launched and wait for them (default: Tune's
            TUNE_MAX_PENDING_TRIALS_PG where it is set, else 8). An autoscaler adds nodes for no more.
        background: fit in a thread. False fits inside the hook, which makes a run repeatable.
        seed: of the fits.
        base: tables or laws of like models to borrow strength from, as in `metaopt_hpo.fit`: three trials of any sizes
            are then enough for a law.
        prior: a law whose exponents are believed, as in `metaopt_hpo.fit`; not together with `base`.

    Raises:
        ValueError: an argument out of range; the message names it.

    Examples:
        >>> from metaopt_hpo_ray import ScalingLawScheduler
        >>> scheduler = ScalingLawScheduler(metric="loss", mode="min")
    """

    _supports_buffered_results = False

    def __init__(
        self,
        metric: str | None = None,
        mode: str | None = None,
        *,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        progress: str = PROGRESS,
        law: Law | None = None,
        evidence: TrialTable | Sequence[TrialRecord] = (),
        wrapped: AsyncHyperBandScheduler | None = None,
        pilot_sizes: int = 3,
        stop_below: float = STOP_BELOW,
        grace: float = 0.0,
        hold: bool = True,
        ahead: int | None = None,
        background: bool = True,
        seed: int = 0,
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if pilot_sizes < 1:
            raise ValueError(f"pilot_sizes must be at least 1, got {pilot_sizes!r}")
        if ahead is not None and ahead < 1:
            raise ValueError(f"ahead must be at least 1, or None, got {ahead!r}")
        for name, value in (("stop_below", stop_below), ("grace", grace)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
        self._metric = agreed_metric("ScalingLawScheduler", None, metric, mode)
        self._columns = Columns(size, tokens, batch, lr)
        self._progress = progress
        self._kept = False
        """True where a JournalCallback saves this scheduler's state."""
        self.journal = Journal(Logbook())
        """Where everything known of the trials is kept, once the experiment's folder is known."""
        self._wrapped = None if wrapped is None else Wrapped(wrapped, self.book, progress)
        self._saved: Mapping[str, Any] | None = None
        records = evidence.records() if isinstance(evidence, TrialTable) else list(evidence)
        self._order = LaunchOrder(
            self.book,
            law=law,
            evidence=records,
            pilot_sizes=pilot_sizes,
            stop_below=stop_below,
            grace=grace,
            background=background,
            seed=seed,
            base=base,
            prior=prior,
        )
        self._decisions = Decisions(
            self.book,
            self._order,
            metric=self.metric,
            progress=progress,
            columns=self._columns,
            wrapped=self._wrapped,
            hold=hold,
            ahead=ahead,
        )

    @property
    def book(self) -> Logbook:
        """What is known of every trial."""
        return self.journal.book

    @property
    def law(self) -> Law | None:
        """The law in force."""
        found = self._order.law
        return found if found is None or isinstance(found, Law) else Law.of(found)

    @property
    def columns(self) -> Columns:
        """Where trials keep size, tokens, batch and lr."""
        return self._columns

    @property
    def metric(self) -> str:
        """The result that is judged."""
        return self._metric or METRIC

    @property
    def progress(self) -> str:
        """The result that counts tokens."""
        return self._progress

    # -- Tune's hooks --------------------------------------------------------------------------------------

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the metric from `TuneConfig`; called before anything runs, so a contradiction is an error here."""
        self._metric = agreed_metric("ScalingLawScheduler", self._metric, metric, mode)
        self._decisions.results.metric = self.metric
        if self._wrapped is not None:
            self._wrapped.judge_by(self.metric)
        if not self._kept:
            warn_unkept(endless=spec.get("num_samples") == sys.maxsize)
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """A new trial, one that is retried, or one of a restored experiment."""
        try:
            self._add(trial)
        except Exception:
            logger.exception(
                "ScalingLawScheduler failed to hold trial %s back and launches it", trial.trial_id
            )
            self._safely(None, self._decisions.launches.start, trial, "it could not be held back")

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP with a reason in the log and the trial table."""
        try:  # `_safely` without its calls: this is the hook that is counted in microseconds
            return self._decisions.result(tune_controller, trial, result)
        except Exception:
            logger.exception("ScalingLawScheduler failed in a result and lets the experiment go on")
            return TrialScheduler.CONTINUE

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        """The trial has ended: by itself, by our decision, or by the experiment's stopper."""
        self._safely(None, self._decisions.complete, trial, result or {})

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """The trial has failed; where a retry is left it is added again."""
        self._safely(None, self._decisions.error, trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """The trial ends without running (again)."""
        self._safely(None, self._decisions.remove, trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The next trial to give resources; the same one until Tune has taken it."""
        launches = self._decisions.launches
        try:
            return launches.choose(tune_controller)
        except Exception:
            logger.exception("ScalingLawScheduler failed to choose and launches whichever trial waits")
            return self._safely(None, launches.any)

    def debug_string(self) -> str:
        """One line on where things stand."""
        states = [e.state for e in self.book.entries.values()]
        law = self._order.law
        about = f"a law from {law.trials} trials" if law else f"no law ({self._order.refusal or 'not yet'})"
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        return f"ScalingLawScheduler: {about}; {self._order.held} held back; {counts or 'no trials'}"

    def _add(self, trial: Trial) -> None:
        if self._kept and trial.storage is not None and not self.journal.is_open:
            results = self._decisions.results
            open_journal(self.journal, trial.storage, [trial.trial_id], self._columns, results)
            own(trial.storage, self)
            if self.journal.resumed:
                self._take_up(self._saved)
        self._decisions.add(trial)

    def finish(self) -> None:
        """Told by a JournalCallback that the experiment has ended."""
        for key in list(self.book.entries):
            self._decisions.launches.ended(key)

    # -- state ---------------------------------------------------------------------------------------------

    def keep_with(self) -> None:
        """Told by a JournalCallback that it saves this scheduler's state."""
        show_decisions()
        self._kept = True

    def get_state(self) -> dict[str, Any]:
        """What a restored experiment needs beside the journal; where none is kept, the trials too. Plain data."""
        return {"book": self.journal.state(), "judge": self._order.to_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Become the scheduler `get_state` described, before Tune adds the trials anew.

        Raises:
            LogbookError: not such a state.
        """
        self.journal.load_state(state["book"])
        self._saved = dict(state["judge"])
        self._take_up(self._saved)

    def _take_up(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from the book as it is now; without the saved law it fits anew."""
        self._order.load_state(dict(saved) if saved is not None else LaunchOrder(self.book).to_state())
        self._decisions.launches.forget()
        if self._wrapped is not None:
            self._wrapped.forget()

    def whole_state(self) -> dict[str, Any]:
        """The state with the trials."""
        return {**self.get_state(), "book": self.book.pack()}

    # -- safety --------------------------------------------------------------------------------------------

    def _safely(self, fallback: T, hook: Callable[..., T], *args: Any) -> T:
        try:
            return hook(*args)
        except Exception:
            logger.exception("ScalingLawScheduler failed in %s and lets the experiment go on", hook.__name__)
            return fallback
