"""Schedules and weight decay as coordinates: tables of known truth, and one real pair of schedules.

    python -m studies.laws.settings --data DIR

In the tables of known truth three sizes and three lengths are run under a linear decay and one length under two more
schedules (or all under four weight decays); the target has 3.3 times the largest size.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from metaopt_hpo.comparison.scoring import cells_of
from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling import fit
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.section import Section

SEEDS = 6
TARGET = (1e9, 3e10)
OFFSETS = {"linear": (0.0, 0.0), "constant": (-0.9, 0.03), "cosine": (-0.25, 0.005)}
"""By schedule: offset in ln lr* and in ln loss."""

DECAYS = (0.02, 0.06, 0.2, 0.6)


def _row(
    rng: np.random.Generator, size: float, tokens: float, away: float, lr: float, moved: float
) -> dict[str, float]:
    floor = math.log(1.7 + 0.6 * (size / 1e8) ** -0.3 + 0.4 * (tokens / 1e10) ** -0.3) + moved
    loss = math.exp(floor + 0.02 * away**2 + 2e-3 * rng.standard_normal())
    return {"size": size, "tokens": tokens, "batch": 2.0**19, "lr": lr, "loss": loss}


def best(size: float, tokens: float) -> float:
    """lr* under the first schedule, at a weight decay of 0.1."""
    return 3e-3 * float((size / 1e8) ** -0.4 * (tokens / 1e10) ** 0.1)


def decay_of(size: float, tokens: float) -> float:
    """The best weight decay."""
    return 0.1 * float((size / 1e8) ** 0.15 * (tokens / 1e10) ** -0.2)


def schedules(seed: int) -> TrialTable:
    """Three schedules, two of them at one length only."""
    rng, rows = np.random.default_rng(seed), []
    for size in (3e7, 1e8, 3e8):
        for tokens in (3e9, 1e10, 3e10):
            for name, (offset, level) in OFFSETS.items():
                if name != "linear" and tokens != 1e10:
                    continue
                for x in math.log(2e-3) + np.linspace(-2.4, 1.6, 8):
                    away = x - math.log(best(size, tokens)) - offset
                    rows.append({**_row(rng, size, tokens, away, math.exp(x), level), "lr_scheduler": name})
    return TrialTable.from_frame(pd.DataFrame(rows))


def decays(seed: int) -> TrialTable:
    """Four weight decays; lr* falls with the third root of it."""
    rng, rows = np.random.default_rng(seed), []
    for size in (3e7, 1e8, 3e8):
        for tokens in (3e9, 1e10, 3e10):
            for decay in DECAYS:
                off = math.log(decay / decay_of(size, tokens))
                for u in np.linspace(-1.5, 1.5, 6):
                    lr = best(1e8, 1e10) * math.exp(u)
                    away = math.log(lr / best(size, tokens)) + math.log(decay / 0.1) / 3
                    rows.append({**_row(rng, size, tokens, away, lr, 0.005 * off**2), "weight_decay": decay})
    return TrialTable.from_frame(pd.DataFrame(rows))


def truth_section() -> Section:
    """Error and coverage of what is predicted at the target."""
    header = [
        "asked for",
        "error of lr, mean (worst) %",
        "error of loss, %",
        "90 % intervals cover lr / loss",
    ]
    section = Section(f"Settings in tables of known truth, {SEEDS} tables each", header)
    laws = [fit(schedules(s), extra=("schedule",), draws=100) for s in range(SEEDS)]
    floor = math.log(1.7 + 0.6 * (TARGET[0] / 1e8) ** -0.3 + 0.4 * (TARGET[1] / 1e10) ** -0.3)
    for name, (offset, level) in OFFSETS.items():
        found = [law.predict(*TARGET, schedule=name) for law in laws]
        lr, loss = best(*TARGET) * math.exp(offset), math.exp(floor + level)
        off = [abs(p.lr.value / lr - 1) for p in found]
        loss_off = [abs(p.loss.value / loss - 1) for p in found]
        held = f"{sum(lr in p.lr for p in found)} / {sum(loss in p.loss for p in found)} of {SEEDS}"
        row = [f"schedule {name}", f"{100 * np.mean(off):.1f} ({100 * max(off):.1f})"]
        section.rows.append([*row, f"{100 * np.mean(loss_off):.2f}", held])
    alone = [fit(schedules(s), draws=100).predict(*TARGET, schedule="constant") for s in range(SEEDS)]
    lr = best(*TARGET) * math.exp(OFFSETS["constant"][0])
    off = [abs(p.lr.value / lr - 1) for p in alone]
    held = f"{sum(lr in p.lr for p in alone)} / – of {SEEDS}"
    row = ["constant, linear alone was run", f"{100 * np.mean(off):.1f} ({100 * max(off):.1f})", "–", held]
    section.rows.append(row)
    chosen = [fit(decays(s), extra=("weight_decay",), draws=100).predict(*TARGET) for s in range(SEEDS)]
    truth = decay_of(*TARGET)
    values = [p.weight_decay for p in chosen if p.weight_decay is not None]
    off = [abs(v.value / truth - 1) for v in values]
    loss_off = [abs(p.loss.value / math.exp(floor) - 1) for p in chosen]
    held = f"{sum(truth in v for v in values)} / {sum(math.exp(floor) in p.loss for p in chosen)} of {SEEDS}"
    row = ["the best weight decay", f"{100 * np.mean(off):.1f} ({100 * max(off):.1f})"]
    section.rows.append([*row, f"{100 * np.mean(loss_off):.2f}", held])
    section.note = (
        "In the last row the first column of errors, and the intervals, are those of the weight decay."
    )
    return section


def pair_section(data: Path) -> Section:
    """muP with a cosine, and without a schedule: three widths of each predict the largest."""
    frame = pd.read_csv(data / "scaling" / "mup_widths.csv")
    frame = frame[frame["muP"].isin(["muP", "muP no scheduler"])]
    rows = pd.DataFrame(
        {
            "size": frame["dim"] ** 2.0,
            "tokens": 5e7,
            "batch": 16.0,
            "lr": frame["lr"],
            "loss": frame["val_loss"],
        }
    ).assign(schedule=np.where(frame["lr_scheduler"].isna(), "constant", "cosine"))
    table = TrialTable.from_frame(rows)
    largest = float(rows["size"].max())
    below = table.select(size=lambda s: s < largest)

    def of(table: TrialTable, name: str) -> TrialTable:
        return table.select(lambda f: f["params"].str.contains(name))

    both = fit(below, extra=("schedule",), allow_weak=True)
    section = Section(
        "A real pair: muP widths, excess at the largest width, %",
        ["schedule", "own runs alone", "both, an offset each", "the other's runs and a published factor"],
    )
    for name, other in (("cosine", "constant"), ("constant", "cosine")):
        grid = cells_of(of(table.select(size=largest), name))[(largest, 5e7)]
        laws = (
            fit(of(below, name), allow_weak=True).predict(largest, 5e7),
            both.predict(largest, 5e7, schedule=name),
            fit(of(below, other), allow_weak=True).predict(largest, 5e7, schedule=name),
        )
        section.rows.append([name, *(f"{100 * grid.excess(p.lr.value, 16.0):.2f}" for p in laws)])
    i = 1 + len(both.axes.names) - 1
    factor = math.exp(float(both.surface.a[i]))
    low, high = np.exp(np.quantile(both.draws.a[:, i], [0.05, 0.95]))
    section.note = (
        f"Fitted: {both.axes.names[-1]} times {both.axes.levels['schedule'][0]} by {factor:.2f} "
        f"({low:.2f} to {high:.2f})."
    )
    return section


def main(data: Annotated[Path, typer.Option(help="Folder that holds the tables.")]) -> None:
    """Print both sections."""
    warnings.simplefilter("ignore", MetaOptWarning)
    typer.echo(truth_section().markdown() + "\n")
    try:
        typer.echo(pair_section(data).markdown())
    except (FileNotFoundError, benchmarks.BenchmarkMissing) as e:
        typer.echo(f"left out: {e}")


if __name__ == "__main__":
    typer.run(main)
