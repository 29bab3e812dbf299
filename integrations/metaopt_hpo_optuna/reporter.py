"""What a trial owes the study when somebody else owns the training loop: points on the grid, a record, an end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.training.distributed import from_rank_0, rank
from metaopt_hpo.trials.record import CURVE_FIELDS, Curve, TrialRecord, TrialState, token_grid
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import FLOPS_PER_TOKEN, REASON, RECORD, plain
from metaopt_hpo_optuna.leases import Lease, patiently
from metaopt_hpo_optuna.pruner import refusal
from metaopt_hpo_optuna.study_table import check_single_objective, record_to_json

EXPLODED = 2.0
"""A loss above this multiple of the first one reported has diverged."""

REPORT_STRIDE = 2
"""Every second point of the token grid, four an octave, as `TrainingRun` reports."""


Point = tuple[float, float, float, float, float]
"""Tokens seen, metric, step size, gradient norm and seconds of one report, as a framework's checkpoint keeps it."""


class TrialReporter:
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
        seed, workload, params: for the record.
        lease: seconds of silence after which `retry_lost_trials` may queue the trial again, as in `TrialRun`.

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
        seed: int = 0,
        workload: str = "",
        params: Mapping[str, float | int | str | bool] | None = None,
        lease: float | None = None,
    ) -> None:
        if trial is None and rank() == 0:
            raise ValueError("trial is None; only ranks other than 0 of a distributed run have no trial")
        quantities = {"size": size, "tokens": tokens, "batch": batch, "lr": lr}
        for name, value in quantities.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        self.trial = trial if rank() == 0 else None
        maximise = False
        if self.trial is not None:
            check_single_objective(self.trial.study, "a trial's report")
            maximise = self.trial.study.direction == StudyDirection.MAXIMIZE
        self.loss = math.nan
        self.reason = ""
        self.state: TrialState = "running"
        self.tokens = 0.0
        self._planned = float(tokens)
        self._sign = from_rank_0(-1.0 if maximise else 1.0)
        self._grid = token_grid(max(tokens, 1.0), start=min(batch, tokens / 2), stride=REPORT_STRIDE)
        self._reported: set[int] = set()
        self._rows: list[tuple[float, ...]] = []
        self._begun = time.perf_counter()
        self._lease: Lease | None = None
        self._record = TrialRecord(
            size=float(size),
            tokens=0.0,
            batch=float(batch),
            lr=float(lr),
            loss=math.nan,
            strategy=strategy,
            seed=seed,
            workload=workload,
            params=dict(params or {}),
            target_tokens=float(tokens),
            engine="optuna",
            direction="maximize" if self._sign < 0 else "minimize",
        )
        if self.trial is not None:
            self._describe(self.trial, {**quantities, "strategy": strategy}, lease)

    def _describe(self, trial: Trial, described: Mapping[str, float | str], lease: float | None) -> None:
        held = {**trial.user_attrs, **trial.params}
        for name, value in described.items():
            if name in held and held[name] != plain(value):
                raise ValueError(
                    f"trial {trial.number} already has {name}={held[name]!r}, and this run has {name}={value!r}; "
                    "a trial is one run"
                )
        if lease is not None:
            self._lease = Lease(trial, lease)
            self._lease.__enter__()
        for name, value in described.items():
            if name not in held:
                self._set(name, plain(value))
        self._set(FLOPS_PER_TOKEN, 6.0 * self._record.size)
        self._reported = set(patiently(lambda: _compat.stored(trial)).intermediate_values)

    def _set(self, key: str, value: object) -> None:
        trial = self.trial
        if trial is not None:
            patiently(lambda: trial.set_user_attr(key, value))

    def begin(self, earlier: Iterable[Point] = ()) -> None:
        """Take up a run whose first part is in its checkpoint, or ask the study's law whether to begin at all.

        Args:
            earlier: what was reported before; a retry is a new trial, and it is reported again.

        Raises:
            optuna.TrialPruned: by the law the run has no chance.
        """
        for tokens, metric, step_size, grad_norm, seconds in earlier:
            self._take(tokens, metric, step_size, grad_norm, seconds)
        if self._rows:
            spent = self._rows[-1][-1]
            self._begun = time.perf_counter() - (spent if math.isfinite(spent) else 0.0)
        elif (reason := from_rank_0(refusal(self.trial))) is not None:
            self._end("pruned", reason)
            self.result()

    def points(self) -> list[Point]:
        """What was reported so far, for `begin` of a run that goes on from a checkpoint."""
        return [(r[0], self._sign * r[1], r[2], r[3], r[6]) for r in self._rows]

    def due(self, tokens: float) -> int | None:
        """The grid point to report at when `tokens` have been seen, None when there is no new one."""
        if tokens >= self._planned:
            point: int | None = round(self._planned)
        else:
            point = max((t for t in self._grid if t <= tokens), default=None)
        last = self._rows[-1][0] if self._rows else 0
        return point if point is not None and point > last else None

    def report(
        self, tokens: float, metric: float, *, step_size: float = math.nan, grad_norm: float = math.nan
    ) -> str | None:
        """Report the held-out loss (or the metric of a study that maximises) at `tokens` seen.

        Returns:
            A reason to stop now: the pruner's, or that the run diverged. None to go on.
        """
        seconds = time.perf_counter() - self._begun
        point = self._take(tokens, metric, step_size, grad_norm, seconds)
        if point is None or self.state != "running":
            return self.reason or None
        trial, reason = self.trial, None
        if trial is not None and tokens < self._planned and patiently(trial.should_prune):
            written = patiently(lambda: _compat.stored(trial)).user_attrs.get(REASON)
            reason = written or f"{type(trial.study.pruner).__name__} stopped it after {point} tokens"
        reason = from_rank_0(reason)
        return None if reason is None else self._end("pruned", reason)

    def _take(
        self, tokens: float, metric: float, step_size: float, grad_norm: float, seconds: float
    ) -> int | None:
        """Keep a point and tell it; a loss that has exploded ends the run."""
        point = self.due(tokens)
        self.tokens = max(self.tokens, min(float(tokens), self._planned))
        if point is None:
            return None
        # all ranks must judge the same number, or one would stop and the others wait for it
        self.loss = from_rank_0(self._sign * float(metric))
        cost = 6.0 * self._record.size * self.tokens
        self._rows.append((point, self.loss, step_size, grad_norm, math.nan, cost, seconds))
        first = self._rows[0][1]
        if not math.isfinite(self.loss) or self.loss > EXPLODED * first > 0:
            known = [r[1] for r in self._rows if math.isfinite(r[1])]
            if known:
                self._tell(point, max([*known, EXPLODED * first]))
            self._end("diverged", f"held-out loss is {self.loss:.4g} after {point} tokens")
        else:
            self._tell(point, self.loss)
        return point

    def result(self) -> float:
        """What the objective returns; call it when training has ended. Writes the record.

        Raises:
            optuna.TrialPruned: the run was stopped or diverged.
            MetaOptError: nothing was reported.
        """
        self.close()
        if not self._rows and self.state == "running":
            number = "" if self.trial is None else f" {self.trial.number}"
            raise MetaOptError(
                f"trial{number} ended without an evaluation; evaluate at least once in the run"
            )
        if self.state == "running":
            self._end("complete", "")
        self._set(RECORD, record_to_json(self._finished()))
        if self.state != "complete":
            self._set(REASON, self.reason)
            raise optuna.TrialPruned(self.reason)
        return self._sign * self.loss

    def close(self) -> None:
        """Give up the lease; the run has ended, however it did."""
        if self._lease is not None:
            self._lease.__exit__()
            self._lease = None

    def _finished(self) -> TrialRecord:
        curve, trial = None, self.trial
        if self._rows:
            columns = zip(CURVE_FIELDS, zip(*self._rows, strict=True), strict=True)
            curve = Curve(**{name: tuple(map(float, column)) for name, column in columns})
        return replace(
            self._record,
            study="" if trial is None else trial.study.study_name,
            trial="" if trial is None else str(trial.number),
            tokens=self.tokens,
            loss=self.loss,
            state=self.state,
            reason=self.reason,
            cost=6.0 * self._record.size * self.tokens,
            seconds=time.perf_counter() - self._begun,
            curve=curve,
        )

    def _tell(self, point: int, loss: float) -> None:
        trial = self.trial
        if trial is not None and point not in self._reported:
            patiently(lambda: trial.report(self._sign * loss, point))
            self._reported.add(point)

    def _end(self, state: TrialState, reason: str) -> str:
        self.state, self.reason = state, reason
        return reason
