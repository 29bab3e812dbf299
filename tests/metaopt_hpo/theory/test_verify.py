"""Rules against bounds: known answers, an independent solver, certificates, width and depth, bad input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from metaopt_hpo.theory import LMOBound, depth_path, rate_loss_profile, verify_rule
from metaopt_hpo.theory._linear_program import minimax
from metaopt_hpo.theory.terms import monomials

PLAIN = LMOBound(delta=1.0, smoothness=1.0, noise=1.0)


class TestKnownAnswers:
    @pytest.mark.parametrize(
        ("rule", "same", "free", "lr_terms"),
        [
            ("lr ~ D^.307, B ~ D^.571", 0.5215, 0.557, 0.5215),
            ("lr ~ D^.28, B ~ D^.82", 0.370, 0.530, 0.370),
            ("lr ~ D^.279, B ~ D^.82", 0.369, 0.529, 0.369),
            ("lr ~ B^0.5, B ~ D^.383", 0.383, 0.4415, 0.500),
            ("lr ~ B^0.5 D^-0.5, B ~ D^0.5", 0, 0, 0),
            ("lr ~ √(B/D), B ~ D^0", 0, 0.25, 0),
            ("lr ~ D^-0.32", 0, 0.25, 0.18),
        ],
    )
    def test_published_rules(self, rule, same, free, lr_terms):
        check = verify_rule(rule, PLAIN)
        assert check.rate == -0.25
        assert (check.rate_loss, check.rate_loss_free, check.rate_loss_lr_terms) == pytest.approx(
            (same, free, lr_terms), abs=1e-9
        )
        assert check.label == "proved"

    def test_square_root_rule_has_no_loss_at_any_batch_and_is_optimal_only_at_one_half(self):
        for b, check in rate_loss_profile("lr ~ sqrt(B/D)", PLAIN):
            assert check.rate_loss == 0
            assert check.rate_loss_lr_terms == 0
            assert check.rate_loss_free == pytest.approx(abs(b / 2 - 0.25))
            assert (check.verdict == "optimal") == (b == 0.5)

    def test_ridge_of_the_simplified_form(self):
        check = verify_rule("lr ~ D^-0.25, B ~ D^0.5", PLAIN)
        assert check.face == {"lr": (-0.75, -0.25), "momentum": (-0.5, 0.0), "batch": (0.0, 0.5)}
        assert check.verdict == "optimal"

    def test_at_fixed_momentum_and_batch_the_lr_exponent_is_not_identified(self):
        check = verify_rule("lr ~ D^-0.9", PLAIN)
        assert check.lr_interval == (-1.0, 0.0)
        assert not check.identified
        assert check.verdict == "unidentified"
        assert verify_rule("lr ~ D^-0.5", PLAIN).verdict == "aligned"

    @pytest.mark.parametrize("q", [0.25, 1 / 3, 0.5])
    def test_heavy_tails(self, q):
        check = verify_rule("lr ~ D^-0.5", LMOBound(1, 1, 1, q=q))
        assert check.rate == pytest.approx(-q / (2 * q + 1))
        rule = f"lr ~ B D^-{(q + 1) / (2 * q + 1)}, a ~ B D^-{1 / (2 * q + 1)}, B ~ D^0.1"
        assert verify_rule(rule, LMOBound(1, 1, 1, q=q)).rate_loss_free == pytest.approx(0, abs=1e-12)

    def test_star_convex(self):
        bound = LMOBound(1, 1, 1, kind="star-convex")
        check = verify_rule("lr ~ D^-1/3, B ~ D^2/3", bound)
        assert check.rate == pytest.approx(-1 / 3)
        assert check.verdict == "optimal"
        # Slower than 1/K the exponential has not decayed: the gap stays where it began.
        slow = verify_rule("lr ~ D^-0.5, B ~ D^2/3", bound)
        assert slow.rule_rate == 0
        assert slow.rate_loss == pytest.approx(1 / 3)

    @pytest.mark.parametrize(("s", "r"), [(0.15, 0.0), (0.25, 0.5), (0.6, 0.4)])
    def test_power_law_proxy_is_labelled_checked(self, s, r):
        bound = LMOBound(1, 1, 1, kind="power-law", source=s, capacity=r)
        x = -(s + r) / (1 + s + r)
        check = verify_rule(f"lr ~ B^0.5 D^{x}, B ~ D^0.571", bound)
        assert check.rate == pytest.approx(-s / (1 + s + r))
        assert check.rate_loss_free == pytest.approx(0, abs=1e-9)
        assert check.label == "checked"
        assert check.exponents["lr"] == pytest.approx(0.571 / 2 + x)

    def test_proxy_with_s_plus_r_one_is_the_bound_in_lr(self):
        check = verify_rule("lr ~ sqrt(B/D)", LMOBound(1, 1, 1, kind="power-law", source=0.4, capacity=0.6))
        assert check.rate_loss == 0


class TestWidthAndDepth:
    def test_mup_with_fixed_and_with_tuned_momentum(self):
        check = verify_rule("lr ~ n^-1", PLAIN, "L ~ n^2")
        assert check.scale == "width"
        assert check.lr_interval == (-1.0, -1.0)
        assert check.verdict == "aligned"
        assert check.face["lr"] == (-0.5, -0.5)  # on the tuned ridge

    def test_muon_does_not_move_with_width(self):
        assert verify_rule("lr ~ n^0", PLAIN, "L ~ n^0").rate_loss == 0
        assert verify_rule("lr ~ n^-1", PLAIN, "L ~ n^0").verdict == "misaligned"

    @pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
    def test_depth_multiplier(self, c):
        check = verify_rule(f"lr ~ l^{c - 1}", PLAIN, depth_path(c))
        assert check.verdict in ("optimal", "aligned")
        assert check.lr_interval == (c - 1, c - 1)
        assert verify_rule("lr ∝ depth", PLAIN, depth_path(c)).verdict == "misaligned"

    def test_lr_growing_with_depth_needs_smoothness_falling_twice_as_fast(self):
        assert verify_rule("lr ∝ depth", PLAIN, "L ~ l^-2").rate_loss_lr_terms == 0

    def test_each_scale_is_checked_and_unknown_ones_are_named(self):
        check = verify_rule("lr ~ n^-1 D^-0.5", PLAIN, "L ~ n^2")
        assert (check.scale, [c.scale for c in check.also]) == ("tokens", ["width"])
        assert check.also[0].rate_loss == 0
        assert "N not checked" in verify_rule("lr ~ N^-.23 D^-.32", PLAIN).notes[0]


class TestExactProgram:
    exponents = st.integers(-100, 100).map(lambda i: i / 100)

    @given(
        st.sampled_from(("nonconvex", "star-convex")),
        st.sampled_from(("simplified", "tight")),
        exponents,
        exponents,
    )
    @settings(max_examples=30, deadline=None)
    def test_agrees_with_an_independent_solver(self, kind, form, h, b):
        assume(0 <= b <= 1)
        bound = LMOBound(1, 1, 1, kind=kind, form=form)
        check = verify_rule(f"lr ~ D^{h}, B ~ D^{b}", bound)
        terms, decaying = monomials(bound)
        rows = [[float(t.lr), float(t.momentum), float(t.batch), -1.0] for t in terms]
        right = [-float(t.tokens) for t in terms]
        rows += [[0, -1, 1, 0]] + ([[-1, 0, 1, 0]] if decaying else [])
        right += [1] + ([1] if decaying else [])
        limits = [(-5, 5), (-5, 0), (0, 1), (-5, 5)]
        best = linprog([0, 0, 0, 1], A_ub=rows, b_ub=right, bounds=limits)
        assert check.rate == pytest.approx(best.fun, abs=1e-9)
        assert check.rate_loss >= 0
        assert check.rate_loss_free >= check.rate_loss

    @given(st.floats(-1, 0.4), st.floats(0, 1))
    @settings(max_examples=15, deadline=None)
    def test_rates_are_the_slopes_of_the_bound_itself(self, h, b):
        check = verify_rule(f"lr ~ D^{h:.3f}, B ~ D^{b:.3f}", PLAIN)
        tokens = np.array([1e200, 1e220])
        batch = tokens ** float(f"{b:.3f}")
        value = PLAIN.value(tokens ** float(f"{h:.3f}"), 1.0, batch, tokens / batch)
        assert np.log(value[1] / value[0]) / np.log(1e20) == pytest.approx(check.rule_rate, abs=0.02)

    def test_certificate_proves_the_rate(self):
        """The multipliers are non-negative, sum to one over the terms and cancel every exponent."""
        check = verify_rule("lr ~ D^-0.25", PLAIN)
        weights = dict(check.certificate)
        terms, _ = monomials(PLAIN)
        mine = {t.name: weights.get(t.name, Fraction(0)) for t in terms}
        assert sum(mine.values()) == 1
        assert all(w >= 0 for w in weights.values())
        assert sum(w * t.lr for t in terms for n, w in mine.items() if n == t.name) == 0

    @pytest.mark.parametrize("form", ["simplified", "tight", "kovalev"])
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("nonconvex", {}),
            ("nonconvex", {"q": 0.3}),
            ("nonconvex", {"noise": 0.0}),
            ("nonconvex", {"init": "first-gradient"}),
            ("nonconvex", {"e0": 1.0}),
            ("frank-wolfe", {}),
            ("star-convex", {}),
            ("power-law", {"source": 0.25, "capacity": 0.5}),
        ],
    )
    def test_no_rule_on_a_grid_beats_the_program_and_one_attains_it(self, kind, form, options):
        """Brute force over exponents of (lr, a, B), each rule's rate read off the bound itself at huge budgets."""
        bound = LMOBound(1.0, 1.0, **{"noise": 1.0, "kind": kind, "form": form, **options})
        check = verify_rule("lr ~ D^-0.25, B ~ D^0.5", bound)
        h, a, b = np.meshgrid(
            np.arange(-12, 5) / 12, np.arange(-12, 1) / 12, np.arange(13) / 12, indexing="ij"
        )
        keep = a + 1 - b >= 0
        tokens = np.array([1e60, 1e64])[:, None]
        lr, momentum, batch = (tokens ** e[keep] for e in (h, a, b))
        with np.errstate(over="ignore"):
            value = bound.value(lr * (1 + (kind == "star-convex") * 700), momentum, batch, tokens / batch)
        slopes = np.log(value[1] / value[0]) / np.log(1e4)
        assert slopes.min() == pytest.approx(check.rate, abs=0.03)

    @pytest.mark.parametrize("path", ["L ~ n^2", "L ~ n^-1, Δ ~ n^0.5", "σ ~ n", "L ~ n, B ~ n^0.5"])
    @pytest.mark.parametrize(
        "bound",
        [
            PLAIN,
            LMOBound(1, 1, 1, form="kovalev", init="first-gradient"),
            LMOBound(1, 1, 1, kind="star-convex"),
            LMOBound(1, 1, 1, kind="power-law", source=0.5, capacity=0.25),
        ],
        ids=lambda b: b.kind,
    )
    @pytest.mark.parametrize("h", [-2, -1, -0.5, 0, 1])
    def test_no_rule_gains_on_the_best_along_width(self, bound, path, h):
        check = verify_rule(f"lr ~ n^{h}", bound, path)
        assert check.rate_loss >= 0
        assert check.rate_loss_free >= check.rate_loss
        low, high = check.lr_interval
        for inside in (e for e in (low, high) if np.isfinite(e)):
            assert verify_rule(f"lr ~ n^{inside}", bound, path).rate_loss == pytest.approx(0, abs=1e-12)

    def test_stalled_runs_are_an_alternative_where_the_constants_grow(self):
        """Star-convex at fixed K: a run that stays at Δ beats one whose drift grows with width."""
        check = verify_rule("lr ~ n^-3", LMOBound(1, 1, 1, kind="star-convex"), "L ~ n^2")
        assert check.rate_held == 0
        assert check.lr_interval == (-np.inf, -2.0)
        assert check.verdict in ("aligned", "optimal")

    def test_logarithm_of_star_convex_rules_is_said(self):
        bound = LMOBound(1, 1, 1, kind="star-convex")
        assert any("logarithm" in n for n in verify_rule("lr ~ B/D, B ~ D^2/3", bound).notes)
        assert not verify_rule("lr ~ D^-0.2, B ~ D^2/3", bound).notes

    def test_without_noise_batch_one_is_best(self):
        check = verify_rule("lr ~ D^-0.5", LMOBound(1, 1, 0.0))
        assert (check.rate, check.verdict) == (-0.5, "optimal")
        assert check.face["batch"] == (0.0, 0.0)

    def test_unbounded_program_is_an_error(self):
        with pytest.raises(ArithmeticError):
            minimax([("only", (Fraction(1),), Fraction(0))], [], 1)


class TestConstantFactor:
    def test_aligned_rule_with_tuned_coefficient_costs_nothing(self):
        assert verify_rule("lr ~ B^0.5 D^-0.5, B ~ D^0.3", PLAIN).constant == pytest.approx(1)

    def test_coefficients_go_through_substitution(self):
        """Two ways to write one rule cost the same: √B carries the coefficient of B into lr."""
        first = verify_rule("lr = 3 B^0.5 D^-0.5, B = 16 D^0.5", PLAIN)
        second = verify_rule("lr = 12 D^-0.25, B = 16 D^0.5", PLAIN)
        third = verify_rule("lr = 3 B^0.5 D^-0.5", PLAIN, "B = 16 D^0.5")
        assert first.constant == pytest.approx(second.constant)
        assert first.constant == pytest.approx(third.constant)
        assert "B = 16·D^0.5" in dict(first.rows())["constant factor (checked)"]
        tokens = np.geomspace(1e8, 1e14, 61)
        batch = 16 * tokens**0.5
        best = PLAIN.best_lr(0.1, batch, tokens / batch)
        ratio = PLAIN.value(12 * tokens**-0.25, 0.1, batch, tokens / batch) / PLAIN.value(
            best, 0.1, batch, tokens / batch
        )
        assert first.constant == pytest.approx(ratio.max())

    def test_open_momentum_and_batch_are_in_brackets(self):
        assert (
            "(a = 0.1), (B = 1)"
            in dict(verify_rule("lr ~ D^-0.5", PLAIN).rows())["constant factor (checked)"]
        )

    def test_a_width_path_leaves_the_factor_along_tokens(self):
        assert verify_rule("lr ~ n^-1 D^-0.5", PLAIN, "L ~ n^2").constant == pytest.approx(1)

    def test_stated_coefficient_counts(self):
        wrong = verify_rule("lr = 100 B^0.5 D^-0.5, B ~ D^0.6", PLAIN)
        assert wrong.rate_loss == 0
        assert wrong.constant > 5
