"""Fits recover known laws, do not depend on units or order, and refuse what cannot bear a law."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.fitting.cells import thin
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.scaling.from_cells import fit_cells
from metaopt_hpo.scaling.policy import Context, Refits, propose_at
from metaopt_hpo.scaling.policy.points import Runs, fitted_bowl
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


def test_two_sizes_are_refused_unless_insisted_or_a_prior_is_given(
    make_table: Maker, true_optimum: Truth
) -> None:
    two = make_table(sizes=(3e7, 1e8))
    with pytest.raises(LawRefused, match="2 sizes") as e:
        fit(two)
    assert e.value.code == "few-sizes"
    assert e.value.reason == str(e.value)
    law = fit(two, allow_weak=True, draws=30)
    assert "few-sizes" in {c.code for c in law.warnings}
    prior = fit(make_table(), draws=30)
    informed = fit(two, prior=prior, draws=30)
    assert float(informed.predict(*BIG).lr) == pytest.approx(true_optimum(*BIG)[0], rel=0.15)


def test_a_prior_counts_along_axes_that_pilots_do_not_vary(make_table: Maker, true_optimum: Truth) -> None:
    """One size at one number of tokens: exponents are the prior's, the optimum is the pilots' own."""
    prior = fit(make_table(), draws=30)
    pilots = make_table(sizes=(3e7,), tokens=(3e9,))
    law = fit(pilots, prior=prior, draws=30)
    assert law.axes.names == ("size", "tokens")
    assert float(law.predict(*BIG).lr) == pytest.approx(true_optimum(*BIG)[0], rel=0.2)
    assert law.settings["base"]["slopes"] is not None
    again = type(law).from_json(law.to_json()).refit(pilots)
    assert float(again.predict(*BIG).lr) == pytest.approx(float(law.predict(*BIG).lr), rel=0.05)


def test_with_a_prior_three_trials_are_enough_and_begin_at_its_optimum(
    make_table: Maker, true_optimum: Truth
) -> None:
    prior = fit(make_table(), draws=30)
    few = make_table(sizes=(3e7,), tokens=(3e9,), lrs=3, batches=1)
    lr = float(fit(few, prior=prior, draws=30).predict(*BIG).lr)
    assert lr == pytest.approx(true_optimum(*BIG)[0], rel=0.5)
    assert Refits(prior=prior).need == 3 < Refits().need
    context = Context(target=BIG, candidates=((3e7, 3e9), BIG), lr=(1e-6, 1.0), batch=(1e4, 1e8), prior=prior)
    nothing = Runs.of([])
    first = propose_at(nothing, BIG, context, bowl=fitted_bowl(nothing, base=context.known))
    assert first.lr == pytest.approx(true_optimum(*BIG)[0], rel=0.5)


def test_trials_that_contradict_a_prior_say_so(make_table: Maker) -> None:
    frame = make_table().frame
    other = frame.assign(lr=frame["lr"] * (frame["size"] / 1e8) ** 1.5)
    law = fit(TrialTable(other), prior=fit(make_table(), draws=30), draws=30)
    assert "prior-unlike" in {c.code for c in law.warnings}


def test_one_lr_is_always_refused(make_table: Maker) -> None:
    frame = make_table().frame
    one = TrialTable(frame[frame["lr"] == frame["lr"].iloc[0]].reset_index(drop=True))
    for weak in (False, True):
        with pytest.raises(LawRefused, match="single lr"):
            fit(one, allow_weak=weak)


def test_optima_beyond_the_grid_are_refused(make_table: Maker) -> None:
    with pytest.raises(LawRefused, match="lowest lr") as e:
        fit(make_table(shift=4.0, noise=1e-5))
    assert e.value.code == "edge"


def test_flat_losses_have_no_minimum(make_table: Maker) -> None:
    frame = make_table().frame
    x = np.log(frame["lr"])
    upside_down = frame.assign(loss=3.0 * np.exp(-0.02 * (x - x.mean()) ** 2))
    with pytest.raises(LawRefused):
        fit(TrialTable(upside_down))


def test_a_single_batch_gives_an_lr_law_and_says_so(make_table: Maker, true_optimum: Truth) -> None:
    law = fit(make_table(batches=1, lrs=7), draws=30)
    p = law.predict(*BIG)
    assert "batch-not-identified" in {c.code for c in p.warnings}
    assert float(p.batch) == pytest.approx(5e5, rel=1e-3)
    assert float(p.lr) == pytest.approx(true_optimum(*BIG)[0], rel=0.1)
    assert p.batch.low == p.batch.high == p.batch.value


def _tiny(noise: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for n in (5e3, 2e4, 8e4, 2e5):
        for s in (0, 1):
            for lr in np.geomspace(1e-3, 1e-1, 5):
                x = math.log(lr / (0.02 * (n / 2e4) ** -0.3))
                loss = (1.5 + 1.0 * (n / 2e4) ** -0.2) * math.exp(
                    0.03 * x * x + noise * rng.standard_normal()
                )
                rows.append({"size": n, "tokens": 20 * n, "batch": 512.0, "lr": lr, "loss": loss, "seed": s})
    return pd.DataFrame(rows)


def test_tiny_tables_with_tokens_tied_to_size() -> None:
    close = []
    for seed in range(6):
        law = fit(TrialTable.from_frame(_tiny(5e-3, seed)), draws=40)
        p = law.predict(size=1e6, tokens=2e7)
        assert {"batch-not-identified", "tokens-follow-size"} <= {c.code for c in p.warnings}
        want = 0.02 * 50**-0.3
        assert float(p.lr) == pytest.approx(want, rel=0.6)
        close.append(p.lr.low <= want <= p.lr.high)
        assert "tokens-off-path" in {c.code for c in law.predict(size=1e6, tokens=2e8).warnings}
    assert np.mean(close) >= 0.6


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
    with pytest.raises(ValueError, match="'dropout' must be a number"):
        fit(table, extra=("dropout",))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_an_exponent_of_either_sign_is_warned_of_by_the_interval_that_is_shown(
    make_table: Maker, level: float
) -> None:
    for table in (make_table(noise=0.02, lrs=4, batches=3), TrialTable.from_frame(_tiny(5e-3, 0))):
        law = fit(table, draws=40, level=level)
        crossing = set()
        for line in law.describe().splitlines():
            label = line.split("*")[0]
            for name, low, high in re.findall(r"(\w+)\^\S+ \[(\S+), (\S+)\]", line):
                if float(low) < 0 < float(high):
                    crossing.add(f"exponent-{label}-{name}")
        assert crossing == {c.code for c in law.warnings if c.code.startswith("exponent")}


def test_a_bend_in_log_log_is_noticed(make_table: Maker) -> None:
    straight = make_table(sizes=(1e7, 3e7, 1e8, 3e8), noise=1e-3)
    assert "curvature" not in {c.code for c in fit(straight, draws=30).warnings}
    frame = straight.frame.copy()
    t = np.log(frame["size"] / 5e7)
    frame["lr"] = frame["lr"] * np.exp(-0.12 * t * t)
    law = fit(TrialTable(frame), draws=30)
    assert "curvature" in {c.code for c in law.warnings}
    assert law.curvature["size²"].value == pytest.approx(-0.12, abs=0.04)
    assert f"size² {law.curvature['size²']:.3f}" in law.describe()


def test_copying_is_chosen_only_where_extrapolation_fails() -> None:
    rng = np.random.default_rng(0)

    def frame(slopes: tuple[float, ...]) -> pd.DataFrame:
        rows = []
        for i, n in enumerate((1e7, 3e7, 1e8, 3e8)):
            for d in (3e9, 6e9, 1e10, 2e10, 4e10):
                for x in np.linspace(-1.5, 1.5, 7):
                    excess = 0.02 * (x - slopes[i]) ** 2 + 5e-4 * rng.standard_normal()
                    loss = (1.7 + 0.5 * (n / 1e8) ** -0.3 + 0.3 * (d / 1e10) ** -0.3) * math.exp(excess)
                    rows.append(
                        {"size": n, "tokens": d, "batch": 1e5, "lr": 0.01 * math.exp(x), "loss": loss}
                    )
        return pd.DataFrame(rows)

    steady = fit(TrialTable.from_frame(frame((1.2, 0.4, -0.4, -1.2))), draws=30)
    assert steady.trust["size"].copying == 0.0
    stuck = fit(TrialTable.from_frame(frame((1.0, -0.5, -0.5, -0.5))), draws=30)
    assert stuck.trust["size"].copying > 0.0
    far = stuck.predict(1e10, 1e10)
    assert float(far.lr) > 0.5 * 0.01 * math.exp(-0.5)


def test_an_open_valley_keeps_the_lr_law_and_says_so(make_table: Maker) -> None:
    frame = make_table(noise=1e-4).frame.copy()
    x, y = np.log(frame["lr"] / 0.003), np.log(frame["batch"] / 5e5)
    t = np.log(frame["size"] / 1e8)
    frame["loss"] = np.exp(0.7 - 0.1 * t + 0.02 * (x + 0.4 * t - 0.8 * y) ** 2 - 0.001 * y * y)
    law = fit(TrialTable(frame), draws=30)
    assert "open-valley" in {c.code for c in law.warnings}
    p = law.predict(1e9, 1e10, batch=1e6)
    assert float(p.lr) == pytest.approx(0.003 * 10**-0.4 * 2**0.8, rel=0.1)
    low, high = law.domain.batch
    assert low <= float(law.predict(1e9, 1e10).batch) <= high


def test_a_huge_table_is_thinned_evenly_and_counted(make_table: Maker, true_optimum: Truth) -> None:
    cells = from_table(make_table())
    small = thin(cells, limit=100)
    assert small.n <= 100
    assert np.ptp(np.bincount(small.cell)) == 0
    assert any(c.code == "thinned" and c.message.startswith(str(cells.n - small.n)) for c in small.cautions)
    law = fit_cells(thin(from_table(make_table(lrs=12, batches=10)), limit=400), draws=30)
    assert float(law.predict(*BIG).lr) == pytest.approx(true_optimum(*BIG)[0], rel=0.1)


def widths(at: tuple[float, ...], noise: float, seed: int = 0) -> TrialTable:
    """Three sizes of eight lr, one batch, one number of tokens; `at` holds each size's ln lr*."""
    rng = np.random.default_rng(seed)
    rows = []
    for n, best in zip((1e6, 4e6, 1.6e7), at, strict=True):
        for x in np.arange(-3.5, 4.0) * math.log(2):
            loss = 3.0 * (n / 1e6) ** -0.05 * math.exp(0.02 * (x - best) ** 2 + noise * rng.standard_normal())
            rows.append({"size": n, "tokens": 1e8, "batch": 1e5, "lr": 1e-3 * math.exp(x), "loss": loss})
    return TrialTable.from_frame(pd.DataFrame(rows))


def test_a_law_that_missed_the_next_size_says_so() -> None:
    steady = fit(widths((0.8, 0.0, -0.8), 1e-3), draws=30)
    assert not any(c.code.startswith("missed") for c in steady.warnings)
    turned = fit(widths((0.8, -0.8, 0.8), 1e-3), draws=30)
    (said,) = (c for c in turned.warnings if c.code == "missed-size")
    assert "1 cell)" in said.message
    assert turned.trust["size"].missed == pytest.approx(0.02 * 3.2**2, rel=0.5)
    again = Law.from_json(turned.to_json())
    assert again.trust == turned.trust


def test_a_law_along_tied_tokens_is_validated_along_them() -> None:
    def tied(at: tuple[float, ...]) -> Law:
        frame = widths(at, 1e-3).frame
        return fit(TrialTable(frame.assign(tokens=100 * frame["size"])), draws=30)

    steady, turned = tied((0.8, 0.0, -0.8)), tied((0.8, -0.8, 0.8))
    assert steady.path is not None
    assert "missed-size" not in {c.code for c in steady.warnings}
    assert "missed-size" in {c.code for c in turned.warnings}
    assert turned.trust["size"].copying == 0.0
    assert "only 1 held-out cell" in turned.describe()
    question = {"lr": 1e-3, "batch": 1e5, "incumbent": 2.0}
    assert "missed-size" in turned.verdict(size=6.4e7, tokens=6.4e9, **question).reason


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


@pytest.mark.parametrize(("lrs", "batches", "noise"), [(5, 3, 1e-3), (6, 5, 5e-3), (16, 16, 2e-3)])
def test_coarse_grids_and_lucky_runs_are_no_miss(
    make_table: Maker, lrs: int, batches: int, noise: float
) -> None:
    for seed in range(2):
        sizes = (3e7, 1e8, 3e8, 9e8)
        law = fit(make_table(sizes=sizes, lrs=lrs, batches=batches, noise=noise, seed=seed), draws=20)
        assert not [c.message for c in law.warnings if c.code.startswith("missed")]


def test_a_prediction_whose_own_draws_scatter_too_far_says_so() -> None:
    def unsure(law: Law, size: float) -> bool:
        return bool({"unsure-optimum", "bend"} & {c.code for c in law.predict(size, 1e8).warnings})

    sure, middling, rough = (fit(widths((0.8, 0.0, -0.8), noise), draws=60) for noise in (1e-4, 1e-2, 5e-2))
    assert not unsure(sure, 6.4e7)
    assert unsure(rough, 6.4e7)
    assert not unsure(middling, 4e6)  # inside
    assert unsure(middling, 1e12)  # far outside


def test_an_empty_selection_is_refused_by_name() -> None:
    with pytest.raises(LawRefused) as refused:
        fit(widths((0.0, 0.0, 0.0), 1e-3).select(size=5.0))
    assert refused.value.code == "few-trials"
