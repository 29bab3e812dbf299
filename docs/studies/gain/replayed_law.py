"""The law's own search, replayed without an engine: seconds a target, for a look before the engines are raced.

    python -m studies.gain.replayed_law --data DIR --seeds 8 [--lean] [--smaller] [--method gp] [--knowledge-gradient]

Target runs until a configuration within 0.25 % of the best has been run, pilots included. `--lean` lends each the
other published table (`base=`): Step Law to all but its own targets, OpenEuroLLM to those. `--smaller` asks for the
targets that choices are made on. For comparison, `--method` is one of an installed engine, and with
`--knowledge-gradient` pilots are bought by another rule (`knowledge_gradient`).
"""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated
from unittest import mock

import numpy as np
import typer

from metaopt_hpo.comparison.race import Problem, improvements, racer_of
from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import base_of
from metaopt_hpo.scaling.policy import proposing
from studies import benchmarks, live_table
from studies.gain.knowledge_gradient import KnowledgeGradient
from studies.gain.problems import problems, smaller_problems

WITHIN = 2.5e-3
LIMIT = 40.0


def spent(problem: Problem, seed: int, base: Base | None = None, method: str = "law") -> tuple[float, float]:
    """(target runs until one is good, infinite beyond `LIMIT`; those that went into pilots)."""
    racer, described = racer_of(method)
    records = racer.race(described, problem.race(seed, LIMIT, base=base))
    last = improvements(records, problem, limit=LIMIT, enough=WITHIN)[-1]
    return last.cost if last.excess <= WITHIN else math.inf, last.pilots


def main(
    data: Annotated[Path, typer.Option(help="Folder of published tables (docs/studies/laws/README.md).")],
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 8,
    lean: Annotated[bool, typer.Option(help="Lend each target the other table's runs.")] = False,
    only: Annotated[str, typer.Option(help="Only problems whose name contains this.")] = "",
    smaller: Annotated[bool, typer.Option(help="The targets that choices are made on.")] = False,
    method: Annotated[str, typer.Option(help="Another method than the law.")] = "law",
    knowledge_gradient: Annotated[bool, typer.Option(help="Buy pilots by the knowledge gradient.")] = False,
) -> None:
    """Print one row a target, and the mean over targets of each table."""
    warnings.simplefilter("ignore", MetaOptWarning)
    bases: dict[bool, Base] = {}
    if lean:
        bases = {
            True: base_of(benchmarks.openeurollm(data)),
            False: base_of(benchmarks.steplaw(data)),
        }
    typer.echo("| target | median | mean | pilots |\n|---|---|---|---|")
    means: dict[str, list[float]] = {}
    rule = mock.patch.object(proposing, "Design", KnowledgeGradient) if knowledge_gradient else nullcontext()
    with rule:
        for problem in smaller_problems(data) if smaller else problems(data, live_table.FILE):
            if only not in problem.name:
                continue
            base = bases.get(problem.name.startswith("Step Law"))
            found = np.array([spent(problem, seed, base, method) for seed in range(seeds)])
            total = np.minimum(found[:, 0], LIMIT)
            row = (f"{np.median(total):.1f}", f"{total.mean():.1f}", f"{np.median(found[:, 1]):.2f}")
            typer.echo(f"| {problem.name} | {' | '.join(row)} |")
            means.setdefault(problem.name.split()[0], []).append(float(total.mean()))
    for table, values in means.items() if smaller else ():
        typer.echo(f"| {table}: mean of {len(values)} targets | – | {np.mean(values):.2f} | – |")


if __name__ == "__main__":
    typer.run(main)
