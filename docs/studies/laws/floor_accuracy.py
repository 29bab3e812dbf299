"""How well loss floors predict beyond their cells, over many designs cut from two tables, and under which prior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.fitting.cells import from_table
from metaopt_hpo.scaling.fitting.floor_error import LEVEL_ERROR, draw_doubt, draw_floors
from metaopt_hpo.scaling.fitting.floor_fit import fit_floor
from metaopt_hpo.scaling.fitting.pointfit import point_fit
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
    "halfway between the published forms (used)": (PRIOR, LEVEL_ERROR),
    "the same, whole sizes and tokens off by 0.1 %": (PRIOR, 1e-3),
    "the same, by 0.3 %": (PRIOR, 3e-3),
    "exponents near 0.25, γ near 0.5": (_prior((math.log(0.25), 0.5), (-0.7, 0.7)), LEVEL_ERROR),
    "Hoffmann et al.'s exponents and γ": (_prior((math.log(0.31), 0.5), (0.0, 0.3)), LEVEL_ERROR),
    "Kaplan et al.'s exponents and γ": (_prior((math.log(0.085), 0.5), (math.log(0.095), 0.3)), LEVEL_ERROR),
}
"""Priors compared, and the error of a whole size or number of tokens: one row of the section each."""


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
        self, chosen: NDArray[np.bool_], prior: Prior, level: float, rng: np.random.Generator
    ) -> Array:
        """(cells left out × 2): ln loss minus the prediction of a floor fitted to `chosen`, and its spread."""
        size, tokens, z, weight = (v[chosen] for v in (self.size, self.tokens, self.log_loss, self.weight))
        floor = fit_floor(NAMES, np.log(size), np.log(tokens), z, weight, noise=self.noise, prior=prior)
        doubts = [draw_doubt(floor, size, tokens, rng, prior=prior, level=level) for _ in range(DRAWS)]
        draws = draw_floors(floor, size, tokens, z, weight, doubts)
        own = floor.scatter**2 + len(NAMES) * level**2
        rows = []
        for j in np.flatnonzero(~chosen):
            at = float(self.size[j]), float(self.tokens[j])
            mean = float(floor.log_loss(*at))
            spread = math.sqrt(float(np.var(log_loss_of_draws(draws, floor, *at))) + own)
            rows.append((float(self.log_loss[j]) - mean, spread))
        return np.array(rows)


def floor_section(data: Path) -> Section:
    """Error and coverage of the predicted loss over all designs, for each of `PRIORS`."""
    header = ["prior", "table", "predictions", "error, mean (rms) %", "box", "L", "triangle", "90 % covers"]
    section = Section("The loss beyond small designs", header)
    tables = {"OpenEuroLLM": benchmarks.openeurollm(data), "Step Law": benchmarks.steplaw(data)}
    floors = {name: Floors.of(table) for name, table in tables.items()}
    for (label, (prior, level)), (name, f) in itertools.product(PRIORS.items(), floors.items()):
        rng = np.random.default_rng(0)
        found: dict[str, list[Array]] = {"box": [], "L": [], "triangle": []}
        for shape, chosen in f.designs():
            found[shape].append(f.errors(chosen, prior, level, rng))
        every = np.concatenate([e for errors in found.values() for e in errors])
        error, spread = every.T
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
