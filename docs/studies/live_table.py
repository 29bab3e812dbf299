"""The table of live `text-lm` runs on which methods are compared: `python -m studies.live_table`.

A dense grid of learning rate, batch and training seed is trained at five small cells and at one target, once, with
every run's curve; methods are then replayed on it thousands of times. Interpolation is inside the grid only.
About 40 CPU minutes in all, resumable: what is in the file is not trained again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.locks import only_process
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

TARGET = (96, 2**18)
"""(width, tokens) whose learning rate and batch are searched: 24 times the FLOPs of the cheapest cell and more."""

PILOTS = ((16, 2**16), (24, 2**16), (32, 2**16), (16, 2**17), (16, 2**18))

LRS = tuple(2.5e-3 * 2 ** (k / 2) for k in range(11))
SEQUENCES = (4, 8, 16, 32)
SEEDS = (0, 1, 2)
STRATEGY = "wsd"

REPORT_STRIDE = 8
"""One report an octave of tokens: enough rungs for Hyperband, and evaluation stays a few percent of a run."""

FILE = Path(__file__).with_name("live_text_lm.parquet")

Key = tuple[float, float, float, float, int]


def configurations() -> Iterator[Configuration]:
    """All runs, one seed after another so that an unfinished table is usable, cheapest cells first."""
    from metaopt_hpo.workloads import TextLM

    for seed, (width, tokens) in itertools.product(SEEDS, (*PILOTS, TARGET)):
        job = TextLM(width=width)
        for sequences, lr in itertools.product(SEQUENCES, LRS):
            batch = sequences * job.context
            yield Configuration(
                size=job.size, tokens=tokens, batch=batch, lr=lr, strategy=STRATEGY, seed=seed
            )


def _key(c: Configuration | TrialRecord) -> Key:
    tokens = c.tokens if isinstance(c, Configuration) else c.target_tokens
    return round(c.size), round(tokens), round(c.batch), round(c.lr, 9), c.seed


def main(
    out: Annotated[Path, typer.Option(help="Parquet file of the table; resumed where it exists.")] = FILE,
    minutes: Annotated[float, typer.Option(help="Stop after so long; run again to go on.")] = 60.0,
) -> None:
    """Train what is missing of the table."""
    with only_process(out.with_name(out.name + ".lock"), f"the table {out}"):
        train(list(configurations()), out, minutes)


def train(wanted: Sequence[Configuration], out: Path, minutes: float = math.inf) -> None:
    """Train what of `wanted` is not in the table yet, and keep each run at once."""
    from metaopt_hpo.workloads import TextLM

    records = TrialTable.read(out).records() if out.exists() else []
    done = {_key(r) for r in records}
    widths = sorted({w for w, _ in (*PILOTS, TARGET)})
    objective = TrainObjective([TextLM(width=w) for w in widths], report_stride=REPORT_STRIDE)
    missing = [c for c in wanted if _key(c) not in done]
    typer.echo(f"{len(records)} runs in {out}, {len(missing)} to train")
    begin = time.monotonic()
    for n, c in enumerate(missing, start=1):
        record = objective.run(c)
        records.append(
            replace(
                record, study="live-text-lm", trial="/".join(f"{v:g}" for v in _key(c)), workload="text-lm"
            )
        )
        TrialTable.from_records(records, warn=False).write(out)
        minutes_taken = (time.monotonic() - begin) / 60
        typer.echo(f"{len(missing) - n} left after {minutes_taken:.1f} min")
        if minutes_taken > minutes:
            break


if __name__ == "__main__":
    typer.run(main)
