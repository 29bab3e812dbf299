"""What has been done to an optimizer's tensors behind its back is refused by name, before any weight has moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import MetaOptimize, Rule

Run = tuple[nn.Parameter, nn.Parameter, MetaOptimize]


def stepped(kernel: str, **options: Any) -> Run:
    gen = torch.Generator().manual_seed(0)
    p, q = nn.Parameter(torch.randn(6, 4, generator=gen)), nn.Parameter(torch.randn(5, generator=gen))
    opt = MetaOptimize([("p", p), ("q", q)], lr=1e-2, compile=kernel, **options)
    again(opt, p, q)
    return p, q, opt


def again(opt: MetaOptimize, *params: nn.Parameter) -> None:
    for x in params:
        x.grad = torch.ones_like(x)
    opt.step()


def free(x: torch.Tensor) -> None:
    x.untyped_storage().resize_(0)


def become(p: nn.Parameter, dtype: torch.dtype) -> None:
    p.requires_grad_(False)
    p.data, p.grad = torch.ones(6, 4, dtype=dtype), None


DAMAGE: dict[str, tuple[Callable[[nn.Parameter, MetaOptimize], object], str]] = {
    "complex": (lambda p, o: become(p, torch.complex64), "'p' has become torch.complex64"),
    "whole numbers": (lambda p, o: become(p, torch.int64), "'p' has become torch.int64"),
    "other state": (lambda p, o: o.state[p].update(m=torch.zeros(3)), "'m' of parameter 'p' has the shape"),
    "state in place": (lambda p, o: o.state[p]["m"].resize_(2, 2), "'m' of parameter 'p' has the shape"),
    "state gone": (lambda p, o: o.state[p].pop("v"), "of parameter 'p' has no tensor 'v'"),
    "state a number": (lambda p, o: o.state[p].update(v=3.0), "of parameter 'p' has no tensor 'v'"),
    "β": (lambda p, o: o.param_groups[0]["beta"].resize_(0), "'beta' in param_groups.0. has been resized"),
    "meta state": (
        lambda p, o: o.param_groups[0]["meta_m"].resize_(3),
        "'meta_m' in param_groups.0. has been",
    ),
}


@pytest.mark.parametrize("kernel", ["native", "eager"])
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_refused_by_name(damage, message: str, kernel: str) -> None:
    p, q, opt = stepped(kernel, blocks="tensor")
    damage(p, opt)
    before = q.detach().clone()
    with pytest.raises(ValueError, match=message):
        again(opt, p, q)
    assert torch.equal(q, before)


@pytest.mark.parametrize("blocks", ["scalar", "weight"])
@pytest.mark.parametrize("which", ["weight", "gradient", "trace", "state", "β", "count"])
def test_memory_that_was_given_back_is_not_written_to(which: str, blocks: str) -> None:
    """As FSDP and offloading do between steps; only the C loop would write there."""
    p, q, opt = stepped("native", blocks=blocks)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    shared, own = opt.param_groups[0], opt.state[p]
    free({"weight": p, "gradient": p.grad, "trace": own["h"], "state": own["v"], "β": shared["beta"],
          "count": shared["meta_step"]}[which])  # fmt: skip
    before = q.detach().clone()
    with pytest.raises(ValueError, match="has been freed"):
        opt.step()
    assert torch.equal(q, before)


@pytest.mark.parametrize("kernel", ["native", "eager"])
@pytest.mark.parametrize(
    "count", [1, 1.0, torch.tensor(1.0, dtype=torch.float64), torch.tensor([1.0]), torch.tensor(1)]
)
def test_step_counts_of_other_kinds_go_on(count, kernel: str) -> None:
    """Checkpoints of other tools keep them as they like."""
    p, q, opt = stepped(kernel)
    r, s, twin = stepped(kernel)
    opt.state[p]["step"] = count
    for _ in range(2):
        again(opt, p, q)
        again(twin, r, s)
    assert torch.equal(p, r)
    assert float(opt.state[p]["step"]) == 3.0


@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_negated_views_are_read_as_what_they_are(kernel: str) -> None:
    results = []
    for view in (lambda x: x, lambda x: torch._neg_view(-x)):
        p = nn.Parameter(view(torch.linspace(-1, 1, 5)))
        opt = MetaOptimize([p], lr=1e-2, compile=kernel)
        for i in range(3):
            p.grad = view(torch.linspace(0.5, 1 + i, 5))
            opt.step()
        results.append(p.detach().resolve_neg())
    torch.testing.assert_close(*results)


def edited(change: Callable[[dict], object]) -> dict:
    _, _, opt = stepped("native")
    state = copy.deepcopy(opt.state_dict())
    change(state)
    return state


LOADED: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (lambda s: s["state"][0].pop("m"), "no 'm' for parameter 'p'"),
    "shape": (lambda s: s["state"][1].update(h=torch.zeros(7)), "'q' has the shape .5,., and there .7,."),
    "β": (lambda s: s["param_groups"][0]["beta"].fill_(float("nan")), "not finite"),
}


@pytest.mark.parametrize(("change", "message"), LOADED.values(), ids=LOADED)
def test_a_damaged_state_dict_is_refused_and_changes_nothing(change, message: str) -> None:
    p, q, opt = stepped("native")
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(edited(change))
    again(opt, p, q)
    r, s, twin = stepped("native")
    twin.load_state_dict(before)
    again(twin, r, s)
    assert torch.equal(p, r)


def test_a_parameter_whose_elements_share_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="share one place in memory"):
        MetaOptimize([nn.Parameter(torch.ones(1).expand(6))])


@dataclass(frozen=True)
class Taken(Rule):
    """Its states have the names that are given."""

    states: ClassVar[tuple[str, ...]] = ()

    def update(self, g, state, t):
        return g, state


@pytest.mark.parametrize(
    ("role", "name"), [("base", "h"), ("base", "step"), ("base", "H_m"), ("meta", "lr"), ("meta", "step")]
)
def test_a_state_of_a_taken_name_is_refused(role: str, name: str) -> None:
    kind = type("Own", (Taken,), {"states": (name,)})
    with pytest.raises(ValueError, match=f"has '{name}', which is taken"):
        MetaOptimize([nn.Parameter(torch.ones(3))], **{role: kind()})
