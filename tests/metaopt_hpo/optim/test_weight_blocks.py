"""Weight blocks in C: live step sizes of one step are the next one's, unless anybody has touched anything since."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import MetaOptimize, Muon


def trained(
    kernel: str, change: Callable[[MetaOptimize, nn.Parameter], object], dtype: torch.dtype
) -> tuple[nn.Parameter, MetaOptimize]:
    gen = torch.Generator().manual_seed(0)
    p, q = (nn.Parameter(torch.randn(n, generator=gen).to(dtype)) for n in (5000, 300))
    groups = [{"params": [p]}, {"params": [q], "lr": 5e-3}]
    opt = MetaOptimize(groups, lr=1e-2, meta_lr=0.05, blocks="weight", weight_decay=0.1, compile=kernel)
    for step in range(9):
        for x in (p, q):
            x.grad = torch.randn(x.shape, generator=gen).to(dtype)
        if step % 3 == 2:
            change(opt, p)
        opt.step()
    return p, opt


def beta_behind_versions(opt: MetaOptimize, p: nn.Parameter) -> None:
    """As a broadcast from another process writes it: no version counter moves."""
    beta = opt.param_groups[0]["beta"]
    beta.data.add_(0.3)


def one_beta(opt: MetaOptimize, p: nn.Parameter) -> None:
    with torch.no_grad():
        opt.param_groups[0]["beta"][17] += 1.0


def without_gradient(opt: MetaOptimize, p: nn.Parameter) -> None:
    p.grad = None


CHANGES = {
    "nothing": lambda opt, p: None,
    "set": lambda opt, p: opt.set_step_size(0.02),
    "scale": lambda opt, p: opt.scale_step_size(0.5),
    "β, unseen": beta_behind_versions,
    "one β": one_beta,
    "live": lambda opt, p: opt.param_groups[0]["step_size"].fill_(7.0),
    "live replaced": lambda opt, p: opt.param_groups[0].update(step_size=torch.full((5000,), 7.0)),
    "lr": lambda opt, p: opt.param_groups[0].update(lr=opt.param_groups[0]["lr"] * 0.5),
    "loaded": lambda opt, p: opt.load_state_dict(opt.state_dict()),
    "no gradient": without_gradient,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_done_between_steps_counts(change, dtype: torch.dtype) -> None:
    (p, opt), (q, plain) = (trained(kernel, change, dtype) for kernel in ("native", "eager"))
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-4}
    torch.testing.assert_close(p, q, **close)
    torch.testing.assert_close(opt.step_sizes(), plain.step_sizes(), rtol=close["rtol"], atol=0.0)
    for group, other in zip(opt.param_groups, plain.param_groups, strict=True):
        torch.testing.assert_close(group["step_size"], other["step_size"], rtol=close["rtol"], atol=0.0)


@pytest.mark.parametrize("blocks", ["scalar", "rule"])
def test_what_has_no_description_is_advanced_beside_the_c_loop(blocks: str) -> None:
    """Muon: matrices by plain operations, everything else in C, and one update of β for both."""
    results = []
    for kernel in ("native", "eager"):
        gen = torch.Generator().manual_seed(1)
        params = [
            nn.Parameter(torch.randn(s, generator=gen, dtype=torch.float64)) for s in [(4, 3), (3,), (5, 5)]
        ]
        opt = MetaOptimize(params, lr=1e-2, base=Muon(hidden=lambda name, p: p.ndim == 2), meta_lr=0.05,
                           blocks=blocks, weight_decay=0.1, max_grad_norm=1.0, compile=kernel)  # fmt: skip
        for step in range(6):
            for i, x in enumerate(params):
                x.grad = (
                    None if step == 3 and i == 1 else torch.randn(x.shape, generator=gen, dtype=torch.float64)
                )
            opt.step()
        assert opt.param_groups[0]["kernel"] == kernel
        results.append(
            [*(x.detach() for x in params), opt.step_sizes(), *(opt.state[x]["h"] for x in params)]
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
