"""TrialRun: a training run that is an Optuna trial. It reports on the token grid, asks, records and resumes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import optuna
from optuna.trial import BaseTrial
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.training.distributed import from_rank_0
from metaopt_hpo.training.ending import RunStopped
from metaopt_hpo.training.framework_run import FrameworkRun
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna.checkpoints import inherited, owner, run_name
from metaopt_hpo_optuna.fields import CHECKPOINT, FLOPS_PER_TOKEN, REASON, REPEATS
from metaopt_hpo_optuna.trial_link import TrialLink

logger = logging.getLogger(__name__)

Repeats = Literal["reuse", "train"]


class TrialRun(FrameworkRun):
    """A run of a model under a strategy, as a trial: what an objective holds.

        with TrialRun(trial, model, strategy, size=n, tokens=d, batch=b, evaluate=held_out_loss) as run:
            for step in run:
                run.step(loss(model, data(step)))
        return run.value

    Reports go to the shared token grid, at most 100 a trial, with the number of tokens as Optuna's step, so that
    trials of all sizes meet at equal tokens (`n_warmup_steps=5` of a pruner means five tokens; above 2³¹ see
    `trials.steps`). `size`, `tokens`, `batch`, `lr`, `strategy`, `tuning` and, where the run finds it, `found_lr`
    become user attributes unless they are parameters; the whole record becomes one at the end.

    The study's pruner is asked after each report, beside trials that the run may fairly be compared with
    (`fairness`): one that finds its own lr is not stopped for starting low. A run that is stopped leaves the block as
    `optuna.TrialPruned`. So does one that diverges, with a finite value twice the untrained model's loss as its last
    report and the reason in its user attributes: the study goes on and samplers learn from it. A loop that is left
    early gives a trial that is `stopped` in the table, with the tokens it saw.

    With `torch.distributed` initialised every rank builds the run, rank 0 with the trial and the others with
    None; rank 0 reports, decides and saves, and all ranks stop together. Rank 0's held-out loss counts.

    Args:
        trial: the trial. None on the other ranks of a distributed run. A `FixedTrial` never prunes.
        model, strategy, size, tokens, batch, evaluate: as `TrainingRun`. In a study that maximises, `evaluate`
            returns the metric to maximise; records hold it negated.
        checkpoint: a file to save to and resume from, of this trial alone; or a folder (one that exists, or a
            name that ends in "/"), in which each trial has its own. A retry of a trial whose worker died
            inherits that one's file through its user attributes and goes on from it.
        lease: seconds of silence after which `retry_stale_trials` may queue the trial again; for storages and
            loops without Optuna's heartbeat (Journal, gRPC, ask-and-tell). Default None, no lease.
        repeats: what becomes of a trial that repeats a finished one of the same seed, where no parameter is a
            number (a strategy that finds its lr, chosen again). "reuse" (default) takes that one's value: the
            loop has no steps. "train" trains it. To have each repeat train with another seed, seed with
            `repeat_seed(trial)` and pass it as `seed`.
        options: further options of `TrainingRun` (checkpoint_every, report_stride, seed, workload …).

    Raises:
        optuna.TrialPruned: from the block, for a run that was stopped or diverged.
        ValueError: a multi-objective study; an attribute the trial already has with another value.

    Examples:
        >>> import optuna, torch
        >>> from metaopt_hpo.strategies import make
        >>> from metaopt_hpo_optuna import TrialRun
        >>> def objective(trial):
        ...     model = torch.nn.Linear(4, 1)
        ...     def loss(x):
        ...         return (model(x) - x.sum(1, keepdim=True)).square().mean()
        ...     strategy = make("cosine", lr=trial.suggest_float("lr", 1e-2, 1e-1, log=True))
        ...     held_out = torch.randn(64, 4)
        ...     with TrialRun(
        ...         trial, model, strategy, size=5, tokens=800, batch=8, evaluate=lambda: loss(held_out)
        ...     ) as run:
        ...         for _ in run:
        ...             run.step(loss(torch.randn(8, 4)))
        ...     return run.value
        ...
        >>> study = optuna.create_study()
        >>> study.optimize(objective, n_trials=1)
        >>> study.trials[0].state.name
        'COMPLETE'
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
        repeats: Repeats = "reuse",
        **options: Any,
    ) -> None:
        if repeats not in ("reuse", "train"):
            raise ValueError(f'repeats must be "reuse" or "train", got {repeats!r}')
        self._link = TrialLink(trial, lease=lease)
        self.trial = self._link.trial
        self._repeats = repeats
        self.repeats: int | None = None
        """Number of the finished trial whose value this one reuses; None where it trains."""
        path = None if checkpoint is None else from_rank_0(self._checkpoint_file(checkpoint))
        self._owner = from_rank_0({} if self.trial is None else owner(self.trial))
        super().__init__(
            model,
            strategy,
            size=size,
            tokens=tokens,
            batch=batch,
            evaluate=evaluate,
            maximize=self._link.maximize,
            checkpoint=path,
            **options,
        )
        self._link.take_lease()
        self._link.describe({"size": size, "tokens": tokens, "batch": batch, "lr": strategy.lr})
        self._link.describe_strategy(
            strategy.name,
            tuning="self" if strategy.tunes_lr else "external",
            comparable_from=strategy.comparable_from,
        )
        self._link.set(FLOPS_PER_TOKEN, self.planned.flops_per_token)
        if path is not None:
            self._link.set(CHECKPOINT, path)

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

    # -- what the loop calls -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._link.begin()
        try:
            if not self._reuse():
                self._begin()
        except BaseException:
            self._link.close()
            raise
        return self

    def _begin(self) -> None:
        super().__enter__()
        curve = self.recorder.curve()
        if curve is not None:
            # a retry is a new trial: what its predecessor reported is reported again
            for tokens, loss in zip(curve.tokens, curve.loss, strict=True):
                self.report(round(tokens), loss)
        elif (reason := self._link.refusal()) is not None:
            self.state, self.reason = "pruned", reason
            self.loss = self.initial_loss  # all that is known of a run that did not begin
            self._keep(self.record())
            raise optuna.TrialPruned(reason)

    def _reuse(self) -> bool:
        """Take the value of the finished trial that this one repeats, where there is one."""
        facts = {
            "strategy": [self.strategy.name, self.strategy.options()],
            "run": [self.size, self.target_tokens, self.batch, self.planned.seed, self.planned.workload],
        }
        earlier = self._link.repeated(facts) if self._repeats == "reuse" else None
        self.repeats, value = from_rank_0(
            (None, 0.0) if earlier is None or earlier.value is None else (earlier.number, earlier.value)
        )
        if self.repeats is None:
            return False
        self.loss, self.state = self._sign * value, "complete"
        self.reason = f"it repeats trial {self.repeats}, whose value it takes"
        self._link.set(REPEATS, self.repeats)
        self._link.set(REASON, self.reason)
        logger.info("trial not trained: %s; repeats='train' trains it again", self.reason)
        return True

    def __iter__(self) -> Iterator[int]:
        """Numbers of the steps that remain; none where the trial repeats a finished one."""
        return iter(()) if self.repeats is not None else super().__iter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._link.close()
        if self.repeats is not None:
            return None
        super().__exit__(kind, error, trace)
        record = self.record()
        if record.state == "running" and kind is not None:
            self._keep(self.record(state="failed", reason=f"{kind.__name__}: {error}".strip(": ")))
            return None
        if self.diverged(error):
            stand_in = self.stand_in(self._link.worst_values())
            if stand_in is not None:
                self._link.report(self._link.stand_in_step(self.tokens), self._sign * stand_in)
        if record.state != "running":
            self._keep(record)
        if isinstance(error, RunStopped):
            raise optuna.TrialPruned(error.reason) from error
        return None

    def _keep(self, record: TrialRecord) -> None:
        self._link.keep(
            self.record(
                state=record.state, reason=record.reason, direction=self.direction, **self._link.identity
            )
        )

    # -- what the run calls --------------------------------------------------------------------------------

    def report(self, tokens: int, loss: float) -> None:
        """Report one point to the study, once."""
        self._link.report(tokens, self._sign * loss)

    def ask(self) -> str | None:
        """The pruner's reason to stop, or None."""
        return self._link.ask(self.tokens, self.value)
