"""What a trial of a comparison is on Tune: a run from its start to its end, or one that may be halted and taken up."""

from __future__ import annotations

import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from metaopt_hpo.comparison.live import Resumable
from metaopt_hpo.comparison.objective import Configuration, Objective, settled
from metaopt_hpo.trials.diverged import stand_in_loss
from metaopt_hpo.trials.logged_results import METRIC, PROCESS, PROGRESS, WORK, result_of
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray.populations import LOG_LR, TURN

SAVED = "run.pt"
"""Name of the file within a checkpoint."""


def whole_run(config: dict[str, Any], *, objective: Objective, threads: int) -> None:
    """One trial: run the configuration, hand on its reports, and say at the end how it went."""
    configuration, process = _begin(config, threads)
    per_token = objective.cost(configuration) / configuration.tokens

    def report(tokens: int, loss: float) -> None:
        # Tune stops a trial from outside: there is nothing to ask
        if math.isfinite(loss):
            tune.report({METRIC: loss, PROGRESS: tokens, WORK: per_token * tokens, PROCESS: process})

    record = objective.run(configuration, report)
    work = record.cost if math.isfinite(record.cost) else per_token * record.tokens
    tune.report({**_end(record), WORK: work, PROCESS: process})


def halted_run(
    config: dict[str, Any],
    *,
    objective: Resumable,
    threads: int,
    milestones: Sequence[float],
    turns: Sequence[float],
) -> None:
    """One trial of a population: it reports at each milestone, with a checkpoint, and goes on from where one says.

    The checkpoint may be another trial's: then these are its weights, at this trial's lr. What this process spent
    is what the run has cost beyond the checkpoint.
    """
    configuration, process = _begin(config, threads)
    given = tune.get_checkpoint()
    if given is None:
        live = objective.open(configuration)
    else:
        with given.as_directory() as folder:
            live = objective.open(configuration, Path(folder) / SAVED)
    before = live.record().cost
    before = before if math.isfinite(before) else 0.0
    seen = live.tokens
    for milestone, turn in zip(milestones, turns, strict=True):
        at = objective.stops_at(configuration, milestone)
        if at <= seen:
            continue
        _, loss = live.advance(at)
        record = live.record()
        mine = {WORK: record.cost - before, PROCESS: process, TURN: turn}
        if milestone == milestones[-1] or record.state == "diverged" or not math.isfinite(loss):
            tune.report({**_end(record), **mine, TURN: turn if milestone == milestones[-1] else turn - 0.5})
            return
        with tempfile.TemporaryDirectory(prefix="metaopt-trial-") as folder:
            live.save(Path(folder) / SAVED)
            tune.report(
                {METRIC: loss, PROGRESS: record.tokens, "lr": configuration.lr, **mine},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def _begin(config: dict[str, Any], threads: int) -> tuple[Configuration, str]:
    import torch

    torch.set_num_threads(threads)
    values = dict(config)
    if LOG_LR in values:
        values["lr"] = 10.0 ** values.pop(LOG_LR)
    return Configuration(**values), f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


def _end(record: TrialRecord) -> dict[str, Any]:
    """The last report of a trial but for what it cost."""
    record = settled(record)
    loss = record.loss
    if record.state == "diverged":
        # searchers choke on NaN: OptunaSearch leaves such a trial running for ever
        seen = record.curve.loss if record.curve else ()
        loss = stand_in_loss(record.initial_loss, seen) or sys.float_info.max
    return {METRIC: float(loss), PROGRESS: record.tokens, **result_of(record)}
