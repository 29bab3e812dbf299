"""Stored grids are those of the shipped configuration, stored numbers follow from them, the page from those numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.attribution import Resample, Setting, fit_plane, tier_jobs
from metaopt_hpo.attribution.storage import load_grid
from metaopt_hpo.report.theory_tables import criterion_table, levels_table, parts_table, proxy_table

DOCS = Path(__file__).resolve().parents[3] / "docs"
NOISES = {"bigram": ("gaussian", "minibatch"), "text-lm": ("minibatch",)}
GRIDS = [("bigram", "gaussian"), ("bigram", "minibatch"), ("text-lm", "minibatch")]


def stored(world, noise):
    config = dict(zip(NOISES, (j.config for j in tier_jobs(1)), strict=True))[world]
    settings = config.settings(NOISES[world])[noise]
    return load_grid(
        DOCS / "results" / f"attribution_{world}_{noise}.parquet", config.fingerprint(world, noise, settings)
    )


def numbers(name):
    return pd.concat(
        [pd.read_parquet(DOCS / "results" / f"attribution_tier{t}_{name}.parquet") for t in (0, 1)]
    )


@pytest.mark.parametrize(("world", "noise"), GRIDS)
def test_stored_grids_belong_to_tier_one(world, noise):
    grid = stored(world, noise)
    assert grid is not None
    assert grid.seeds == tuple(range(4 if world == "bigram" else 3))
    assert np.isfinite(grid.criteria[..., 2]).mean() > 0.9


@pytest.mark.parametrize(("world", "noise"), GRIDS)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_stored_exponents_follow_from_the_stored_grids(world, noise, schedule):
    grid = stored(world, noise)
    setting = Setting(noise=noise, schedule=schedule)
    resample = Resample.draw(len(grid.tokens), len(grid.seeds), bootstrap=500, seed=0)
    plane = fit_plane(grid, [setting], "final-loss", resample)
    levels = numbers("levels")
    row = levels[
        (levels["world"] == world)
        & (levels["setting"] == setting.label)
        & (levels["criterion"] == "final-loss")
    ].iloc[0]
    joint = plane.joint(0.571)
    assert (row["joint_0.571"], row["joint_0.571_low"]) == pytest.approx((joint.value, joint.low), abs=1e-4)


def test_tables_of_the_page_are_those_of_the_stored_numbers():
    page = (DOCS / "open-question.md").read_text(encoding="utf-8")
    for table in (
        parts_table(numbers("parts")),
        levels_table(numbers("levels")),
        proxy_table(numbers("proxy")),
    ):
        for line in table.splitlines():
            assert line in page
    ideal, cosine = Setting(), Setting(schedule="cosine", init="zero")
    columns = [(ideal, "avg-grad"), (ideal, "final-loss"), (cosine, "final-loss")]
    worlds = ("quadratic", "infinite", "hard", "hard-at-rest", "logistic")
    plain = re.sub(r" \([^()]*\)(?= \|)", "", page)  # earlier values stand beside them in parentheses
    for line in criterion_table(numbers("levels"), [(w, w, columns) for w in worlds]).splitlines()[2:]:
        assert line in plain


def test_parts_of_the_page_sum_to_their_totals():
    for _, mine in numbers("parts").groupby("world"):
        whole = mine["part"] == "total"
        assert mine.loc[~whole, "gap"].sum() == pytest.approx(float(mine.loc[whole, "gap"].iloc[0]), abs=1e-9)
