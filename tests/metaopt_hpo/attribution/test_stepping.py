"""The batched loop against a loop of single runs, worlds against their definitions, reproducibility, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from scipy.stats import t as t_distribution

from metaopt_hpo.attribution import CRITERIA, IDEAL, Setting, run_grid, stepping
from metaopt_hpo.attribution.levels import factorial, single_changes
from metaopt_hpo.attribution.worlds import Logistic, Quadratic, student_t, tier0_worlds

SMALL = Quadratic("small", source=0.5, capacity=0.5, dim=6, sigma=1.0)
GRID = {"tokens": [256, 512, 512], "batch": [4, 8, 16], "seeds": (0, 1)}
LR = np.geomspace(1e-3, 1e-1, 4) * np.ones((3, 1))


def drawn(world, noise, batches, seeds):
    """The first step's randomness of each batch size."""
    return [next(world.stream(noise, b, seeds, torch.Generator().manual_seed(b))) for b in batches]


def settings():
    return [
        Setting(),
        Setting(schedule="cosine", init="zero"),
        Setting(momentum="half-life", warmup="fraction"),
    ]


class TestLoop:
    def test_agrees_with_single_runs_of_the_definition(self):
        """w⁺ = w − η_k·sign((1−a)m + a·g), run by run on the same noise."""
        result = run_grid(SMALL, settings(), lr=LR, **GRID)
        for c, (d, b) in enumerate(zip(GRID["tokens"], GRID["batch"], strict=True)):
            for i, setting in enumerate(settings()):
                for j, lr in enumerate(LR[c]):
                    w, norms, late = self._replay(c, setting, lr, d // b)
                    assert result.criteria[c, i, j, :, 2] == pytest.approx(SMALL.loss(w).numpy(), rel=1e-4)
                    assert result.criteria[c, i, j, :, 0] == pytest.approx(norms, rel=1e-4)
                    assert result.criteria[c, i, j, :, 3] == pytest.approx(late, rel=1e-4)

    def _replay(self, cell, setting, lr, steps):
        """Replays one run on its cell's own stream of noise."""
        from metaopt_hpo.attribution.stepping import _mix

        d, b = GRID["tokens"][cell], GRID["batch"][cell]
        noise = SMALL.stream("gaussian", b, 2, torch.Generator().manual_seed(_mix((*GRID["seeds"], d, b))))
        middle = float(np.exp(np.mean(np.log(GRID["batch"]))))
        a = setting.momentum_at(b, middle)
        w = SMALL.start(GRID["seeds"]).clone()
        m = SMALL.gradient(w) if setting.init == "gradient" else torch.zeros_like(w)
        shape = setting.multipliers(steps)
        due = set(np.unique(np.arange(64) * steps // 64).tolist())
        norms, late = [], []
        for k in range(steps):
            g = SMALL.gradient(w)
            if k in due:
                norms.append(g.abs().sum(-1).numpy())
                if k >= 0.75 * steps:
                    late.append(SMALL.loss(w).numpy())
            m = (1 - a) * m + a * (g + next(noise))
            w = w - lr * float(shape[k]) * torch.sign(m)
        return w, np.mean(norms, axis=0), np.mean(late, axis=0)

    def test_same_seeds_same_results(self):
        first, second = (run_grid(SMALL, settings(), lr=LR, **GRID) for _ in range(2))
        assert np.array_equal(first.criteria, second.criteria)

    def test_settings_and_lrs_share_their_noise(self):
        """Common random numbers: what else is in the grid does not change a run."""
        alone = run_grid(SMALL, settings()[1:2], lr=LR[:, 1:2], **GRID)
        together = run_grid(SMALL, settings(), lr=LR, **GRID)
        assert alone.criteria[:, 0, 0] == pytest.approx(together.criteria[:, 1, 1], rel=1e-5)
        cell = run_grid(SMALL, settings(), tokens=[512], batch=[8], seeds=(0, 1), lr=LR[:1], middle_batch=8)
        assert cell.criteria[0] == pytest.approx(together.criteria[1], rel=1e-5)

    @pytest.mark.parametrize("tile", [1, 10**9])
    def test_how_cells_are_tiled_changes_nothing(self, tile, monkeypatch):
        monkeypatch.setattr(stepping, "TILE", tile)
        for noise in SMALL.noises:
            mine = [replace(s, noise=noise) for s in settings()]
            tiled = run_grid(SMALL, mine, lr=LR, **GRID)
            monkeypatch.undo()
            assert np.allclose(tiled.criteria, run_grid(SMALL, mine, lr=LR, **GRID).criteria, rtol=1e-5)
            monkeypatch.setattr(stepping, "TILE", tile)

    def test_it_steps_on_one_thread_and_gives_the_others_back(self, monkeypatch):
        """On a busy machine threads that wait for each other at every step cost many times the arithmetic."""
        seen = []
        step = stepping._Tile._step
        monkeypatch.setattr(
            stepping._Tile, "_step", lambda *args: (seen.append(torch.get_num_threads()), step(*args))[1]
        )
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            run_grid(SMALL, settings(), lr=LR, **GRID)
            assert set(seen) == {1}
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_lowest_over_settings(self):
        result = run_grid(SMALL, settings(), lr=LR, **GRID)
        both = result.of(settings()[:2], "final-loss")
        assert np.array_equal(both, result.criteria[:, :2, :, :, 2].min(axis=1))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="one grid runs one noise level"):
            run_grid(SMALL, [Setting(), Setting(noise="heavy")], lr=LR, **GRID)
        with pytest.raises(ValueError, match="batch must not exceed tokens"):
            run_grid(SMALL, [Setting()], tokens=[4], batch=[8], lr=LR[:1], seeds=(0,))
        with pytest.raises(ValueError, match="has no 'heavy' noise"):
            run_grid(Logistic(examples=16), [Setting(noise="heavy")], lr=LR, **GRID)


class TestLevels:
    def test_factorial_has_every_combination_once(self):
        cube = factorial(("schedule", "init", "noise", "warmup"))
        assert len(cube) == len(set(cube)) == 16
        assert IDEAL in cube

    def test_single_changes_differ_from_the_ideal_in_one_level(self):
        for s in single_changes():
            assert sum(getattr(s, f) != getattr(IDEAL, f) for f in s.__dataclass_fields__) == 1

    def test_warmup_and_floor(self):
        ramp = replace(IDEAL, warmup="fraction").multipliers(100)
        assert ramp[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert replace(IDEAL, schedule="cosine-floor").multipliers(10) == pytest.approx(
            replace(IDEAL, schedule="cosine").multipliers(10)
        )

    def test_half_life_is_constant_in_tokens(self):
        s = Setting(momentum="half-life")
        assert s.momentum_at(8, 16) / 8 == s.momentum_at(32, 16) / 32
        assert s.momentum_at(1e6, 16) == 1.0

    @pytest.mark.parametrize("field", ["schedule", "init", "noise", "momentum", "warmup"])
    def test_unknown_level(self, field):
        with pytest.raises(ValueError, match=f"{field} must be one of"):
            Setting(**{field: "other"})

    @pytest.mark.parametrize("a", [0.0, 1.2])
    def test_momentum_outside_its_range(self, a):
        with pytest.raises(ValueError, match=r"momentum a must lie in \(0, 1\]"):
            Setting(a=a)


class TestWorlds:
    def test_spectra_have_the_exponents_they_are_named_after(self):
        """Noiseless gradient flow: loss ~ τ^−s and the count of converged directions ~ τ^r."""
        q = Quadratic("check", source=0.6, capacity=0.5, dim=4000)
        h, energy = q.h.double(), 0.5 * (q.h * q.w0.square()).double()
        times = np.geomspace(1e2, 1e4, 5)
        losses = [float((energy * torch.exp(-2 * h * t)).sum()) for t in times]
        counts = [float((h * t > 1).sum()) for t in times]
        assert np.polyfit(np.log(times), np.log(losses), 1)[0] == pytest.approx(-0.6, abs=0.03)
        assert np.polyfit(np.log(times), np.log(counts), 1)[0] == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("name", ["quadratic", "infinite", "hard", "hard-at-rest"])
    def test_quadratics_are_normalised(self, name):
        w = tier0_worlds()[name]
        assert float(w.loss(w.start([0]))) == pytest.approx(1, rel=1e-5)
        assert float(w.h.max()) == 1

    @pytest.mark.parametrize("noise", ["gaussian", "state-dependent", "minibatch"])
    def test_stochastic_gradients_are_unbiased_and_shrink_with_batch(self, noise):
        w = SMALL.start(range(4000)).expand(2, 1, 1, -1, -1).clone()
        g = SMALL.noisy_gradient(w, noise, [4, 16], drawn(SMALL, noise, [4, 16], 4000), torch.empty_like(w))
        error = g - SMALL.gradient(w)
        spread = error.std(dim=3)
        assert (error.mean(dim=3).abs() < 5 * spread / 4000**0.5).all()
        assert (spread[0] / spread[1]).mean() == pytest.approx(2, rel=0.05)

    def test_minibatch_gradient_is_that_of_least_squares_on_its_rows(self):
        w = torch.randn(1, 2, 3, 4, 6)
        (batch,) = drawn(SMALL, "minibatch", [5], 4)
        g = SMALL.noisy_gradient(w, "minibatch", [5], [batch], torch.empty_like(w))
        rows, labels = batch
        v = w.clone().requires_grad_()
        residual = torch.einsum("cslrp,rbp->cslrb", v, rows) + labels[:, 0]
        (0.5 * residual.square().mean(-1)).sum().backward()
        assert torch.allclose(g, v.grad, atol=1e-5)

    def test_logistic_minibatches_are_unbiased_and_its_floor_is_a_minimum(self):
        world = Logistic(examples=64, dim=5)
        w = 0.3 * torch.ones(1, 1, 1, 4000, 5)
        g = world.noisy_gradient(
            w, "minibatch", [8], drawn(world, "minibatch", [8], 4000), torch.empty_like(w)
        )
        error = (g - world.gradient(w))[0, 0, 0]
        assert (error.mean(0).abs() < 5 * error.std(0) / 4000**0.5).all()
        assert world.floor < float(world.loss(w[0, 0, 0, :1]))
        # Gradient descent cannot get below it.
        x = torch.zeros(1, 5)
        for _ in range(3000):
            x = x - 2.0 * world.gradient(x)
        assert world.floor <= float(world.loss(x)) + 1e-6
        assert world.floor == pytest.approx(float(world.loss(x)), abs=5e-3)

    def test_logistic_gradient_is_that_of_its_loss(self):
        world = Logistic(examples=16, dim=5)
        w = torch.randn(2, 3, 5, requires_grad=True)
        world.loss(w).sum().backward()
        assert torch.allclose(world.gradient(w.detach()), w.grad, atol=1e-6)

    def test_heavy_noise_shrinks_slower(self):
        one, many = (z.abs() for z in drawn(SMALL, "heavy", [1, 1000], 20000))
        assert float(one.median() / many.median()) == pytest.approx(1000 ** (1 / 3), rel=0.05)

    def test_heavy_noise_is_student_t(self):
        z = student_t((200_000,), generator=torch.Generator().manual_seed(0)).double().numpy()
        assert kstest(z, t_distribution(1.5).cdf).pvalue > 0.01
        assert np.isfinite(z).all()

    def test_bad_quadratic(self):
        with pytest.raises(ValueError, match="source > 0"):
            Quadratic("x", source=0, capacity=0, dim=8)

    def test_criteria_order(self):
        assert CRITERIA == ("avg-grad", "tail-grad", "final-loss", "tail-loss")
