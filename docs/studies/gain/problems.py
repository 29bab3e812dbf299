"""Targets to race for, in tables of real runs: the largest models of published tables, and live `text-lm`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.comparison.race import Cell, Problem, problem_of
from metaopt_hpo.comparison.replayed import ReplayedObjective
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.gain.smoothing import smoothed
from studies.live_table import TARGET


def table_problem(name: str, table: TrialTable, target: Cell) -> Problem:
    """A target of a table without measured costs."""
    return problem_of(name, ReplayedObjective(table, name=name), target)


def live_problem(path: Path) -> Problem:
    """The live table: a repetition meets one training seed; the mean over seeds, smoothed, is the truth.

    Seeds that are not finished are left out.

    Raises:
        MetaOptError: no seed is finished.
    """
    from metaopt_hpo.workloads import TextLM

    table = TrialTable.read(path)
    whole = ReplayedObjective(table, name="text-lm")
    width, tokens = TARGET
    target = (float(TextLM(width=width).size), float(tokens))
    if target not in whole.cells:
        raise MetaOptError(f"{path} has no run of width {width} yet; run: python -m studies.live_table")
    records = table.records()
    seeds = sorted({r.seed for r in records})
    each = (TrialTable.from_records([r for r in records if r.seed == s]) for s in seeds)
    objectives = [ReplayedObjective(t, name="text-lm") for t in each]
    return Problem(
        f"live text-lm, width {width}",
        tuple(o for o in objectives if o.cells == whole.cells),
        target,
        tuple(c for c in whole.cells if c != target),
        smoothed(whole.grid(*target)),
        whole.cost(Configuration(size=target[0], tokens=target[1], batch=1.0, lr=1.0)),
    )


def problems(data: Path | None, live: Path | None) -> list[Problem]:
    """Targets of the tables at hand.

    Args:
        data: folder of the published tables, docs/studies/laws/README.md says which.
        live: `live_table`'s file.
    """
    out: list[Problem] = []
    if data is not None:
        out += _largest("Step Law 429 M", benchmarks.steplaw(data), (4e10, 5e10, 1e11))
        out += _largest("OpenEuroLLM 589 M", benchmarks.openeurollm(data), (5e10, 1.2e11, 3e11))
        name = "std no scheduler"
        widths = benchmarks.mup_widths(data)[name]
        out.append(table_problem(f"muP table, {name}", widths, (float(widths.frame["size"].max()), 5e7)))
    if live is not None and live.exists():
        out.append(live_problem(live))
    return out


def smaller_problems(data: Path) -> list[Problem]:
    """Targets that no result is quoted for: smaller sizes of both large tables, the other muP tables, smaller widths.

    What is chosen about a search is chosen here.
    """
    out: list[Problem] = []
    for name, table, sizes in (
        ("Step Law", benchmarks.steplaw(data), (214663680.0, 268304384.0)),
        ("OpenEuroLLM", benchmarks.openeurollm(data), (124455168.0, 301880320.0)),
    ):
        objective = ReplayedObjective(table, name=name)
        for size in sizes:
            tokens = sorted(t for n, t in objective.cells if n == size)
            for t in tokens[-1:0:-2]:
                out.append(problem_of(f"{name} {size / 1e6:.0f} M × {t / 1e9:.3g} B", objective, (size, t)))
    for name, widths in benchmarks.mup_widths(data).items():
        *_, second, first = sorted(widths.frame["size"].unique())
        for size in (second, first):
            if name != "std no scheduler" or size != first:
                label = f"muP table, {name}, width {size**0.5:.0f}"
                out.append(table_problem(label, widths, (float(size), 5e7)))
    return out


def _largest(name: str, table: TrialTable, tokens: Sequence[float]) -> Iterator[Problem]:
    objective = ReplayedObjective(table, name=name)
    for t in tokens:
        yield problem_of(f"{name} × {t / 1e9:.0f} B", objective, (max(objective.sizes), t))
