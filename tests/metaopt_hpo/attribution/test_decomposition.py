"""Decomposition: exact sums, planted causes, verdict rule, censoring, unusable criteria, storage and resuming."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import CONFIG, planted_runs

from metaopt_hpo.attribution import (
    IDEAL,
    PRACTICE,
    AttributionError,
    ExperimentConfig,
    GridResult,
    Resample,
    attribute,
    decompose,
    fit_plane,
    run_world,
)
from metaopt_hpo.attribution.decomposition import shapley, single_and_pairs, verdict
from metaopt_hpo.attribution.storage import load_grid, save_grid
from metaopt_hpo.attribution.worlds import Quadratic
from metaopt_hpo.scaling.estimates import Estimate

FACTORS = ("a", "b", "c")
SUBSETS = [frozenset(s) for n in range(4) for s in combinations(FACTORS, n)]
TABLES = st.lists(st.floats(-1, 1), min_size=8, max_size=8)


def gaps_of(values, samples=3):
    table = {s: np.full(samples, v) for s, v in zip(SUBSETS, values, strict=True)}
    return table.__getitem__


class TestSums:
    @given(TABLES)
    def test_shapley_parts_sum_exactly_to_the_total(self, values):
        parts = shapley(FACTORS, gaps_of(values))
        assert sum(v[0] for v in parts.values()) == pytest.approx(
            values[SUBSETS.index(frozenset(FACTORS))], abs=1e-12
        )

    @given(TABLES)
    def test_singles_and_pairs_sum_exactly_too(self, values):
        parts = single_and_pairs(FACTORS, gaps_of(values))
        assert sum(v[0] for v in parts.values()) == pytest.approx(values[-1], abs=1e-12)

    @given(TABLES, st.permutations(FACTORS))
    @settings(max_examples=20)
    def test_order_of_factors_does_not_matter_and_idle_ones_get_nothing(self, values, order):
        gaps = gaps_of(values)
        first, second = shapley(FACTORS, gaps), shapley(tuple(order), gaps)
        assert all(first[f] == pytest.approx(second[f]) for f in FACTORS)
        without_c = shapley(FACTORS, lambda s: gaps(s - {"c"}))
        assert without_c["c"] == pytest.approx(0)

    def test_additive_gaps_give_their_terms(self):
        effect = {"a": 0.3, "b": -0.1, "c": 0.05}
        gaps = lambda s: np.full(2, 0.2 + sum(effect[f] for f in s))  # noqa: E731
        for parts in (shapley(FACTORS, gaps), single_and_pairs(FACTORS, gaps)):
            assert parts["slack"][0] == pytest.approx(0.2)
            assert all(parts[f][0] == pytest.approx(v) for f, v in effect.items())

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least one factor"):
            decompose((), gaps_of([0] * 8))
        with pytest.raises(ValueError, match="shapley or pairs"):
            decompose(FACTORS, gaps_of([0] * 8), method="other")


class TestVerdicts:
    @pytest.mark.parametrize(
        ("phi", "share", "total", "expected"),
        [
            ((0.5, 0.4, 0.6), (0.7, 0.6, 0.8), 0.6, "primary"),
            ((0.2, 0.1, 0.3), (0.4, 0.2, 0.6), 0.6, "contributing"),
            ((0.05, 0.01, 0.1), (0.1, 0.0, 0.2), 0.6, "minor"),
            ((0.2, -0.1, 0.5), (0.4, 0.1, 0.6), 0.6, "minor"),
            ((-0.2, -0.3, -0.1), (0.3, 0.2, 0.4), 0.6, "opposing"),
            ((-0.5, -0.6, -0.4), (0.7, 0.6, 0.8), 0.1, "opposing"),
        ],
    )
    def test_rule(self, phi, share, total, expected):
        assert verdict(Estimate(*phi), Estimate(*share), Estimate(total, total, total)) == expected

    def test_unresolved_when_the_leading_part_is_censored_or_nothing_is_significant(self):
        gaps = lambda s: np.full(50, 0.5 * ("a" in s) + 0.1)  # noqa: E731
        assert decompose(FACTORS, gaps).parts[1].verdict == "primary"
        censored = decompose(FACTORS, gaps, censored={"a": 0.3})
        assert {p.verdict for p in censored.parts} == {"unresolved"}
        assert not censored.resolved
        noise = np.random.default_rng(0).standard_normal((8, 500))
        noisy = decompose(FACTORS, lambda s: noise[SUBSETS.index(s)])
        assert not noisy.resolved


class TestPlantedCauses:
    def test_the_planted_cause_is_found(self):
        finding = attribute(planted_runs({"schedule": 0.3}, config=CONFIG, noise=0.2), CONFIG)
        parts = {p.name: p for p in finding.decomposition.parts}
        assert parts["schedule"].verdict == "primary"
        assert 0.3 in parts["schedule"].phi
        assert all(p.verdict in ("minor", "opposing") for n, p in parts.items() if n != "schedule")

    def test_criterion_and_an_opposing_cause(self):
        finding = attribute(
            planted_runs({"criterion": 0.3, "warmup": -0.1}, config=CONFIG, noise=0.02), CONFIG
        )
        parts = {p.name: p for p in finding.decomposition.parts}
        assert parts["criterion"].verdict == "primary"
        assert parts["criterion"].hypothesis == "looseness"
        assert parts["warmup"].verdict == "opposing"
        assert finding.decomposition.hypotheses()["protocol"] == pytest.approx(-0.1, abs=0.01)

    def test_parts_sum_to_the_total_of_practice(self):
        finding = attribute(planted_runs({"schedule": 0.2, "init": 0.1}, config=CONFIG, noise=0.05), CONFIG)
        total = finding.plane(replace(PRACTICE, noise="gaussian"), "final-loss").gap(CONFIG.b)
        assert sum(p.phi.value for p in finding.decomposition.parts) == pytest.approx(total.value, abs=1e-10)

    def test_exponents_do_not_depend_on_the_grid_when_cells_are_censored(self):
        """Cutting the grid below a third of the optima moves nothing beyond the noise: edges count as intervals."""
        runs = planted_runs({"criterion": 0.4}, config=CONFIG, noise=0.1, edge=8)
        resample = Resample.draw(30, 4, bootstrap=500, seed=0)
        plane = fit_plane(runs.grids[0], [IDEAL], "final-loss", resample)
        assert 0.1 < plane.censored < 0.7
        assert plane.x.value == pytest.approx(-0.1, abs=0.06)
        assert plane.y.value == pytest.approx(0.5, abs=0.06)

    def test_a_heavily_censored_world_is_unresolved(self):
        runs = planted_runs({"schedule": 0.3}, config=CONFIG, noise=0.1, edge=6)
        assert not attribute(runs, CONFIG).decomposition.resolved

    def test_rising_gradient_norms_make_the_bounded_quantity_unusable(self):
        finding = attribute(planted_runs({"schedule": 0.3}, config=CONFIG, noise=0.05, rising=True), CONFIG)
        assert set(finding.unusable) == {"avg-grad", "tail-grad"}
        assert "criterion" not in {p.name for p in finding.decomposition.parts}

    def test_unmeasured_criteria_are_said_to_be_so(self):
        runs = planted_runs({"schedule": 0.3}, config=CONFIG, noise=0.05)
        runs.grids[0].criteria[..., :2] = np.inf
        assert attribute(runs, CONFIG).unusable["avg-grad"] == "not measured in these runs"


class TestEstimand:
    resample = Resample.draw(30, 4, bootstrap=500, seed=0)

    def test_intervals_hold_the_planted_exponents(self):
        grid = planted_runs({}, config=CONFIG, noise=0.3).grids[0]
        plane = fit_plane(grid, [IDEAL], "final-loss", self.resample)
        assert -0.5 in plane.x
        assert 0.5 in plane.y
        assert plane.x.low < plane.x.value < plane.x.high
        assert -0.2145 in plane.joint(0.571)
        assert 0 in plane.gap(0.82)
        assert not plane.curved

    def test_too_few_cells(self):
        grid = planted_runs({}, config=CONFIG).grids[0]
        few = GridResult(
            "few",
            grid.tokens[:4],
            grid.batch[:4],
            grid.lr[:4],
            grid.settings,
            grid.seeds,
            grid.criteria[:4],
            grid.growth[:4],
        )
        with pytest.raises(AttributionError, match="single token budget"):
            fit_plane(few, [IDEAL], "final-loss", self.resample)
        spread = [0, 6, 12, 19]
        few = GridResult(
            "few", grid.tokens[spread], grid.batch[spread], grid.lr[spread], grid.settings, grid.seeds,
            grid.criteria[spread], grid.growth[spread],
        )  # fmt: skip
        with pytest.raises(AttributionError, match="4 cells are too few for 4 unknowns"):
            fit_plane(few, [IDEAL], "final-loss", self.resample)

    def test_bootstrap_of_another_grid(self):
        grid = planted_runs({}, config=CONFIG).grids[0]
        with pytest.raises(AttributionError, match="another grid"):
            fit_plane(grid, [IDEAL], "final-loss", Resample.draw(30, 3, bootstrap=500, seed=0))
        with pytest.raises(ValueError, match="at least 500"):
            Resample.draw(30, 3, bootstrap=100, seed=0)


class TestConfigAndStorage:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tokens": (100, 200, 300, 400, 500)}, "5 budgets over 1.5 decades"),
            ({"batch": (4, 8, 16)}, "at least 4 values"),
            ({"batch": (4, 8, 16, 4096)}, "exceeds the smallest budget"),
            ({"seeds": (0, 0, 1)}, "at least 3 values"),
            ({"factors": ("colour",)}, "factors may be"),
            ({"bootstrap": 100}, "at least 500"),
            ({"method": "other"}, "shapley or pairs"),
        ],
    )
    def test_bad_config(self, options, message):
        with pytest.raises(ValueError, match=message):
            ExperimentConfig(**options)

    def test_round_trip_and_foreign_files(self, tmp_path):
        grid = planted_runs({}, config=CONFIG, noise=0.1).grids[0]
        path = tmp_path / "grid.parquet"
        save_grid(grid, path, "mark")
        back = load_grid(path, "mark")
        assert back.settings == grid.settings
        assert back.seeds == grid.seeds
        assert np.allclose(back.criteria, grid.criteria, rtol=1e-6)
        assert np.array_equal(back.lr, grid.lr)
        assert load_grid(path, "other") is None
        path.write_bytes(b"not a table")
        with pytest.raises(AttributionError, match="cannot be read"):
            load_grid(path)

    def test_interrupted_run_resumes_to_the_same_result(self, tmp_path):
        world = Quadratic("tiny", source=0.5, capacity=0.5, dim=4)
        config = ExperimentConfig(
            tokens=(32, 64, 128, 256, 1024), batch=(4, 8, 16, 32), seeds=(0, 1, 2), factors=("schedule",), levels=False,
            piece=7,
        )  # fmt: skip
        assert run_world(world, config, out=tmp_path, deadline=-1.0) is None
        calls = []

        def failing(*args, **kwargs):
            from metaopt_hpo.attribution import run_grid

            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(1)
            return run_grid(*args, **kwargs)

        with pytest.raises(KeyboardInterrupt):
            run_world(world, config, out=tmp_path, runner=failing)
        assert len(list(tmp_path.glob("*.piece"))) == 3  # two grids and the pilot's learning rates
        resumed = run_world(world, config, out=tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["attribution_tiny_gaussian.parquet"]
        straight = run_world(world, config)
        for name in ("tokens", "batch", "lr", "criteria", "growth"):
            kept, whole = getattr(resumed.grids[0], name), getattr(straight.grids[0], name)
            assert np.array_equal(kept, whole, equal_nan=True), name

    def test_pairs_need_fewer_runs_and_still_sum(self):
        config = replace(CONFIG, factors=("schedule", "init", "noise", "warmup"), method="pairs")
        assert sum(map(len, config.settings(("gaussian", "minibatch")).values())) == 1 + 4 + 6 + 1
        finding = attribute(
            planted_runs({"schedule": 0.2, "init": 0.1}, config=CONFIG), replace(CONFIG, method="pairs")
        )
        parts = {p.name: p.phi.value for p in finding.decomposition.parts}
        assert parts["schedule"] == pytest.approx(0.2, abs=1e-6)
        assert sum(parts.values()) == pytest.approx(finding.decomposition.total.value, abs=1e-9)

    def test_noise_a_world_lacks(self):
        config = ExperimentConfig(factors=("noise",), levels=False)
        with pytest.raises(AttributionError, match="leave 'noise' out"):
            config.settings(("gaussian",))
