"""TrainObjective: trials by training a workload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from metaopt_hpo.comparison.live import LiveRun, LiveTraining
from metaopt_hpo.comparison.objective import (
    Configuration,
    ObjectiveError,
    ObjectiveUnavailable,
    Report,
    no_report,
)
from metaopt_hpo.trials.record import TrialRecord

if TYPE_CHECKING:
    from metaopt_hpo.workloads.base import Workload


class TrainObjective:
    """Train a workload at one of several sizes.

    Args:
        workloads: the family's members; their sizes must differ.
        report_stride: report at every n-th point of the token grid (default 4, two an octave: each report
            is an evaluation).
        device: where to train ("cpu", "cuda", "cuda:1" …).
    """

    def __init__(self, workloads: Sequence[Workload], *, report_stride: int = 4, device: str = "cpu") -> None:
        by_size = {float(w.size): w for w in workloads}
        if not by_size or len(by_size) != len(workloads):
            raise ValueError(
                f"workloads must be at least one and of different sizes, got sizes {[w.size for w in workloads]}"
            )
        _check_device(device)
        self.name = workloads[0].name
        self._workloads = dict(sorted(by_size.items()))
        self._report_stride = report_stride
        self._device = device

    @property
    def sizes(self) -> tuple[float, ...]:
        """Sizes there are, ascending."""
        return tuple(self._workloads)

    def cost(self, configuration: Configuration) -> float:
        """Measured FLOPs per token times the tokens of whole steps."""
        steps = math.ceil(configuration.tokens / configuration.batch)
        return self._workload(configuration).flops_per_token * steps * configuration.batch

    def check(self) -> None:
        """Make the smallest model and see that its data are there: one forward pass.

        Raises:
            ObjectiveUnavailable: they are not.
        """
        from metaopt_hpo.workloads.base import WorkloadError

        workload = next(iter(self._workloads.values()))
        try:
            workload.losses(workload.model(0), 0, 0, 1)
        except WorkloadError as error:
            raise ObjectiveUnavailable(str(error)) from error

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """Train to the end, or until `report` gives a reason to stop."""
        return self._train(configuration, report)

    def run_saved(self, configuration: Configuration, report: Report, checkpoint: Path) -> TrialRecord:
        """Train from the checkpoint where there is one; see `Checkpointing`. A damaged one is trained anew."""
        from metaopt_hpo.training.checkpoint import CheckpointError, load

        if checkpoint.exists():
            try:
                load(checkpoint)
            except CheckpointError:
                checkpoint.unlink()
        return self._train(configuration, report, checkpoint=checkpoint)

    def _train(self, configuration: Configuration, report: Report, **options: Any) -> TrialRecord:
        from metaopt_hpo.strategies import make
        from metaopt_hpo.training.ending import RunStopped
        from metaopt_hpo.training.run import TrainingRun
        from metaopt_hpo.workloads.base import WorkloadError, train

        class ReportingRun(TrainingRun):
            decision: str | None = None

            def __enter__(self) -> Self:
                super().__enter__()
                curve = self.recorder.curve()
                for tokens, loss in zip(curve.tokens, curve.loss, strict=True) if curve else ():
                    self.report(round(tokens), loss)
                if self.decision is not None and self.state == "running":
                    self.state, self.reason = "pruned", self.decision
                    raise RunStopped(self.decision)
                return self

            def report(self, tokens: int, loss: float) -> None:
                self.decision = report(tokens, loss)

            def should_stop(self) -> str | None:
                return self.decision

        try:
            run = train(
                self._workload(configuration),
                make(configuration.strategy, lr=configuration.lr, **configuration.options),
                tokens=configuration.tokens,
                seed=configuration.seed,
                device=self._device,
                run_class=ReportingRun,
                report_stride=self._report_stride,
                **options,
            )
        except WorkloadError as error:  # its data went away
            raise ObjectiveUnavailable(str(error)) from error
        return replace(run.record(), params=dict(configuration.options))

    @property
    def changes_lr(self) -> bool:
        """True: weights and optimizer go on at whatever peak lr the schedule is given."""
        return True

    def stops_at(self, configuration: Configuration, tokens: float) -> float:
        """The end of the step in which `tokens` are seen."""
        return math.ceil(min(tokens, configuration.tokens) / configuration.batch) * configuration.batch

    def open(self, configuration: Configuration, saved: Path | None = None) -> LiveRun:
        """A training run that can be halted, saved, and gone on with, also at another lr; see `comparison.live`.

        Raises:
            ObjectiveError: no such size.
            CheckpointError: the file is damaged or foreign.
        """
        from metaopt_hpo.strategies import make
        from metaopt_hpo.workloads.base import begin, steps

        c = configuration
        workload = self._workload(c)
        run = begin(
            workload,
            make(c.strategy, lr=c.lr, **c.options),
            tokens=c.tokens,
            seed=c.seed,
            device=self._device,
            report_stride=self._report_stride,
            params=dict(c.options),
        )
        return LiveTraining(run, lambda made: steps(workload, made, c.seed), saved)

    def _workload(self, configuration: Configuration) -> Workload:
        try:
            workload = self._workloads[float(configuration.size)]
        except KeyError:
            raise ObjectiveError(
                f"workload {self.name} has no member of size {configuration.size:g}; sizes: "
                + ", ".join(f"{s:g}" for s in self._workloads)
            ) from None
        return (
            workload
            if workload.batch == configuration.batch
            else workload.with_batch(int(configuration.batch))
        )


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError) as error:
        raise ObjectiveError(
            f"cannot train on device {name!r}: {str(error).splitlines()[0]}; use 'cpu', or a device torch has"
        ) from error
