"""Plain tables of three sizes, asked at 2.5 times the largest: how often the law is wrong, and what its doubt does.

    python -m studies.laws.usual [--data DIR]

Verdicts are asked for twice: knowing the lowest loss alone, and told of the runs that have finished. With `DIR` (see
README.md) the same is asked of the held-out runs of published tables.

One batch, one number of tokens, 5 or 8 learning rates a size; curvature, noise, the scatter of optima and the step
between sizes are those of published tables. Every table is drawn twice: by a power law of size, and with a bend in it.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.cautions import COSTLY, WRONG, excess_of
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.benchmarks import Split

LEAST, TOKENS, BATCH = 1e8, 1e10, 5e5
FURTHER = 2.5
"""Size of the target over the largest of the table."""

SLOPE, BEND = -0.45, 0.06
"""d ln lr* / d ln size, and half of its second derivative in a table with a bend."""

RANGE = 1.7
"""ln units from the middle of the grid to its ends; the middle is off by `OFF`, one standard deviation."""

OFF = 0.3
RUNS, FINISHED = 15, 3
"""Runs at the target, of which so many have finished and the others ask whether to stop."""


@dataclass(frozen=True)
class Usual:
    """One table and what is true of it."""

    step: float
    curvature: float
    noise: float
    rates: int
    scatter: float
    seed: int
    bend: float

    @property
    def target(self) -> float:
        return LEAST * self.step**2 * FURTHER

    def optimum(self, size: float) -> float:
        """ln lr*."""
        n = float(np.log(size / LEAST))
        return float(np.log(3e-3)) + SLOPE * n + self.bend * n * n

    def excess(self, u: Array) -> Array:
        """ln loss over the best, u ln units from the optimum: steeper above than below."""
        return np.asarray(self.curvature * (0.5 * u * u + 0.1 * u**3 * (u > 0)))

    def table(self) -> TrialTable:
        key = [self.seed, int(10 * self.step), int(1e3 * self.curvature), int(1e4 * self.noise), self.rates,
               int(100 * self.scatter)]  # fmt: skip
        rng = np.random.default_rng(key)
        rows = []
        for size in (LEAST * self.step**k for k in range(3)):
            best = self.optimum(size) + self.scatter * rng.standard_normal()
            middle = self.optimum(size) + OFF * rng.standard_normal()
            x = middle + np.linspace(-RANGE, RANGE, self.rates)
            loss = floor(size) * np.exp(self.excess(x - best) + self.noise * rng.standard_normal(self.rates))
            rows += [
                {"size": size, "tokens": TOKENS, "batch": BATCH, "lr": float(np.exp(a)), "loss": float(b)}
                for a, b in zip(x, loss, strict=True)
            ]
        return TrialTable.from_frame(pd.DataFrame(rows), implausible="warn")


def floor(size: float) -> float:
    """The loss at the best lr."""
    return float(1.7 + 0.6 * (size / LEAST) ** -0.3)


def tables(bend: float, seeds: int = 2) -> Iterator[Usual]:
    """All combinations."""
    for step, h, noise, rates, scatter, seed in itertools.product(
        (2.0, 4.0), (0.01, 0.02, 0.05, 0.1), (0.0, 1e-3, 3e-3), (5, 8), (0.0, 0.07, 0.15), range(seeds)
    ):
        yield Usual(step, h, noise, rates, scatter, seed, bend)


def chance(law: Law, size: float) -> float:
    """The law's own chance of being wrong at a size: its alternatives whose optimum costs more than the limit."""
    p = law.predict(size, TOKENS)
    row = law.axes.design(size, TOKENS)
    x, y = law.surface.centre(row)
    if law.alternatives is None:
        return 0.0
    dx, dy = law.alternatives.distances(row)
    lost = excess_of(
        law.surface,
        np.log(p.lr.value) - float(x) - dx,
        np.log(p.batch.value) - float(y) - dy,
        given=law.open_valley,
    )
    return float((lost > COSTLY).mean())


def judge(bend: float, told: bool) -> tuple[str, Counter[tuple[str, str, str]]]:
    """A row of the first table, and the verdicts: `told` of the finished runs, or of the lowest loss alone."""
    verdicts: Counter[tuple[str, str, str]] = Counter()
    count = wrong = quiet = doubted = 0
    chances = 0.0
    rng = np.random.default_rng(0)
    for usual in tables(bend):
        try:
            law = fit(usual.table(), draws=60, allow_weak=True)
        except LawRefused:
            continue
        p = law.predict(usual.target, TOKENS)
        codes = {w.code for w in p.warnings} & set(WRONG)
        u = np.array([np.log(p.lr.value) - usual.optimum(usual.target)])
        bad = bool(usual.excess(u)[0] > COSTLY)
        count, wrong, quiet = count + 1, wrong + bad, quiet + (bad and not codes)
        doubted, chances = doubted + (not bad and bool(codes)), chances + chance(law, usual.target)
        kind = "none" if not codes else "unsure optimum" if codes == {"unsure-optimum"} else "other"
        x = rng.uniform(-2, 2, RUNS)
        loss = floor(usual.target) * np.exp(usual.excess(x) + usual.noise * rng.standard_normal(RUNS))
        best = float(loss[:FINISHED].min())
        lrs = np.exp(usual.optimum(usual.target) + x)
        finished = [(float(a), BATCH, float(b)) for a, b in zip(lrs[:FINISHED], loss[:FINISHED], strict=True)]
        for lr, end in zip(lrs[FINISHED:], loss[FINISHED:], strict=True):
            known = finished if told else ()
            v = law.verdict(
                size=usual.target, tokens=TOKENS, lr=float(lr), batch=BATCH, incumbent=best, finished=known
            )
            verdicts[kind, "better" if end < best else "worse", v.action] += 1
    name = "a bend in every table" if bend else "a power law"
    return f"| {name} | {count} | {wrong} | {quiet} | {chances:.1f} | {doubted} |", verdicts


def on_table(split: Split, finished: int, repeats: int = 10) -> str:
    """A row: held-out runs, of which a few drawn at random have finished and the others of their cell ask."""
    law = fit(split.train, draws=60, allow_weak=True)
    found: Counter[tuple[str, str]] = Counter()
    rng = np.random.default_rng(0)
    done = [r for r in split.test.records() if r.state == "complete"]
    for cell in sorted({(r.size, r.tokens) for r in done}):
        runs = [r for r in done if (r.size, r.tokens) == cell]
        for _ in range(repeats if len(runs) > 2 * finished else 0):
            order = rng.permutation(len(runs))
            known = [(r.lr, r.batch, r.loss) for r in (runs[i] for i in order[:finished])]
            best = min(loss for *_, loss in known)
            for r in (runs[i] for i in order[finished:]):
                v = law.verdict(size=r.size, tokens=r.tokens, lr=r.lr, batch=r.batch, finished=known)
                found["better" if r.loss < best else "worse", v.action] += 1
    return row_of(split.title, f"{finished} finished runs", found) if found else ""


HEAD = "runs that end worse, stopped | runs that end better, stopped"


def row_of(truth: str, kind: str, verdicts: Counter[tuple[str, str]]) -> str:
    cells = []
    for end in ("worse", "better"):
        total = sum(n for (e, _), n in verdicts.items() if e == end)
        stopped = verdicts[end, "stop"]
        cells.append(f"{stopped} of {total} ({stopped / max(total, 1):.0%})")
    return f"| {truth} | {kind} | {cells[0]} | {cells[1]} |"


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder of published tables; without it, text-lm alone.")
    ] = None,
) -> None:
    """Print how often such laws are wrong, and what becomes of runs under them."""
    warnings.simplefilter("ignore", MetaOptWarning)
    print(
        "| truth | laws | wrong | of them without a warning | sum of their own chances | right and doubted |"
    )
    print("|---|---|---|---|---|---|")
    found = {told: {bend: judge(bend, told) for bend in (0.0, BEND)} for told in (False, True)}
    for row, _ in found[True].values():
        print(row)
    for told, title in (
        (False, "knowing the lowest loss alone"),
        (True, f"told of {FINISHED} finished runs"),
    ):
        print(f"\nVerdicts, {title}:\n\n| truth | doubt | {HEAD} |\n|---|---|---|---|")
        for bend, (_, verdicts) in found[told].items():
            for kind in ("none", "unsure optimum", "other"):
                of_kind = Counter({(e, a): n for (k, e, a), n in verdicts.items() if k == kind})
                print(row_of("bend" if bend else "power law", kind, of_kind))
    print(f"\nVerdicts on tables:\n\n| table | told of | {HEAD} |\n|---|---|---|---|")
    splits = [benchmarks.live_splits()[-1]]
    splits += [] if data is None else [*benchmarks.ordered_splits(data), *benchmarks.mup_widths_splits(data)]
    for split in splits:
        for finished in (FINISHED, 2 * FINISHED):
            if row := on_table(split, finished):
                print(row)


if __name__ == "__main__":
    typer.run(main)
