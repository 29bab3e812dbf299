"""What a fitted law says against its own predictions."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from small_tables import tiny, widths

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.trials.table import TrialTable

Maker = Callable[..., TrialTable]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_an_exponent_of_either_sign_is_warned_of_by_the_interval_that_is_shown(
    make_table: Maker, level: float
) -> None:
    for table in (make_table(noise=0.02, lrs=4, batches=3), TrialTable.from_frame(tiny(5e-3, 0))):
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


def test_a_refit_repeats_what_fit_said_of_the_table(make_table: Maker) -> None:
    """Of its units, and of a prior that was left out."""
    frame = make_table(sizes=(3e7, 1e8, 3e8, 1e9)).frame[["size", "tokens", "batch", "lr", "loss"]]
    odd = frame.assign(size=np.where(frame["size"] < 5e7, frame["size"] / 1e6, frame["size"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetaOptWarning)
        table = TrialTable.from_frame(odd, implausible="warn")
    half = TrialTable(table.frame.iloc[::2].reset_index(drop=True), table.notes)
    law = fit(half, prior=fit(make_table(), draws=20), draws=20)
    first, again = ({w.code for w in found.warnings} for found in (law, law.refit(table)))
    assert {"units-size", "prior-unlike"} <= first & again


def test_runs_of_two_corpora_are_not_mixed_in_silence(make_table: Maker) -> None:
    frame = make_table(batches=1, lrs=7).frame
    halves = [f'{{"corpus": "{name}"}}' for name in ("web", "code")]
    mixed = frame.assign(params=[halves[i % 2] for i in range(len(frame))])
    said = {c.code: c.message for c in fit(TrialTable(mixed), draws=20).warnings}
    assert "corpus takes 2 values" in said["extra-varies"]
    alike = frame.assign(params=halves[0])
    assert "extra-varies" not in {c.code for c in fit(TrialTable(alike), draws=20).warnings}
    named = fit(TrialTable(mixed), extra=("corpus",), draws=20)
    assert "extra-varies" not in {c.code for c in named.warnings}
