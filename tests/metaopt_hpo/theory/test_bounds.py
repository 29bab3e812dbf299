"""Bounds: closed forms derived by computer algebra, known numbers, invariances, and that the bound is one."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt_hpo.theory import LMOBound
from metaopt_hpo.theory.bounds import FORMS
from metaopt_hpo.theory.schedules import schedule_factors

D, B, A, H = sp.symbols("D B a eta", positive=True)
DELTA, L, RS = sp.symbols("Delta L r", positive=True)
POSITIVE = st.floats(0.05, 20)


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def v0(bound, tokens):
    return 4 * (2 * bound.delta * bound.smoothness * bound.noise**2 / tokens) ** 0.25


class TestSymbolic:
    """The formulas of the reference, derived from the bound itself."""

    value = DELTA * B / (H * D) + 2 * L * H / A + 2 * RS * sp.sqrt(A / B)
    critical = RS * sp.sqrt(D / (2 * DELTA * L))

    def test_simplified_optimum(self):
        eta = sp.solve(sp.diff(self.value, H), H)[0]
        assert sp.simplify(eta - sp.sqrt(DELTA * A * B / (2 * L * D))) == 0
        tuned = sp.simplify(self.value.subs(H, eta))
        best = A * self.critical  # the batch at fixed a; equivalently a* = B / B_c
        assert sp.simplify(sp.diff(tuned, A).subs(A, B / self.critical)) == 0
        assert sp.simplify(sp.diff(tuned, B).subs(B, best)) == 0
        eta_ridge = sp.powdenest(sp.simplify(eta.subs(A, B / self.critical)), force=True)
        known = 2 ** sp.Rational(-1, 4) * DELTA ** sp.Rational(3, 4) * L ** sp.Rational(-1, 4)
        known *= RS ** sp.Rational(-1, 2) * B * D ** sp.Rational(-3, 4)
        assert sp.simplify(eta_ridge / known) == 1
        ridge_value = sp.simplify(tuned.subs(A, B / self.critical))
        assert sp.simplify(ridge_value / (4 * (2 * DELTA * L * RS**2 / D) ** sp.Rational(1, 4))) == 1

    def test_code_agrees_with_symbols(self):
        numbers = {DELTA: 2.0, L: 3.0, RS: 0.7}
        bound = LMOBound(2.0, 3.0, 0.7)
        at = {H: 0.01, A: 0.2, B: 16.0, D: 4096.0}
        assert bound.value(0.01, 0.2, 16.0, 256.0) == pytest.approx(float(self.value.subs(numbers).subs(at)))
        assert bound.critical_batch(4096.0) == pytest.approx(float(self.critical.subs(numbers).subs(at)))

    def test_tight_is_below_simplified_and_the_simplified_form_follows_from_it(self):
        tight = L * (sp.Rational(1, 2) + 2 * (1 - A) / A)
        assert sp.simplify(2 * L / A - tight - sp.Rational(3, 2) * L) == 0
        grid = np.geomspace(1e-3, 1, 30)
        simplified, exact = LMOBound(1, 1, 1), LMOBound(1, 1, 1, form="tight")
        assert np.all(exact.value(0.01, grid, 8, 100) <= simplified.value(0.01, grid, 8, 100))
        # 4 % off in lr at a = .1 and a factor 2 at a = 1, as stated beside the form.
        ratio = exact.best_lr(np.array([0.1, 1.0]), 8, 100) / simplified.best_lr(np.array([0.1, 1.0]), 8, 100)
        assert ratio == pytest.approx([1.04, 2.0], abs=2e-3)

    def test_momentum_variance_behind_the_tight_noise_floor(self):
        # m = a Σ (1−a)^j g_j has variance a²/(1−(1−a)²) = a/(2−a).
        assert sp.simplify(A**2 / (1 - (1 - A) ** 2) - A / (2 - A)) == 0

    def test_star_convex_optimum_and_sum(self):
        radius, k, slope, x = sp.symbols("R K Lambda x", positive=True)
        value = DELTA * sp.exp(-H * k / radius) + radius * slope * H
        best = radius / k * sp.log(DELTA * k / (radius**2 * slope))
        assert sp.simplify(sp.diff(value, H).subs(H, best)) == 0
        n, j = 7, sp.symbols("j", integer=True)
        unrolled = sum(x ** (n - 1 - i) * (1 - A) ** i for i in range(n))
        assert sp.simplify(unrolled - (x**n - (1 - A) ** n) / (x - 1 + A)) == 0
        # Momentum's start error and drift, summed over steps: Σ (1−a)^(k+1) = (1−a)/a <= 1/a.
        for a in (sp.Rational(1, 10), sp.Rational(2, 3)):
            assert sp.summation((1 - a) ** (j + 1), (j, 0, sp.oo)) == (1 - a) / a

    def test_frank_wolfe_slope(self):
        """Steps of 2η: descent L(2η)²/2 over η, drift twice: Λ = L[2 + 4(1−a)/a], and 4L/a covers it."""
        bound = LMOBound(1, 1, 1, kind="frank-wolfe", form="tight")
        a = np.geomspace(1e-3, 1, 20)
        assert bound.slope(a) == pytest.approx(2 + 4 * (1 - a) / a)
        assert np.all(LMOBound(1, 1, 1, kind="frank-wolfe").slope(a) >= bound.slope(a))

    def test_heavy_tail_exponents(self):
        q, g = sp.symbols("q g", positive=True)
        tuned = 2 * sp.sqrt(2 * DELTA * L / D) * g ** sp.Rational(-1, 2) + 2 * RS * g**q
        ratio = (sp.sqrt(2 * DELTA * L / D) / (2 * q * RS)) ** (1 / (q + sp.Rational(1, 2)))
        assert sp.simplify(sp.powsimp(sp.diff(tuned, g).subs(g, ratio).subs({q: sp.Rational(1, 3)}))) == 0
        bound = LMOBound(1, 1, 1, q=1 / 3)
        tokens = np.geomspace(1e12, 1e16, 5)
        optima = [bound.optimum(d, batch=100.0) for d in tokens]
        assert slope(tokens, [o.momentum for o in optima]) == pytest.approx(-1 / (2 / 3 + 1), abs=1e-6)
        assert slope(tokens, [o.lr for o in optima]) == pytest.approx(-(4 / 3) / (2 / 3 + 1), abs=1e-6)
        batches = np.geomspace(10, 1000, 5)
        optima = [bound.optimum(1e16, batch=b) for b in batches]
        assert slope(batches, [o.lr for o in optima]) == pytest.approx(1, abs=1e-6)


class TestKnownAnswers:
    def test_simplified_ridge_is_flat_up_to_the_critical_batch(self):
        bound = LMOBound(1.3, 0.7, 2.0)
        tokens = 1e10
        ridge = bound.ridge(tokens, tolerance=1e-9)
        below = ridge.batch <= bound.critical_batch(tokens)
        assert ridge.value[below] == pytest.approx(v0(bound, tokens))
        assert ridge.low == 1.0
        assert ridge.high <= bound.critical_batch(tokens) <= ridge.high * (tokens ** (1 / 240))

    def test_half_life_in_tokens_grows_like_the_square_root(self):
        bound = LMOBound(1, 1, 1)
        life = [64 / bound.optimum(d, batch=64).momentum for d in (1e10, 1e12)]
        assert life[1] / life[0] == pytest.approx(10)

    def test_fixed_momentum(self):
        bound = LMOBound(1, 1, 1)
        optima = [bound.optimum(d, momentum=0.1) for d in (1e10, 1e14)]
        assert optima[0].batch == pytest.approx(0.1 * bound.critical_batch(1e10), rel=1e-6)
        assert np.log10(optima[1].lr / optima[0].lr) / 4 == pytest.approx(-0.25, abs=1e-6)

    def test_displayed_form_has_a_slope_and_no_ridge(self):
        bound = LMOBound(1, 1, 1, form="tight")
        tokens = 1e12
        critical = bound.critical_batch(tokens)
        small = bound.optimum(tokens, batch=1e-4 * critical)
        assert small.momentum == pytest.approx(np.sqrt(2) * 1e-4, rel=1e-3)
        assert small.lr == pytest.approx(small.batch * tokens**-0.75, rel=1e-3)
        assert small.value / v0(bound, tokens) == pytest.approx(0.841, abs=1e-3)
        assert bound.optimum(tokens, batch=critical).value / v0(bound, tokens) == pytest.approx(
            0.75, abs=1e-6
        )
        best = bound.optimum(tokens)
        assert best.value / v0(bound, tokens) == pytest.approx(0.7071, abs=1e-4)
        assert best.batch / critical == pytest.approx(2, rel=1e-3)
        assert best.momentum == 1
        assert small.value / best.value == pytest.approx(1.19, abs=0.005)

    def test_displayed_form_local_slopes_within_a_decade_of_the_critical_batch(self):
        bound = LMOBound(1, 1, 1, form="tight")
        tokens = 1e12
        spread = np.geomspace(0.1, 1, 21)
        batches = spread * bound.critical_batch(tokens)
        y = slope(batches, [bound.optimum(tokens, batch=b).lr for b in batches])
        centre = bound.critical_batch(tokens) / np.sqrt(10)
        budgets = tokens * np.geomspace(0.1, 10, 21)
        x = slope(budgets, [bound.optimum(d, batch=centre).lr for d in budgets])
        assert (x, y) == pytest.approx((-0.83, 1.16), abs=0.01)

    def test_kovalev_form_from_the_first_gradient(self):
        bound = LMOBound(1, 1, 1, form="kovalev", init="first-gradient")
        tokens = np.array([1e10, 1e12, 1e14])
        optima = [bound.optimum(d) for d in tokens]
        assert slope(tokens, [o.batch for o in optima]) == pytest.approx(1 / 6, abs=2e-3)
        assert slope(tokens, [o.momentum for o in optima]) == pytest.approx(-1 / 3, abs=2e-3)
        assert slope(tokens, [o.lr for o in optima]) == pytest.approx(-7 / 12, abs=2e-3)
        # The valley within 2 % spans 1.4 to 4.3 decades for budgets of about 10^5.6 to 10^11.6.
        assert bound.ridge(10**5.6, points=601).decades == pytest.approx(1.4, abs=0.1)
        assert bound.ridge(10**11.6, points=601).decades == pytest.approx(4.3, abs=0.1)

    def test_star_convex_exponents_with_their_logarithm(self):
        bound = LMOBound(1, 1, 1, kind="kl")
        tokens = np.geomspace(1e8, 1e16, 9)
        optima = [bound.optimum(d, momentum=0.1) for d in tokens]
        assert slope(tokens, [o.batch for o in optima]) == pytest.approx(0.644, abs=0.05)
        assert slope(tokens, [o.lr for o in optima]) == pytest.approx(-0.324, abs=0.05)
        assert slope(tokens, [bound.optimum(d, momentum=0.1, batch=1.0).lr for d in tokens]) == pytest.approx(
            -0.954, abs=0.05
        )
        batches = np.geomspace(1, 1e8, 9)
        lrs = [bound.optimum(1e16, momentum=0.1, batch=b).lr for b in batches]
        assert slope(batches, lrs) == pytest.approx(0.953, abs=0.05)

    @pytest.mark.parametrize(("s", "r"), [(0.15, 0.0), (1 / 3, 1 / 3), (0.6, 0.4)])
    def test_power_law_exponents(self, s, r):
        bound = LMOBound(1, 1, 1, kind="power-law", source=s, capacity=r)
        tokens = np.geomspace(1e6, 1e12, 5)
        optima = [bound.optimum(d, batch=64.0, momentum=0.1) for d in tokens]
        assert slope(tokens, [o.lr for o in optima]) == pytest.approx(-(s + r) / (1 + s + r))
        assert slope(tokens, [o.value for o in optima]) == pytest.approx(-s / (1 + s + r))
        four = [bound.optimum(1e9, batch=b, momentum=a).lr for a, b in ((0.1, 64), (0.1, 256), (0.4, 64))]
        assert four[1] / four[0] == pytest.approx(2)
        assert four[2] / four[0] == pytest.approx(2)

    def test_proxy_optimum_is_stationary(self):
        tau, s, r, c = sp.symbols("tau s r c", positive=True)
        best = (s * DELTA * D / ((1 + r) * c)) ** (1 / (1 + s + r))
        loss = DELTA * tau**-s + c * tau ** (1 + r) / D
        numbers = {s: sp.Rational(1, 3), r: sp.Rational(1, 4), DELTA: 2, c: 3, D: 1000}
        assert abs(sp.N(sp.diff(loss, tau).subs(tau, best).subs(numbers))) < 1e-12

    @pytest.mark.parametrize(("lr", "a"), [(0.02, 0.3), (0.3567, 0.3), (1e-3, 1.0), (0.5, 0.1)])
    def test_star_convex_value_is_its_recursion_unrolled(self, lr, a):
        """δ⁺ = e^(−η/R)δ + Λη² + ηN + 2η(1−a)^k E₀, whose steady part the closed form sums to infinity."""
        bound = LMOBound(3.0, 0.7, 0.5, e0=1.2, kind="star-convex", form="tight", radius=1.5)
        steps, decay = 60, np.exp(-lr / 1.5)
        gap = bound.delta
        for k in range(steps):
            gap = decay * gap + 2 * lr * bound.e0 * (1 - a) ** k
        steady = 1.5 * (bound.slope(a) * lr + bound.noise_floor(a, 8.0))
        assert bound.value(lr, a, 8.0, steps) == pytest.approx(gap + steady, rel=1e-9)

    def test_star_convex_survives_steps_below_machine_precision(self):
        bound = LMOBound(1.0, 1e-30, 0.0, kind="star-convex")
        assert bound.value(1e-20, 1.0, 1.0, 3e20) == pytest.approx(np.exp(-3), rel=1e-9)

    def test_frank_wolfe_lr_does_not_depend_on_weight_decay(self):
        weak, strong = (LMOBound(1, 1, 1, kind="weight-decay", weight_decay=w) for w in (0.1, 0.4))
        first, second = (b.optimum(1e8, momentum=0.1, batch=64) for b in (weak, strong))
        assert first.lr == second.lr
        assert first.value / second.value == pytest.approx(4)
        assert second.own_step / first.own_step == pytest.approx(4)

    def test_schedule_scales_lr_and_value_without_touching_exponents(self):
        plain, cosine = LMOBound(1, 1, 0), LMOBound(1, 1, 0, schedule="cosine")
        for tokens in (1e6, 1e10):
            first, second = (b.optimum(tokens, batch=8, momentum=0.1) for b in (plain, cosine))
            assert second.lr / first.lr == pytest.approx(1.633, abs=1e-3)
            assert second.value / first.value == pytest.approx(1.2247, abs=1e-4)


class TestProperties:
    @given(POSITIVE, POSITIVE, POSITIVE, st.sampled_from(FORMS))
    @settings(max_examples=25, deadline=None)
    def test_units_of_loss_and_weights_only_rescale(self, loss, weight, noise, form):
        """Constants with units: loss × c, weights × d must give lr × d and value × c/d, at the same momentum, batch."""
        one = LMOBound(1, 1, noise, form=form)
        other = LMOBound(loss, loss / weight**2, noise * loss / weight, form=form)
        first, second = one.optimum(1e8, batch=32), other.optimum(1e8, batch=32)
        assert second.lr == pytest.approx(first.lr * weight, rel=1e-4)
        assert second.momentum == pytest.approx(first.momentum, rel=1e-4)
        assert second.value == pytest.approx(first.value * loss / weight, rel=1e-6)

    @given(
        POSITIVE,
        POSITIVE,
        st.sampled_from(("nonconvex", "frank-wolfe", "star-convex")),
        st.sampled_from(FORMS),
    )
    @settings(max_examples=25, deadline=None)
    def test_optimum_beats_its_neighbours(self, delta, smoothness, kind, form):
        bound = LMOBound(delta, smoothness, 1.0, kind=kind, form=form)
        best = bound.optimum(1e9)
        assert 0 < best.momentum <= 1 <= best.batch <= 1e9
        for lr, a, b in ((1.3, 1, 1), (0.7, 1, 1), (1, 0.8, 1), (1, 1, 1.3), (1, 1, 0.7)):
            batch = best.batch * b
            if batch >= 1:
                other = bound.value(best.lr * lr, best.momentum * a, batch, best.tokens / batch)
                assert other >= best.value * (1 - 1e-9)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("nonconvex", {}),
            ("nonconvex", {"schedule": "cosine"}),
            ("nonconvex", {"q": 0.3, "schedule": "wsd"}),
            ("nonconvex", {"e0": 5.0}),
            ("nonconvex", {"init": "first-gradient", "schedule": "linear"}),
            ("frank-wolfe", {"weight_decay": 0.1, "schedule": "linear"}),
            ("star-convex", {"radius": 3.0}),
        ],
    )
    def test_optimum_is_the_brute_force_minimum(self, kind, options, form):
        """A dense grid over (lr, a, B) at one budget finds nothing lower, and comes close to it."""
        bound = LMOBound(1.7, 0.6, 2.0, kind=kind, form=form, **options)
        tokens = 1e5
        best = bound.optimum(tokens)
        batch = np.geomspace(1, tokens, 61)[:, None, None]
        momentum = np.geomspace(1e-5, 1, 61)[None, :, None]
        lr = np.geomspace(1e-5, 1e2, 141)[None, None, :]
        value = bound.value(lr, momentum, batch, tokens / batch)
        value = np.where(momentum * tokens >= batch, value, np.inf)
        assert best.value <= value.min() * (1 + 1e-6)
        assert value.min() == pytest.approx(best.value, rel=0.02)
        held = bound.optimum(tokens, batch=64.0, momentum=0.1)
        assert held.value <= bound.value(np.geomspace(1e-6, 1e2, 4001), 0.1, 64.0, tokens / 64).min() * (
            1 + 1e-9
        )

    @pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
    def test_schedules_move_the_critical_batch_by_their_value_factor(self, schedule):
        plain, shaped = LMOBound(1, 1, 1), LMOBound(1, 1, 1, schedule=schedule)
        factor = schedule_factors(schedule).value
        assert plain.critical_batch(1e10) / shaped.critical_batch(1e10) == pytest.approx(factor)
        at = shaped.optimum(1e10, batch=shaped.critical_batch(1e10) * 0.999)
        assert at.momentum == pytest.approx(0.999)
        low = shaped.optimum(1e10, batch=shaped.critical_batch(1e10) / 100)
        assert low.value == pytest.approx(at.value)

    def test_vacuous_star_convex_bounds_ask_for_no_step(self):
        bound = LMOBound(1e-6, 10.0, 1.0, kind="star-convex")
        held = bound.optimum(1e3, batch=64.0, momentum=0.1)
        lrs = np.geomspace(1e-12, 1e2, 2001)
        assert held.value <= bound.value(lrs, 0.1, 64.0, 1e3 / 64).min() * (1 + 1e-6)

    def test_dual_norm_deviation_is_not_enough_where_noise_is_sparse(self):
        """One-hot noise: E‖ξ‖₁ = 1 for one sample, yet means of n fall slower than n^-½ below the sum of deviations."""
        rng = np.random.default_rng(0)
        d, n, runs = 400, 25, 2000
        picks, signs = rng.integers(d, size=(runs, n)), rng.choice([-1.0, 1.0], size=(runs, n))
        sums = np.zeros((runs, d))
        np.add.at(sums, (np.arange(runs)[:, None], picks), signs / n)
        mean_norm = np.abs(sums).sum(1).mean()
        assert mean_norm > 4 * n**-0.5  # rs = E‖ξ‖₁ = 1 is refuted
        assert mean_norm <= d * d**-0.5 * n**-0.5  # rs = Σ σ_i = √d holds

    def test_the_bound_holds_for_signsgd(self):
        """Average ℓ1 gradient norm of noisy signSGD with momentum on quadratics stays below the tight bound."""
        rng = np.random.default_rng(0)
        curvature = np.array([4.0, 1.0, 0.25, 0.06])
        sigma, batch, steps, runs = 0.5, 4, 400, 64
        start = np.ones(4)
        # ‖·‖ = ℓ∞, ‖·‖* = ℓ1: the smoothness is Σ h, and E‖noise‖₁ <= d σ.
        bound = LMOBound(
            delta=float(0.5 * curvature.sum()),
            smoothness=float(curvature.sum()),
            noise=4 * sigma,
            form="tight",
        )
        for lr in (0.003, 0.03, 0.3):
            for a in (0.05, 0.3, 1.0):
                w = np.tile(start, (runs, 1))
                m = curvature * w
                total = 0.0
                for _ in range(steps):
                    total += np.abs(curvature * w).sum(axis=1).mean()
                    g = curvature * w + sigma / np.sqrt(batch) * rng.standard_normal(w.shape)
                    m = (1 - a) * m + a * g
                    w = w - lr * np.sign(m)
                assert total / steps <= bound.value(lr, a, batch, steps)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"delta": 0.0}, "delta"),
            ({"noise": -1.0}, "noise"),
            ({"smoothness": float("nan")}, "smoothness"),
            ({"q": 0.7}, r"q must lie in \(0, 0.5\]"),
            ({"kind": "convex"}, "kind must be one of nonconvex"),
            ({"form": "loose"}, "form must be one of simplified"),
            ({"unit": " "}, "unit must name"),
            ({"kind": "power-law"}, "needs source"),
            ({"source": 0.3}, "belong to kind='power-law'"),
            ({"schedule": "triangle"}, "schedule must be one of"),
            ({"schedule": "cosine", "kind": "star-convex"}, "use 'constant'"),
            ({"init": "first-gradient", "e0": 1.0}, "leave e0 at 0"),
        ],
    )
    def test_constants(self, options, message):
        with pytest.raises(ValueError, match=message):
            LMOBound(**{"delta": 1.0, "smoothness": 1.0, "noise": 1.0, **options})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0.0, 0.1, 1, 10), "lr must be positive"),
            ((0.1, 1.5, 1, 10), r"momentum a must lie in \(0, 1\]"),
            ((0.1, 0.0, 1, 10), r"momentum a must lie in \(0, 1\]"),
            ((0.1, 0.1, 0, 10), "batch must be positive"),
            ((0.1, 0.1, 8, 0.5), "batch must not exceed tokens"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            LMOBound(1, 1, 1).value(*arguments)

    def test_batch_above_tokens_and_free_proxy(self):
        with pytest.raises(ValueError, match="batch must lie in"):
            LMOBound(1, 1, 1).optimum(100, batch=101)
        proxy = LMOBound(1, 1, 1, kind="power-law", source=0.5, capacity=0.5)
        with pytest.raises(ValueError, match="give both"):
            proxy.optimum(1e6, batch=8)
        with pytest.raises(ValueError, match="no critical batch"):
            proxy.critical_batch(1e6)

    @pytest.mark.parametrize("tokens", [0, -1.0, 0.5, float("nan")])
    def test_budgets_below_one_token(self, tokens):
        bound = LMOBound(1, 1, 1)
        for ask in (bound.optimum, bound.critical_batch, bound.ridge):
            with pytest.raises(ValueError, match="tokens must be finite and at least 1"):
                ask(tokens)

    def test_numbers_of_numpy_are_numbers(self):
        bound = LMOBound(np.float32(1), np.int64(1), np.float32(1), q=np.float32(0.5))
        assert bound.optimum(1e6).value == pytest.approx(LMOBound(1, 1, 1).optimum(1e6).value)

    @pytest.mark.parametrize("form", FORMS)
    def test_results_state_the_form_they_are_of(self, form):
        bound = LMOBound(1, 1, 1, form=form)
        assert bound.optimum(1e6).form == bound.ridge(1e6).form == form
