"""Borrowing strength: few pilots with a base find an optimum, many override it, and an unlike base is left out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.base.population import BETWEEN, Base, mean_of
from metaopt_hpo.scaling.base.sources import base_of
from metaopt_hpo.trials.table import TrialTable

Maker = Callable[..., TrialTable]
Truth = Callable[[float, float], tuple[float, float, float]]
TARGET = (3e9, 3e11)


def moved(table: TrialTable, *, lr: float = 1.0, slope: float = 0.0, loss: float = 1.0) -> TrialTable:
    """The table of a like model: its optimum is `lr` times as high, its exponent in size `slope` more."""
    f = table.frame.copy()
    f["lr"] = f["lr"] * lr * (f["size"] / 1e8) ** slope
    f["loss"] = f["loss"] * loss
    return TrialTable.from_frame(f[["size", "tokens", "batch", "lr", "loss"]])


def pilots(make_table: Maker, runs: int = 5) -> TrialTable:
    """A few runs of one cheap cell, about its optimum."""
    cell = make_table(sizes=(3e7,), tokens=(3e9,), lrs=6, batches=5, noise=1e-3, seed=3)
    near = np.argsort(cell.frame["loss"].to_numpy(), kind="stable")[: 4 * runs : 4]
    return cell.select(where=np.isin(np.arange(len(cell)), near))


def error(law: Law, true_optimum: Truth) -> float:
    return abs(math.log(law.predict(*TARGET).lr.value / true_optimum(*TARGET)[0]))


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_five_runs_of_one_cheap_cell_carry_a_base_over(
    make_table: Maker, true_optimum: Truth, factor: float
) -> None:
    """Alone they are refused; with runs of a like model whose lr is another they predict a hundred times further."""
    few = pilots(make_table)
    with pytest.raises(LawRefused):
        fit(few)
    base = moved(make_table(seed=1), lr=factor)
    law = fit(few, base=base, draws=100)
    truth = true_optimum(*TARGET)
    p = law.predict(*TARGET)
    assert p.lr.low < truth[0] < p.lr.high
    # two likely steps of the slopes over the distance, and what five runs leave of the intercept
    assert error(law, true_optimum) < 0.25 + 0.5 * abs(math.log(factor))
    alone = fit(base, draws=20).predict(*TARGET)
    if factor != 1.0:
        assert error(law, true_optimum) < abs(math.log(alone.lr.value / truth[0]))


def test_many_runs_override_a_base(make_table: Maker, true_optimum: Truth) -> None:
    table = make_table(noise=5e-4)
    base = moved(make_table(seed=1), lr=3.0, slope=0.15)
    assert error(fit(table, base=base, draws=40), true_optimum) < 0.1


def test_a_base_with_other_exponents_is_left_out_and_said(make_table: Maker, true_optimum: Truth) -> None:
    """As a width-scaled parametrisation has them: the law is then exactly the one without a base."""
    table = make_table(noise=5e-4)
    law = fit(table, base=moved(make_table(seed=1), slope=1.5), draws=40)
    assert "base-unlike" in {w.code for w in law.warnings}
    assert law.predict(*TARGET).lr == fit(table, draws=40).predict(*TARGET).lr


def test_the_base_is_order_free_and_a_table_given_twice_counts_once(make_table: Maker) -> None:
    a, b = base_of(make_table(seed=1)), base_of(moved(make_table(seed=2), lr=2.0))
    for x, y in zip(mean_of([a, b]).at("lr", a.centre), mean_of([b, a]).at("lr", a.centre), strict=True):
        np.testing.assert_allclose(x, y)
    np.testing.assert_allclose(mean_of([a, a]).at("lr", a.centre)[0], a.at("lr", a.centre)[0])


def test_more_tables_are_believed_more_and_far_ones_less(make_table: Maker) -> None:
    a = base_of(make_table(seed=1))
    _, near = a.at("lr", a.centre)
    assert (mean_of([a, a, a]).at("lr", a.centre)[1] < near).all()
    _, far = a.at("lr", a.centre - math.log(1e3))
    assert (far > near).all()
    assert near[1] == pytest.approx(BETWEEN["lr"]["size"])


def test_a_base_survives_its_plain_form(make_table: Maker) -> None:
    for table in (make_table(seed=1), make_table(tokens=(1e10,), batches=1)):
        base = base_of(table)
        again = Base.from_dict(base.to_dict())
        for what in ("lr", "batch"):
            for x, y in zip(base.at(what, base.centre), again.at(what, base.centre), strict=True):
                np.testing.assert_array_equal(x, y)
        assert again.floor_prior(17.0, 22.0) == base.floor_prior(17.0, 22.0)


def test_a_law_with_a_base_is_stored_and_refitted_with_it(make_table: Maker) -> None:
    few = pilots(make_table)
    law = fit(few, base=make_table(seed=1), draws=40)
    stored = Law.from_json(law.to_json())
    assert stored.predict(*TARGET).lr == law.predict(*TARGET).lr
    assert stored.refit(few).predict(*TARGET).lr.value == pytest.approx(law.predict(*TARGET).lr.value)


def test_axes_that_pilots_do_not_vary_are_the_bases(make_table: Maker) -> None:
    """A prior law used to be ignored there."""
    base = base_of(make_table(seed=1))
    law = fit(pilots(make_table), base=base, draws=40)
    there = math.log(law.predict(3e7, 3e11).lr.value / law.predict(3e7, 3e9).lr.value) / math.log(100)
    assert there == pytest.approx(base.lr[2], abs=0.03)


def test_mistakes_are_named(make_table: Maker) -> None:
    table = make_table()
    with pytest.raises(ValueError, match="not both"):
        fit(table, base=table, prior=fit(table, draws=20))
    with pytest.raises(ValueError, match="empty"):
        fit(table, base=[])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("lr", "exponent", "curvature", "sizes", "tokens", "batch"),
    [(0.1, -0.1, 0.05, (2.7e5, 8e5), 5e6, 128.0), (3e-3, 0.15, 0.08, (1e4, 5e4), 1e6, 64.0)],
    ids=["convolutions", "perceptrons"],
)
def test_few_pilots_of_another_kind_of_model_are_read_as_they_are(
    seed: int,
    lr: float,
    exponent: float,
    curvature: float,
    sizes: tuple[float, ...],
    tokens: float,
    batch: float,
) -> None:
    """A base of language models, whose surface is several times flatter and whose optimum lies elsewhere."""
    rng, rows = np.random.default_rng(seed), []
    for size in sizes:
        best = lr * (size / sizes[0]) ** exponent
        for u in 0.3 * rng.standard_normal() + np.linspace(-2.0, 2.0, 5):
            z = 0.5 * curvature * u * u + 3e-3 * rng.standard_normal()
            loss = (0.25 + 0.5 * (size / 1e6) ** -0.4) * math.exp(z)
            rows.append(
                {"size": size, "tokens": tokens, "batch": batch, "lr": best * math.exp(u), "loss": loss}
            )
    law = fit(TrialTable.from_frame(pd.DataFrame(rows), implausible="warn"), base="fitted-step-law", draws=20)
    assert law.noise < 0.015
    off = math.log(law.predict(sizes[-1], tokens, batch).lr.value / best)
    assert 0.5 * curvature * off * off < 0.01
