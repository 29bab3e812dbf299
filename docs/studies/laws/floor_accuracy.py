"""How well loss floors predict beyond their cells, over many designs cut from two tables, and under which prior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.fitting.floor_error import DOUBLING_ERROR, LEVELS, draw_doubt, draw_floors
from metaopt_hpo.scaling.fitting.floor_fit import fit_floor
from metaopt_hpo.scaling.fitting.pointfit import point_fit
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.scaling.forms.floor import PRIOR, log_loss_of_draws
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.section import Section

Prior = Mapping[str, tuple[float, float]]

NAMES = ("size", "tokens")
DRAWS = 60
Z_90 = 1.645


def _prior(exponent: tuple[float, float], power: tuple[float, float]) -> Prior:
    return {**PRIOR, "exponent": exponent, "power": power}


PRIORS: Mapping[str, tuple[Prior, float]] = {
    "halfway between the published forms (used)": (PRIOR, 1.0),
    "the same, whole sizes and tokens off by half as much": (PRIOR, 0.5),
    "the same, by one and a half times as much": (PRIOR, 1.5),
    "the same, exponents as wide as the published forms": (
        {**PRIOR, "exponent": (PRIOR["exponent"][0], 0.65)},
        1.0,
    ),
    "exponents near 0.25, γ near 0.5": (_prior((math.log(0.25), 0.5), (-0.7, 0.7)), 1.0),
    "Hoffmann et al.'s exponents and γ": (_prior((math.log(0.31), 0.5), (0.0, 0.3)), 1.0),
    "Kaplan et al.'s exponents and γ": (_prior((math.log(0.085), 0.5), (math.log(0.095), 0.3)), 1.0),
}
"""Priors compared, and the factor on the error of whole sizes and numbers of tokens: one row of the section each."""

GROWTHS = tuple(round(5e-4 * k, 4) for k in range(17))
"""Standard deviations (ln loss) of a doubling beyond the range, of which tables' designs choose."""


@dataclass(frozen=True)
class Floors:
    """The cells of a table with their loss at the optimum, from one fit to all trials."""

    size: Array
    tokens: Array
    log_loss: Array
    weight: Array
    noise: float

    @classmethod
    def of(cls, table: TrialTable) -> Floors:
        """From a table of trials."""
        cells = from_table(table)
        fitted = point_fit(cells)
        return cls(cells.cell_size, cells.cell_tokens, fitted.floors, cells.cell_weight(), fitted.scale)

    def designs(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """(shape, cells to fit) of every design of at least five cells, two sizes and two numbers of tokens.

        For each cell as corner: the box of all smaller cells, the triangle below its diagonal, and the L of the
        smallest size and the fewest tokens.
        """
        n, d = np.unique(self.size), np.unique(self.tokens)
        seen: set[bytes] = set()
        for most, longest in itertools.product(n[1:], d[1:]):
            box = (self.size <= most) & (self.tokens <= longest)
            way = np.log(self.size / n[0]) / np.log(most / n[0]) + np.log(self.tokens / d[0]) / np.log(
                longest / d[0]
            )
            corner = box & ((self.size == self.size[box].min()) | (self.tokens == self.tokens[box].min()))
            for shape, chosen in (("box", box), ("L", corner), ("triangle", box & (way < 1.01))):
                enough = chosen.sum() >= 5 and not chosen.all()
                varied = all(np.unique(v[chosen]).size >= 2 for v in (self.size, self.tokens))
                if enough and varied and chosen.tobytes() not in seen:
                    seen.add(chosen.tobytes())
                    yield shape, chosen

    def errors(
        self, chosen: NDArray[np.bool_], prior: Prior, scale: float, rng: np.random.Generator
    ) -> Array:
        """(cells left out × 4): ln loss minus the prediction of a floor fitted to `chosen`, its variance without what
        grows with distance, and the doublings beyond the fitted sizes and numbers of tokens."""
        size, tokens, z, weight = (v[chosen] for v in (self.size, self.tokens, self.log_loss, self.weight))
        floor = fit_floor(NAMES, np.log(size), np.log(tokens), z, weight, noise=self.noise, prior=prior)
        doubts = [draw_doubt(floor, size, tokens, rng, prior=prior, scale=scale) for _ in range(DRAWS)]
        draws = draw_floors(floor, size, tokens, z, weight, doubts)
        own = floor.scatter**2 + scale**2 * math.fsum(v**2 for v in LEVELS.values())
        rows = []
        for j in np.flatnonzero(~chosen):
            at = float(self.size[j]), float(self.tokens[j])
            variance = float(np.var(log_loss_of_draws(draws, floor, *at))) + own
            away = (_doublings(at[0], size), _doublings(at[1], tokens))
            rows.append((float(self.log_loss[j]) - float(floor.log_loss(*at)), variance, *away))
        return np.array(rows)


def _doublings(value: float, fitted: Array) -> float:
    return max(math.log2(value / fitted.max()), math.log2(fitted.min() / value), 0.0)


def spread_of(rows: Array, growth: tuple[float, float]) -> Array:
    """Standard deviations of `Floors.errors`, where a doubling of size and of tokens adds `growth`."""
    return np.asarray(np.sqrt(rows[:, 1] + growth[0] ** 2 * rows[:, 2] + growth[1] ** 2 * rows[:, 3]))


def growth_section(data: Path) -> Section:
    """By how much errors grow with each doubling: what one table's designs say, tried on the other table's."""
    section = Section(
        "How errors of the loss grow with distance",
        [
            "learned on",
            "a doubling of size, %",
            "of tokens, %",
            "tried on",
            "90 % covers",
            "box",
            "L",
            "triangle",
        ],
    )
    tables = {"OpenEuroLLM": benchmarks.openeurollm(data), "Step Law": benchmarks.steplaw(data)}
    rng = np.random.default_rng(0)
    found = {name: _of_designs(Floors.of(table), PRIOR, 1.0, rng) for name, table in tables.items()}
    pairs = [(name, likeliest([rows])) for name, rows in found.items()]
    for (name, growth), other in zip(pairs, reversed(found), strict=True):
        section.rows.append([name, *_growth_row(growth, other, found[other])])
    both = likeliest(list(found.values()))
    for name, rows in found.items():
        section.rows.append(["both (used)", *_growth_row(both, name, rows)])
    section.note = (
        "A table counts once in the likelihood, and in it each design, however many cells it leaves out."
    )
    return section


def _of_designs(
    floors: Floors, prior: Prior, scale: float, rng: np.random.Generator
) -> list[tuple[str, Array]]:
    return [(shape, floors.errors(chosen, prior, scale, rng)) for shape, chosen in floors.designs()]


def _likelihood(found: list[tuple[str, Array]], growth: tuple[float, float]) -> float:
    """Mean over a table's designs."""
    total = 0.0
    for _, rows in found:
        spread = spread_of(rows, growth)
        total -= float(np.mean(0.5 * (rows[:, 0] / spread) ** 2 + np.log(spread)))
    return total / len(found)


def likeliest(tables: Sequence[list[tuple[str, Array]]]) -> tuple[float, float]:
    """The growth, of `GROWTHS`, that makes the errors of all tables' designs likeliest; either table counts once."""
    grid = itertools.product(GROWTHS, GROWTHS)
    return max((math.fsum(_likelihood(found, g) for found in tables), g) for g in grid)[1]


def _growth_row(growth: tuple[float, float], name: str, found: list[tuple[str, Array]]) -> list[str]:
    covers: dict[str, list[NDArray[np.bool_]]] = {"box": [], "L": [], "triangle": []}
    for shape, rows in found:
        covers[shape].append(np.abs(rows[:, 0]) < Z_90 * spread_of(rows, growth))
    shares = [f"{np.concatenate(c).mean():.0%}" for c in covers.values()]
    every = np.concatenate([c for parts in covers.values() for c in parts])
    return [f"{100 * growth[0]:.2f}", f"{100 * growth[1]:.2f}", name, f"{every.mean():.0%}", *shares]


def floor_section(data: Path) -> Section:
    """Error and coverage of the predicted loss over all designs, for each of `PRIORS`."""
    header = ["prior", "table", "predictions", "error, mean (rms) %", "box", "L", "triangle", "90 % covers"]
    section = Section("The loss beyond small designs", header)
    tables = {"OpenEuroLLM": benchmarks.openeurollm(data), "Step Law": benchmarks.steplaw(data)}
    floors = {name: Floors.of(table) for name, table in tables.items()}
    used = (DOUBLING_ERROR["size"], DOUBLING_ERROR["tokens"])
    for (label, (prior, scale)), (name, f) in itertools.product(PRIORS.items(), floors.items()):
        rng = np.random.default_rng(0)
        found: dict[str, list[Array]] = {"box": [], "L": [], "triangle": []}
        for shape, rows in _of_designs(f, prior, scale, rng):
            found[shape].append(rows)
        every = np.concatenate([e for errors in found.values() for e in errors])
        error, spread = every[:, 0], spread_of(every, used)
        by_shape = [f"{_rms(np.concatenate(e)[:, 0]):.2f}" for e in found.values()]
        covered = float(np.mean(np.abs(error) < Z_90 * spread))
        mean = f"{-100 * error.mean():+.2f} ({_rms(error):.2f})"
        section.rows.append([label, name, str(len(every)), mean, *by_shape, f"{covered:.0%}"])
    section.note = (
        "Each design is fitted alone and predicts every other cell of its table, as the whole table's fit has it. "
        "The columns of shapes are root mean squares in percent."
    )
    return section


def _rms(error: Array) -> float:
    return 100 * float(np.sqrt(np.mean(np.square(error))))
