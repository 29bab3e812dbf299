"""The presets against their papers' update equations, written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.optim.presets import IDBD, Hypergradient, Xu, log_hypergradient

D = torch.float64


def stream(steps: int, n: int = 5) -> list[tuple[Tensor, Tensor]]:
    gen = torch.Generator().manual_seed(0)
    truth = torch.randn(n, generator=gen, dtype=D)
    inputs = torch.randn(steps, n, generator=gen, dtype=D) * torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0], dtype=D)
    return [(a, a @ truth + 0.1 * torch.randn((), generator=gen, dtype=D)) for a in inputs]


def test_idbd_is_suttons() -> None:
    """Sutton 1992, figure 2: β += θ δ x h; α = exp β; w += α δ x; h = h [1 − α x²]⁺ + α δ x."""
    w = nn.Parameter(torch.zeros(5, dtype=D))
    opt = IDBD([w], lr=0.3, meta_lr=0.05)
    sw, sb, sh = torch.zeros(5, dtype=D), torch.full((5,), math.log(0.3), dtype=D), torch.zeros(5, dtype=D)
    clipped = False
    for a, b in stream(40):
        opt.step(lambda a=a, b=b: 0.5 * (a @ w - b) ** 2)
        delta = b - sw @ a
        sb = sb + 0.05 * delta * a * sh
        alpha = sb.exp()
        sw = sw + alpha * delta * a
        clipped = clipped or bool((alpha * a * a > 1).any())
        sh = sh * (1 - alpha * a * a).clamp(min=0) + alpha * delta * a
        torch.testing.assert_close(w.detach(), sw, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(opt.step_sizes(), alpha, rtol=1e-10, atol=0.0)
    assert clipped, "the clip at 0 was never needed, so this did not test it"


def test_xu_keeps_the_whole_trace() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).to(D)
    n = sum(p.numel() for p in model.parameters())
    opt = Xu(model.parameters(), lr=0.1, meta_lr=0.05)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    beta, H = torch.full((n,), math.log(0.1), dtype=D), torch.zeros(n, n, dtype=D)
    for step in range(10):
        gen = torch.Generator().manual_seed(step)
        x = torch.randn(4, 2, generator=gen, dtype=D)

        def loss(v: Tensor, x: Tensor = x) -> Tensor:
            hidden = torch.tanh(x @ v[:4].view(2, 2).T + v[4:6])
            return ((hidden @ v[6:8] + v[8]) - x.sum(1)).square().mean()

        opt.step(lambda x=x: (model(x)[:, 0] - x.sum(1)).square().mean())
        g, hessian = torch.func.grad(loss)(w), torch.func.hessian(loss)(w)
        beta = beta - 0.05 * H.T @ g
        alpha = beta.exp()
        w = w - alpha * g
        H = H - alpha[:, None] * (hessian @ H) - torch.diag(alpha * g)
        got = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        torch.testing.assert_close(got, w, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(opt.step_sizes(), alpha, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_hypergradient_is_baydins(base: str, kind: str) -> None:
    """Algorithms 4 and 5 of arXiv 1703.04782: h_t = ∇f·∇_α u_{t−1}, α_t = α_{t−1} − β h_t (or normalised),
    then the step."""
    eta = 1e-3 if kind == "additive" else 0.05
    w = nn.Parameter(torch.zeros(5, dtype=D))
    opt = Hypergradient([w], lr=0.05, kind=kind, base=base, meta_lr=eta)
    sw, alpha, grad_u = torch.zeros(5, dtype=D), torch.tensor(0.05, dtype=D), torch.zeros(5, dtype=D)
    m, v = torch.zeros(5, dtype=D), torch.zeros(5, dtype=D)
    for t, (a, b) in enumerate(stream(30), start=1):
        opt.zero_grad()
        (0.5 * (a @ w - b) ** 2).backward()
        opt.step()
        g = (sw @ a - b) * a
        h = g @ grad_u
        if kind == "additive":
            alpha = alpha - eta * h
        elif t > 1:
            alpha = alpha * (1 - eta * h / (g.norm() * grad_u.norm()))
        if base == "sgd":
            u = g
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        sw, grad_u = sw - alpha * u, -u
        torch.testing.assert_close(w.detach(), sw, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(opt.alpha, alpha, rtol=1e-10, atol=0.0)
    assert float(alpha) != 0.05


def test_log_hypergradient_multiplies_by_an_exponential() -> None:
    w = nn.Parameter(torch.zeros(5, dtype=D))
    opt = log_hypergradient([w], lr=0.05, meta_lr=0.02)
    assert isinstance(opt, MetaOptimize)
    alpha, prev = torch.tensor([0.05], dtype=D), torch.zeros(5, dtype=D)
    for a, b in stream(20):
        opt.zero_grad()
        (0.5 * (a @ w - b) ** 2).backward()
        before, g = opt.step_sizes(), w.grad.clone()
        opt.step()
        torch.testing.assert_close(
            opt.step_sizes(), before * torch.exp(0.02 * alpha * (prev @ g)), rtol=1e-10, atol=0.0
        )
        alpha, prev = before, g


def test_presets_refuse_what_they_cannot_do() -> None:
    big = nn.Linear(100, 100)
    for kind in (IDBD, Xu):
        with pytest.raises(ValueError, match="10100 are more than 4096"):
            kind(big.parameters())
        with pytest.raises(ValueError, match="lr=0"):
            kind(nn.Linear(2, 2).parameters(), lr=0)
        with pytest.raises(ValueError, match="no closure"):
            kind(nn.Linear(2, 2).parameters()).step()
    with pytest.raises(ValueError, match="kind='sum'"):
        Hypergradient(big.parameters(), kind="sum")


def test_hypergradient_survives_a_bad_gradient() -> None:
    w = nn.Parameter(torch.zeros(3))
    opt = Hypergradient([w], lr=0.1)
    for value in [1.0, math.nan]:
        w.grad = torch.full((3,), value)
        opt.step()
    assert float(opt.alpha) == pytest.approx(0.1)


def test_the_authors_units_are_ten_times_the_printed_ones() -> None:
    """At ρ = 0.9, once the momenta have settled: η and α₀ of one are a tenth of the other's."""
    from metaopt_hpo.optim.presets import authors_units

    runs = []
    for make, lr, meta_lr in ((authors_units, 1e-4, 1e-3), (MetaOptimize, 1e-3, 1e-2)):
        p = nn.Parameter(torch.full((50,), 3.0, dtype=torch.float64))
        opt = make([p], lr, meta_lr=meta_lr, meta="adam")
        for _ in range(400):
            p.grad = torch.ones_like(p)
            opt.step()
        runs.append((float(opt.step_sizes()[0]) / lr, float(p[0].detach())))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=0.1)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=0.1)
    assert runs[0][0] > 10


def test_one_step_in_the_authors_units_by_hand() -> None:
    from metaopt_hpo.optim import UnnormalisedAdamW

    g = torch.tensor([0.5, -2.0], dtype=torch.float64)
    rule = UnnormalisedAdamW()
    zero = torch.zeros_like(g)
    u, (m, v) = rule.update(g, (zero, zero), 1.0)
    assert torch.equal(m, g)
    torch.testing.assert_close(v, 0.001 * g * g)
    torch.testing.assert_close(u, g / (g * g + 1e-10).sqrt())
    u, (m, v) = rule.update(g, (m, v), 2.0)
    torch.testing.assert_close(m, 1.9 * g)
