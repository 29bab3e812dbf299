"""The rules of torch's own optimizers: the numbers that switch parts of them on do not keep them from the C loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import MetaOptimize, Rule
from metaopt_hpo.optim.kernels.describe import describe
from metaopt_hpo.strategies.torch_rules import AMSGrad, TorchMomentum, TorchRMSprop

RULES = [
    (AMSGrad(), torch.optim.AdamW, {"amsgrad": True, "weight_decay": 0.0}),
    (TorchMomentum(), torch.optim.SGD, {"momentum": 0.9}),
    (TorchMomentum(dampening=0.2), torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
    (TorchMomentum(nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (TorchRMSprop(), torch.optim.RMSprop, {}),
    (TorchRMSprop(momentum=0.5, centered=True), torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
]


@pytest.mark.parametrize("kernel", ["native", "eager"])
@pytest.mark.parametrize(
    ("rule", "kind", "options"), RULES, ids=lambda x: repr(x) if isinstance(x, Rule) else ""
)
def test_it_is_torchs(rule: Rule, kind, options: dict, kernel: str) -> None:
    p, q = (nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64)) for _ in range(2))
    opt = MetaOptimize([p], lr=1e-2, base=rule, meta_lr=0.0, compile=kernel)
    theirs = kind([q], lr=1e-2, **options)
    for step in range(6):
        for x, o in ((p, opt), (q, theirs)):
            x.grad = (x.detach() - 0.3) * (step + 1)
            o.step()
    assert opt.param_groups[0]["kernel"] == kernel
    torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_rules_that_decide_alike_have_one_program() -> None:
    assert (
        describe(TorchMomentum(0.5))
        == describe(TorchMomentum(0.9))
        != describe(TorchMomentum(0.9, dampening=0.1))
    )


def test_a_number_that_becomes_zero_during_the_run() -> None:
    """A schedule may switch momentum off; the program changes with it."""
    results = []
    for kernel in ("native", "eager"):
        p = nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64))
        opt = MetaOptimize([p], lr=1e-2, base=TorchRMSprop(momentum=0.5), compile=kernel)
        for momentum in (0.5, 0.5, 0.0, 0.0, 0.3):
            opt.param_groups[0]["momentum"] = momentum
            p.grad = p.detach() - 0.3
            opt.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
