"""A run's side of its Optuna trial: what the trial is told of the run, and what the study is asked.

`TrialRun` and `TrialReporter` hold one each. On ranks other than 0 of a distributed run there is no trial, and
nothing is told or asked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

from metaopt_hpo.training.distributed import from_rank_0, rank
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record_json import plain, record_to_json
from metaopt_hpo.trials.steps import step_of
from metaopt_hpo_optuna import _compat, fairness
from metaopt_hpo_optuna.fields import COMPARABLE, CONFIGURATION, REASON, RECORD, REPEATS
from metaopt_hpo_optuna.leases import Lease, patiently
from metaopt_hpo_optuna.study_table import check_single_objective


class TrialLink:
    """One trial, seen from its run.

    Args:
        trial: the trial; None on ranks other than 0.
        lease: seconds of silence after which the trial may be queued again, or None.
        what: who holds it, for the message about a study of several objectives.

    Raises:
        ValueError: rank 0 without a trial, a multi-objective study.
    """

    def __init__(
        self, trial: BaseTrial | None, *, lease: float | None = None, what: str = "TrialRun"
    ) -> None:
        if trial is None and rank() == 0:
            raise ValueError("trial is None; only ranks other than 0 of a distributed run have no trial")
        self.trial = trial if rank() == 0 else None
        self.live: Trial | None = self.trial if isinstance(self.trial, Trial) else None
        """The trial where it is part of a study; a `FixedTrial` is not."""
        maximize = False
        if self.live is not None:
            check_single_objective(self.live.study, what)
            maximize = self.live.study.direction == StudyDirection.MAXIMIZE
        self.maximize = from_rank_0(maximize)
        self._lease = Lease(self.live, lease) if lease is not None and self.live is not None else None
        self._reported: set[int] = set()

    # -- attributes ----------------------------------------------------------------------------------------

    def set(self, key: str, value: Any) -> None:
        """Set a user attribute; tried again while the storage does not answer."""
        trial = self.trial
        if trial is not None:
            patiently(lambda: trial.set_user_attr(key, plain(value)))

    def describe(self, values: Mapping[str, Any]) -> None:
        """Set user attributes, but those that the trial has as parameters or attributes already.

        Raises:
            ValueError: it has one with another value.
        """
        if self.trial is None:
            return
        for name, value in values.items():
            for kind, held in (("parameter", self.trial.params), ("user attribute", self.trial.user_attrs)):
                if name in held:
                    if held[name] != plain(value):
                        raise ValueError(
                            f"trial {self.trial.number} already has the {kind} {name}={held[name]!r}, and this run "
                            f"has {name}={value!r}; a trial is one run, of one {name}"
                        )
                    break
            else:
                self.set(name, value)

    def describe_strategy(self, name: str, *, tuning: str, comparable_from: float) -> None:
        """Say how the run's lr is set, who sets it, and from which part of the run its loss may be compared."""
        self.describe({"strategy": name})
        self.set("tuning", tuning)
        self.set(COMPARABLE, comparable_from)

    # -- the lease -----------------------------------------------------------------------------------------

    def take_lease(self) -> None:
        """Write the lease once, before anything else of the run is written."""
        if self._lease is not None:
            self._lease.take()

    def begin(self) -> None:
        """Keep the lease up to date from now on, and see what has been reported."""
        if self._lease is not None:
            self._lease.__enter__()
        if self.live is not None:
            live = self.live
            self._reported = set(patiently(lambda: _compat.stored(live)).intermediate_values)

    def close(self) -> None:
        """Give up the lease; the run has ended, however it did."""
        if self._lease is not None:
            self._lease.__exit__()
            self._lease = None

    # -- reports and decisions -----------------------------------------------------------------------------

    def report(self, tokens: float, value: float) -> None:
        """Report one point, once; Optuna ignores a second report of a step, with a warning."""
        trial, step = self.trial, step_of(tokens)
        if trial is not None and step not in self._reported:
            patiently(lambda: trial.report(float(value), step))
            self._reported.add(step)

    def ask(self, tokens: float, value: float) -> str | None:
        """The study's reason to stop the trial after the point just reported, or None."""
        if self.live is None:
            return None
        live = self.live
        if not patiently(lambda: fairness.should_prune(live)):
            return None
        written = patiently(lambda: _compat.stored(live)).user_attrs.get(REASON)
        if isinstance(written, str):
            return written
        return f"{type(live.study.pruner).__name__} stopped it after {round(tokens)} tokens at {value:.4g}"

    def refusal(self) -> str | None:
        """Why the law of the study would not start the run at all, where its pruner is one that can tell."""
        from metaopt_hpo_optuna.pruner import ScalingLawPruner

        reason = None
        if self.live is not None and isinstance(self.live.study.pruner, ScalingLawPruner):
            live, pruner = self.live, self.live.study.pruner
            reason = patiently(lambda: pruner.refuse_launch(live.study, _compat.stored(live)))
        return from_rank_0(reason)

    def worst_values(self) -> list[float]:
        """Values of the study's finished trials, as losses: what a stand-in may be no better than."""
        if self.live is None:
            return []
        sign = -1.0 if self.maximize else 1.0
        values = [t.value for t in self.live.study.get_trials(deepcopy=False) if t.value is not None]
        return [sign * v for v in values if math.isfinite(v)]

    def stand_in_step(self, tokens: float) -> float:
        """Tokens of a last report that comes after all others."""
        last = max(self._reported, default=0)
        return tokens if step_of(tokens) > last else last + 1

    # -- repeats -------------------------------------------------------------------------------------------

    def repeated(self, facts: Mapping[str, Any]) -> FrozenTrial | None:
        """The finished trial that this one repeats: one with the same facts, none of its parameters a free number.

        A configuration without free numbers has nothing to search: a sampler that chooses it again would train the
        same run again, bit for bit.
        """
        if self.live is None:
            return None
        live = self.live
        free = [d for d in live.distributions.values() if not isinstance(d, CategoricalDistribution)]
        text = json.dumps([facts, dict(live.params)], sort_keys=True, default=repr)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.set(CONFIGURATION, key)
        if not live.distributions or any(not d.single() for d in free):
            return None  # nothing was chosen, or a number was
        return next(
            (
                t
                for t in live.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                if t.user_attrs.get(CONFIGURATION) == key and REPEATS not in t.user_attrs
            ),
            None,
        )

    # -- the record ----------------------------------------------------------------------------------------

    def keep(self, record: TrialRecord) -> None:
        """Write the record, and what of it people look for, as user attributes."""
        if record.reason:
            self.set(REASON, record.reason)
        if math.isfinite(record.found_lr):
            self.set("found_lr", record.found_lr)
        self.set(RECORD, record_to_json(record))

    @property
    def identity(self) -> dict[str, str]:
        """`study`, `trial` and `engine` of the record."""
        return {
            "engine": "optuna",
            "study": "" if self.live is None else self.live.study.study_name,
            "trial": "" if self.trial is None else str(self.trial.number),
        }
