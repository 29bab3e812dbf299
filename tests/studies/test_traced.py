"""Traces of decay, momentum and clip norm against automatic differentiation of a run with constant gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import Muon
from metaopt_hpo.optim.rules import SGD, SGDM, AdamW, Lion, RMSprop, Rule, direction
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.groups import decay_groups
from studies.one_run.traced import KINDS, TracedOptimizer, with_momentum

STEPS = 12
VALUES = {"decay": 0.3, "momentum": 0.8, "clip": 4.0}
EPS = 1e-2


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()


def gradients(of: nn.Module, step: int) -> list[Tensor]:
    """Some are clipped at a norm of 4, some are not."""
    g = torch.Generator().manual_seed(step)
    size = 0.3 if step % 3 == 0 else 2.0
    return [size * torch.randn(p.shape, generator=g, dtype=p.dtype) for p in of.parameters()]


def alpha(step: int) -> float:
    return 0.05 / (1 + 0.1 * step)


def traced(rule: Rule, name: str, gamma: float, **options: Any) -> tuple[nn.Module, TracedOptimizer]:
    net = model()
    values = {k: v for k, v in VALUES.items() if k != "momentum" or name == k}
    found = TracedOptimizer(decay_groups(net, 1.0), rule, values, adapt=(name,), gamma=gamma, **options)
    for step in range(STEPS):
        for p, g in zip(net.parameters(), gradients(net, step), strict=True):
            p.grad = g.clone()
        found.step(alpha(step))
    return net, found


def unrolled(rule: Rule, name: str, thetas: Tensor) -> list[Tensor]:
    """The weights at the end of the same run, written out; θ may differ from step to step."""
    net = model()
    weights = [p.detach().clone() for p in net.parameters()]
    states = [rule.init_state(w) for w in weights]
    for step, theta in enumerate(thetas):
        numbers: dict[str, Any] = VALUES | {name: KINDS[name].value(theta)}
        grads = gradients(net, step)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        factor = (numbers["clip"] / (norm + 1e-6)).clamp(max=1.0)
        own = with_momentum(rule, numbers["momentum"]) if name == "momentum" else rule
        for i, w in enumerate(weights):
            u, states[i] = direction(own, factor * grads[i], states[i], float(step + 1), w, None)
            decay = numbers["decay"] if w.ndim > 1 else 0.0
            weights[i] = w - alpha(step) * (u + decay * w)
    return weights


CASES = [
    (rule, name)
    for rule in (SGD(), SGDM(), RMSprop(eps=EPS), AdamW(betas=(0.9, 0.95), eps=EPS), Lion())
    for name in KINDS
    if name != "momentum" or isinstance(rule, SGDM | AdamW)
]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize(("rule", "name"), CASES, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_trace_is_the_discounted_derivative(rule: Rule, name: str, gamma: float) -> None:
    """h = Σ γ^(steps since) dw/dθ of each step: with γ = 1 the derivative by a θ that is the same in all."""
    net, found = traced(rule, name, gamma)
    thetas = torch.full((STEPS,), KINDS[name].theta(VALUES[name]), dtype=torch.float64)
    weights = unrolled(rule, name, thetas)
    for p, w in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-14)
    jacobian = torch.autograd.functional.jacobian(lambda x: tuple(unrolled(rule, name, x)), thetas)
    discounts = gamma ** torch.arange(STEPS - 1, -1, -1, dtype=torch.float64)
    wanted = torch.cat([(j @ discounts).flatten() for j in _order(net, jacobian)])
    torch.testing.assert_close(found.pieces[0].trace[0][0], wanted, rtol=1e-10, atol=1e-12)
    if name != "clip" or rule.uses_magnitude:
        assert wanted.abs().max() > 1e-4


def _order(net: nn.Module, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """In the optimizer's order: decayed ones first."""
    of = dict(zip(map(id, net.parameters()), tensors, strict=True))
    return [of[id(p)] for g in decay_groups(net, 1.0) for _, p in g["params"]]


@pytest.mark.parametrize("name", list(KINDS))
def test_trace_is_the_finite_difference(name: str) -> None:
    rule, width = AdamW(betas=(0.9, 0.95), eps=EPS), 1e-5
    net, found = traced(rule, name, 1.0)
    theta = torch.full((STEPS,), KINDS[name].theta(VALUES[name]), dtype=torch.float64)
    sides = [unrolled(rule, name, theta + s * width) for s in (1, -1)]
    slopes = tuple((a - b) / (2 * width) for a, b in zip(*sides, strict=True))
    wanted = torch.cat([s.flatten() for s in _order(net, slopes)])
    torch.testing.assert_close(found.pieces[0].trace[0][0], wanted, rtol=1e-6, atol=1e-8)


def test_a_rule_of_matrices() -> None:
    """Each parameter is advanced by itself, and its trace is the derivative."""
    net, found = traced(Muon(), "decay", 1.0)
    theta, width = KINDS["decay"].theta(VALUES["decay"]), 1e-5
    ends = []
    for side in (theta + width, theta - width):
        values = VALUES | {"decay": float(torch.tensor(side, dtype=torch.float64).exp())}
        other = model()
        plain = TracedOptimizer(decay_groups(other, 1.0), Muon(), {k: values[k] for k in ("decay", "clip")})
        for step in range(STEPS):
            for p, g in zip(other.parameters(), gradients(other, step), strict=True):
                p.grad = g.clone()
            plain.step(alpha(step))
        ends.append([p.detach() for g in decay_groups(other, 1.0) for _, p in g["params"]])
    assert len(found.pieces) == len(list(net.parameters()))
    for piece, a, b in zip(found.pieces, *ends, strict=True):
        torch.testing.assert_close(piece.trace[0][0], (a - b) / (2 * width), rtol=1e-5, atol=1e-8)


def test_nothing_adapted_is_the_schedule() -> None:
    """The weights of torch's AdamW under `wsd` with the strategy's decay, momentum and clip norm."""
    nets = [model(), model()]
    strategy = make("wsd", lr=0.05)
    run = strategy.build(nets[0], STEPS)
    rule = AdamW(betas=(0.9, 0.95))
    mine = TracedOptimizer(decay_groups(nets[1], 1.0), rule, {"decay": 0.1, "momentum": 0.9, "clip": 1.0})
    for step in range(STEPS):
        for net in nets:
            for p, g in zip(net.parameters(), gradients(net, step), strict=True):
                p.grad = g.clone()
        mine.step(0.05 * strategy.multiplier(step, STEPS))  # type: ignore[attr-defined]
        run.step(torch.tensor(1.0))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_theta_moves_against_the_meta_gradient(sign: float) -> None:
    """Decay has shrunk the weights, h ∝ −w: a gradient along w asks for more of it, one against w for less."""
    net = nn.Linear(3, 2, bias=False).double()
    found = TracedOptimizer(
        decay_groups(net, 1.0), SGD(), {"decay": 0.1, "clip": 1.0}, adapt=("decay",), meta_lr=0.1
    )
    for _ in range(2):
        net.weight.grad = torch.zeros_like(net.weight)
        found.step(0.1, against=[sign * net.weight.detach()])
    assert (found.values()["decay"] - 0.1) * sign > 0


def test_momentum_that_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match="Lion"):
        with_momentum(Lion(), 0.9)
