"""Traces with Hessian-vector products: the paper's closed forms, a run rolled out by autodiff, and what
closures must do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from metaopt_hpo.optim import MetaOptimize, Rule

BASES = ["sgd", "sgdm", "rmsprop", "adamw", "lion"]
METAS = ["sgd", "adam", "rmsprop", "lion"]
D = torch.float64
RHO, LAM = 0.9, 0.999


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(D)


def flat_loss(model: nn.Module, step: int):
    """The loss as a function of one flat weight vector, nonquadratic, on the batch of this step."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    gen = torch.Generator().manual_seed(step)
    x = torch.randn(12, 2, generator=gen, dtype=D)

    def loss(w: Tensor) -> Tensor:
        parts = w.split([s.numel() for s in shapes.values()])
        tensors = {name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)}
        out = functional_call(model, tensors, (x,))
        return ((out - torch.sin(x.sum(1, keepdim=True))) ** 2).mean().log1p()

    return loss


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def direction(
    rule: str, g: Tensor, s: dict[str, Tensor], t: int, eps: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The rules' table, functional, with a square root that is smooth where it is used (v > 0)."""
    zero = torch.zeros_like(g)
    if rule == "sgd":
        return g, {}
    if rule == "sgdm":
        m = RHO * s.get("m", zero) + (1 - RHO) * g
        return m, {"m": m}
    if rule == "lion":
        m = s.get("m", zero)
        return torch.sign(0.9 * m + 0.1 * g), {"m": 0.99 * m + 0.01 * g}
    v = LAM * s.get("v", zero) + (1 - LAM) * g**2
    safe = torch.where(v > 0, v, torch.ones_like(v))
    root = torch.where(v > 0, torch.sqrt(safe / (1 - LAM**t)), zero) + eps
    if rule == "rmsprop":
        return g / root, {"v": v}
    m = RHO * s.get("m", zero) + (1 - RHO) * g
    return m / (1 - RHO**t) / root, {"m": m, "v": v}


class ClosedForm:
    """The trace recursions of the paper's tables, m blocks, dense; ``kind`` is "2x2" or "l"."""

    def __init__(self, w: Tensor, owner: Tensor, base: str, meta: str, kind: str, lr: float, eta: float,
                 gamma: float, kappa: float) -> None:  # fmt: skip
        m, n = int(owner.max()) + 1, w.numel()
        self.w, self.owner, self.base, self.meta, self.kind = w.clone(), owner, base, meta, kind
        self.eta, self.gamma, self.kappa, self.t = eta, gamma, kappa, 0
        self.beta = torch.full((m,), math.log(lr), dtype=D)
        self.s: dict[str, Tensor] = {}
        self.ms: dict[str, Tensor] = {}
        self.H, self.M, self.V = (torch.zeros(n, m, dtype=D) for _ in range(3))
        self.Y = torch.eye(m, dtype=D)
        self.Ym, self.Yv = torch.zeros(m, m, dtype=D), torch.zeros(m, m, dtype=D)

    def step(self, loss) -> None:
        self.t += 1
        t, gamma, kappa, w = self.t, self.gamma, self.kappa, self.w
        g, hess = grad(loss)(w), torch.func.hessian(loss)(w)
        q = hess @ self.H
        z, A = self.H.T @ g, self.H.T @ q
        alpha = self.beta.exp()[self.owner]
        S = torch.nn.functional.one_hot(self.owner, self.beta.numel()).to(D) * alpha[:, None]
        a = gamma * self.Y + (1 - gamma) * torch.eye(self.beta.numel(), dtype=D)
        u, new = direction(self.base, g, self.s, t, 1e-8)
        c1, c2 = 1 - RHO**t, 1 - LAM**t
        bracket = torch.zeros_like(self.H)
        if self.base == "sgd":
            bracket = gamma * q
        elif self.base == "sgdm":
            self.M = gamma * (RHO * self.M + (1 - RHO) * q)
            bracket = self.M
        elif self.base in ("rmsprop", "adamw"):
            self.V = gamma * (LAM * self.V + 2 * (1 - LAM) * g[:, None] * q)
            root = torch.sqrt(new["v"] / c2)
            Dn = root + 1e-8
            slope = self.V / (2 * Dn**2 * root * c2)[:, None]
            if self.base == "rmsprop":
                bracket = gamma * q / Dn[:, None] - g[:, None] * slope
            else:
                self.M = gamma * (RHO * self.M + (1 - RHO) * q)
                bracket = self.M / (c1 * Dn)[:, None] - (new["m"] / c1)[:, None] * slope
        H = gamma * (1 - kappa * alpha)[:, None] * self.H - alpha[:, None] * bracket
        self.H = H - (u + kappa * w)[:, None] * (S @ a)
        if self.kind == "2x2" and self.meta != "lion":
            self._meta_rows(a, A, z)
        elif self.kind == "2x2":
            self.Y = a
        d, self.ms = direction(self.meta, z, self.ms, t, 1e-20)
        self.beta = self.beta - self.eta * d
        self.w = w - alpha * (u + kappa * w)
        self.s = new

    def _meta_rows(self, a: Tensor, A: Tensor, z: Tensor) -> None:
        gamma, t = self.gamma, self.t
        if self.meta == "sgd":
            self.Y = a - self.eta * gamma * A
            return
        _, new = direction(self.meta, z, self.ms, t, 1e-20)
        c1, c2 = 1 - RHO**t, 1 - LAM**t
        root = torch.sqrt(new["v"] / c2)
        Dn = root + 1e-20
        self.Yv = gamma * LAM * self.Yv + 2 * (1 - LAM) * z[:, None] * gamma * A
        bend = torch.where(root > 0, 2 * Dn**2 * root * c2, torch.ones_like(root))
        slope = torch.where(root > 0, 1.0, 0.0)[:, None] * self.Yv / bend[:, None]
        if self.meta == "adam":
            self.Ym = gamma * RHO * self.Ym + (1 - RHO) * gamma * A
            self.Y = a - self.eta * (self.Ym / (c1 * Dn)[:, None] - (new["m"] / c1)[:, None] * slope)
        else:
            self.Y = a - self.eta * (gamma * A / Dn[:, None] - z[:, None] * slope)


def trained(model: nn.Module, steps: int, **options) -> MetaOptimize:
    opt = MetaOptimize(model.named_parameters(), **options)
    for step in range(steps):
        loss = flat_loss(model, step)
        opt.step(lambda loss=loss: loss(torch.cat([p.reshape(-1) for p in model.parameters()])))
    return opt


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("kind", ["2x2", "l"])
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", BASES)
def test_autodiff_equals_the_closed_forms(base: str, meta: str, kind: str, gamma: float) -> None:
    model = net()
    owner = torch.tensor([0] * 9 + [1] * 4)
    # η is small where the meta rule does not normalise, so that the run stays in the region where α is sane.
    eta = 0.3 if meta == "sgd" else 0.02
    form = ClosedForm(flat(model), owner, base, meta, kind, 0.02, eta, gamma, 0.1)
    opt = trained(model, 7, lr=0.02, base=base, meta=meta, meta_lr=eta, gamma=gamma, blocks="layer",
                  weight_decay=0.1, trace=kind)  # fmt: skip
    for step in range(7):
        form.step(flat_loss(net(), step))
    torch.testing.assert_close(opt.traces(), form.H, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(flat(model), form.w, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(opt.step_sizes(), form.beta.exp(), rtol=1e-10, atol=0.0)
    if kind == "2x2":
        torch.testing.assert_close(opt.param_groups[0]["H_beta"].T, form.Y, rtol=1e-10, atol=1e-13)


def rolled_out(model: nn.Module, base: str, meta: str, lr: float, eta: float, steps: int, depth: int):
    """w_T as a function of β₀ (one block) where z uses h = dw/dβ₀ by autodiff, nested ``depth`` deep.

    h at step t depends on earlier h only through β, so ``depth`` > steps / 2 makes it the true derivative.
    """

    def run(beta0: Tensor, upto: int, level: int) -> tuple[Tensor, Tensor]:
        w, beta = flat(model), beta0
        s: dict[str, Tensor] = {}
        ms: dict[str, Tensor] = {}
        for t in range(upto):
            if level > 0 and t > 0:
                h = jvp(lambda b, t=t: run(b, t, level - 1)[0], (beta0,), (torch.ones_like(beta0),))[1]
            else:
                h = torch.zeros_like(w)
            g = grad(flat_loss(model, t))(w)
            d, ms = direction(meta, h @ g, ms, t + 1, 1e-20)
            u, s = direction(base, g, s, t + 1, 1e-8)
            w = w - beta.exp() * (u + 0.1 * w)
            beta = beta - eta * d
        return w, beta

    start = torch.tensor(math.log(lr), dtype=D)
    return jvp(lambda b: run(b, steps, depth)[0], (start,), (torch.ones_like(start),))


@pytest.mark.parametrize(("base", "meta"), [("sgd", "sgd"), ("adamw", "sgd"), ("sgdm", "adam")])
def test_exact_is_the_derivative_of_the_run(base: str, meta: str) -> None:
    """Against the run rolled out at η > 0: equal while the trace of Q does not matter, and 2x2 is not."""
    eta = 0.5 if meta == "sgd" else 0.1
    w, h = rolled_out(net(), base, meta, 0.1, eta, 4, 3)
    errors = {}
    for kind in ["exact", "2x2"]:
        model = net()
        opt = trained(model, 4, lr=0.1, base=base, meta=meta, meta_lr=eta, weight_decay=0.1, trace=kind)
        errors[kind] = float((opt.traces()[:, 0] - h).norm() / h.norm())
        if kind == "exact":
            torch.testing.assert_close(flat(model), w, rtol=1e-10, atol=1e-13)
    assert errors["exact"] < 1e-10
    assert errors["2x2"] > 1e-6


@pytest.mark.slow
def test_exact_is_of_second_order_in_eta() -> None:
    """Beyond that its error falls as η², that of 2x2 as η."""
    errors: dict[str, list[float]] = {"exact": [], "2x2": []}
    for eta in [0.4, 0.2]:
        _, h = rolled_out(net(), "sgd", "sgd", 0.1, eta, 6, 3)
        for kind, row in errors.items():
            opt = trained(net(), 6, lr=0.1, base="sgd", meta="sgd", meta_lr=eta, weight_decay=0.1, trace=kind)
            row.append(float((opt.traces()[:, 0] - h).norm() / h.norm()))
    assert 3.0 < errors["exact"][0] / errors["exact"][1] < 5.5
    assert 1.6 < errors["2x2"][0] / errors["2x2"][1] < 2.5
    assert errors["exact"][0] < errors["2x2"][0] / 5


@pytest.mark.parametrize("base", BASES)
def test_at_eta_zero_exact_and_2x2_coincide_with_the_true_derivative(base: str) -> None:
    _, h = rolled_out(net(), base, "sgd", 0.05, 0.0, 6, 0)
    for kind in ["exact", "2x2", "l"]:
        opt = trained(net(), 6, lr=0.05, base=base, meta="sgd", meta_lr=0.0, weight_decay=0.1, trace=kind)
        torch.testing.assert_close(opt.traces()[:, 0], h, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["l", "2x2", "exact"])
def test_weight_blocks_have_dense_traces(kind: str) -> None:
    model = net()
    steps = 2 if kind == "exact" else 4
    opt = trained(model, steps, lr=0.02, base="sgd", meta="sgd", meta_lr=0.3, blocks="weight", trace=kind)
    assert opt.traces().shape == (13, 13)
    form = ClosedForm(
        flat(net()), torch.arange(13), "sgd", "sgd", "l" if kind == "l" else "2x2", 0.02, 0.3, 1.0, 0.0
    )
    for step in range(steps):
        form.step(flat_loss(net(), step))
    tolerance = 0.05 if kind == "exact" else 1e-10
    assert float((opt.traces() - form.H).norm() / form.H.norm()) < tolerance


@dataclass(frozen=True)
class Sharpened(Rule):
    """A rule of a user's own, in a few lines: u = m' |g|, m' = ρm + (1−ρ) tanh g."""

    rho: float = 0.8
    states: ClassVar[tuple[str, ...]] = ("m",)

    def update(self, g, state, t):
        m = self.rho * state[0] + (1 - self.rho) * torch.tanh(g)
        return m * torch.abs(g), (m,)


def test_a_rule_of_ones_own_needs_no_derivation() -> None:
    model, origin = net(), flat(net())

    def weights(beta: Tensor) -> Tensor:
        w, m = origin, torch.zeros(13, dtype=D)
        for t in range(5):
            u, (m,) = Sharpened().update(grad(flat_loss(model, t))(w), (m,), t + 1)
            w = w - beta.exp() * u
        return w

    start = torch.tensor(math.log(0.5), dtype=D)
    w, h = jvp(weights, (start,), (torch.ones_like(start),))
    opt = trained(model := net(), 5, lr=0.5, base=Sharpened(), meta=Sharpened(), meta_lr=0.0, trace="2x2")
    torch.testing.assert_close(flat(model), w, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(opt.traces()[:, 0], h, rtol=1e-10, atol=1e-13)
    free = net()
    opt = MetaOptimize(free.parameters(), lr=0.5, base=Sharpened(), meta=Sharpened(), meta_lr=0.1)
    flat_loss(free, 0)(torch.cat([p.reshape(-1) for p in free.parameters()])).backward()
    opt.step()
    torch.testing.assert_close(
        flat(free) - flat(net()), torch.cat([opt.state[p]["h"].reshape(-1) for p in free.parameters()])
    )


def test_closures_are_checked() -> None:
    model = net()
    x = torch.randn(4, 2, dtype=D)
    opt = MetaOptimize(model.parameters(), trace="2x2")

    def with_backward() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for closure, message in [
        (None, "no closure was given"),
        (with_backward, "this one did call it"),
        (lambda: 1.0, "returned float"),
        (lambda: model(x), r"shape \(4, 1\)"),
        (lambda: model(x).square().mean().detach(), "without graph"),
    ]:
        with pytest.raises(ValueError, match=message):
            opt.step(closure)
    loss = opt.step(lambda: model(x).square().mean())
    assert not loss.requires_grad
    assert all(p.grad is not None for p in model.parameters())


def test_the_optimizer_fills_the_gradient() -> None:
    model, twin = net(), net()
    x = torch.randn(4, 2, dtype=D)
    twin(x).square().mean().backward()
    MetaOptimize(model.parameters(), trace="l").step(lambda: model(x).square().mean())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_attention_and_unused_parameters_work() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    extra = nn.Linear(2, 2)
    x = torch.randn(3, 5, 8)
    opt = MetaOptimize([*layer.parameters(), *extra.parameters()], lr=1e-3, trace="2x2")
    for _ in range(3):
        opt.step(lambda: layer(x).square().mean())
    assert bool(torch.isfinite(opt.traces()).all())
    assert extra.weight.grad is None
    assert float(opt.state[extra.weight]["step"]) == 0


@pytest.mark.parametrize("kind", ["2x2", "exact"])
def test_maximize_and_clipping_reach_the_trace(kind: str) -> None:
    """Climbing −f is descending f, and a clipped gradient of 10 f is that of f clipped alike."""
    runs = []
    for sign in [1.0, -1.0]:
        model = net()
        opt = MetaOptimize(model.parameters(), lr=0.1, base="sgd", meta_lr=0.1, trace=kind, max_grad_norm=1e-2,
                           maximize=sign < 0)  # fmt: skip
        for step in range(3):
            loss = flat_loss(model, step)
            opt.step(
                lambda loss=loss, m=model, sign=sign: (
                    sign * loss(torch.cat([p.reshape(-1) for p in m.parameters()]))
                )
            )
        runs.append((flat(model), opt.traces()))
        assert float((flat(model) - flat(net())).norm()) < 0.1 * 1e-2 * 3 * 1.5
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["2x2", "exact"])
def test_a_non_finite_z_keeps_beta_and_its_trace(kind: str) -> None:
    model = net()
    opt = trained(model, 2, lr=0.1, base="sgd", meta="adam", meta_lr=0.1, trace=kind)
    before = opt.step_sizes()
    opt.step(lambda: sum(p.sum() for p in model.parameters()) * math.inf)
    assert opt.skipped == 1
    assert torch.equal(opt.step_sizes(), before)


@pytest.mark.parametrize("kind", ["l", "2x2", "exact"])
def test_state_with_dense_traces_round_trips(kind: str) -> None:
    model = net()
    opt = trained(model, 3, lr=0.02, blocks="layer", meta_lr=0.1, trace=kind)
    twin = net()
    twin.load_state_dict(model.state_dict())
    other = MetaOptimize(twin.named_parameters(), lr=0.02, blocks="layer", meta_lr=0.1, trace=kind)
    other.load_state_dict(opt.state_dict())
    for m, o in [(model, opt), (twin, other)]:
        loss = flat_loss(m, 9)
        o.step(lambda loss=loss, m=m: loss(torch.cat([p.reshape(-1) for p in m.parameters()])))
    assert torch.equal(flat(model), flat(twin))
    assert torch.equal(opt.traces(), other.traces())


def test_traces_that_are_too_large_are_refused_with_the_number() -> None:
    big = nn.Linear(200, 200)
    with pytest.raises(ValueError, match="40200 weights × 40200 blocks = 1616040000"):
        MetaOptimize(big.parameters(), blocks="weight", trace="2x2")
    with pytest.raises(ValueError, match=r"more than 4194304"):
        MetaOptimize(nn.Linear(20, 20).parameters(), blocks="weight", trace="exact")
