"""What a trial owes the study when somebody else owns the training loop: points on the grid, a record, an end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import CURVE_FIELDS, Curve, TrialRecord, TrialState, token_grid
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import FLOPS_PER_TOKEN, REASON, RECORD, plain
from metaopt_hpo_optuna.leases import patiently
from metaopt_hpo_optuna.study_table import check_single_objective, record_to_json

EXPLODED = 2.0
"""A loss above this multiple of the first one reported has diverged."""

REPORT_STRIDE = 2
"""Every second point of the token grid, four an octave, as `TrainingRun` reports."""


class TrialReporter:
    """Reports a run to its trial: the callbacks for Trainer and Lightning are thin around it.

    Args:
        trial: the trial.
        size: trainable non-embedding parameters.
        tokens: planned training tokens.
        batch: tokens per optimizer step.
        lr: the knob.
        strategy: name of what sets lr during the run.
        seed, workload, params: for the record.

    Raises:
        ValueError: a multi-objective study, a quantity that is not positive, or an attribute the trial already
            has with another value.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        size: float,
        tokens: float,
        batch: float,
        lr: float,
        strategy: str = "",
        seed: int = 0,
        workload: str = "",
        params: Mapping[str, float | int | str | bool] | None = None,
    ) -> None:
        check_single_objective(trial.study, "a trial's report")
        quantities = {"size": size, "tokens": tokens, "batch": batch, "lr": lr}
        for name, value in quantities.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        self.trial = trial
        self.loss = math.nan
        self.reason = ""
        self.state: TrialState = "running"
        self.tokens = 0.0
        self._planned = float(tokens)
        self._sign = -1.0 if trial.study.direction == StudyDirection.MAXIMIZE else 1.0
        self._grid = token_grid(max(tokens, 1.0), start=min(batch, tokens / 2), stride=REPORT_STRIDE)
        self._reported = set(patiently(lambda: _compat.stored(trial)).intermediate_values)
        self._rows: list[tuple[float, ...]] = []
        self._begun = time.perf_counter()
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
            study=trial.study.study_name,
            trial=str(trial.number),
            direction="maximize" if self._sign < 0 else "minimize",
        )
        held = {**trial.user_attrs, **trial.params}
        for name, described in {**quantities, "strategy": strategy}.items():
            if name not in held:
                trial.set_user_attr(name, plain(described))
            elif held[name] != plain(described):
                raise ValueError(
                    f"trial {trial.number} already has {name}={held[name]!r}, and this run has {name}={described!r}; "
                    "a trial is one run"
                )
        trial.set_user_attr(FLOPS_PER_TOKEN, 6.0 * float(size))

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
        point = self.due(tokens)
        self.tokens = max(self.tokens, min(float(tokens), self._planned))
        if point is None:
            return None
        self.loss = self._sign * float(metric)
        cost = 6.0 * self._record.size * self.tokens
        seconds = time.perf_counter() - self._begun
        self._rows.append((point, self.loss, step_size, grad_norm, math.nan, cost, seconds))
        first = self._rows[0][1]
        if not math.isfinite(self.loss) or self.loss > EXPLODED * first > 0:
            known = [r[1] for r in self._rows if math.isfinite(r[1])]
            if known:
                self._tell(point, max([*known, EXPLODED * first]))
            return self._end("diverged", f"held-out loss is {self.loss:.4g} after {point} tokens")
        self._tell(point, self.loss)
        if tokens < self._planned and patiently(self.trial.should_prune):
            written = patiently(lambda: _compat.stored(self.trial)).user_attrs.get(REASON)
            pruner = type(self.trial.study.pruner).__name__
            return self._end("pruned", written or f"{pruner} stopped it after {point} tokens")
        return None

    def result(self) -> float:
        """What the objective returns; call it when training has ended. Writes the record.

        Raises:
            optuna.TrialPruned: the run was stopped or diverged.
            MetaOptError: nothing was reported.
        """
        if not self._rows:
            raise MetaOptError(
                f"trial {self.trial.number} ended without an evaluation; evaluate at least once in the run"
            )
        if self.state == "running":
            self._end("complete", "")
        columns = zip(*self._rows, strict=True)
        curve = Curve(**{k: tuple(float(x) for x in c) for k, c in zip(CURVE_FIELDS, columns, strict=True)})
        fields = {
            **{k: getattr(self._record, k) for k in self._record.__slots__},
            "tokens": self.tokens,
            "loss": self.loss,
            "state": self.state,
            "reason": self.reason,
            "cost": 6.0 * self._record.size * self.tokens,
            "seconds": time.perf_counter() - self._begun,
            "curve": curve,
        }
        patiently(lambda: self.trial.set_user_attr(RECORD, record_to_json(TrialRecord(**fields))))
        if self.state != "complete":
            patiently(lambda: self.trial.set_user_attr(REASON, self.reason))
            raise optuna.TrialPruned(self.reason)
        return self._sign * self.loss

    def _tell(self, point: int, loss: float) -> None:
        if point not in self._reported:
            patiently(lambda: self.trial.report(self._sign * loss, point))
            self._reported.add(point)

    def _end(self, state: TrialState, reason: str) -> str:
        self.state, self.reason = state, reason
        return reason
