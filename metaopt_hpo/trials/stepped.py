"""A trial of a framework that keeps its reports by step, as a record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metaopt_hpo.trials.record import REACHED_ON_GRID, Curve, TrialRecord, TrialState
from metaopt_hpo.trials.steps import Reports


def as_the_framework_says(record: TrialRecord, state: TrialState, **names: str) -> TrialRecord:
    """A record that was kept with its trial; the framework has the last word on whether it failed or still runs.

    A process killed while finishing leaves a record and no result.
    """
    if state in ("failed", "running") and record.state not in ("failed", "running"):
        record = replace(record, state=state)
    return replace(record, **names)  # type: ignore[arg-type]


def record_of_reports(
    quantities: Mapping[str, float | None],
    reports: Reports,
    *,
    state: TrialState,
    value: float | None,
    maximize: bool,
    silent: bool,
    flops_per_token: float | None = None,
    **fields: Any,
) -> TrialRecord | None:
    """The record of a trial that is known by its quantities and reports; None where it lacks a quantity.

    Args:
        quantities: size, (planned) tokens, batch and lr, as far as they are known.
        reports: by tokens.
        state: as the framework has it. One whose result is one of its reports, the last of which lies well before what
            was planned, ended by itself there: it is `stopped`. A result that was not reported is that of the end.
        value: the result; None takes the last report.
        maximize: True where value and reports are maximised; the record holds them negated.
        silent: True where the trial made no reports at all, so that one without points saw no tokens.
        flops_per_token: 6 × size by default.
        fields: further fields of the record.
    """
    size, planned, batch, lr = (quantities[name] for name in ("size", "tokens", "batch", "lr"))
    if size is None or planned is None or batch is None or lr is None:
        return None
    sign = -1.0 if maximize else 1.0
    curve = None
    if reports.points:
        tokens, values = zip(*reports.points, strict=True)
        curve = Curve(tokens=tokens, loss=tuple(sign * v for v in values))
    reached = planned if state == "complete" else curve.tokens[-1] if curve else 0.0
    new = value is not None and value not in [loss for _, loss in reports.points]
    short = curve is not None and curve.tokens[-1] < REACHED_ON_GRID * planned - batch
    if state == "complete" and curve is not None and short and not new:
        state, reached = "stopped", curve.tokens[-1]
    unknown = curve is None and not silent and state != "complete"
    last = curve.loss[-1] if curve else math.nan
    return TrialRecord(
        size=size,
        tokens=reached,
        batch=batch,
        lr=lr,
        loss=last if value is None else sign * value,
        state=state,
        target_tokens=planned,
        cost=math.nan if unknown else (flops_per_token or 6.0 * size) * reached,
        direction="maximize" if maximize else "minimize",
        curve=curve,
        **fields,
    )
