"""A live comparison read as a race: FLOPs until each method's best run is within a tolerance of the best of all.

`python -m studies.gain.reached FOLDER` reads what `metaopt-hpo compare --out FOLDER` wrote. Every run was
trained. The best of a seed is the lowest loss that any method found with it, so the best is
biased low (selection bias of the minimum).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from metaopt_hpo.comparison.outcome import Outcome, judge, percent
from metaopt_hpo.comparison.results import Comparison
from metaopt_hpo.comparison.statistics import paired_difference
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.markdown import markdown_table
from studies.gain.summary import KEYS, THRESHOLDS, markdown, summary


def searches(outcome: Outcome) -> pd.DataFrame:
    """Cost in target runs and excess over the seed's best, at every improvement and at the end of each search."""
    plan = outcome.comparison.plan
    best = [min(m.trajectories[i].best[-1] for m in outcome.methods) for i in range(len(plan.seeds))]
    rows = []
    for method in outcome.methods:
        for lowest, t in zip(best, method.trajectories, strict=True):
            names = (f"{plan.workload}, live", plan.engine, method.name, t.seed)
            shown = float("inf")
            for i, (cost, loss) in enumerate(zip(t.cost, t.best, strict=True)):
                if loss < shown or i == len(t.cost) - 1:
                    shown = loss
                    found = {"cost": cost / outcome.run_cost, "excess": loss / lowest - 1}
                    rows.append(dict(zip(KEYS, names, strict=True)) | found)
    return pd.DataFrame(rows)


def budget_table(outcome: Outcome) -> str:
    """Best loss of each method at the whole budget, and after its first run, against the reference's best."""
    reference = outcome.reference
    against = f"against {reference.name}, equal compute"
    rows = []
    for m in outcome.methods:
        whole, first = "–", "–"
        if m is not reference:
            pairs = ([math.log(v) for v in m.best], [math.log(v) for v in reference.best])
            whole = percent(paired_difference(*pairs))
        if m.first_versus_reference is not None:
            first = percent(m.first_versus_reference)
        rates = sorted(t.lr for t in m.trajectories)
        mean = math.fsum(m.best) / len(m.best)
        rows.append((m.title, f"{mean:.4f}", whole, first, f"{rates[0]:.3g} to {rates[-1]:.3g}"))
    return markdown_table(("method", "mean best loss", against, "first run", "lr of the best"), rows)


def main(folder: Annotated[Path, typer.Argument(help="Results folder of a comparison.")]) -> None:
    """Print what each method spent to come near the best, and where each one ended."""
    try:
        outcome = judge(Comparison.read(folder))
    except MetaOptError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    limit = float(outcome.comparison.plan.runs)
    found = summary(searches(outcome), limit)
    for within in THRESHOLDS:
        typer.echo(f"\nTarget runs (median over seeds) to come within {within:.2%} of the best\n")
        typer.echo(markdown(found, within, limit))
    typer.echo(
        f"\nAt the whole budget of {limit:g} target runs\n\n{budget_table(outcome)}\n\n{outcome.verdict}"
    )


if __name__ == "__main__":
    typer.run(main)
