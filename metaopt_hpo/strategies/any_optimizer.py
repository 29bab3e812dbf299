"""Wrap an optimizer of any kind, a user's own included: it says where to go, MetaOptimize how far.

The optimizer steps once at a fixed lr, the way it went is read off the weights and taken back, and MetaOptimize goes
that way at its own step size. This is the optimizer itself where its update is in proportion to lr and depends on the
weights through their gradients and its own decay alone, which is tried on tensors of a few numbers before the run. It
costs two copies of the weights more than a rule that is known.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metaopt_hpo.optim.rules import Rule, State
from metaopt_hpo.optim.sharding import is_sharded
from metaopt_hpo.strategies.errors import WrapError
from metaopt_hpo.strategies.snapshot import Snapshot

TRIAL_STEPS, TRIAL_WIDTH, PART = 5, 4, 0.25
"""Steps of the trial, longest side of its tensors, and the part of the fixed lr that is compared."""

HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
"""Where torch keeps what is to be called before and after each step."""

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative difference that rounding may make; 5 % in half precision."""


@dataclass(frozen=True)
class Given(Rule):
    """The direction that somebody else has put into its state."""

    states: ClassVar[tuple[str, ...]] = ("u",)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        return state[0], state


class Directions:
    """The directions of an optimizer, step by step; its state lives in it and is saved by it.

    Args:
        optimizer: before its first step.

    Raises:
        WrapError: its update is not in proportion to lr, or it cannot be stepped without a closure.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._lr = fixed_lr(optimizer)
        self._step = type(optimizer).step
        """Its class's: nobody else may call the optimizer's own from now on."""

    @torch.no_grad()
    def ask(self, groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, Tensor]:
        """The direction u of each parameter with a gradient, in w ← w − α·u; the weights stay as they are."""
        params = [p for group in groups for p in group["params"]]
        self._take_in(params)
        moving = [p for p in params if p.grad is not None]
        before = [p.detach().clone() for p in moving]
        _set_lr(self._optimizer, self._lr)
        with _without_hooks(self._optimizer):  # the run calls them, around the update that counts
            self._step(self._optimizer)
        found = {}
        for p, old in zip(moving, before, strict=True):
            kept = torch.promote_types(p.dtype, torch.float32)
            found[p] = (old.to(kept) - p.to(kept)).div_(self._lr)
            p.copy_(old)
        return found

    def _take_in(self, params: list[Tensor]) -> None:
        """Parameters that joined the run, such as unfrozen ones."""
        known = {id(p) for p in _params(self._optimizer)}
        new = [p for p in params if id(p) not in known]
        if new:
            self._optimizer.add_param_group({"params": new})

    def snapshot(self) -> Snapshot:
        """A copy of the state to go back to."""
        return Snapshot([], self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, its numbered entries as pairs: JSON knows names only."""
        saved = self._optimizer.state_dict()
        groups = [
            {k: v for k, v in g.items() if k not in ("params", "param_names")} for g in saved["param_groups"]
        ]
        return {"state": [list(pair) for pair in saved["state"].items()], "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        here = self._optimizer.state_dict()["param_groups"]
        groups = [{**own, **saved} for own, saved in zip(here, state["groups"], strict=True)]
        entries = dict(state["state"])
        self._optimizer.load_state_dict({"state": entries, "param_groups": groups})
        for i, p in enumerate(_params(self._optimizer)):
            for name, saved in entries.get(i, {}).items():
                own = self._optimizer.state[p].get(name)
                if isinstance(saved, Tensor) and isinstance(own, Tensor) and own.dtype != saved.dtype:
                    self._optimizer.state[p][name] = saved.to(own.device, copy=True)  # torch has cast it


@contextmanager
def _without_hooks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    kept = {name: getattr(optimizer, name) for name in HOOKS}
    vars(optimizer).update({name: OrderedDict() for name in HOOKS})
    try:
        yield
    finally:
        vars(optimizer).update(kept)


def step_at(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step with every group at this lr."""
    _set_lr(optimizer, lr)
    optimizer.step()


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def fixed_lr(optimizer: torch.optim.Optimizer) -> float:
    """The lr at which an optimizer's steps can be taken back: 1, where rounding is least, or its own.

    Raises:
        WrapError: at neither are smaller steps in proportion, or it cannot be stepped at all.
    """
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    if any(is_sharded(p) for group in optimizer.param_groups for p in group["params"]):
        raise WrapError(
            f"{kind} over sharded parameters cannot be wrapped; AdamW, Adam, SGD, RMSprop and Lion can"
        )
    own = next(float(g["lr"]) for g in optimizer.param_groups if float(g["lr"]) > 0)
    for lr in (1.0, own):
        try:
            if _in_proportion(optimizer, lr):
                return lr
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise WrapError(
                f"{kind} cannot be wrapped: a trial step of it fails ({reason[0]}); wrap torch's AdamW, Adam, SGD or "
                "RMSprop, or a Lion"
            ) from error
    raise WrapError(
        f"{kind} cannot be wrapped: its update is not in proportion to its lr, as of methods that set their own lr "
        "or average their weights, so no lr can be found for it; wrap AdamW, Adam, SGD, RMSprop or a Lion"
    )


@torch.no_grad()
def _in_proportion(optimizer: torch.optim.Optimizer, lr: float) -> bool:
    """Whether steps at `lr` of which a part is taken are the optimizer's own steps at that part of lr."""
    theirs, ours = _small(optimizer), _small(optimizer)
    generator = torch.Generator().manual_seed(0)
    close = 0.0
    devices = {p.device for group in optimizer.param_groups for p in group["params"] if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        for _ in range(TRIAL_STEPS):
            a, b = _params(theirs), _params(ours)
            for p, q in zip(a, b, strict=True):
                p.grad = torch.randn(p.shape, generator=generator).to(p)
                q.grad = p.grad.clone()
            old_a, old_b = [p.clone() for p in a], [q.clone() for q in b]
            step_at(theirs, PART * lr)
            step_at(ours, lr)
            for q, old in zip(b, old_b, strict=True):
                q.copy_(old.double() + PART * (q.double() - old.double()))
            for p, q, start_p, start_q in zip(a, b, old_a, old_b, strict=True):
                close = CLOSE.get(p.dtype, 0.05)
                move, other = (p - start_p).double(), (q - start_q).double()
                size = float(move.norm())
                rounding = 4 * torch.finfo(p.dtype).eps * float(p.double().norm())
                if not math.isfinite(size) or not float((move - other).norm()) <= close * size + rounding:
                    return False
    return any(
        not torch.equal(p, q) for p, q in zip(_params(theirs), _params(_small(optimizer)), strict=True)
    )


def _small(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer over tensors of a few numbers in the place of its parameters."""
    generator = torch.Generator().manual_seed(1)
    memo: dict[int, Any] = {}
    for p in _params(optimizer):
        small = torch.randn([min(n, TRIAL_WIDTH) for n in p.shape], generator=generator).mul_(0.1).to(p)
        memo[id(p)] = torch.nn.Parameter(small, requires_grad=p.requires_grad)
        part = tuple(slice(TRIAL_WIDTH) for _ in p.shape)
        for kept in optimizer.state.get(p, {}).values():  # made before the first step
            if isinstance(kept, Tensor) and kept.shape == p.shape:
                memo[id(kept)] = kept[part].clone()
    # a scheduler has put itself before the step, and hooks are for steps of the run
    given = {k: v for k, v in vars(optimizer).items() if k != "step" and k not in HOOKS}
    other: torch.optim.Optimizer = object.__new__(type(optimizer))
    other.__dict__.update(copy.deepcopy(given, memo), **{name: OrderedDict() for name in HOOKS})
    return other


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
