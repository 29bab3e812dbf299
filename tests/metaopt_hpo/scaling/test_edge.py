"""The edge of stability: fitted from diverged and exploded runs, monotone, and the lr keeps below it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.scaling.forms.edge import fit_edge
from metaopt_hpo.trials.table import TrialTable
from studies.laws.worlds import TARGET, World

CLIFF = World("a cliff", edge=0.5, exploded=(0.0, 0.6), curvature=0.006)
"""A flat bowl whose runs explode from half a nat above the optimum on."""


def with_states(table: TrialTable, world: World) -> TrialTable:
    """The runs beyond the edge as a framework records them: diverged, without a loss."""
    records = []
    for r in table.records():
        beyond = math.log(r.lr) - world.optimum(r.size, r.tokens)[0] > world.edge
        records.append(dataclasses.replace(r, state="diverged", loss=math.nan) if beyond else r)
    return TrialTable.from_records(records, warn=False)


@pytest.fixture(scope="module", params=["exploded", "diverged"])
def law(request: pytest.FixtureRequest) -> Law:
    table = CLIFF.table(0)
    return fit(table if request.param == "exploded" else with_states(table, CLIFF), draws=20)


def test_the_edge_is_found_and_the_chance_of_diverging_grows_with_lr(law: Law) -> None:
    assert law.edge is not None
    best, batch = (math.exp(v) for v in CLIFF.optimum(2.4e8, 2e10))
    lrs = best * np.exp(np.linspace(-3, 4, 50))
    chance = law.divergence(2.4e8, 2e10, batch, lrs)
    assert (np.diff(chance) >= -1e-9).all()
    half = math.log(float(lrs[np.argmin(abs(chance - 0.5))]) / best)
    assert half == pytest.approx(CLIFF.edge, abs=0.35)


def test_the_lr_is_chosen_by_expected_loss_with_divergence_in_it(law: Law) -> None:
    p = law.predict(*TARGET)
    free = dataclasses.replace(law, edge=None).predict(*TARGET)
    assert float(p.lr) < float(free.lr)
    assert p.divergence < 0.25
    assert free.divergence == 0.0
    below = math.log(float(p.lr)) - CLIFF.optimum(*TARGET)[0]
    assert below < CLIFF.edge
    assert ("edge-of-stability" in {w.code for w in p.warnings}) == (p.divergence > 0.05)


def test_it_survives_the_law_s_file(law: Law) -> None:
    again = Law.from_json(law.to_json())
    assert float(again.predict(*TARGET).lr) == float(law.predict(*TARGET).lr)
    assert again.predict(*TARGET).divergence == law.predict(*TARGET).divergence


@pytest.mark.parametrize("known", [0.6, 0.98], ids=["drawn anew", "draws moved"])
def test_a_refit_sees_the_edge_of_all_runs(known: float) -> None:
    table = with_states(CLIFF.table(0), CLIFF)
    records = list(table.records())
    order = np.random.default_rng(0).permutation(len(records))
    few = [records[i] for i in order[: int(known * len(records))]]
    old = fit(TrialTable.from_records(few, warn=False), draws=20)
    again, full = old.refit(table), fit(table, draws=20)
    assert old.edge is not None
    assert again.edge is not None
    assert full.edge is not None
    assert (again.edge.runs, again.edge.diverged) == (full.edge.runs, full.edge.diverged)
    assert again.predict(*TARGET).divergence == pytest.approx(full.predict(*TARGET).divergence, abs=0.02)
    assert again.trials == full.trials


def two_optimizers(first: TrialTable, factor: float) -> TrialTable:
    """Runs of one, and fewer of another with an edge, whose learning rates are so many times as high."""
    records = [dataclasses.replace(r, params={"optimizer": "adamw"}) for r in first.records()]
    for r in with_states(CLIFF.table(1), CLIFF).records():
        if r.size < 2e8:
            params = {"optimizer": "lion"}
            records.append(dataclasses.replace(r, lr=r.lr * factor, params=params, trial=f"lion-{r.trial}"))
    return TrialTable.from_records(records, warn=False)


def test_runs_of_another_optimizer_that_diverged_are_no_edge_of_the_fitted_one() -> None:
    law = fit(two_optimizers(World("no edge").table(0), 4.0), draws=20)
    assert "optimizer-mixed" in {w.code for w in law.warnings}
    assert law.edge is None


def test_diverged_runs_stand_about_the_optimum_of_their_own_coordinate() -> None:
    below = with_states(CLIFF.table(0), CLIFF).select(state="complete")
    law = fit(two_optimizers(below, 1 / 8), extra=("optimizer",), draws=20)
    assert law.edge is not None
    best, batch = (math.exp(v) for v in CLIFF.optimum(1.2e8, 2e10))
    edge = law.edge_lr(1.2e8, 2e10, batch, extra={"optimizer": "lion"})
    assert math.log(edge * 8 / best) == pytest.approx(CLIFF.edge, abs=0.35)
    chance = law.divergence(1.2e8, 2e10, batch, [0.1 * edge, edge], extra={"optimizer": "lion"})
    assert chance[0] < 0.2
    assert chance[1] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="sgd"):
        law.edge_lr(1.2e8, 2e10, batch, extra={"optimizer": "sgd"})


def test_a_bowl_is_no_sharper_for_the_runs_that_exploded() -> None:
    table = CLIFF.table(0)
    left_in, without = fit(table, draws=20), fit(with_states(table, CLIFF), draws=20)
    assert left_in.surface.h[0] == pytest.approx(without.surface.h[0], rel=0.05)
    assert "left-out-exploded" in {w.code for w in left_in.warnings}


def test_runs_that_explode_anywhere_by_bad_luck_show_no_edge() -> None:
    for seed in range(3):
        law = fit(World("bad luck", exploded=(0.08, 1.0)).table(seed), draws=20)
        p, free = law.predict(*TARGET), dataclasses.replace(law, edge=None).predict(*TARGET)
        assert float(p.lr) == pytest.approx(float(free.lr), rel=0.1)


def test_a_table_without_diverged_runs_has_no_edge() -> None:
    law = fit(World("plain").table(0), draws=20)
    assert law.edge is None
    assert law.predict(*TARGET).divergence == 0.0
    assert (law.divergence(1e9, 1e11, 1e6, [1e-3, 10.0]) == 0.0).all()


def test_a_single_diverged_run_shows_no_edge() -> None:
    u = np.linspace(-1.0, 1.0, 10)
    assert fit_edge(u, np.zeros(10), np.zeros((10, 2)), u > 0.95) is None


def test_the_further_from_the_runs_the_wider_the_edge(law: Law) -> None:
    assert law.edge is not None
    near, far = [float(law.edge.chance(CLIFF.edge - 1.0, 0.0, np.array([t, t]))) for t in (0.0, 6.0)]
    assert near < far


def test_the_figure_of_the_optimal_lr_shows_the_edge(law: Law) -> None:
    law_figures = pytest.importorskip("metaopt_hpo.report.law_figures")
    shown = [t for t in law_figures.optimum_against(law, CLIFF.table(0)).data if t.meta == "edge"]
    assert len(shown) == 1
    assert shown[0].y[0] == pytest.approx(
        law.edge_lr(shown[0].x[0], 2e10, law.predict(shown[0].x[0], 2e10).batch.value)
    )
    assert not any(
        t.meta == "edge"
        for t in law_figures.optimum_against(dataclasses.replace(law, edge=None), CLIFF.table(0)).data
    )
