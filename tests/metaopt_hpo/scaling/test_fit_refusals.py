"""Fits refuse what cannot bear a law; a prior lends what pilots lack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from small_tables import tiny, widths

from metaopt_hpo.scaling import LawRefused, fit, library
from metaopt_hpo.scaling.policy import Context, Refits, propose_at
from metaopt_hpo.scaling.policy.points import Runs, fitted_bowl
from metaopt_hpo.trials.table import TrialTable

Maker = Callable[..., TrialTable]


Truth = Callable[[float, float], tuple[float, float, float]]


BIG = (3e9, 1e11)


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


def test_two_batches_are_not_said_to_be_one(make_table: Maker) -> None:
    said = {c.code: c.message for c in fit(make_table(batches=2, lrs=7), draws=20).warnings}
    assert "two batches at most" in said["batch-not-identified"]


def test_tiny_tables_with_tokens_tied_to_size() -> None:
    close = []
    for seed in range(6):
        law = fit(TrialTable.from_frame(tiny(5e-3, seed)), draws=40)
        p = law.predict(size=1e6, tokens=2e7)
        assert {"batch-not-identified", "tokens-follow-size"} <= {c.code for c in p.warnings}
        want = 0.02 * 50**-0.3
        assert float(p.lr) == pytest.approx(want, rel=0.6)
        close.append(p.lr.low <= want <= p.lr.high)
        assert "tokens-off-path" in {c.code for c in law.predict(size=1e6, tokens=2e8).warnings}
    assert np.mean(close) >= 0.6


def test_an_empty_selection_is_refused_by_name() -> None:
    with pytest.raises(LawRefused) as refused:
        fit(widths((0.0, 0.0, 0.0), 1e-3).select(size=5.0))
    assert refused.value.code == "few-trials"


def test_one_size_says_that_it_knows_no_other(make_table: Maker) -> None:
    law = fit(make_table(sizes=(3e7,)), allow_weak=True, draws=20)
    assert "size-not-varied" in {w.code for w in law.predict(1e9, 3e9).warnings}
    assert law.verdict(size=1e9, tokens=3e9, lr=1e-2, batch=5e5, incumbent=2.0).action == "abstain"
    assert "size-not-varied" not in {w.code for w in law.predict(3.1e7, 3e9).warnings}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior": "fitted-step-law"}, "prior must be a fitted law"),
        ({"prior": library.load("fitted-step-law")}, "whose .law is one"),
        ({"base": library.load("fitted-step-law")}, "base must be a table .* whose .law is one"),
        ({"base": [3]}, "base must be a table .* got 3"),
        ({"draws": 30.5}, "draws must be a whole number from 20, got 30.5"),
        ({"seed": 1.5}, "seed must be a whole number from 0, got 1.5"),
        ({"level": "0.9"}, "level must be"),
        ({"extra": "warmth"}, "'warmth' is among the hyperparameters of no trial; they hold none"),
    ],
)
def test_a_wrong_option_is_named(make_table: Maker, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(make_table(), **{"draws": 20, **options})  # type: ignore[arg-type]
