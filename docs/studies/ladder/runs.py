"""The runs of the ladder, and their table: one seed after another, the cheapest first, every finished run kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.locks import only_process
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

KEPT = Path(__file__).parent / "ladder.parquet"
WIDTHS = (16, 24, 32, 48, 64, 96)
STEPS = (256, 512, 1024)
GRID = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
"""Peak learning rates of WSD: the optima of all cells lie between 4e-3 and 3e-2."""
OWN = "metaoptimize"
SCHEDULE = "wsd"
REPORTS = 12
"""Evaluations of a run: its curve is for looking at, the end is what counts."""

Progress = Callable[[int, int, TrialRecord], None]


class LadderError(MetaOptError):
    """The ladder has no runs yet, or too few for a table."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One run; runs of equal width, steps and seed start from the same weights and see the same batches."""

    width: int
    steps: int
    seed: int
    lr: float | None
    """Peak lr of the schedule; None for a run of MetaOptimize, which needs none."""
    expected: float | None = None
    """Peak lr that a law predicts, from which MetaOptimize starts."""
    within: float = 2.0
    """Factor about it of the law's 90 % interval."""

    @property
    def key(self) -> str:
        """What the run is called in the table."""
        own = OWN if self.expected is None else f"{OWN}-{self.expected:.4g}-within-{self.within:.3g}"
        how = own if self.lr is None else f"{SCHEDULE}-{self.lr:g}"
        return f"w{self.width}/k{self.steps}/{how}/seed{self.seed}"


def design(
    seeds: int, widths: Sequence[int] = WIDTHS, steps: Sequence[int] = STEPS, grid: Sequence[float] = GRID
) -> Iterator[Rung]:
    """All runs in their order: one seed after another, cells by cost, MetaOptimize first."""
    cells = sorted(((w, k) for w in widths for k in steps), key=lambda c: (c[0] ** 2 * c[1], c))
    for seed in range(seeds):
        for width, count in cells:
            for lr in (None, *grid):
                yield Rung(width=width, steps=count, seed=seed, lr=lr)


def read(path: Path) -> TrialTable:
    """The runs kept so far.

    Raises:
        LadderError: there are none.
    """
    if not path.exists():
        raise LadderError(f"there are no runs in {path}; run: make ladder")
    return TrialTable.read(path)


def collect(
    rungs: Sequence[Rung], path: Path, *, minutes: float | None = None, progress: Progress | None = None
) -> TrialTable:
    """Run what the table lacks, in order, one thread; each run is on the disk before the next begins.

    Args:
        rungs: the design.
        path: Parquet file of the runs.
        minutes: start no further run after so long.
        progress: called with (done, all, record).
    """
    with only_process(path.with_name(path.name + ".lock"), f"the ladder {path}"):
        kept = TrialTable.read(path).records() if path.exists() else []
        have = {r.trial for r in kept}
        end = None if minutes is None else time.monotonic() + 60 * minutes
        for rung in rungs:
            if rung.key in have:
                continue
            if end is not None and time.monotonic() > end:
                break
            record = train_rung(rung)
            kept.append(record)
            TrialTable.from_records(kept, warn=False).write(path)
            if progress is not None:
                progress(len(kept), len(rungs), record)
    return read(path)


def train_rung(rung: Rung) -> TrialRecord:
    """Train one run; a diverged one says so in its state."""
    import torch

    from metaopt_hpo.strategies import make
    from metaopt_hpo.workloads import TextLM, train

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = TextLM(width=rung.width)
    known = {} if rung.expected is None else {"expected": rung.expected, "within": rung.within}
    strategy = make(OWN, **known) if rung.lr is None else make(SCHEDULE, lr=rung.lr)
    run = train(job, strategy, tokens=rung.steps * job.batch, seed=rung.seed, reports=REPORTS)
    return run.record(
        params={"width": rung.width},
        trial=rung.key,
        study="ladder",
        method=OWN if rung.lr is None else "grid",
        engine="study",
    )
