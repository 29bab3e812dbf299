"""Stored grids are those of the shipped configuration, stored numbers follow from them, the page from those numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.attribution import ExperimentConfig, Job, Resample, Setting, fit_plane, tier_jobs, tiers
from metaopt_hpo.attribution.storage import load_grid
from metaopt_hpo.attribution.tables import FRAMES, read_frames, tables
from metaopt_hpo.attribution.worlds import Quadratic
from metaopt_hpo.cli import main

DOCS = Path(__file__).resolve().parents[3] / "docs"
NOISES = {"bigram": ("gaussian", "minibatch"), "text-lm": ("minibatch",)}
GRIDS = [("bigram", "gaussian"), ("bigram", "minibatch"), ("text-lm", "minibatch")]


def stored(world, noise):
    config = dict(zip(NOISES, (j.config for j in tier_jobs(1)), strict=True))[world]
    settings = config.settings(NOISES[world])[noise]
    return load_grid(
        DOCS / "studies" / "attribution" / f"attribution_{world}_{noise}.parquet",
        config.fingerprint(world, noise, settings),
    )


def numbers(name):
    return pd.concat(
        [
            pd.read_parquet(DOCS / "studies" / "attribution" / f"attribution_tier{t}_{name}.parquet")
            for t in (0, 1)
        ]
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
    page = (DOCS / "studies" / "attribution" / "README.md").read_text(encoding="utf-8")
    made = tables(read_frames(DOCS / "studies" / "attribution"))
    assert len(made) == 5
    for title, table in made.items():
        assert table in page, title


def test_stored_numbers_carry_their_seeds():
    for name in FRAMES:
        seeds = numbers(name).set_index("world")["seeds"]
        assert set(seeds["quadratic"]) == {"0 1 2 3 4 5 6 7"}
        assert set(seeds["text-lm"]) == {"0 1 2"}


def test_parts_of_the_page_sum_to_their_totals():
    for _, mine in numbers("parts").groupby("world"):
        whole = mine["part"] == "total"
        assert mine.loc[~whole, "gap"].sum() == pytest.approx(float(mine.loc[whole, "gap"].iloc[0]), abs=1e-9)


def test_attribute_writes_numbers_tables_and_a_page(tmp_path, monkeypatch, capsys):
    config = ExperimentConfig(
        tokens=(32, 64, 128, 256, 1024),
        batch=(4, 8, 16, 32),
        seeds=(0, 1, 2),
        factors=("schedule",),
        levels=False,
    )
    world = Quadratic("tiny", source=0.5, capacity=0.5, dim=8)
    monkeypatch.setattr(tiers, "tier_jobs", lambda tier, device: [Job(lambda: world, config)])
    monkeypatch.setattr(sys, "argv", ["metaopt-hpo", "attribute", "--tier", "0", "--out", str(tmp_path)])
    printed = []
    for _ in range(2):  # the second time from the stored grid
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    for text in ("part schedule", "part total", "protocol lr cap, edges as optima", "tables written to"):
        assert text in printed[0]
    made = tables(read_frames(tmp_path))
    written = (tmp_path / "attribution_tables.md").read_text(encoding="utf-8")
    assert len(made) == 5
    assert all(f"## {title}\n\n{table}\n" in written for title, table in made.items())
    page = (tmp_path / "tier0.html").read_text(encoding="utf-8")
    assert "grid width × 8, edges as intervals" in page
    assert 'src="http' not in page


def test_worlds_of_later_tiers_are_named_with_their_tier(tmp_path):
    frame = pd.DataFrame({"world": ["text-lm"], "part": ["total"], "gap": [0.1], "low": [0.0], "high": [0.2]})
    for tier in (1, 2):
        frame.to_parquet(tmp_path / f"attribution_tier{tier}_parts.parquet")
    assert list(read_frames(tmp_path)["parts"]["world"]) == ["text-lm", "text-lm (tier 2)"]
