"""Reports and the final record of an Optuna trial whose loop a framework owns (Trainer, Lightning)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import optuna
from optuna.trial import Trial

from metaopt_hpo.strategies.registry import tuning_of
from metaopt_hpo.training.framework_run import Point, ReportedRun
from metaopt_hpo.trials.record import TrialRecord, Tuning
from metaopt_hpo_optuna.fields import FLOPS_PER_TOKEN
from metaopt_hpo_optuna.trial_link import TrialLink

__all__ = ["Point", "TrialReporter"]


class TrialReporter(ReportedRun):
    """Reports a run to its trial: the callbacks for Trainer and Lightning are thin around it.

    With `torch.distributed` initialised every rank makes one, rank 0 with the trial and the others with None; rank
    0's metric counts, it reports and decides, and all ranks end alike.

    Args:
        trial: the trial; None on ranks other than 0.
        size: trainable non-embedding parameters.
        tokens: planned training tokens.
        batch: tokens per optimizer step.
        lr: the knob.
        strategy: name of what sets lr during the run.
        tuning: "self" where the run finds its lr itself; by default what the strategy of that name does.
        comparable_from: part of the run after which its loss may be compared with runs of other strategies;
            by default 1 (only its end) for a run that finds its lr itself, else 0.
        seed, workload, params: for the record.
        lease: seconds of silence after which `retry_stale_trials` may queue the trial again, as in `TrialRun`.

    Raises:
        ValueError: a multi-objective study, a quantity that is not positive, or an attribute the trial already
            has with another value.
    """

    def __init__(
        self,
        trial: Trial | None,
        *,
        size: float,
        tokens: float,
        batch: float,
        lr: float,
        strategy: str = "",
        tuning: Tuning = "",
        comparable_from: float | None = None,
        seed: int = 0,
        workload: str = "",
        params: Mapping[str, float | int | str | bool] | None = None,
        lease: float | None = None,
    ) -> None:
        self._link = TrialLink(trial, lease=lease, what="a trial's report")
        self.trial = self._link.live
        tuning = tuning or (tuning_of(strategy) if strategy else "")
        super().__init__(
            size=size,
            tokens=tokens,
            batch=batch,
            lr=lr,
            maximize=self._link.maximize,
            strategy=strategy,
            tuning=tuning,
            seed=seed,
            workload=workload,
            params=dict(params or {}),
            **self._link.identity,
        )
        self._link.describe({"size": size, "tokens": tokens, "batch": batch, "lr": lr})
        if comparable_from is None:
            comparable_from = 1.0 if tuning == "self" else 0.0
        self._link.begin()
        self._link.describe_strategy(strategy, tuning=tuning, comparable_from=comparable_from)
        self._link.set(FLOPS_PER_TOKEN, 6.0 * size)

    def begin(self, earlier: Iterable[Point] = ()) -> bool:
        """Take up a run whose first part is in its checkpoint, or ask the study's law whether to begin at all.

        Args:
            earlier: what was reported before; a retry is a new trial, and it is reported again.

        Raises:
            optuna.TrialPruned: by the law the run has no chance.
        """
        if super().begin(earlier):
            return True
        if (reason := self._link.refusal()) is not None:
            self.end("pruned", reason)
            self.result()
        return False

    def tell(self, point: int, loss: float) -> None:
        """Report one point to the study, once."""
        self._link.report(point, self._sign * loss)

    def ask(self, point: int) -> str | None:
        """The pruner's reason to stop, or None."""
        return self._link.ask(point, self._sign * self.loss)

    def keep(self, record: TrialRecord) -> None:
        """Write the record to the trial."""
        self._link.keep(record)

    def result(self) -> float:
        """What the objective returns; call it when training has ended. Writes the record.

        Raises:
            optuna.TrialPruned: the run was stopped or diverged.
            MetaOptError: nothing was reported.
        """
        self.close()
        value = self.finish()
        if self.state not in ("complete", "stopped"):
            raise optuna.TrialPruned(self.reason)
        return value

    def close(self) -> None:
        """Give up the lease; the run has ended, however it did."""
        self._link.close()

    def _called(self) -> str:
        return "the trial" if self.trial is None else f"trial {self.trial.number}"
