"""An Optuna study as a trial table, and trial records as an Optuna study: the two conversions at the waist."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.trials.quantities import positive
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record import TrialState as RecordState
from metaopt_hpo.trials.record_json import NUMBERS, record_to_json
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.trials.stepped import as_the_framework_says, record_of_reports
from metaopt_hpo.trials.steps import step_of
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna.fields import (
    FLOPS_PER_TOKEN,
    REASON,
    RECORD,
    REPEATS,
    Fields,
    StudyWarning,
    record_from_json,
    reports_of,
    strategy_of,
    tuning_of,
)

STATES: dict[TrialState, RecordState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def trial_table(
    study: Study,
    *,
    size: str | float = "size",
    tokens: str | float = "tokens",
    batch: str | float = "batch",
    lr: str = "lr",
) -> TrialTable:
    """All trials of a study that have started, as a trial table.

    A trial of `TrialRun` or `OptunaEngine` carries its record and comes back whole. Any other is read from
    its parameters and user attributes; its intermediate steps are taken as token counts where none exceeds
    the planned tokens. Pruned, failed and running trials are kept, with what they cost.

    Args:
        size, tokens, batch, lr: parameter or user attribute that holds the quantity; for the first three a
            number that all trials share.

    Raises:
        TableError: the study has no trials, or none of them has all four quantities.
        ValueError: a multi-objective study.

    Examples:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> from metaopt_hpo import TrialRecord
        >>> from metaopt_hpo_optuna import add_records, trial_table
        >>> add_records(study, [TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-3, loss=3.2)])
        >>> len(trial_table(study))
        1
    """
    check_single_objective(study, "trial_table")
    return TrialTable.from_records(
        study_records(study, Fields(size, tokens, batch, lr), study.get_trials(deepcopy=False))
    )


def study_records(study: Study, names: Fields, trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
    """Records of these trials of a study; see `trial_table`."""
    started = [t for t in trials if t.state != TrialState.WAITING]
    if not started:
        raise TableError(f"study {study.study_name!r} has no trials yet; run some first")
    records: list[TrialRecord | None] = []
    damaged = no_tokens = ""
    for trial in started:
        if REPEATS in trial.user_attrs:
            continue  # nothing was trained
        try:
            records.append(trial_record(trial, names, study.study_name, study.direction))
            if not no_tokens and RECORD not in trial.user_attrs and (bad := reports_of(trial, names).problem):
                no_tokens = f"trial {trial.number}: {bad}"
        except (TableError, ValueError) as error:
            records.append(None)
            damaged = damaged or f"trial {trial.number}: {error}"
    found = [r for r in records if r is not None]
    if not found:
        if damaged:
            raise TableError(f"no trial of study {study.study_name!r} can be read; {damaged}")
        absent = next(
            n for n in ("size", "tokens", "batch", "lr") if all(names.get(t, n) is None for t in started)
        )
        raise TableError(
            f"no trial of study {study.study_name!r} has a parameter or user attribute "
            f"{getattr(names, absent)!r}; set it with trial.set_user_attr, or name another with {absent}=…"
        )
    if len(found) < len(records):
        warnings.warn(
            f"{len(records) - len(found)} of {len(records)} trials of study {study.study_name!r} lack size, "
            "tokens, batch or lr and are left out; set these as user attributes at the start of the objective"
            + (f" ({damaged})" if damaged else ""),
            StudyWarning,
            stacklevel=3,
        )
    if no_tokens:
        warnings.warn(
            f"reports of study {study.study_name!r} are left out, and what its pruned trials saw and cost is "
            f"not known; {no_tokens}",
            StudyWarning,
            stacklevel=3,
        )
    return found


def trial_record(
    trial: FrozenTrial, names: Fields, study_name: str, direction: StudyDirection
) -> TrialRecord | None:
    """One trial as a record; None where it lacks size, tokens, batch or lr."""
    state, own = STATES[trial.state], {"trial": str(trial.number), "study": study_name}
    if RECORD in trial.user_attrs:
        return as_the_framework_says(record_from_json(trial.user_attrs[RECORD]), state, **own)
    said: Any = trial.user_attrs.get(FLOPS_PER_TOKEN)
    return record_of_reports(
        {name: names.get(trial, name) for name in ("size", "tokens", "batch", "lr")},
        reports_of(trial, names),
        state=state,
        value=trial.value,
        maximize=direction == StudyDirection.MAXIMIZE,
        silent=not trial.intermediate_values,
        flops_per_token=positive(said),
        engine="optuna",
        strategy=strategy_of(trial),
        tuning=tuning_of(trial),
        reason=str(trial.user_attrs.get(REASON, "")),
        seconds=trial.duration.total_seconds() if trial.duration is not None else math.nan,
        params={
            k: v
            for k, v in trial.params.items()
            if k not in names.names() | {"strategy"} and isinstance(v, int | float | str | bool)
        },
        **own,
    )


def add_records(study: Study, records: Iterable[TrialRecord]) -> None:
    """Add trials that were run elsewhere, or published as a table, to a study as finished trials.

    They serve as evidence: pass the study as one of `source_studies`. Trials that failed or still run, and a
    first one whose loss is not finite, are added as failed. The learning rate becomes the parameter `lr`; the
    record is kept whole.

    Raises:
        ValueError: a record's direction contradicts the study's, or a multi-objective study.

    Examples:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> from metaopt_hpo import TrialRecord
        >>> from metaopt_hpo_optuna import add_records
        >>> add_records(study, [TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-3, loss=3.2)])
        >>> len(study.trials)
        1
    """
    check_single_objective(study, "add_records")
    maximise = study.direction == StudyDirection.MAXIMIZE
    for record in records:
        if (record.direction == "maximize") != maximise:
            raise ValueError(
                f"a trial of direction {record.direction!r} cannot join study {study.study_name!r}, whose "
                f"direction is {study.direction.name.lower()!r}; create the study with the trials' direction"
            )
        # NumPy's numbers are for no storage but the one in memory
        numbers: dict[str, Any] = {name: float(getattr(record, name)) for name in NUMBERS}
        record = replace(record, **numbers)
        sign = -1.0 if maximise else 1.0
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
        curve = record.curve
        reports = (
            {}
            if curve is None
            else {step_of(t): sign * x for t, x in zip(curve.tokens, curve.loss, strict=True)}
        )
        to = state.get(record.state, TrialState.FAIL)
        value = None if to == TrialState.FAIL else _value(study, sign, record.loss)
        if value is None and to == TrialState.COMPLETE:  # a loss that is not finite, and none to stand for it
            to = TrialState.FAIL
        study.add_trial(
            optuna.create_trial(
                state=to,
                value=value,
                params={"lr": record.lr},
                distributions={"lr": FloatDistribution(record.lr / 2, record.lr * 2, log=True)},
                user_attrs={
                    "size": record.size,
                    "tokens": record.tokens if record.state == "complete" else _planned(record),
                    "batch": record.batch,
                    RECORD: record_to_json(record),
                },
                intermediate_values={k: v for k, v in reports.items() if math.isfinite(v)},
            )
        )


def _planned(record: TrialRecord) -> float:
    return record.target_tokens if math.isfinite(record.target_tokens) else max(record.tokens, 1.0)


def _value(study: Study, sign: float, loss: float) -> float | None:
    """The study's value of a loss; one that is not finite counts as the worst there is."""
    if math.isfinite(loss):
        return sign * loss
    values = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
    return (max(values) if sign > 0 else min(values)) if values else None


def check_single_objective(study: Study, what: str) -> None:
    """Raise ValueError, as Optuna's single-objective samplers do, for a multi-objective study."""
    if len(study.directions) > 1:
        raise ValueError(
            f"{what} cannot be used for multi-objective optimization: a law is of one loss; "
            "make a single-objective study"
        )
