"""Fits recover known laws, and do not depend on units, order or wild runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling import LawRefused, fit
from metaopt_hpo.scaling.fitting.cells import thin
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.scaling.from_cells import fit_cells
from metaopt_hpo.scaling.sameness import group
from metaopt_hpo.trials.table import TrialTable

Maker = Callable[..., TrialTable]


Truth = Callable[[float, float], tuple[float, float, float]]


BIG = (3e9, 1e11)


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 4e-3])
def test_a_known_law_is_recovered_within_its_intervals(
    make_table: Maker, true_optimum: Truth, noise: float
) -> None:
    hits = []
    for seed in range(4):
        law = fit(make_table(noise=noise, seed=seed), draws=60)
        p = law.predict(*BIG)
        lr, batch, loss = true_optimum(*BIG)
        tolerance = 1e-3  # at vanishing noise intervals are narrower than the solver's own tolerance
        for estimate, value in ((p.lr, lr), (p.batch, batch), (p.loss, loss)):
            hits.append(estimate.low * (1 - tolerance) <= value <= estimate.high * (1 + tolerance))
        assert float(p.lr) == pytest.approx(lr, rel=0.02 + 60 * noise)
    assert np.mean(hits) >= 0.75


def test_units_of_loss_and_tokens_change_nothing_else(make_table: Maker) -> None:
    table = make_table()
    law = fit(table, draws=40)
    scaled = table.frame.assign(loss=table.frame["loss"] * 7.0)
    p, q = law.predict(*BIG), fit(TrialTable(scaled), draws=40).predict(*BIG)
    assert float(q.lr) == pytest.approx(float(p.lr), rel=1e-6)
    assert float(q.batch) == pytest.approx(float(p.batch), rel=1e-6)
    assert float(q.loss) == pytest.approx(7.0 * float(p.loss), rel=1e-4)
    k = 1e3
    f = table.frame
    moved = fit(TrialTable(f.assign(tokens=f["tokens"] * k, batch=f["batch"] * k)), draws=40)
    r = moved.predict(BIG[0], BIG[1] * k)
    for axis, trust in law.trust.items():  # also where a regular grid can be triangulated in several ways
        assert moved.trust[axis].copying == trust.copying
        assert moved.trust[axis].missed == pytest.approx(trust.missed, abs=1e-6)
        assert moved.trust[axis].scores == pytest.approx(trust.scores, abs=1e-6)
    assert float(r.lr) == pytest.approx(float(p.lr), rel=1e-5)
    assert float(r.batch) == pytest.approx(k * float(p.batch), rel=1e-5)
    assert r.lr.low == pytest.approx(p.lr.low, rel=1e-3)


def test_the_order_of_trials_does_not_matter(make_table: Maker) -> None:
    table = make_table()
    shuffled = TrialTable(table.frame.sample(frac=1, random_state=3).reset_index(drop=True))
    p, q = fit(table, draws=30).predict(*BIG), fit(shuffled, draws=30).predict(*BIG)
    assert float(q.lr) == pytest.approx(float(p.lr), rel=1e-6)
    assert q.lr.low == pytest.approx(p.lr.low, rel=1e-6)


def test_wild_runs_do_not_move_the_law(make_table: Maker, true_optimum: Truth) -> None:
    frame = make_table().frame.copy()
    rng = np.random.default_rng(0)
    hit = rng.random(len(frame)) < 0.05
    frame.loc[hit, "loss"] *= 1.5
    p = fit(TrialTable(frame), draws=30).predict(*BIG)
    assert float(p.lr) == pytest.approx(true_optimum(*BIG)[0], rel=0.1)


def test_adaptive_runs_are_left_out_or_used_at_their_plateau(make_table: Maker) -> None:
    frame = make_table().frame.copy()
    frame["strategy"] = "wsd"
    adaptive = frame.iloc[::7].copy()
    adaptive["trial"] = [f"a{i}" for i in range(len(adaptive))]
    adaptive["strategy"], adaptive["tuning"] = "metaoptimize", "self"
    adaptive["found_lr"] = adaptive["lr"]
    adaptive["lr"] = 1e-6
    both = TrialTable(pd.concat([frame, adaptive], ignore_index=True))
    law = fit(both, draws=30)
    assert law.trials == len(frame)
    assert "left-out-strategy" in {c.code for c in law.warnings}
    assert fit(both, use="all", draws=30).trials == len(both)
    with pytest.raises(ValueError, match="use must be"):
        fit(both, use="none")  # type: ignore[arg-type]


def test_non_positive_losses_and_unfinished_trials(make_table: Maker) -> None:
    frame = make_table().frame.copy()
    with pytest.raises(LawRefused, match="not positive"):
        fit(TrialTable(frame.assign(loss=-frame["loss"])))
    frame.loc[:4, "state"] = "pruned"
    law = fit(TrialTable(frame), draws=30)
    assert law.trials == len(frame) - 5
    assert any(c.code == "left-out-pruned" and c.message.startswith("5") for c in law.warnings)


def test_a_refit_after_one_more_trial_is_close_to_a_fit(make_table: Maker) -> None:
    table = make_table(noise=2e-3)
    frame = table.frame
    fewer = TrialTable(frame.iloc[:-1].reset_index(drop=True))
    quick, full = fit(fewer, draws=60).refit(table), fit(table, draws=60)
    p, q = quick.predict(*BIG), full.predict(*BIG)
    assert quick.trials == full.trials == len(frame)
    for name in ("lr", "batch", "loss"):
        a, b = getattr(p, name), getattr(q, name)
        assert a.value == pytest.approx(b.value, rel=1e-3)
        assert math.log(a.high / a.low) == pytest.approx(math.log(b.high / b.low), rel=0.2)
    assert fit(fewer, draws=60).refit(fewer).predict(*BIG).lr.value == pytest.approx(
        fit(fewer, draws=60).predict(*BIG).lr.value, rel=1e-3
    )
    grown = fit(TrialTable(frame.iloc[: len(frame) // 2 + 60].reset_index(drop=True)), draws=60).refit(table)
    assert grown.predict(*BIG) == q


def test_further_hyperparameters_enter_as_coordinates(make_table: Maker) -> None:
    frame = make_table(batches=1, lrs=7).frame.copy()
    frames = []
    for wd in (0.05, 0.1, 0.2):
        g = frame.copy()
        g["lr"] = g["lr"] * (wd / 0.1) ** -0.5
        g["loss"] = g["loss"] * (1 + 0.01 * abs(math.log(wd / 0.1)))
        g["params"] = f'{{"weight_decay": {wd}}}'
        g["trial"] = [f"{wd}-{i}" for i in range(len(g))]
        frames.append(g)
    table = TrialTable(pd.concat(frames, ignore_index=True))
    assert "extra-varies" in {c.code for c in fit(table, draws=30).warnings}
    law = fit(table, extra=("weight_decay",), draws=30)
    assert "extra-varies" not in {c.code for c in law.warnings}
    for trust in law.trust.values():  # each held-out cell is judged at its own weight decay
        assert trust.copying == 0.0
        assert trust.scores[0] < 1e-3
    a = law.predict(*BIG, extra={"weight_decay": 0.1})
    b = law.predict(*BIG, extra={"weight_decay": 0.4})
    assert float(b.lr) / float(a.lr) == pytest.approx(0.5, rel=0.05)
    assert law.from_json(law.to_json()).predict(*BIG, extra={"weight_decay": 0.4}) == b
    with pytest.raises(ValueError, match="no coordinate of this law"):
        law.predict(*BIG, extra={"beta2": 0.9})
    with pytest.raises(ValueError, match="'dropout' is among the hyperparameters of no trial"):
        fit(table, extra=("dropout",))


def test_a_huge_table_is_thinned_evenly_and_counted(make_table: Maker, true_optimum: Truth) -> None:
    cells = from_table(make_table())
    small = thin(cells, limit=100)
    assert small.n <= 100
    assert np.ptp(np.bincount(small.cell)) == 0
    assert any(c.code == "thinned" and c.message.startswith(str(cells.n - small.n)) for c in small.cautions)
    law = fit_cells(thin(from_table(make_table(lrs=12, batches=10)), limit=400), draws=30)
    assert float(law.predict(*BIG).lr) == pytest.approx(true_optimum(*BIG)[0], rel=0.1)


def test_sizes_and_tokens_that_hardly_differ_are_one(make_table: Maker) -> None:
    table = make_table()
    rng = np.random.default_rng(0)
    f = table.frame
    off = f.assign(
        size=f["size"] * rng.uniform(0.996, 1.004, len(f)),
        tokens=f["tokens"] * rng.uniform(0.996, 1.004, len(f)),
    )
    a, b = fit(table, draws=30), fit(TrialTable(off), draws=30)
    assert b.cells["size"].size == a.cells["size"].size
    assert float(b.predict(*BIG).lr) == pytest.approx(float(a.predict(*BIG).lr), rel=0.01)
    every = np.geomspace(1e6, 1e9, 5000)  # neighbours differ by 0.14 %, and are not one for that
    groups = np.unique(group(every))
    assert 1 < np.max(groups[1:] / groups[:-1]) < 1.02
    assert np.abs(group(every) / every - 1).max() < 0.011
