"""The rule API is open: Muon, LAMB, Shampoo and SOAP, their traces by autodiff; and what has no description says so."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import AdamW, MetaOptimize, Muon, Rule
from metaopt_hpo.optim.kernels.describe import NotDescribed, describe
from metaopt_hpo.optim.rules import BASE_RULES, base_rule


@dataclass(frozen=True)
class LAMB(Rule):
    """Adam's direction times ‖w‖ / ‖direction‖ (arXiv 1904.00962)."""

    adam: AdamW = dataclasses.field(default_factory=lambda: AdamW(eps=1e-8))
    states: ClassVar[tuple[str, ...]] = ("m", "v")
    needs: ClassVar[tuple[str, ...]] = ("weight",)

    def update(self, g, state, t, *, weight):
        u, new = self.adam.update(g, state, t)
        return u * weight.norm() / u.norm(), new


def root(x: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(x)
    return vectors @ torch.diag(values.clamp(min=1e-12) ** power) @ vectors.T


@dataclass(frozen=True)
class Shampoo(Rule):
    """L^(−1/4) G R^(−1/4) with L = εI + Σ GGᵀ, R = εI + Σ GᵀG (arXiv 1802.09568)."""

    eps: float = 1e-2
    states: ClassVar[tuple[str, ...]] = ("left", "right")

    def init_state(self, param):
        return tuple(self.eps * torch.eye(n, dtype=param.dtype, device=param.device) for n in param.shape)

    def update(self, g, state, t):
        left, right = state[0] + g @ g.T, state[1] + g.T @ g
        return root(left, -0.25) @ g @ root(right, -0.25), (left, right)


@dataclass(frozen=True)
class SOAP(Rule):
    """Adam in the eigenbasis of Shampoo's matrices (arXiv 2409.11321)."""

    beta2: float = 0.9
    adam: AdamW = dataclasses.field(default_factory=lambda: AdamW(eps=1e-8))
    states: ClassVar[tuple[str, ...]] = ("left", "right", "m", "v")

    def init_state(self, param):
        left, right = (torch.diag(torch.arange(1.0, n + 1)).to(param) * 1e-3 for n in param.shape)
        return left, right, torch.zeros_like(param), torch.zeros_like(param)

    def update(self, g, state, t):
        left = self.beta2 * state[0] + (1 - self.beta2) * g @ g.T
        right = self.beta2 * state[1] + (1 - self.beta2) * g.T @ g
        a, b = (torch.linalg.eigh(x)[1] for x in (left, right))
        rho = self.adam.betas[0]
        m = rho * state[2] + (1 - rho) * g
        _, (_, v) = self.adam.update(a.T @ g @ b, (state[2], state[3]), t)
        d = (a.T @ m @ b / (1 - rho**t)) / ((v / (1 - self.adam.betas[1] ** t)).sqrt() + 1e-8)
        return a @ d @ b.T, (left, right, m, v)


@dataclass(frozen=True)
class Named(Rule):
    """Twice as far where the name says so."""

    needs: ClassVar[tuple[str, ...]] = ("name",)

    def update(self, g, state, t, *, name):
        return g * (2.0 if name == "twice" else 1.0), ()


OPEN = [LAMB(), Shampoo(), SOAP(), Muon(hidden=lambda name, p: p.ndim == 2)]


def loss_of(w: Tensor, b: Tensor, step: int) -> Tensor:
    gen = torch.Generator().manual_seed(step)
    x = torch.randn(7, 3, generator=gen, dtype=torch.float64)
    y = torch.randn(7, 2, generator=gen, dtype=torch.float64)
    return (torch.tanh(x @ w) + b - y).square().mean() + 0.05 * w.square().sum()


def trained(base: Rule, trace: str, lr: float, steps: int = 4) -> tuple[list[nn.Parameter], MetaOptimize]:
    gen = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(3, 2, generator=gen, dtype=torch.float64))
    b = nn.Parameter(torch.randn(2, generator=gen, dtype=torch.float64))
    matrices_only = isinstance(base, Shampoo | SOAP)
    groups = [{"params": [("w", w)]}, {"params": [("b", b)], **({"base": "sgd"} if matrices_only else {})}]
    opt = MetaOptimize(groups, lr=lr, base=base, meta="sgd", meta_lr=0.0, trace=trace, weight_decay=0.1)
    for step in range(steps):
        opt.zero_grad()
        if trace == "hessian_free":
            loss_of(w, b, step).backward()
            opt.step()
        else:
            opt.step(lambda step=step: loss_of(w, b, step))
    return [w, b], opt


@pytest.mark.parametrize("base", OPEN, ids=lambda r: type(r).__name__)
def test_the_trace_of_an_open_rule_is_the_derivative_by_the_log_step_size(base: Rule) -> None:
    """γ = 1 and η = 0: H = dw/dβ, by central differences of whole runs."""
    _, opt = trained(base, "l", 0.05)
    step = 1e-5
    up, down = (trained(base, "l", 0.05 * math.exp(s))[0] for s in (step, -step))
    want = torch.cat([((a - b) / (2 * step)).detach().reshape(-1) for a, b in zip(up, down, strict=True)])
    torch.testing.assert_close(opt.traces()[:, 0], want, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("base", OPEN, ids=lambda r: type(r).__name__)
def test_an_open_rule_runs_hessian_free_and_resumes(base: Rule) -> None:
    """Trap 1: γ = 1, κ = 0 would be h = w − w₀; with decay h still follows Δw exactly."""
    params, opt = trained(base, "hessian_free", 0.05)
    plain, _ = trained(base, "l", 0.05)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    other, fresh = trained(base, "hessian_free", 0.05, steps=0)
    fresh.load_state_dict(opt.state_dict())
    for p, q in zip(params, other, strict=True):
        q.data.copy_(p.data)
    for o, (w, b) in ((opt, params), (fresh, other)):
        o.zero_grad()
        loss_of(w, b, 9).backward()
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(params, other, strict=True))


@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_a_rule_sees_the_parameters_name(kernel: str) -> None:
    p, q = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    opt = MetaOptimize([("once", p), ("twice", q)], base=Named(), lr=0.1, compile="eager")
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    opt.step()
    assert torch.allclose(q, 2 * p)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_is_torchs_muon_and_adamw(adjust: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    twin = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    twin.load_state_dict(model.state_dict())
    opt = MetaOptimize(
        model.named_parameters(), lr=1e-2, base=Muon(adjust=adjust), meta_lr=0.0, weight_decay=0.1
    )
    matrices = [p for p in twin.parameters() if p.ndim == 2]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    torchs = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust),
        torch.optim.AdamW(vectors, lr=1e-2, weight_decay=0.1),
    ]
    for step in range(5):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        for m, os in ((model, [opt]), (twin, torchs)):
            m.zero_grad()
            m(x).square().mean().backward()
            for o in os:
                o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-3)  # Newton–Schulz is in bfloat16


def test_muon_tells_matrices_by_name_and_shape() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.Linear(4, 4), "lm_head": nn.Linear(4, 5)})
    opt = MetaOptimize(model.named_parameters(), base="muon", blocks="rule")
    assert opt.block_names() == ("AdamW", "MuonMatrix")
    kinds = {
        m.name: type(r).__name__
        for m, r in zip(opt._kept.blocks.members.values(), opt._kept.param_rules(), strict=True)
    }
    assert [name for name, kind in kinds.items() if kind == "MuonMatrix"] == ["body.weight"]
    with pytest.raises(ValueError, match="needs parameter names"):
        MetaOptimize(model.parameters(), base="muon").step()


@pytest.mark.parametrize("name", [name for name in BASE_RULES if name != "muon"])
def test_every_elementwise_rule_has_a_description(name: str) -> None:
    """From it follow the eager, the C and the GPU code."""
    assert describe(base_rule(name)).states == len(base_rule(name).states)


def test_a_rule_of_ones_own_gets_the_fast_path_from_its_update_alone() -> None:
    @dataclass(frozen=True)
    class AdaBelief(Rule):
        """v follows the square of what the momentum did not expect."""

        betas: tuple[float, float] = (0.9, 0.99)
        states: ClassVar[tuple[str, ...]] = ("m", "s")
        elementwise: ClassVar[bool] = True
        needs: ClassVar[tuple[str, ...]] = ("weight",)

        def update(self, g, state, t, *, weight):
            b1, b2 = self.betas
            m = b1 * state[0] + (1 - b1) * g
            s = b2 * state[1] + (1 - b2) * (g - m) ** 2 + 1e-12
            u = (m / (1 - b1**t)) / (torch.sqrt(s / (1 - b2**t)) + 1e-8)
            return torch.where(u.abs() > 1.0, torch.sign(u), u) + 0.01 * weight.clamp(min=-1.0, max=1.0), (
                m,
                s,
            )

    results = []
    for kernel in ("native", "eager"):
        torch.manual_seed(1)
        p = nn.Parameter(torch.randn(300, dtype=torch.float64))
        opt = MetaOptimize([p], base=AdaBelief(), lr=0.01, compile=kernel, blocks="weight")
        for _ in range(5):
            p.grad = torch.randn(300, dtype=torch.float64)
            opt.step()
        assert opt.param_groups[0]["kernel"] == kernel
        results.append((p.detach(), opt.step_sizes()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda self, g, state, t: (torch.tanh(g), ()), "it calls tanh"),
        (lambda self, g, state, t: (g if g > 0 else -g, ()), "it decides by a value"),
        (lambda self, g, state, t: (g * float(g), ()), "it turns a value into a Python number"),
        (lambda self, g, state, t: (g**3, ()), "power other than 2"),
        (lambda self, g, state, t: (g / g.norm(), ()), "it uses .norm"),
    ],
)
def test_what_cannot_be_described_is_named(body, why: str) -> None:
    made = dataclasses.make_dataclass(
        "Odd", [], bases=(Rule,), frozen=True, namespace={"update": body, "elementwise": True}
    )
    with pytest.raises(NotDescribed, match=why):
        describe(made())
