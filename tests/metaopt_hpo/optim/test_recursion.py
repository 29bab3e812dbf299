"""MetaOptimize against its recursion, written out here in float64 without anything of the package."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metaopt_hpo.optim import MetaOptimize

BASES = ["sgd", "sgdm", "rmsprop", "adamw", "lion"]
METAS = ["sgd", "adam", "rmsprop", "lion"]


def rule(name: str, g: Tensor, s: dict[str, Tensor], t: int, eps: float) -> Tensor:
    """The paper's tables of updates, state after the step in the direction."""
    zero = torch.zeros_like(g)
    if name == "sgd":
        return g
    if name == "sgdm":
        s["m"] = 0.9 * s.get("m", zero) + 0.1 * g
        return s["m"]
    if name == "lion":
        m = s.get("m", zero)
        s["m"] = 0.99 * m + 0.01 * g
        return torch.sign(0.9 * m + 0.1 * g)
    s["v"] = 0.999 * s.get("v", zero) + 0.001 * g**2
    root = torch.sqrt(s["v"] / (1 - 0.999**t)) + eps
    if name == "rmsprop":
        return g / root
    s["m"] = 0.9 * s.get("m", zero) + 0.1 * g
    return s["m"] / (1 - 0.9**t) / root


class Oracle:
    """Algorithm 3 line by line; ``blocks[i]`` is the block of weight tensor i."""

    def __init__(self, w: list[Tensor], base: str, meta: str, lr: float, eta: float, gamma: float, kappa:
    float,
                 blocks: list[int]) -> None:  # fmt: skip
        self.w = [x.detach().clone() for x in w]
        self.h = [torch.zeros_like(x) for x in w]
        self.base, self.meta, self.eta, self.gamma, self.kappa, self.blocks = (
            base,
            meta,
            eta,
            gamma,
            kappa,
            blocks,
        )
        self.beta = torch.full((max(blocks) + 1,), math.log(lr), dtype=torch.float64)
        self.states: list[dict[str, Tensor]] = [{} for _ in w]
        self.meta_state: dict[str, Tensor] = {}
        self.t = 0

    def step(self, grads: list[Tensor], scale: float = 1.0) -> None:
        self.t += 1
        alpha, z = self.beta.exp() * scale, torch.zeros_like(self.beta)
        for i, g in enumerate(grads):
            a = alpha[self.blocks[i]]
            u = rule(self.base, g, self.states[i], self.t, 1e-8)
            z[self.blocks[i]] += (self.h[i] * g).sum()
            delta = -a * (u + self.kappa * self.w[i])
            self.h[i] = self.gamma * (1 - self.kappa * a) * self.h[i] + delta
            self.w[i] = self.w[i] + delta
        self.beta = self.beta - self.eta * rule(self.meta, z, self.meta_state, self.t, 1e-20)


def net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()


def data(step: int) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(step)
    x = torch.randn(16, 3, generator=gen, dtype=torch.float64)
    return x, torch.sin(x[:, :2]) + x[:, 2:]


def loss_of(model: torch.nn.Module, step: int) -> Tensor:
    x, y = data(step)
    return ((model(x) - y) ** 2).mean().log1p()


def grads_at(model: torch.nn.Module, w: list[Tensor], step: int) -> list[Tensor]:
    """The gradient at weights w, through a functional call, so that the oracle shares no tensor with the
    optimizer."""
    leaves = {
        name: x.clone().requires_grad_() for (name, _), x in zip(model.named_parameters(), w, strict=True)
    }
    x, y = data(step)
    out = torch.func.functional_call(model, leaves, (x,))
    return list(torch.autograd.grad(((out - y) ** 2).mean().log1p(), list(leaves.values())))


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", BASES)
def test_follows_the_recursion(base: str, meta: str, gamma: float, kernel: str) -> None:
    for kind, blocks in [("scalar", [0, 0, 0, 0]), ("layer", [0, 0, 1, 1]), ("tensor", [0, 1, 2, 3])]:
        model, twin = net(), net()
        oracle = Oracle(list(twin.parameters()), base, meta, 1e-2, 0.03, gamma, 0.1, blocks)
        opt = MetaOptimize(model.named_parameters(), lr=1e-2, base=base, meta=meta, meta_lr=0.03, gamma=gamma,
                           blocks=kind, weight_decay=0.1, compile=kernel)  # fmt: skip
        for step in range(8):
            oracle.step(grads_at(twin, oracle.w, step))
            opt.zero_grad()
            loss_of(model, step).backward()
            opt.step()
        for p, w, h in zip(model.parameters(), oracle.w, oracle.h, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(opt.state[p]["h"], h, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(opt.step_sizes(), oracle.beta.exp(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("base", BASES)
def test_weight_blocks_follow_the_recursion(base: str) -> None:
    model, twin = net(), net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, base=base, meta="adam", meta_lr=0.03, blocks="weight",
                       weight_decay=0.1, beta_bounds=(-50.0, 5.0))  # fmt: skip
    # Every weight is a tensor of its own to the oracle.
    shapes = [p.shape for p in twin.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in twin.parameters()])
    oracle = Oracle(list(flat), base, "adam", 1e-2, 0.03, 1.0, 0.1, list(range(flat.numel())))
    for step in range(5):
        pieces = torch.stack(oracle.w).split([s.numel() for s in shapes])
        grads = grads_at(twin, [x.view(s) for x, s in zip(pieces, shapes, strict=True)], step)
        oracle.step(list(torch.cat([g.reshape(-1) for g in grads])))
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
    got = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(got, torch.stack(oracle.w), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(opt.step_sizes(), oracle.beta.exp(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("base", BASES)
def test_without_meta_steps_it_is_the_base_optimizer(base: str) -> None:
    """η = 0: torch's AdamW and SGD step for step, the written-out rule for the others; the schedule a plain
    factor."""
    model, twin = net(), net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, base=base, meta_lr=0.0, weight_decay=0.1)
    ours = torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    oracle = Oracle(list(twin.parameters()), base, "sgd", 1e-2, 0.0, 1.0, 0.1, [0, 0, 0, 0])
    # SGD's weight decay in torch is not decoupled, but κ times α is the same there.
    ref = kinds[base](twin.parameters(), lr=1e-2, weight_decay=0.1) if base in kinds else None
    theirs = torch.optim.lr_scheduler.ExponentialLR(ref, 0.8) if ref else None
    for step in range(10):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
        ours.step()
        if ref is not None and theirs is not None:
            ref.zero_grad()
            loss_of(twin, step).backward()
            ref.step()
            theirs.step()
            expected = [p.detach() for p in twin.parameters()]
        else:
            oracle.step(grads_at(twin, oracle.w, step), scale=0.8**step)
            expected = oracle.w
        for p, w in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("blocks", ["scalar", "layer", "tensor", "weight"])
@pytest.mark.parametrize("base", BASES)
def test_the_trace_is_the_way_travelled(base: str, blocks: str, kernel: str) -> None:
    """γ = 1, κ = 0, Hessian-free: h = w − w₀ exactly, whatever β and the schedule do."""
    model = net()
    start = [p.detach().clone() for p in model.parameters()]
    opt = MetaOptimize(
        model.named_parameters(), lr=1e-2, base=base, meta_lr=0.1, blocks=blocks, compile=kernel
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
    for step in range(12):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
        schedule.step()
    for p, w in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(opt.state[p]["h"], p.detach() - w, rtol=0.0, atol=1e-15)


def test_one_block_is_scalar() -> None:
    runs = []
    for blocks in ["scalar", lambda name: "everything"]:
        model = net()
        opt = MetaOptimize(model.named_parameters(), lr=1e-2, meta_lr=0.1, blocks=blocks)
        for step in range(6):
            opt.zero_grad()
            loss_of(model, step).backward()
            opt.step()
        runs.append([p.detach() for p in model.parameters()] + [opt.step_sizes()])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_maximize_climbs_the_negated_loss() -> None:
    runs = []
    for sign in [1.0, -1.0]:
        model = net()
        opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1, maximize=sign < 0)
        for step in range(6):
            opt.zero_grad()
            (sign * loss_of(model, step)).backward()
            opt.step()
        runs.append([p.detach() for p in model.parameters()] + [opt.step_sizes()])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
