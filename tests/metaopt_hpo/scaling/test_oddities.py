"""Odd tables: exploded runs do not mislead, a bowl that noise feigns and sizes in two units are said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from metaopt_hpo.scaling import LawRefused, fit
from metaopt_hpo.scaling.cautions import WRONG
from metaopt_hpo.trials.table import TrialTable
from studies.laws.worlds import TARGET, World


@pytest.mark.parametrize("jump", [0.1, 1.1, 4.0])
def test_exploded_runs_left_in_neither_mislead_nor_raise_doubt(jump: float) -> None:
    world = World(f"exploded {jump}", exploded=(0.08, jump))
    doubted = 0
    for seed in range(3):
        law = fit(world.table(seed), draws=20)
        p = law.predict(*TARGET)
        doubted += bool({w.code for w in p.warnings} & set(WRONG))
        assert world.excess(*TARGET, p.lr.value, p.batch.value) < 5e-3
    assert doubted <= 1  # as many as of worlds in which nothing exploded


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("noise", [5e-4, 5e-3])
def test_a_table_whose_losses_do_not_depend_on_lr_is_refused_or_doubted(batches: int, noise: float) -> None:
    world = World("nothing to see", curvature=1e-9, noise=noise, runs=(6, batches))
    for seed in range(4):
        try:
            law = fit(world.table(seed), draws=20)
        except LawRefused:
            continue
        doubted = {w.code for w in law.predict(*TARGET).warnings} & set(WRONG)
        assert "flat-bowl" in doubted
        run = {"size": TARGET[0], "tokens": TARGET[1], "lr": 1e-3, "batch": 1e6}
        assert law.verdict(**run).action == "abstain"


def test_a_flat_bowl_that_is_seen_is_not_doubted() -> None:
    law = fit(World("flat", curvature=0.004).table(0), draws=20)
    assert "flat-bowl" not in {w.code for w in law.warnings}


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("column", ["size", "tokens"])
@pytest.mark.parametrize("larger", [False, True])
def test_quantities_in_two_units_are_said(unit: float, column: str, larger: bool) -> None:
    limit = {"size": 1e8, "tokens": 4e9}[column]
    # a search's own trials: a file would be refused when it is read
    records = [
        dataclasses.replace(r, **{column: getattr(r, column) / unit})
        if (getattr(r, column) > limit) == larger
        else r
        for r in World("plain").table(0).records()
    ]
    law = fit(TrialTable.from_records(records, warn=False), draws=20, allow_weak=True)
    assert "units-mixed" in {w.code for w in law.predict(*TARGET).warnings}
    assert law.verdict(size=TARGET[0], tokens=TARGET[1], lr=1e-3, batch=1e6).action == "abstain"


def test_a_wide_ladder_of_one_unit_is_not() -> None:
    world = dataclasses.replace(World("plain"), sizes=tuple(np.geomspace(1e6, 1e9, 5)))
    assert "units-mixed" not in {w.code for w in fit(world.table(0), draws=20).warnings}
