"""One run against tuned schedules at real lengths, on several architectures: `python -m studies.one_run.lengths`.

Seeds from 100: the constants of `strategies.balance` were learned on these jobs, so this table says how well they
fit and not how they carry over; `study.parquet` and other people's jobs say that. A finished run is
kept at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from metaopt_hpo.atomic import replacing
from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import LRStrategy, make
from studies import run as commands
from studies.one_run.length_jobs import Job, job

KEPT = Path(__file__).parent / "lengths.parquet"
KEY = ["job", "steps", "seed", "strategy", "options"]
OWN = "metaoptimize"
TAIL = 0.02
"""Fraction of the run at its end whose mean training loss is kept."""

LANGUAGE: dict[str, tuple[float, ...]] = {"tf32": (8e-3, 1.6e-2, 3.2e-2), "gru64": (8e-3, 1.6e-2, 3.2e-2)}
"""Peak learning rates of WSD and linear."""

WIDER: dict[tuple[str, int], tuple[float, ...]] = {
    ("gru128", 1500): (7e-3, 1e-2),
    ("tf64", 2000): (4e-3, 8e-3, 1.6e-2),
}


def plan(seeds: int) -> Iterator[dict[str, Any]]:
    """The cells in the order of what they tell for their cost; one dict of `KEY` each."""

    def cells(name: str, steps: int, lrs: tuple[float, ...], **options: Any) -> Iterator[dict[str, Any]]:
        for seed in range(100, 100 + seeds):
            cell = {"job": name, "steps": steps, "seed": seed}
            yield cell | {"strategy": OWN, "options": json.dumps(options, sort_keys=True)}
            for lr in lrs:
                shown = json.dumps(options | {"lr": lr}, sort_keys=True)
                yield cell | {"strategy": "wsd", "options": shown}
                if not options:
                    yield cell | {"strategy": "linear", "options": shown}

    for steps in (500, 2000, 5000):
        yield from cells("mlp128", steps, (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))
    bases: dict[str, tuple[float, ...]] = {
        "sgd": (0.1, 0.3, 1.0),
        "sgdm": (0.03, 0.1, 0.3),
        "rmsprop": (1e-3, 3e-3, 1e-2),
        "lion": (3e-4, 1e-3, 3e-3),
    }
    for base, lrs in bases.items():
        yield from cells("mlp128", 500, lrs, base=base)
    for blocks in ("layer", "tensor"):
        yield from cells("mlp128", 500, (), blocks=blocks)
    for name, peaks in LANGUAGE.items():
        for steps in (500, 2000):
            yield from cells(name, steps, peaks)
    for (name, steps), peaks in WIDER.items():
        yield from cells(name, steps, peaks)
    yield from cells("res8", 2000, (4e-3, 8e-3, 1.6e-2, 3.2e-2))
    for blocks in ("layer", "tensor"):
        yield from cells("tf32", 2000, (), blocks=blocks)
    bases = {"lion": (1e-3, 3e-3, 6e-3), "rmsprop": (3e-3, 6e-3, 1.2e-2), "sgdm": (1.0, 3.0)}
    for base, peaks in bases.items():
        yield from cells("tf32", 1000, peaks, base=base)
    for name, peaks in LANGUAGE.items():
        yield from cells(name, 8000, peaks)
    yield from cells("tf32", 30_000, LANGUAGE["tf32"][:2])


def train(data: Job, strategy: LRStrategy, steps: int, seed: int) -> dict[str, float]:
    """Train once; held-out loss, mean training loss of the end, step size before the cooldown, spread and seconds.

    The spread is the largest over the smallest step size then.
    """
    model = data.model(seed)
    run = strategy.build(model, steps)
    end: list[float] = []
    started, found, spread = time.monotonic(), 0.0, 1.0
    for step in range(steps):
        loss = data.loss(model, step, seed)
        loss.backward()
        run.step(loss.detach())
        if step >= steps * (1 - TAIL):
            end.append(float(loss.detach()))
        if step == int(0.69 * steps):
            sizes = run.step_sizes()
            found, spread = float(sizes.log().mean().exp()), float(sizes.max() / sizes.min())
    model.eval()
    with torch.no_grad():
        held = float(data.held_out(model).mean())
    return {
        "held_out": held,
        "training": sum(end) / len(end),
        "step_size": found,
        "spread": spread,
        "seconds": time.monotonic() - started,
    }


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.", min=1)] = 1,
    only: Annotated[str, typer.Option(help="Jobs whose names begin with this.")] = "",
    longest: Annotated[int, typer.Option(help="Leave out longer runs, in steps.", min=1)] = 10**9,
    having: Annotated[str, typer.Option(help="Cells with this option alone, as blocks or base.")] = "",
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One run against tuned WSD and linear-to-zero schedules at 500 to 30,000 steps.

    Example: METAOPT_HPO_DATA=../shared/data python -m studies.one_run.lengths --longest 2000
    """
    torch.set_num_threads(1)
    table = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=KEY)
    for cell in plan(seeds):
        known = (table[KEY] == pd.Series(cell)[KEY]).all(axis=1).any()
        if report_only or known or not cell["job"].startswith(only) or cell["steps"] > longest:
            continue
        if having and having not in json.loads(cell["options"]):
            continue
        strategy = make(cell["strategy"], **json.loads(cell["options"]))
        row = cell | train(job(cell["job"]), strategy, cell["steps"], cell["seed"])
        # read again: another process may have added to it
        table = pd.read_parquet(out) if out.exists() else table
        table = (
            pd.concat([table, pd.DataFrame([row])], ignore_index=True) if len(table) else pd.DataFrame([row])
        )
        with replacing(out) as path:
            table.to_parquet(path)
        typer.echo(
            f"{row['job']} {row['steps']} {row['strategy']} {row['options']}: {row['held_out']:.4f}", err=True
        )
    typer.echo(markdown(table))


def markdown(table: pd.DataFrame) -> str:
    """One line a case: our run, the best of each schedule, and the difference, mean over seeds."""
    lines = []
    ours = table[table.strategy == OWN]
    for (name, steps, options), rows in ours.groupby(["job", "steps", "options"], sort=False):
        asked = json.loads(str(options))
        base = asked.get("base", "adamw")
        others = table[(table.job == name) & (table.steps == steps) & (table.strategy != OWN)]
        others = others[[json.loads(o).get("base", "adamw") == base for o in others.options]]
        others = others[others.seed.isin(rows.seed)]
        cells, best = [], float("inf")
        for kind in ("wsd", "linear"):
            tried = others[others.strategy == kind].groupby("options").held_out.mean()
            if tried.empty:
                cells.append("–")
                continue
            best = min(best, tried.min())
            cells.append(f"{tried.min():.4f} at {json.loads(str(tried.idxmin()))['lr']:g} (of {len(tried)})")
        loss = rows.held_out.mean()
        text = f"{loss:.4f} at {rows.step_size.iloc[0]:.2g}"
        ratio = f"{100 * (loss / best - 1):+.1f} %" if best < float("inf") else "–"
        shown = ", ".join(f"{k} {v}" for k, v in asked.items()) or "–"
        lines.append((name, steps, shown, len(rows), text, *cells, ratio))
    head = [
        "job", "steps", "options", "seeds", "one run", "best WSD", "best linear", "against the best of all",
    ]  # fmt: skip
    return markdown_table(head, lines)


if __name__ == "__main__":
    commands.run(study)
