"""TrialRun: a training run that is an Optuna trial. It reports on the token grid, asks, records and resumes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
import torch
from optuna.trial import BaseTrial, Trial
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.training.distributed import from_rank_0, is_distributed, min_over_ranks, rank
from metaopt_hpo.training.run import EXPLODED, RunDiverged, RunStopped, TrainingRun
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import CHECKPOINT, FLOPS_PER_TOKEN, REASON, RECORD, plain
from metaopt_hpo_optuna.leases import Lease, patiently
from metaopt_hpo_optuna.places import inherited, owner, run_name
from metaopt_hpo_optuna.pruner import refusal
from metaopt_hpo_optuna.study_table import check_single_objective, record_to_json


class TrialRun(TrainingRun):
    """A run of a model under a strategy, as a trial: what an objective holds.

        with TrialRun(trial, model, strategy, size=n, tokens=d, batch=b, evaluate=held_out_loss) as run:
            for step in run:
                run.step(loss(model, data(step)))
        return run.value

    Reports go to the shared token grid, at most 100 a trial, with the number of tokens as Optuna's step, so
    that trials of all sizes meet at equal tokens. `size`, `tokens`, `batch`, `lr` and `strategy` become user
    attributes unless they are parameters; the whole record becomes one at the end.

    A run that the study's pruner stops leaves the block as `optuna.TrialPruned`. So does one that diverges,
    with a finite value twice the untrained model's loss as its last report and the reason in its user
    attributes: the study goes on and samplers learn from it.

    With `torch.distributed` initialised every rank builds the run, rank 0 with the trial and the others with
    None; rank 0 reports, decides and saves, and all ranks stop together. Rank 0's held-out loss counts.

    Args:
        trial: the trial. None on the other ranks of a distributed run. A `FixedTrial` never prunes.
        model, strategy, size, tokens, batch, evaluate: as `TrainingRun`. In a study that maximises, `evaluate`
            returns the metric to maximise; records hold it negated.
        checkpoint: a file to save to and resume from, of this trial alone; or a folder (one that exists, or a
            name that ends in "/"), in which each trial has its own. A retry of a trial whose worker died
            inherits that one's file through its user attributes and goes on from it.
        lease: seconds of silence after which `retry_lost_trials` may queue the trial again; for storages and
            loops without Optuna's heartbeat (Journal, gRPC, ask-and-tell). Default None, no lease.
        options: further options of `TrainingRun` (checkpoint_every, report_stride, seed, workload …).

    Raises:
        optuna.TrialPruned: from the block, for a run that was stopped or diverged.
        ValueError: a multi-objective study; an attribute the trial already has with another value.
    """

    def __init__(
        self,
        trial: BaseTrial | None,
        model: nn.Module,
        strategy: LRStrategy,
        *,
        size: float,
        tokens: float,
        batch: float,
        evaluate: Callable[[], float | Tensor],
        checkpoint: str | os.PathLike[str] | None = None,
        lease: float | None = None,
        **options: Any,
    ) -> None:
        if trial is None and rank() == 0:
            raise ValueError("trial is None; only ranks other than 0 of a distributed run have no trial")
        self.trial = trial if rank() == 0 else None
        self._lease = Lease(trial, lease) if lease is not None and isinstance(trial, Trial) else None
        self._sign = 1.0
        self._reported: set[int] = set()
        if isinstance(self.trial, Trial):
            check_single_objective(self.trial.study, "TrialRun")
            if self.trial.study.direction == optuna.study.StudyDirection.MAXIMIZE:
                self._sign = -1.0
        self._sign = from_rank_0(self._sign)
        path = None if checkpoint is None else from_rank_0(self._checkpoint_file(checkpoint))
        self._owner = from_rank_0({} if self.trial is None else owner(self.trial))
        super().__init__(
            model,
            strategy,
            size=size,
            tokens=tokens,
            batch=batch,
            evaluate=evaluate,
            checkpoint=path,
            **options,
        )
        if self._lease is not None:
            self._lease.take()
        described = {"size": size, "tokens": tokens, "batch": batch, "lr": strategy.lr}
        for name, value in described.items():
            self._describe(name, plain(value))
        self._describe("strategy", strategy.name)
        self._set("tuning", "self" if strategy.tunes_lr else "external")
        self._set(FLOPS_PER_TOKEN, plain(self._flops_per_token))
        if path is not None:
            self._set(CHECKPOINT, path)

    @property
    def value(self) -> float:
        """What the objective returns: the last held-out loss, or the metric where the study maximises."""
        return self._sign * self.loss

    def _checkpoint_file(self, checkpoint: str | os.PathLike[str]) -> str:
        if self.trial is None:
            return ""  # rank 0 names the file
        path = Path(checkpoint)
        if path.is_dir() or str(os.fspath(checkpoint)).endswith(("/", os.sep)):
            path = path / f"{run_name(self.trial)}.pt"
        return inherited(self.trial) or str(path)

    def identity(self) -> dict[str, Any]:
        """The run's identity, and the study and trial; a retry goes on as the trial it retries."""
        return {**super().identity(), **self._owner}

    # -- the trial's attributes ----------------------------------------------------------------------------

    def _describe(self, name: str, value: Any) -> None:
        if self.trial is None:
            return
        for kind, held in (("parameter", self.trial.params), ("user attribute", self.trial.user_attrs)):
            if name not in held:
                continue
            if held[name] != value:
                raise ValueError(
                    f"trial {self.trial.number} already has the {kind} {name}={held[name]!r}, and this run has "
                    f"{name}={value!r}; a trial is one run, of one {name}"
                )
            return
        self._set(name, value)

    def _set(self, key: str, value: Any) -> None:
        trial = self.trial
        if trial is not None:
            patiently(lambda: trial.set_user_attr(key, value))

    # -- what the loop calls -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._lease is not None:
            self._lease.__enter__()
        try:
            return self._begin()
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.__exit__()

    def _begin(self) -> Self:
        super().__enter__()
        trial = self.trial
        if isinstance(trial, Trial):
            self._reported = set(patiently(lambda: _compat.stored(trial)).intermediate_values)
        curve = self.recorder.curve()
        if curve is not None:
            # a retry is a new trial: what its predecessor reported is reported again
            for tokens, loss in zip(curve.tokens, curve.loss, strict=True):
                self.report(round(tokens), loss)
        elif (reason := from_rank_0(refusal(self.trial))) is not None:
            self.state, self.reason = "pruned", reason
            self.loss = self.initial_loss  # all that is known of a run that did not begin
            self._keep(self.record())
            raise optuna.TrialPruned(reason)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._release()
        super().__exit__(kind, error, trace)
        record = self.record()
        if record.state == "running" and kind is not None:
            reason = f"{kind.__name__}: {error}".strip(": ")
            self._keep(self.record(state="failed", reason=reason))
            return None
        if isinstance(error, RunDiverged):
            self._report_penalty()
        if record.state != "running":
            self._keep(record)
        if isinstance(error, RunStopped):
            raise optuna.TrialPruned(error.reason) from error
        return None

    def _keep(self, record: TrialRecord) -> None:
        direction = "maximize" if self._sign < 0 else "minimize"
        number = "" if self.trial is None else str(self.trial.number)
        study = self.trial.study.study_name if isinstance(self.trial, Trial) else ""
        record = self.record(
            state=record.state,
            reason=record.reason,
            engine="optuna",
            direction=direction,
            trial=number,
            study=study,
        )
        if record.reason:
            self._set(REASON, record.reason)
        if math.isfinite(record.found_lr):
            self._set("found_lr", plain(record.found_lr))
        self._set(RECORD, record_to_json(record))

    def _report_penalty(self) -> None:
        """A finite last report: twice the untrained loss, or the worst known where that says nothing."""
        curve = self.recorder.curve()
        known = [self.initial_loss, *(curve.loss if curve is not None else ())]
        finite = [v for v in known if math.isfinite(v)]
        if not finite and isinstance(self.trial, Trial):
            values = [t.value for t in self.trial.study.get_trials(deepcopy=False) if t.value is not None]
            finite = [self._sign * v for v in values if math.isfinite(v)]
        if not finite:
            return  # nothing is known yet that it could be worse than; it ends without a value
        worst = max(finite)
        penalty = max(worst, EXPLODED * self.initial_loss if self.initial_loss > 0 else worst)
        step = max(round(self.tokens), max(self._reported, default=0) + 1)
        self.report(step, penalty if math.isfinite(penalty) else worst)

    # -- what the run calls --------------------------------------------------------------------------------

    def report(self, tokens: int, loss: float) -> None:
        """Report one point to the study, once; Optuna ignores a second report of a step, with a warning."""
        if self.trial is not None and tokens not in self._reported:
            trial = self.trial
            patiently(lambda: trial.report(float(self._sign * loss), int(tokens)))
            self._reported.add(tokens)

    def should_stop(self) -> str | None:
        """The pruner's reason, or None; rank 0 asks, all ranks get the answer."""
        reason: str | None = None
        if self.trial is not None and patiently(self.trial.should_prune):
            reason = patiently(self._pruner_reason)
        return from_rank_0(reason)

    def _pruner_reason(self) -> str:
        assert self.trial is not None
        written = _compat.stored(self.trial).user_attrs.get(REASON) if isinstance(self.trial, Trial) else None
        if isinstance(written, str):
            return written
        pruner = type(self.trial.study.pruner).__name__ if isinstance(self.trial, Trial) else "the pruner"
        return f"{pruner} stopped it after {round(self.tokens)} tokens at {self.value:.4g}"

    def save(self) -> None:
        """Write the checkpoint; rank 0 writes, the others wait for it."""
        if rank() == 0:
            super().save()
        if is_distributed():
            torch.distributed.barrier()

    def _held_out(self) -> float:
        # all ranks must judge the same number, or one would stop and the others wait for it
        return from_rank_0(self._sign * super()._held_out())

    def _watch(self, loss: Tensor) -> None:
        super()._watch(min_over_ranks(loss))
