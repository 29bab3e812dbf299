"""How large a first step is, for rules of every kind and tensors that do not count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import Rule
from metaopt_hpo.optim.rules import SGD
from metaopt_hpo.strategies.start import relative_step


@dataclass(frozen=True)
class Asking(Rule):
    """Needs the weight and the name, and keeps a state of another shape."""

    needs: ClassVar[tuple[str, ...]] = ("weight", "name")
    states: ClassVar[tuple[str, ...]] = ("rows",)

    def init_state(self, param):
        return (torch.ones(param.shape[0], 1).to(param),)

    def update(self, g, state, t, *, weight, name):
        assert name is not None
        return g * weight.norm() / state[0], (state[0] + 1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_rule_is_given_what_it_asks_for(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.full((4, 3), 2.0, dtype=dtype))
    p.grad = torch.full((4, 3), 0.5, dtype=dtype)
    u = 0.5 * 2 * math.sqrt(12)
    assert relative_step([p], Asking(), {p: "w"}) == pytest.approx(2 / u, rel=1e-3)


def test_empty_tensors_do_not_count() -> None:
    p, empty = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(0, 3))
    for x in (p, empty):
        x.grad = torch.ones_like(x)
    assert relative_step([empty, p], SGD()) == pytest.approx(1.0)
    assert relative_step([empty], SGD()) == math.inf
    assert relative_step([], SGD()) == math.inf
