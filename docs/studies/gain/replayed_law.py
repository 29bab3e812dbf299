"""The law's own search, replayed without an engine: seconds a target, for a look before the engines are raced.

    python -m studies.gain.replayed_law --data DIR --seeds 8 [--lean]

Target runs until a configuration within 0.25 % of the best has been run, pilots included. `--lean` lends each the
other published table (`base=`): Step Law to all but its own targets, OpenEuroLLM to those.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from metaopt_hpo.comparison.law_search import law_search
from metaopt_hpo.comparison.race import Problem, improvements
from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import base_of
from studies import benchmarks, live_table
from studies.gain.problems import problems

WITHIN = 2.5e-3
LIMIT = 40.0


def spent(problem: Problem, seed: int, base: Base | None = None) -> tuple[float, float]:
    """(target runs until one is good, infinite beyond `LIMIT`; those that went into pilots)."""
    records = law_search(problem.race(seed, LIMIT, base=base))
    last = improvements(records, problem, limit=LIMIT, enough=WITHIN)[-1]
    return last.cost if last.excess <= WITHIN else math.inf, last.pilots


def main(
    data: Annotated[Path, typer.Option(help="Folder of published tables (docs/studies/laws/README.md).")],
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 8,
    lean: Annotated[bool, typer.Option(help="Lend each target the other table's runs.")] = False,
    only: Annotated[str, typer.Option(help="Only problems whose name contains this.")] = "",
) -> None:
    """Print one row a target."""
    warnings.simplefilter("ignore", MetaOptWarning)
    bases: dict[bool, Base] = {}
    if lean:
        bases = {
            True: base_of(benchmarks.openeurollm(data)),
            False: base_of(benchmarks.steplaw(data)),
        }
    typer.echo("| target | median | mean | pilots |\n|---|---|---|---|")
    for problem in problems(data, live_table.FILE):
        if only not in problem.name:
            continue
        base = bases.get(problem.name.startswith("Step Law"))
        found = np.array([spent(problem, seed, base) for seed in range(seeds)])
        total = np.minimum(found[:, 0], LIMIT)
        row = (f"{np.median(total):.1f}", f"{total.mean():.1f}", f"{np.median(found[:, 1]):.2f}")
        typer.echo(f"| {problem.name} | {' | '.join(row)} |")


if __name__ == "__main__":
    typer.run(main)
