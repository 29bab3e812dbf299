"""Exponents: predicted against the bound itself, planted ones recovered within intervals, censoring, published gaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, truncnorm

from metaopt_hpo.theory import LMOBound
from metaopt_hpo.theory.exponents import (
    ExponentsRefused,
    fit_exponents,
    local_exponents,
    predicted_exponents,
    published_exponents,
    side_by_side,
)
from metaopt_hpo.theory.minima import _truncated, censored_fit, log_parabola
from metaopt_hpo.trials.table import TrialTable

TOKENS = 2.0 ** np.arange(20, 26)
BATCHES = 2.0 ** np.arange(10, 15)


def planted(x, y, *, z=0.0, sizes=(1e6,), noise=0.0, seeds=3, lrs=None, seed=0, bend=0.0):
    """Trials of a loss with its optimum on a planted plane, a bowl in ln lr and one in ln batch."""
    rng = np.random.default_rng(seed)
    rows = []
    grid = np.geomspace(2**-14, 2**-4, 21) if lrs is None else lrs
    for n in sizes:
        for d in TOKENS:
            for b in BATCHES:
                best = np.log(0.004) + x * np.log(d / 2**22) + y * np.log(b / 2**12) + z * np.log(n / 1e6)
                best += bend * np.log(d / 2**22) ** 2 + noise * rng.standard_normal()
                width = np.log(b / 2**12) - 0.5 * np.log(d / 2**22)
                for s in range(seeds):
                    for lr in grid:
                        loss = (
                            2
                            + 0.02 * (np.log(lr) - best) ** 2
                            + 0.01 * width**2
                            + noise * 1e-3 * rng.standard_normal()
                        )
                        rows.append((n, d, b, lr, loss, s))
    return TrialTable.from_frame(
        pd.DataFrame(rows, columns=["size", "tokens", "batch", "lr", "loss", "seed"])
    )


class TestPredicted:
    @pytest.mark.parametrize(
        ("options", "momentum", "batch", "expected"),
        [
            ({}, 0.1, 64.0, (-0.5, 0.5)),
            ({"momentum": "tuned"}, None, 64.0, (-0.75, 1.0)),
            ({"momentum": "tuned", "large_batch": True}, None, 1e10, (-0.5, 0.5)),
            ({"momentum": "tuned", "q": 0.25}, None, 64.0, (-5 / 6, 1.0)),
        ],
    )
    def test_regimes_are_the_slopes_of_the_bound(self, options, momentum, batch, expected):
        predicted = predicted_exponents(**options)
        assert (predicted.x, predicted.y) == pytest.approx(expected)
        local = local_exponents(LMOBound(1, 1, 1, q=options.get("q", 0.5)), 1e14, batch, momentum=momentum)
        assert (local.x, local.y) == pytest.approx(expected, abs=1e-6)

    def test_proportional_momentum(self):
        bound = LMOBound(1, 1, 1)
        lr = [bound.optimum(1e12, batch=b, momentum=1e-6 * b).lr for b in (64.0, 256.0)]
        predicted = predicted_exponents(momentum="proportional")
        assert np.log(lr[1] / lr[0]) / np.log(4) == pytest.approx(predicted.y)
        assert predicted.along(0.3) == pytest.approx(-0.2)

    def test_optimal_batch_at_fixed_momentum(self):
        assert predicted_exponents().batch == 0.5
        assert predicted_exponents("star-convex").batch == pytest.approx(2 / 3)
        assert predicted_exponents("star-convex").along(2 / 3) == pytest.approx(-1 / 3)

    @given(st.floats(0.05, 2), st.floats(0, 2))
    @settings(max_examples=20, deadline=None)
    def test_proxy_gap_is_the_same_at_every_batch_exponent(self, s, r):
        """The gap to the bound is (1 − (s+r))/(2(1+s+r)) at every b, and lr rises iff b > 2(s+r)/(1+s+r)."""
        proxy, bound = predicted_exponents("power-law", source=s, capacity=r), predicted_exponents()
        for b in (0.0, 0.5, 0.571, 0.82):
            assert proxy.along(b) - bound.along(b) == pytest.approx((1 - (s + r)) / (2 * (1 + s + r)))
            assert (proxy.along(b) > 1e-12) == (b > 2 * (s + r) / (1 + s + r) + 2e-12)

    def test_at_fixed_momentum_the_bound_never_lets_lr_rise_below_linear_batch(self):
        assert all(predicted_exponents().along(b) < 0 for b in np.linspace(0, 0.99, 12))

    def test_published_gaps(self):
        gaps = {p.source.split(" (")[0]: (p.bound, p.gap) for p in published_exponents()}
        known = {
            "Scaling optimal LR across token horizons": (-0.5, 0.18),
            "HyperP": (-0.5, 0.18),
            "von Rütte et al.": (-0.09, 0.37),
            "Step Law": (-0.2145, 0.52),
            "Complete": (-0.5, 0.0),
        }
        for source, (bound, gap) in known.items():
            found = next(v for name, v in gaps.items() if name.startswith(source))
            assert found == pytest.approx((bound, gap), abs=5e-3)

    def test_laws_that_confound_tokens_with_size_are_left_out(self):
        assert not any("DeepSeek" in p.source for p in published_exponents())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"momentum": "adaptive"}, "momentum must be fixed, tuned or proportional"),
            ({"kind": "power-law"}, "needs source"),
            ({"kind": "star-convex", "momentum": "tuned"}, "use local_exponents"),
        ],
    )
    def test_bad_regime(self, options, message):
        with pytest.raises(ValueError, match=message):
            predicted_exponents(**options)


class TestFitted:
    @pytest.mark.parametrize(("x", "y"), [(-0.5, 0.5), (-0.15, 0.45)])
    def test_planted_exponents_lie_in_the_intervals(self, x, y):
        fitted = fit_exponents(planted(x, y, noise=0.1), bootstrap=200)
        assert x in fitted.x
        assert y in fitted.y
        assert x + 0.571 * y in fitted.along(0.571)
        assert fitted.x.high - fitted.x.low < 0.2
        assert fitted.batch.value == pytest.approx(0.5, abs=0.05)
        assert fitted.censored == 0
        assert not fitted.curved

    def test_several_sizes(self):
        fitted = fit_exponents(planted(-0.2, 0.4, z=-0.6, sizes=(1e6, 4e6, 1.6e7), seeds=1), bootstrap=100)
        assert fitted.size.value == pytest.approx(-0.6, abs=1e-3)
        assert fitted.x.value == pytest.approx(-0.2, abs=1e-3)

    def test_censored_cells_are_used_as_intervals_and_not_as_optima(self):
        """A grid that ends below the optimum of many cells: treating edges as optima would flatten the exponent."""
        short = np.geomspace(2**-14, 0.006, 13)
        fitted = fit_exponents(planted(-0.5, 0.5, noise=0.05, lrs=short), bootstrap=200)
        assert 0.1 < fitted.censored < 0.6
        assert (fitted.x.value, fitted.y.value) == pytest.approx((-0.5, 0.5), abs=0.06)

    def test_curvature_is_detected(self):
        assert fit_exponents(planted(-0.3, 0.5, noise=0.05, bend=0.08), bootstrap=200).curved

    def test_diverged_runs_bound_the_optimum_from_above(self):
        table = planted(-0.3, 0.5)
        frame = table.frame.copy()
        frame["state"] = np.where(frame["lr"] > 0.02, "diverged", "complete")
        fitted = fit_exponents(TrialTable.from_frame(frame), bootstrap=100)
        assert fitted.x.value == pytest.approx(-0.3, abs=0.05)

    def test_same_seed_same_answer(self):
        table = planted(-0.3, 0.5, noise=0.1)
        first, second = (fit_exponents(table, bootstrap=100, seed=4) for _ in range(2))
        assert first.x == second.x

    def test_refusals_say_what_is_missing(self):
        table = planted(-0.3, 0.5)
        one = TrialTable.from_frame(table.frame[table.frame["tokens"] == TOKENS[0]])
        with pytest.raises(ExponentsRefused, match="same tokens"):
            fit_exponents(one, bootstrap=100)
        f = table.frame
        diagonal = TrialTable.from_frame(f[np.isclose(f["tokens"] / f["batch"], 2**10)])
        with pytest.raises(ExponentsRefused, match="cannot separate 3 unknowns"):
            fit_exponents(diagonal, bootstrap=100)
        with pytest.raises(ExponentsRefused, match="3 learning rates"):
            fit_exponents(TrialTable.from_frame(f[f["lr"] == f["lr"].min()]), bootstrap=100)
        with pytest.raises(ValueError, match="bootstrap must be at least 100"):
            fit_exponents(table, bootstrap=10)

    def test_side_by_side_holds_the_fit_and_the_published(self):
        rows = side_by_side(fit_exponents(planted(-0.2, 0.5), bootstrap=100), b=0.571)
        assert rows[0][1] - rows[0][2] == pytest.approx(rows[0][3])
        assert {r[0] for r in rows[1:]} == {p.source for p in published_exponents()}


class TestMinima:
    @given(st.floats(-2.9, 2.9), st.floats(0.1, 5))
    def test_vertex_of_a_parabola_is_exact(self, centre, bend):
        x = np.linspace(-4, 4, 9)
        minima = log_parabola(x, bend * (x - centre) ** 2 + 1)
        assert minima.low == pytest.approx(centre, abs=1e-9)
        assert minima.value == pytest.approx(1, abs=1e-9)

    def test_edges_and_divergence_give_intervals(self):
        x = np.arange(5.0)
        y = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 2, 1, np.inf, np.inf], [np.nan] * 5])
        minima = log_parabola(x, y)
        assert minima.low[:3] == pytest.approx([-np.inf, 3.5, 1.5])
        assert minima.high[:3] == pytest.approx([0.5, np.inf, 2.5])
        assert minima.usable.tolist() == [True, True, True, False]

    @pytest.mark.parametrize(
        ("low", "high"), [(-np.inf, -1.0), (2.0, np.inf), (-0.5, 1.5), (4.0, 5.0), (-6.0, -5.0)]
    )
    def test_truncated_moments_agree_with_scipy(self, low, high):
        mean, variance = _truncated(np.array([0.2]), np.array([1.3]), np.array([low]), np.array([high]))
        reference = truncnorm((low - 0.2) / 1.3, (high - 0.2) / 1.3, loc=0.2, scale=1.3)
        assert (mean[0], variance[0]) == pytest.approx((reference.mean(), reference.var()), rel=1e-5)

    def test_censored_regression_maximises_the_tobit_likelihood(self):
        rng = np.random.default_rng(0)
        x = np.column_stack([np.ones(80), rng.standard_normal(80)])
        y = x @ [0.3, 0.9] + 0.4 * rng.standard_normal(80)
        cap = 0.6
        low, high = np.minimum(y, cap), np.where(y > cap, np.inf, y)
        beta = censored_fit(x, low, high)

        def likelihood(b):
            mu = x @ b
            best = -np.inf
            for sigma in np.linspace(0.3, 0.5, 41):
                terms = np.where(np.isinf(high), norm.logsf(cap, mu, sigma), norm.logpdf(y, mu, sigma))
                best = max(best, terms.sum())
            return best

        for shift in ([0.03, 0], [-0.03, 0], [0, 0.03], [0, -0.03]):
            assert likelihood(beta) > likelihood(beta + shift)
