"""The stored results are those of the shipped configuration, and the finding's numbers follow from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaopt_hpo.attribution import Resample, Setting, fit_plane, tier_jobs
from metaopt_hpo.attribution.storage import load_grid

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"


def bigram(noise):
    config = tier_jobs(1)[0].config
    settings = config.settings(("gaussian", "minibatch"))[noise]
    return load_grid(
        RESULTS / f"attribution_bigram_{noise}.parquet", config.fingerprint("bigram", noise, settings)
    )


@pytest.mark.parametrize("noise", ["gaussian", "minibatch"])
def test_stored_grids_belong_to_tier_one(noise):
    grid = bigram(noise)
    assert grid is not None
    assert grid.seeds == (0, 1, 2, 3)
    assert np.isfinite(grid.criteria[..., 2]).mean() > 0.9


@pytest.mark.parametrize(
    ("noise", "schedule", "joint"), [("gaussian", "constant", -0.218), ("minibatch", "cosine", 0.014)]
)
def test_quoted_exponents_follow_from_the_stored_grids(noise, schedule, joint):
    resample = Resample.draw(30, 4, bootstrap=500, seed=0)
    plane = fit_plane(bigram(noise), [Setting(noise=noise, schedule=schedule)], "final-loss", resample)
    assert plane.joint(0.571).value == pytest.approx(joint, abs=2e-3)
