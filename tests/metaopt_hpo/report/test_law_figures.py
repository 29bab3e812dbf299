"""The law's figures show what the law says and what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.comparison.replay import replay
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.report import law_figures as figures
from metaopt_hpo.report.law_misses import calibration, residuals
from metaopt_hpo.report.law_page import law_page
from metaopt_hpo.report.replay_page import replay_curves
from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.trials.table import TrialTable


@pytest.fixture(scope="module")
def table() -> TrialTable:
    rng = np.random.default_rng(0)
    rows = []
    for n in (3e7, 1e8, 3e8):
        for d in (3e9, 1e10, 3e10):
            for lr in 0.003 * np.exp(np.linspace(-1.5, 1.5, 6)):
                for b in 5e5 * np.exp(np.linspace(-1.5, 1.5, 5)):
                    x = math.log(lr / (0.003 * (n / 1e8) ** -0.4))
                    y = math.log(b / (5e5 * (d / 1e10) ** 0.5))
                    loss = (1.7 + 0.6 * (n / 1e8) ** -0.3 + 0.4 * (d / 1e10) ** -0.3) * math.exp(
                        0.02 * x * x + 0.015 * y * y + 1e-3 * rng.standard_normal()
                    )
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    return TrialTable.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def law(table: TrialTable) -> Law:
    return fit(table, draws=40)


def test_slices_pass_near_their_runs(law: Law, table: TrialTable) -> None:
    plot = figures.surface_slices(law, table, cells=4)
    assert len(plot.data) == 8
    for points, line in zip(plot.data[::2], plot.data[1::2], strict=True):
        at = np.interp(np.log(points.x), np.log(line.x), line.y)
        # both over the same least loss, runs far above it at the edge
        assert np.allclose(np.minimum(at, figures.SLICE_TOP), points.y, atol=0.004)
        assert min(line.y) == pytest.approx(0.0, abs=1e-12)
        excess = np.array(points.customdata) / min(points.customdata) - 1
        assert np.allclose(np.minimum(excess, figures.SLICE_TOP), points.y, atol=0.004)


@pytest.mark.parametrize("what", ["lr", "batch"])
@pytest.mark.parametrize("axis", ["size", "tokens"])
def test_the_optimum_lies_inside_its_band(law: Law, table: TrialTable, what: str, axis: str) -> None:
    plot = figures.optimum_against(law, table, what, axis=axis)
    band = next(t for t in plot.data if t.name == "interval")
    half = len(band.x) // 2
    high, low = np.array(band.y[:half]), np.array(band.y[half:])[::-1]
    line = plot.data[list(plot.data).index(band) + 1]
    assert (low <= np.array(line.y)).all()
    assert (np.array(line.y) <= high).all()
    with pytest.raises(ValueError, match="what must be"):
        figures.optimum_against(law, table, "loss")


def test_residuals_centre_on_zero(law: Law, table: TrialTable) -> None:
    plot = residuals(law, table)
    values = np.concatenate([np.array(t.y) for t in plot.data])
    assert len(values) == len(table)
    assert abs(np.median(values)) < 0.5


def test_further_coordinates_are_held_where_the_law_is_drawn(table: TrialTable) -> None:
    """Runs at another weight decay have another optimum: neither misses of the law nor points of its slices."""
    parts = []
    for i, decay in enumerate((0.1, 0.4)):
        part = table.frame.assign(
            params=json.dumps({"weight_decay": decay}), trial=[f"{i}-{j}" for j in range(len(table))]
        )
        parts.append(part.assign(lr=part["lr"] * (decay / 0.1) ** -0.5))
    both = TrialTable(pd.concat(parts, ignore_index=True))
    law = fit(both, extra=("weight_decay",), draws=30)
    misses = np.concatenate([np.array(t.y) for t in residuals(law, both).data])
    assert len(misses) == len(both)
    assert np.abs(misses).max() < 1.0
    for points, line in zip(*(figures.surface_slices(law, both).data[i::2] for i in (0, 1)), strict=True):
        at = np.interp(np.log(points.x), np.log(line.x), line.y)
        assert np.allclose(np.minimum(at, figures.SLICE_TOP), points.y, atol=0.004)


def test_tied_tokens_give_one_line_along_their_path(table: TrialTable) -> None:
    frame = table.frame
    frame = frame[np.isclose(frame["tokens"] / frame["size"], 100, rtol=0.01)].reset_index(drop=True)
    tied = TrialTable(frame)
    law = fit(tied, draws=30)
    for axis in ("size", "tokens"):
        plot = figures.optimum_against(law, tied, axis=axis)
        (line,) = (t for t in plot.data if t.mode == "lines" and t.name != "interval")
        assert line.name == "along the path"
        assert sum(t.mode == "markers" for t in plot.data) == 3
        size = line.x[20] if axis == "size" else line.x[20] / 100
        assert line.y[20] == pytest.approx(law.predict(size, 100 * size).lr.value, rel=1e-3)


def test_calibration_rises(law: Law, table: TrialTable) -> None:
    plot = calibration(law, table)
    assert {t.name.split(",")[0] for t in plot.data} == {"perfect", "lr", "batch", "loss"}
    for trace in plot.data[1:]:
        assert (np.diff(trace.y) >= 0).all()


def test_replay_curves_fall(table: TrialTable) -> None:
    result = replay(TableObjective(table), (3e8, 3e10), methods=("law", "random"), seeds=2, limit=10)
    plot = replay_curves(result)
    assert [t.name for t in plot.data] == ["law", "random"]
    for trace in plot.data:
        y = np.array(trace.y, dtype=float)
        assert (np.diff(y[np.isfinite(y)]) <= 1e-12).all()


def test_the_page_needs_no_network_and_escapes(law: Law, table: TrialTable, tmp_path: Path) -> None:
    path = law_page("<b>mine</b>", law, [("Residuals <i>", residuals(law, table))], tmp_path / "l.html")
    text = path.read_text(encoding="utf-8")
    assert "<b>mine</b>" not in text
    assert "&lt;b&gt;mine" in text
    assert 'src="http' not in text
