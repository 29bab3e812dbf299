"""The published law of the best weight decay, on live runs: `python -m studies.laws.decay`.

text-lm of 25 thousand parameters under AdamW and a linear decay of lr, the schedule of that law, at one peak lr, two
lengths and seven weight decays. Equal seeds start from the same weights and see the same batches. Resumable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from metaopt_hpo.scaling.forms.decay import published_decay
from metaopt_hpo.scaling.sameness import same
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.section import Section

KEPT = Path(__file__).parent / "decay.parquet"
WIDTH, LR = 32, 0.016
"""A little above the best lr of WSD in 1,024 steps (docs/studies/ladder), as a linear decay's is."""

STEPS = {1024: 2, 4096: 1}
"""Lengths, and seeds of each."""

DECAYS = (0.0125, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
NAME = "weight_decay"


def train_run(steps: int, decay: float, seed: int) -> TrialRecord:
    """One run."""
    import torch

    from metaopt_hpo.strategies import make
    from metaopt_hpo.workloads import TextLM, train

    torch.set_num_threads(1)
    job = TextLM(width=WIDTH)
    run = train(job, make("linear", lr=LR, weight_decay=decay), tokens=steps * job.batch, seed=seed)
    return run.record(params={NAME: decay}, trial=f"k{steps}/decay-{decay:g}/seed{seed}", study="decay")


def table(records: list[TrialRecord]) -> Section:
    """A row a length: the best weight decay, the published law's, and what that one costs."""
    section = Section(
        "Best weight decay of text-lm, 25 thousand parameters",
        [
            "steps",
            "tokens / parameter",
            "seeds",
            "best by a parabola",
            "published",
            "published / best",
            "it costs, %",
        ],
        note="The parabola in ln weight decay goes through the best and its two neighbours, in the mean over seeds.",
    )
    for steps in STEPS:
        runs = [r for r in records if same(r.tokens, steps * r.batch)]
        if not runs:
            continue
        seeds = {r.seed for r in runs}
        mean = [np.mean([np.log(r.loss) for r in runs if r.params[NAME] == d]) for d in DECAYS]
        i = min(max(int(np.argmin(mean)), 1), len(DECAYS) - 2)
        a, b, _ = np.polyfit(np.log(DECAYS[i - 1 : i + 2]), mean[i - 1 : i + 2], 2)
        first = runs[0]
        told, _ = published_decay(first.size, first.tokens, LR, first.batch)
        cost = float(np.interp(np.log(told), np.log(DECAYS), mean)) - min(mean)
        best = float(np.exp(-b / (2 * a))) if a > 0 else DECAYS[int(np.argmin(mean))]
        section.rows.append(
            [
                f"{steps:,}",
                f"{first.tokens / first.size:.0f}",
                str(len(seeds)),
                f"{best:.2g}",
                f"{told:.2g}",
                f"{told / best:.2g}",
                f"{100 * cost:.2f}",
            ]
        )
    return section


def main(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """Run what is missing, and print the table."""
    kept = TrialTable.read(out).records() if out.exists() else []
    have = {r.trial for r in kept}
    for steps, seeds in STEPS.items():
        for seed in range(0 if report_only else seeds):
            for decay in DECAYS:
                if f"k{steps}/decay-{decay:g}/seed{seed}" in have:
                    continue
                kept.append(train_run(steps, decay, seed))
                TrialTable.from_records(kept, warn=False).write(out)
                typer.echo(f"{kept[-1].trial}: {kept[-1].loss:.4f}", err=True)
    typer.echo(table(kept).markdown())


if __name__ == "__main__":
    typer.run(main)
