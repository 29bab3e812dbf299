"""Blocks belong to parameters: whatever is done to the groups by hand, every weight keeps its own step size.

The reference keeps everything under the parameter's name and knows no positions.
"""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from metaopt_hpo.optim import AdamW, Lion, MetaOptimize

META_LR, LR = 0.05, 1e-2


class Reference:
    """Algorithm 3 with AdamW and meta-Adam in float64, written down by name."""

    def __init__(self) -> None:
        self.beta: dict[str, list[float]] = {}
        self.state: dict[str, list[Tensor]] = {}
        self.count: dict[str, int] = {}

    def meet(self, name: str, block: str) -> None:
        self.beta.setdefault(block, [math.log(LR), 0.0, 0.0, 0.0])

    def step(
        self, weights: dict[str, Tensor], grads: dict[str, Tensor], blocks: dict[str, str], ratio, decay
    ):
        z = dict.fromkeys(self.beta, 0.0)
        for name, g in grads.items():
            w = weights[name]
            m, v, h = self.state.setdefault(name, [torch.zeros_like(w) for _ in range(3)])
            t = self.count[name] = self.count.get(name, 0) + 1
            z[blocks[name]] += float((h * g).sum())
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            a = math.exp(self.beta[blocks[name]][0]) * ratio[name]
            delta = -a * (u + decay[name] * w)
            self.state[name] = [m, v, (1 - decay[name] * a) * h + delta]
            weights[name] = w + delta
        for block, (beta, m, v, t) in self.beta.items():
            m, v, t = 0.9 * m + 0.1 * z[block], 0.999 * v + 0.001 * z[block] ** 2, t + 1
            d = (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-20)
            self.beta[block] = [beta - META_LR * d, m, v, t]


class Editing(RuleBasedStateMachine):
    """Random edits of the groups, steps, saves and loads; after each, weights and step sizes are the reference's."""

    @initialize(
        blocks=st.sampled_from(["scalar", "tensor", "layer"]), kernel=st.sampled_from(["native", "eager"])
    )
    def start(self, blocks: str, kernel: str) -> None:
        self.blocks, self.kernel, self.made = blocks, kernel, 0
        self.reference = Reference()
        self.params: dict[str, nn.Parameter] = {}
        names = [self.fresh(layer, kind) for layer in "ab" for kind in ("weight", "bias")]
        self.opt = MetaOptimize([(n, self.params[n]) for n in names], lr=LR, meta_lr=META_LR, blocks=blocks,
                                compile=kernel)  # fmt: skip
        self.names = {id(p): n for n, p in self.params.items()}

    def fresh(self, layer: str, kind: str) -> str:
        name = f"{layer}.{kind}"
        gen = torch.Generator().manual_seed(self.made)
        self.params[name] = nn.Parameter(torch.randn(3, 2, generator=gen, dtype=torch.float64))
        self.reference.meet(name, self.block(name))
        self.made += 1  # names are not given twice, not even those of parameters that are gone
        return name

    def block(self, name: str) -> str:
        return {"scalar": "all", "tensor": name, "layer": name.partition(".")[0]}[self.blocks]

    def members(self) -> list[tuple[str, dict]]:
        return [(self.names[id(p)], group) for group in self.opt.param_groups for p in group["params"]]

    @rule(some=st.booleans(), seed=st.integers(0, 99))
    def step(self, some: bool, seed: int) -> None:
        gen = torch.Generator().manual_seed(seed)
        weights, grads, ratio, decay = {}, {}, {}, {}
        for i, (name, group) in enumerate(self.members()):
            p = self.params[name]
            p.grad = None if some and i % 2 else torch.randn(p.shape, generator=gen, dtype=torch.float64)
            weights[name] = p.detach().clone()
            ratio[name], decay[name] = group["lr"] / LR, group["weight_decay"]
            if p.grad is not None:
                grads[name] = p.grad.clone()
        self.reference.step(weights, grads, {n: self.block(n) for n in self.params}, ratio, decay)
        self.opt.step()
        for name, w in weights.items():
            torch.testing.assert_close(self.params[name].detach(), w, rtol=1e-9, atol=1e-12)

    @rule(data=st.data())
    def remove_a_member(self, data) -> None:
        groups = [g for g in self.opt.param_groups if len(g["params"]) > 1]
        if not groups:
            return
        group = data.draw(st.sampled_from(groups))
        i = data.draw(st.integers(0, len(group["params"]) - 1))
        group["params"].pop(i).grad = None
        if data.draw(st.booleans()):
            group["param_names"].pop(i)

    @rule(data=st.data())
    def append_a_member(self, data) -> None:
        group = data.draw(st.sampled_from(self.opt.param_groups))
        present = {name for name, _ in self.members()}
        gone = [n for n in self.params if n not in present]
        name = data.draw(st.sampled_from(gone)) if gone else self.fresh(f"n{self.made}", "weight")
        self.names[id(self.params[name])] = name
        group["params"].append(self.params[name])
        group["param_names"] = [self.names[id(p)] for p in group["params"]]

    @rule(reverse=st.booleans())
    def reorder(self, reverse: bool) -> None:
        self.opt.param_groups.reverse()
        if reverse:
            for group in self.opt.param_groups:
                group["params"].reverse()

    @precondition(lambda self: len(self.opt.param_groups) > 1)
    @rule(first=st.booleans())
    def delete_a_group(self, first: bool) -> None:
        for p in self.opt.param_groups.pop(0 if first else -1)["params"]:
            p.grad = None

    @rule(decay=st.sampled_from([0.0, 0.1]), scale=st.sampled_from([0.5, 1.0]))
    def add_a_group(self, decay: float, scale: float) -> None:
        name = self.fresh(f"n{self.made}", "weight")
        self.names[id(self.params[name])] = name
        self.opt.add_param_group(
            {"params": [(name, self.params[name])], "weight_decay": decay, "lr": LR * scale}
        )

    @rule()
    def resume(self) -> None:
        state = copy.deepcopy(self.opt.state_dict())
        groups = [
            {"params": [(self.names[id(p)], p) for p in group["params"]]} for group in self.opt.param_groups
        ]
        present = {name for name, _ in self.members()}
        other = MetaOptimize(groups, lr=LR, meta_lr=META_LR, blocks=self.blocks, compile=self.kernel)
        other.load_state_dict(state)
        self.opt = other
        if self.blocks != "scalar":  # a new optimizer knows nothing of what is in no group
            kept = {self.block(name) for name in present}
            self.reference.beta = {b: v for b, v in self.reference.beta.items() if b in kept}
        for name in [n for n in self.params if n not in present]:
            del self.params[name]
            self.reference.state.pop(name, None)
            self.reference.count.pop(name, None)

    @invariant()
    def step_sizes_are_the_references(self) -> None:
        if not hasattr(self, "opt"):
            return
        got = dict(zip(self.opt.block_names(), self.opt.step_sizes().tolist(), strict=True))
        for block, (beta, *_) in self.reference.beta.items():
            if block in got:
                assert got[block] == pytest.approx(math.exp(beta), rel=1e-9)
        assert {self.block(name) for name, _ in self.members()} <= got.keys()


Editing.TestCase.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEditing = Editing.TestCase


def two() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))


def test_a_parameter_that_stands_in_two_places_is_refused_by_name() -> None:
    p, q = two()
    opt = MetaOptimize([("p", p), ("q", q)])
    opt.param_groups[0]["params"].append(p)
    with pytest.raises(ValueError, match="'p' stands in the parameter groups twice"):
        opt.step()


def test_a_newcomer_without_a_name_is_refused_where_blocks_need_one() -> None:
    p, q = two()
    opt = MetaOptimize([("a.p", p)], blocks="layer")
    opt.param_groups[0]["params"].append(q)
    with pytest.raises(ValueError, match="needs parameter names"):
        opt.step()


def test_a_group_dict_appended_by_hand_gets_the_defaults() -> None:
    p, q = two()
    opt = MetaOptimize([p], lr=1e-2, weight_decay=0.3)
    opt.param_groups.append({"params": [q]})
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    opt.step()
    assert torch.equal(p, q)
    assert opt.param_groups[1]["weight_decay"] == 0.3


def test_groups_replaced_by_copies_keep_their_state() -> None:
    """As Lightning's BaseFinetuning does on a resume."""
    p, q = two()
    opt = MetaOptimize([("p", p), ("q", q)], blocks="tensor", lr=1e-2, meta_lr=0.1)
    for _ in range(4):
        p.grad, q.grad = torch.ones(3), -torch.ones(3)
        opt.step()
    before = opt.step_sizes()
    group = {k: v for k, v in opt.param_groups[0].items() if k not in ("params", "param_names")}
    opt.param_groups = [{**group, "params": [q]}, {**group, "params": [p]}]
    opt.step()
    assert opt.block_names() == ("p", "q")
    assert not torch.equal(opt.step_sizes(), before)
    assert torch.allclose(opt.step_sizes(), before, rtol=0.2)


@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_options_of_a_group_are_used(kernel: str) -> None:
    runs = []
    for options in [{}, {"betas": (0.0, 0.5), "eps": 1.0}, {"betas": [0.0, 0.5], "eps": 1.0}]:
        p, q = two()
        opt = MetaOptimize([{"params": [p]}, {"params": [q], **options}], lr=0.1, compile=kernel)
        for i in range(4):
            p.grad, q.grad = torch.full((3,), 1.0 + i), torch.full((3,), 1.0 + i)
            opt.step()
        runs.append((p.detach(), q.detach()))
        want = nn.Parameter(torch.ones(3))
        twin = MetaOptimize([want], lr=0.1, compile=kernel, meta_lr=0.0,
                            base=AdamW(tuple(options.get("betas", (0.9, 0.999))), options.get("eps")))  # fmt: skip
        for i in range(4):
            want.grad = torch.full((3,), 1.0 + i)
            twin.step()
        torch.testing.assert_close(q.detach(), want.detach(), rtol=1e-2, atol=1e-3)
    assert not torch.equal(runs[0][1], runs[1][1])
    assert torch.equal(runs[1][1], runs[2][1])


@pytest.mark.parametrize(
    ("base", "option"),
    [("adamw", {"momentum": 0.9}), ("sgd", {"betas": (0.9, 0.99)}), ("lion", {"amsgrad": True})],
)
def test_an_option_that_the_rule_has_not_is_refused(base: str, option: dict) -> None:
    p, _ = two()
    with pytest.raises(ValueError, match="is not an option of"):
        MetaOptimize([{"params": [p], **option}], base=base)


@pytest.mark.parametrize("base", ["adamw", "sgdm", "lion"])
def test_cycled_momentum_is_obeyed(base: str) -> None:
    """OneCycleLR and CyclicLR write betas or momentum into the groups."""
    p, _ = two()
    opt = MetaOptimize([p], lr=1e-3, base=base)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=10)
    seen = set()
    for _ in range(5):
        p.grad = torch.ones(3)
        opt.step()
        seen.add(opt._kept.rules.of(opt.param_groups[0]))
        schedule.step()
    assert len(seen) == 5


@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_groups_may_have_rules_of_their_own(kernel: str) -> None:
    p, q = two()
    opt = MetaOptimize(
        [{"params": [p]}, {"params": [q], "base": Lion()}], lr=0.1, meta_lr=0.0, compile=kernel
    )
    twins = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    others = [
        MetaOptimize([twins[0]], lr=0.1, meta_lr=0.0),
        MetaOptimize([twins[1]], lr=0.1, base="lion", meta_lr=0.0),
    ]
    for i in range(3):
        for x in (p, q, *twins):
            x.grad = torch.tensor([1.0, -2.0, 0.5 * i])
        for o in (opt, *others):
            o.step()
    torch.testing.assert_close(p, twins[0])
    torch.testing.assert_close(q, twins[1])
    state = opt.state_dict()
    again = MetaOptimize([{"params": [p]}, {"params": [q], "base": "lion"}], lr=0.1)
    again.load_state_dict(state)
    swapped = MetaOptimize([{"params": [p], "base": "lion"}, {"params": [q]}], lr=0.1)
    with pytest.raises(ValueError, match="other rules"):
        swapped.load_state_dict(state)


def test_an_optimizer_is_freed_with_its_last_reference() -> None:
    """Its parts do not point back at it: the memory of its state does not wait for a garbage collection."""
    p, _ = two()
    opt = MetaOptimize([p], lr=1e-3)
    p.grad = torch.ones(3)
    opt.step()
    alive = weakref.ref(opt)
    gc.disable()
    try:
        del opt
        assert alive() is None
    finally:
        gc.enable()
