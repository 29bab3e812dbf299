"""What MetaOptimize keeps: state shared by all parameters, state of each, live step sizes.

What does not belong to a single parameter (β, the meta rule's state, counters) belongs to the optimizer. It is also
shown in the first parameter group, whichever that is, as tensors and numbers, for that is what every checkpoint
format of torch, the distributed one included, carries along. Parameters are known by identity: groups and their
members may be edited by hand, and the next step, ``state_dict`` or ``load_state_dict`` follows. Saving and loading
are in ``saved_state``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import shared_state
from metaopt_hpo.optim.arguments import check_group
from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.group_rules import GroupRules
from metaopt_hpo.optim.live import LiveStepSizes
from metaopt_hpo.optim.param_state import fit, init
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.settings import Settings
from metaopt_hpo.optim.traces import HESSIAN_FREE
from metaopt_hpo.optim.watch import Watch


class KeptState:
    """Makes, follows and publishes the state of one MetaOptimize; the optimizer and its steps have one.

    Attributes:
        settings: what the optimizer was made with.
        rules: the base rules of its groups.
        blocks: which weights share a step size.
        shared: the state that all parameters share; empty until :meth:`start`.
        watch: warns of step sizes that collapse or explode.
        own_defaults: names of the defaults that every group must have.
        params, groups, state: all present parameters in their order, their groups and their state, as the optimizer
            had them at the last :meth:`follow`.
        version: counts the changes after which a kernel must be prepared anew.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rules = GroupRules()
        self.blocks = Blocks(settings.blocks)
        self.shared: dict[str, Any] = {}
        self.watch = Watch(math.log(settings.lr))
        self.own_defaults: tuple[str, ...] = ()
        self.params: list[Tensor] = []
        self.groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, Any] = {}
        self.version = 0
        self._sizes: list[int] = []
        self._absent: dict[Tensor, Any] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._live = LiveStepSizes(settings.lr)

    def defaults(self, weight_decay: float, maximize: bool) -> dict[str, Any]:
        """The defaults of the optimizer's groups."""
        base = self.settings.base
        defaults: dict[str, Any] = {
            "lr": self.settings.lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        options = {name: value for name, value in base.options().items() if name not in defaults}
        defaults |= {"base": self.rules.register(base), **options}
        self.own_defaults = tuple(defaults)
        return defaults

    def start(self, optimizer: torch.optim.Optimizer, meta_lr: float) -> None:
        """Make the shared state, before the first step."""
        settings = self.settings
        self.follow(optimizer)
        self.shared = shared_state.start(
            self.params,
            self.blocks,
            settings.meta,
            trace=settings.trace,
            lr=settings.lr,
            meta_lr=meta_lr,
            rules=settings.rules_name,
        )
        if settings.trace != HESSIAN_FREE:
            self.init_states()
        self._show_shared()
        self.refresh_step_sizes()

    @property
    def beta(self) -> Tensor:
        """ln step size, one value a block."""
        beta: Tensor = self.shared["beta"]
        return beta

    @property
    def lr(self) -> float:
        """α₀, whose quotient with a group's own lr multiplies the group's step sizes: a loaded state's own."""
        lr: float = self.shared["start_lr"]
        return lr

    def change(self, name: str, value: Any) -> None:
        """Set a shared value that is no tensor, in the first group too."""
        self.shared[name] = value
        if self.groups:
            self.groups[0][name] = value

    def param_rules(self) -> list[Rule]:
        """The base rule of every present parameter, in their order."""
        return self.rules.per_parameter(self.groups, self.blocks.members)

    def name_of(self, p: Tensor) -> str:
        """What a message calls a parameter."""
        return self.blocks.describe(p, self.params)

    # Who is here

    def follow(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Bring blocks and shared state up to date with the groups; all present parameters in their order.

        Raises:
            ValueError: a new parameter that cannot be optimised, or a parameter that stands in two places.
        """
        groups, self.state = optimizer.param_groups, optimizer.state
        params = list(chain.from_iterable(group["params"] for group in groups))
        if self.shared and params and params[0].device != self.beta.device:
            self._move_shared(params)
        sizes = [len(group["params"]) for group in groups]
        same = len(params) == len(self.params) and sizes == self._sizes and all(map(is_, params, self.params))
        if same and all(map(is_, groups, self.groups)):
            return params
        if len(set(map(id, params))) < len(params):
            twice = next(p for i, p in enumerate(params) if any(p is q for q in params[:i]))
            name = self.blocks.describe(twice, params)
            raise ValueError(f"{name} stands in the parameter groups twice: remove one")
        self._check_new(params, groups, optimizer.defaults)
        self.blocks.of = self._join(groups)
        self._put_away(params)
        self.params, self._sizes, self.groups = params, sizes, list(groups)
        self._changed()
        self.rules.forget()
        if self.shared:
            shared_state.grow(self.shared, self.blocks, self.settings.meta, self.lr)
            self._show_shared()
            self.refresh_step_sizes()
        return params

    def forget(self) -> None:
        """What is here is found anew by the next :meth:`follow`."""
        self.params = []

    def _changed(self) -> None:
        self.version += 1
        self._live.forget()

    def _join(self, groups: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """The block of every parameter of the groups; new ones join one."""
        of: list[int] = []
        labels: list[str] = []
        for group in groups:
            label = group.get("block_group")
            if label is None and self.blocks.spec == "group":
                label = group["block_group"] = self.blocks.new_group()
            names = self._names_in(group)
            rule = self.rules.of(group)
            for p, name in zip(group["params"], names, strict=True):
                kind = "" if self.blocks.spec != "rule" else type(rule.for_parameter(name, p)).__name__
                member = self.blocks.join(p, name, label or "", kind)
                of.append(member.block)
                labels.append(member.name or "")
            if "param_names" in group:
                group["param_names"] = labels[-len(group["params"]) :] if group["params"] else []
        return tuple(of)

    def _put_away(self, params: list[Tensor]) -> None:
        """Keep the state of absent parameters apart (torch cannot save it), and give it back to those that return."""
        here = set(map(id, params))
        for p in [p for p in self.state if isinstance(p, Tensor) and id(p) not in here]:
            self._absent[p] = self.state.pop(p)
        for p in [p for p in self._absent if id(p) in here]:
            self.state[p] = self._absent.pop(p)

    def _check_new(
        self, params: list[Tensor], groups: Sequence[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        fresh = [p for p in params if p not in self.blocks.members]
        trace = self.settings.trace
        if fresh and self.shared and trace != HESSIAN_FREE:
            raise ValueError(
                f"trace={trace!r}: a group or a parameter cannot be added once the optimizer is made"
            )
        for group in groups:
            for name in self.own_defaults:
                group.setdefault(name, defaults[name])
            if any(p not in self.blocks.members for p in group["params"]):
                check_group(group)
        for p in fresh:
            if p.requires_grad and not p.is_leaf:
                raise ValueError("a parameter in the groups is not a leaf of the graph: optimise the leaf")

    def _names_in(self, group: dict[str, Any]) -> list[str | None]:
        """The name of each parameter of a group: the one it came with; a newcomer's from ``param_names``, where that
        list still fits."""
        members, names = self.blocks.members, group.get("param_names")
        fits = names is not None and len(names) == len(group["params"])
        out: list[str | None] = []
        for i, p in enumerate(group["params"]):
            if p in members:
                out.append(members[p].name)
            else:
                out.append(names[i] if fits and names is not None else None)
        return out

    # Shared state

    def _show_shared(self) -> None:
        """Put the shared state into the first group, and out of the others."""
        self._shapes = {n: x.shape for n, x in self.shared.items() if isinstance(x, Tensor)}
        spec = self.blocks.spec
        shown = {
            **self.shared,
            "blocks_kind": spec if isinstance(spec, str) else "function",
            "block_names": list(self.blocks.labels),
        }
        for group in self.groups[1:]:
            for name in [name for name in shown if name in group]:
                del group[name]
        if self.groups:
            self.groups[0].update(shown)

    @torch.no_grad()
    def _move_shared(self, params: list[Tensor]) -> None:
        """To where the parameters now are: a model may be moved after its optimizer was made."""
        device = next((p.device for p in params if p.requires_grad), params[0].device)
        if any(p.device == self.beta.device for p in params):
            return  # a model on several devices
        moved = {k: v.to(device) for k, v in self.shared.items() if isinstance(v, Tensor)}
        self.shared.update(moved)
        self._changed()
        self._show_shared()
        self.refresh_step_sizes()

    def check_shared(self) -> None:
        """Kernels write β, the meta rule's state and the live step sizes where they stand; other live step sizes are
        replaced.

        Raises:
            ValueError: β or the meta rule's state has been resized.
        """
        like = (self.blocks.count,)
        for name in ("beta", "meta_step", *(f"meta_{name}" for name in self.settings.meta.states)):
            x: Tensor = self.shared[name]
            if x.shape != (like if name == "beta" else self._shapes[name]) or not x.is_contiguous():
                raise ValueError(
                    f"the shared state {name!r} in param_groups[0] has been resized to {tuple(x.shape)}: load a state "
                    "dict, or make a new optimizer"
                )
        if not self._live.intact(self.groups, self.beta):
            self.refresh_step_sizes()

    def refresh_step_sizes(self) -> None:
        """Write the live step sizes into the groups: one value for each block that occurs in the group."""
        self._live.refresh(self.groups, self.blocks, self.beta)

    def restart_from(self, lr: float) -> None:
        """Take a loaded state's α₀ for this optimizer's own."""
        self.shared["start_lr"] = lr
        self._live = LiveStepSizes(lr)

    # State of each parameter

    def init_states(self) -> None:
        """Make the state of every parameter that is trained and has none."""
        rules: list[Rule] | None = None
        for i, p in enumerate(self.params):
            if (p.requires_grad or p.grad is not None) and not self.state[p]:
                if rules is None:
                    rules = self.param_rules()
                self.init_state(p, self.state[p], rules[i])

    def init_state(self, p: Tensor, state: dict[str, Any], rule: Rule) -> None:
        """Fill one parameter's empty state."""
        settings, count = self.settings, self.blocks.count
        init(p, state, rule, self.name_of(p), trace=settings.trace, short=settings.trace_dtype, count=count)
        state["block"] = torch.tensor(self.blocks.members[p].block, dtype=torch.int64, device="cpu")

    def moving(self, p: Tensor, rule: Rule) -> list[Tensor]:
        """The state of a parameter that has its shape."""
        state = self.state[p]
        return [state[name] for name in (*rule.states, "h")]

    def fit_state(self, p: Tensor, rule: Rule) -> dict[str, Any]:
        """The state of a parameter, after a look at whether it still fits it."""
        state: dict[str, Any] = self.state[p]
        fit(p, state, rule, self.name_of(p), short=self.settings.trace_dtype)
        return state
