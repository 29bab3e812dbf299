"""ScalingLawPruner: stops a large trial that, by a law of the trials so far, has no chance left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner, HyperbandPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from metaopt_hpo.scaling.forecast import DRIFT
from metaopt_hpo_optuna import _compat, fairness
from metaopt_hpo_optuna.evidence import Evidence
from metaopt_hpo_optuna.fields import REASON, Fields, tuning_of
from metaopt_hpo_optuna.known import Known
from metaopt_hpo_optuna.study_table import check_single_objective

if TYPE_CHECKING:
    from metaopt_hpo.scaling.policy import Verdict

MIN_PEERS = 3
"""Finished trials that must have reported at the same tokens before a running loss says anything."""

SAME = 1e-3
"""Relative difference below which two sizes, or two token counts, are one."""


class ScalingLawPruner(BasePruner):
    """Pruner that asks a law fitted to the study's finished trials whether a trial can still win.

    The law is fitted over size, tokens, batch and lr, to the trials that completed in this study and in
    `source_studies`. Its forecast, with the trial's loss so far and how far finished trials still fell from the
    same tokens, gives a distribution of the trial's final loss; the trial is pruned when its chance to beat the
    best finished trial of the same size and tokens is below 5 %. Before there is such a trial, the top of the
    law's interval for the best stands for it.

    Trials of sizes below the largest with evidence are what the law learns from and cost little; they are left
    to the wrapped pruner, as is everything the law cannot judge: too few trials, sizes or learning rates, a
    size too far away, a strategy that finds its own lr, and the early part of a run, where finished trials
    still changed ranks. After five pruned trials of one size in a row the next one is let finish, so that a law that is
    wrong meets the evidence. The reason of each stop is the user attribute `metaopt:reason`.

    The decision is a function of the trial and of the finished trials, so all workers that have seen the same
    trials decide alike. The law is kept in the process and fitted again when a tenth more trials have finished.

    Args:
        size, tokens, batch, lr: parameter or user attribute that holds the quantity; for the first three a
            number that all trials share. `report` takes tokens as its step. `TrialRun` does all of this.
        source_studies: further studies to learn from, of smaller models or of an earlier search.
        wrapped: pruner for what the law cannot judge; None keeps such trials.
        n_startup_trials: completed trials with a size, those of the sources included, before which nothing is
            pruned (default 10; the law itself also refuses fewer than three sizes).
        n_warmup_tokens: tokens of a trial before which it is not pruned (default 0).
        min_size: trials from this size on are judged by the law; default the largest size with evidence.

    Raises:
        ValueError: an argument out of range; later, a multi-objective study, a source whose direction
            contradicts the study's, a trial whose size changes.
    """

    def __init__(
        self,
        *,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        source_studies: Sequence[Study] = (),
        wrapped: BasePruner | None = None,
        n_startup_trials: int = 10,
        n_warmup_tokens: float = 0,
        min_size: float | None = None,
    ) -> None:
        if n_startup_trials < 0:
            raise ValueError(f"n_startup_trials must be at least 0, got {n_startup_trials!r}")
        if not n_warmup_tokens >= 0:
            raise ValueError(f"n_warmup_tokens must be at least 0, got {n_warmup_tokens!r}")
        if min_size is not None and not min_size > 0:
            raise ValueError(f"min_size must be a number of parameters > 0, or None, got {min_size!r}")
        if isinstance(wrapped, HyperbandPruner):
            raise ValueError(
                "wrapped cannot be a HyperbandPruner: Optuna forms its brackets only where it is the study's own "
                "pruner; wrap a SuccessiveHalvingPruner"
            )
        if wrapped is not None and not isinstance(wrapped, BasePruner):
            raise ValueError(f"wrapped must be an optuna pruner or None, got {type(wrapped).__name__}")
        self._evidence = Evidence(
            Fields(size, tokens, batch, lr), source_studies, allow_weak=False, need=n_startup_trials
        )
        self._wrapped = wrapped
        self._n_warmup_tokens = n_warmup_tokens
        self._min_size = min_size

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop; see the class."""
        check_single_objective(study, "ScalingLawPruner")
        if trial.last_step is None:
            return False
        verdict = self.verdict(study, trial)
        if verdict is None or verdict.action == "abstain":
            return self._wrapped is not None and fairness.prune(self._wrapped, study, trial)
        if verdict.action != "stop" or self._unchecked(study, trial):
            return False
        _compat.write_user_attr(study, trial, REASON, f"after {trial.last_step} tokens: {verdict.reason}")
        return True

    def refuse_launch(self, study: Study, trial: FrozenTrial) -> str | None:
        """Why the trial should not be started at all, or None; `TrialRun` asks before the first step."""
        if len(study.directions) > 1:
            return None
        verdict = self.verdict(study, trial)
        if verdict is None or verdict.action != "stop" or self._unchecked(study, trial):
            return None
        return f"not started: {verdict.reason}"

    def _unchecked(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the last `PATIENCE` trials of this size and tokens that ended were all pruned."""
        from metaopt_hpo.scaling.policy import PATIENCE

        place = self._evidence.place(trial)
        assert place is not None  # it has just been judged
        last = self._evidence.read(study).ended.get(place, ())[-PATIENCE:]
        return len(last) == PATIENCE and not any(complete for _, complete in last)

    def verdict(self, study: Study, trial: FrozenTrial) -> Verdict | None:
        """The law's verdict on a trial as it stands; None where there is no law or it is not to judge."""
        place = self._evidence.place_of(study, trial)
        if place is None:
            self._evidence.tell_once(
                "no-size",
                f"ScalingLawPruner: trial {trial.number} of study {study.study_name!r} has no "
                f"{self._evidence.names.size!r} or no {self._evidence.names.tokens!r}, so no law can judge it; "
                "set both with trial.set_user_attr before the first report, or use TrialRun",
            )
            return None
        size, tokens = place
        step = trial.last_step
        if step is not None and not self._n_warmup_tokens <= step <= 1.5 * tokens:
            if step > 1.5 * tokens:
                self._evidence.tell_once(
                    "steps",
                    f"ScalingLawPruner: trial {trial.number} reported step {step} and is planned for {tokens:g} "
                    "tokens; report tokens as the step, on the shared grid, as TrialRun does",
                )
            return None
        batch = self._evidence.names.get(trial, "batch")
        lr = self._evidence.names.get(trial, "lr")
        known = self._evidence.read(study)
        if known.law is None or batch is None or lr is None or tuning_of(trial) == "self":
            return None
        if size < (known.law.domain.size[1] if self._min_size is None else self._min_size) * (1 - SAME):
            return None
        curve = None
        if step is not None:
            sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
            reached = _expected_end(known, step, tokens, sign * trial.intermediate_values[step])
            if reached is None:
                return None
            curve = [(float(step), sign * trial.intermediate_values[step])]
            if known.law.fall is None:
                # without curves the forecast compares with a run planned for `step` tokens, which has cooled down
                longer = known.law.loss(size, tokens, batch, lr)
                curve = [(float(step), reached * float(known.law.loss(size, step, batch, lr) / longer))]
        goal = incumbent(known, size, tokens)
        if goal is None:
            # nobody has finished here: stop only what would end above all the law holds possible for the best
            goal = known.law.predict(size, tokens, batch).loss.high
        return known.law.verdict(size=size, tokens=tokens, lr=lr, batch=batch, incumbent=goal, curve=curve)


def _expected_end(known: Known, seen: int, tokens: float, loss: float) -> float | None:
    """Where a run with this loss after `seen` tokens would end, had it still to fall as much as finished trials.

    None before enough of them have reported at the same tokens, or while they disagree by more than the
    forecast allows an unfinished run to move: early in a run, ranks are still open.
    """
    if not 0 < loss < math.inf:
        return None
    peers, fall, spread = known.fall(tokens, float(seen))
    if peers < MIN_PEERS or spread > DRIFT * math.sqrt(max(0.0, math.log(tokens / seen))):
        return None if seen < tokens or peers < MIN_PEERS else loss
    return loss * math.exp(fall)


def incumbent(known: Known, size: float, tokens: float) -> float | None:
    """Lowest final loss of a finished trial of the same size and tokens, where it is positive."""
    found = [
        loss for (s, t), loss in known.best.items() if abs(s / size - 1) < SAME and abs(t / tokens - 1) < SAME
    ]
    return min(found) if found and min(found) > 0 else None
