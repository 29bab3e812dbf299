"""How often a law is wrong without a word, over worlds of known truth and every table at hand.

python -m studies.laws.doubt --first 11 --seeds 2      # other draws of the worlds, without the tables
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from metaopt_hpo.comparison.scoring import cells_of, choose, of_law, score
from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.cautions import COSTLY, WRONG
from studies import benchmarks
from studies.benchmarks import BenchmarkMissing, Split
from studies.laws.worlds import World, worlds
from studies.section import Section

DRAWS = 60
"""Bootstrap draws of these laws, as behind decisions."""


@dataclass(frozen=True)
class Outcome:
    """What became of one law.

    Attributes:
        name: of its world or split.
        excess: relative loss above the target's best, the mean over held-out cells; NaN where the law was refused.
        said: codes of `cautions.WRONG` that its prediction carried.
    """

    name: str
    excess: float
    said: frozenset[str]

    @property
    def wrong(self) -> bool:
        """Whether it loses more than half a percent."""
        return self.excess > COSTLY

    @property
    def quiet(self) -> bool:
        """Whether it says nothing of being wrong."""
        return not self.said


def of_world(world: World, seed: int) -> Outcome:
    """A law fitted to a world's table, asked for its target."""
    try:
        law = fit(world.table(seed), draws=DRAWS, allow_weak=True)
    except LawRefused as refused:
        return Outcome(world.name, np.nan, frozenset({f"refused ({refused.code})"}))
    p = law.predict(world.counted(world.target[0]), world.target[1])
    excess = world.excess(*world.target, p.lr.value, p.batch.value)
    if not law.surface.has_batch:  # it says that it knows no best batch: lr is compared at its own
        excess -= world.best_at(*world.target, p.batch.value)
    excess = float(np.expm1(excess))
    return Outcome(world.name, excess, frozenset(w.code for w in p.warnings) & frozenset(WRONG))


def of_split(split: Split) -> Outcome:
    """A law fitted to a table's smaller part, asked for its larger one."""
    cells = cells_of(split.test)
    try:
        law = fit(split.train, draws=DRAWS, allow_weak=True)
    except LawRefused as refused:
        return Outcome(split.title, np.nan, frozenset({f"refused ({refused.code})"}))
    only_grid = split.name.startswith("fcnet")
    excess = float(np.mean(choose(law, cells) if only_grid else score(of_law(law), cells)))
    return Outcome(split.title, excess, frozenset(said_of(law, cells)))


def said_of(law: Law, cells: Iterable[tuple[float, float]]) -> set[str]:
    """Codes of `cautions.WRONG` that the law gives for any of these cells."""
    return {w.code for cell in cells for w in law.predict(*cell).warnings} & set(WRONG)


def all_splits(data: Path) -> Iterator[Split]:
    """Of every table at hand."""
    builders = (
        benchmarks.ordered_splits,
        benchmarks.slices,
        benchmarks.live_splits,
        benchmarks.mup_widths_splits,
        benchmarks.fcnet_splits,
    )
    for build in builders:
        try:
            yield from build(data)
        except BenchmarkMissing:
            continue


def doubt_section(data: Path | None, *, seeds: int = 2, first: int = 0) -> Section:
    """Each world's excess and what its laws say, the tables' worst, and the rate of false confidence."""
    section = Section(
        f"Worlds of known truth, {seeds} tables each",
        ["world", "excess at the target, %", "wrong", "warnings that say so"],
    )
    found: list[Outcome] = []
    for world in worlds():
        outcomes = [of_world(world, seed) for seed in range(first, first + seeds)]
        found += outcomes
        section.rows.append(
            [
                world.name,
                " / ".join("–" if np.isnan(o.excess) else f"{100 * o.excess:.2f}" for o in outcomes),
                f"{sum(o.wrong for o in outcomes)} of {len(outcomes)}",
                " / ".join(", ".join(sorted(o.said)) or "–" for o in outcomes),
            ]
        )
    notes = [f"Worlds: {rates(found)}"]
    if data is not None:
        tables = [of_split(split) for split in all_splits(data)]
        notes += [f"Tables: {rates(tables)}", f"Together: {rates([*found, *tables])}"]
        silent = [f"{o.name} ({100 * o.excess:.2f} %)" for o in tables if o.wrong and o.quiet]
        notes.append(f"Wrong and quiet among the tables: {', '.join(silent) or 'none'}.")
    section.note = " ".join(notes)
    return section


def rates(outcomes: Iterable[Outcome]) -> str:
    """Counts of wrong and quiet, and of doubted right laws; refused ones are left out."""
    laws = [o for o in outcomes if not np.isnan(o.excess)]
    wrong, right = [o for o in laws if o.wrong], [o for o in laws if not o.wrong]
    quiet, doubted = sum(o.quiet for o in wrong), sum(not o.quiet for o in right)
    return (
        f"{quiet} of {len(laws)} laws are wrong and quiet ({quiet / max(len(laws), 1):.1%}); {len(wrong)} are wrong. "
        f"Of {len(right)} right ones {doubted} carry a warning ({doubted / max(len(right), 1):.0%})."
    )


def main(
    first: Annotated[int, typer.Option(min=0, help="First seed of the worlds' tables.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Tables of each world.")] = 2,
    data: Annotated[
        Path | None, typer.Option(help="Folder of published tables; without it, worlds only.")
    ] = None,
) -> None:
    """Print each world's laws and the rate of false confidence."""
    warnings.simplefilter("ignore", MetaOptWarning)
    typer.echo(doubt_section(data, seeds=seeds, first=first).markdown())


if __name__ == "__main__":
    typer.run(main)
