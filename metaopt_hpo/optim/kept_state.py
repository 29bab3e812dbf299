"""What MetaOptimize keeps: state shared by all parameters, state of each, live step sizes.

What does not belong to a single parameter (β, the meta rule's state, counters) belongs to the optimizer. It is also
shown in the first parameter group, whichever that is, as tensors and numbers, for that is what every checkpoint
format of torch, the distributed one included, carries along. Parameters are known by identity: groups and their
members may be edited by hand, and the next step, ``state_dict`` or ``load_state_dict`` follows. Saving and loading
are in ``saved_state``.
"""

from __future__ import annotations

import threading
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import shared_state
from metaopt_hpo.optim.arguments import check_group, check_options
from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.group_rules import GroupRules
from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.live import LiveStepSizes
from metaopt_hpo.optim.param_state import fit, init
from metaopt_hpo.optim.rules import Rule, base_rule
from metaopt_hpo.optim.traces import HESSIAN_FREE


class KeptState(torch.optim.Optimizer):
    """The part of MetaOptimize that makes, follows and publishes its state; the steps are in a class above it."""

    _base: Rule
    _meta: Rule
    _trace: str
    _trace_dtype: torch.dtype | None
    _blocks: Blocks | None
    _shared: dict[str, Any]
    _own_defaults: tuple[str, ...]
    _rules: GroupRules
    _order: list[Tensor]
    _away: dict[Tensor, Any]
    _sizes: list[int]
    _groups: list[dict[str, Any]]
    _lock: threading.RLock
    """Held during a step: threads that share an optimizer step one after another."""
    _kernel: Kernel | None
    _whole: Any
    _live: LiveStepSizes
    _shared_shapes: dict[str, torch.Size]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its blocks, where they are new ones, start at the initial step size.

        A group may have its own ``lr``, ``weight_decay``, ``maximize``, ``base`` (a rule or its name) and any number
        of that rule, such as ``betas``, ``eps`` or ``momentum``.
        """
        own = {name: value for name, value in param_group.items() if name not in self.defaults}
        if "base" in param_group:
            rule = base_rule(param_group["base"])
            param_group = {**rule.options(), **param_group, "base": self._rules.register(rule)}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            check_options(own, self._rules.prototype(group))
            self._rule_of(group)
            if self._blocks is not None:
                self._follow()
        except ValueError:
            self.param_groups.pop()
            self._order = []
            raise
        group["lr"] = float(group["lr"])

    def _param_rules(self) -> list[Rule]:
        """The base rule of every present parameter, in the order of the groups."""
        assert self._blocks is not None
        return self._rules.per_parameter(self.param_groups, self._blocks.members)

    def _rule_of(self, group: dict[str, Any]) -> Rule:
        """The base rule of a group, with the options that stand in the group now."""
        return self._rules.of(group)

    # Who is here

    def _all_params(self) -> list[Tensor]:
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def _follow(self) -> list[Tensor]:
        """Bring blocks and shared state up to date with the groups; all present parameters in their order.

        Raises:
            ValueError: a new parameter that cannot be optimised, or a parameter that stands in two places.
        """
        params = self._all_params()
        if self._shared and params and params[0].device != self._shared["beta"].device:
            self._move_shared(params)
        sizes = [len(group["params"]) for group in self.param_groups]
        same = len(params) == len(self._order) and sizes == self._sizes and all(map(is_, params, self._order))
        if same and all(map(is_, self.param_groups, self._groups)):
            return params
        assert self._blocks is not None
        if len(set(map(id, params))) < len(params):
            twice = next(p for i, p in enumerate(params) if any(p is q for q in params[:i]))
            raise ValueError(f"{self._name_of(twice)} stands in the parameter groups twice: remove one")
        self._check_new(params)
        of: list[int] = []
        labels: list[str] = []
        for group in self.param_groups:
            label = group.get("block_group")
            if label is None and self._blocks.spec == "group":
                label = group["block_group"] = self._blocks.new_group()
            names = self._names_in(group)
            rule = self._rule_of(group)
            for p, name in zip(group["params"], names, strict=True):
                kind = "" if self._blocks.spec != "rule" else type(rule.for_parameter(name, p)).__name__
                member = self._blocks.join(p, name, label or "", kind)
                of.append(member.block)
                labels.append(member.name or "")
            if "param_names" in group:
                group["param_names"] = labels[-len(group["params"]) :] if group["params"] else []
        self._put_away(params)
        self._blocks.of = tuple(of)
        self._order, self._sizes, self._groups = params, sizes, list(self.param_groups)
        self._whole = None
        self._live.forget()
        self._rules.forget()
        if self._shared:
            shared_state.grow(self._shared, self._blocks, self._meta, self.defaults["lr"])
            self._show_shared()
            self._refresh_step_sizes()
        return params

    def _put_away(self, params: list[Tensor]) -> None:
        """Keep the state of absent parameters apart (torch cannot save it), and give it back to those that return."""
        here = set(map(id, params))
        for p in [p for p in self.state if isinstance(p, Tensor) and id(p) not in here]:
            self._away[p] = self.state.pop(p)
        for p in [p for p in self._away if id(p) in here]:
            self.state[p] = self._away.pop(p)

    def _check_new(self, params: list[Tensor]) -> None:
        assert self._blocks is not None
        fresh = [p for p in params if p not in self._blocks.members]
        if fresh and self._shared and self._trace != HESSIAN_FREE:
            raise ValueError(
                f"trace={self._trace!r}: a group or a parameter cannot be added once the optimizer is made"
            )
        for group in self.param_groups:
            for name in self._own_defaults:
                group.setdefault(name, self.defaults[name])
            if any(p not in self._blocks.members for p in group["params"]):
                check_group(group)
        for p in fresh:
            if p.requires_grad and not p.is_leaf:
                raise ValueError("a parameter in the groups is not a leaf of the graph: optimise the leaf")

    def _names_in(self, group: dict[str, Any]) -> list[str | None]:
        """The name of each parameter of a group: the one it came with; a newcomer's from ``param_names``, where that
        list still fits."""
        assert self._blocks is not None
        members, names = self._blocks.members, group.get("param_names")
        fits = names is not None and len(names) == len(group["params"])
        out: list[str | None] = []
        for i, p in enumerate(group["params"]):
            if p in members:
                out.append(members[p].name)
            else:
                out.append(names[i] if fits and names is not None else None)
        return out

    def _name_of(self, p: Tensor) -> str:
        assert self._blocks is not None
        return self._blocks.describe(p, self._all_params())

    # Shared state

    def _init_shared(self, meta_lr: float) -> None:
        params = self._follow()
        assert self._blocks is not None
        self._shared = shared_state.start(
            params,
            self._blocks,
            self._meta,
            trace=self._trace,
            lr=self.defaults["lr"],
            meta_lr=meta_lr,
            rules=self._rules_name(),
        )
        if self._trace != HESSIAN_FREE:
            self._init_states()
        self._show_shared()
        self._refresh_step_sizes()

    def _rules_name(self) -> str:
        return f"{type(self._base).__name__} / {type(self._meta).__name__} / {self._trace}"

    def _show_shared(self) -> None:
        """Put the shared state into the first group, and out of the others."""
        assert self._blocks is not None
        self._shared_shapes = {n: x.shape for n, x in self._shared.items() if isinstance(x, Tensor)}
        spec = self._blocks.spec
        shown = {
            **self._shared,
            "blocks_kind": spec if isinstance(spec, str) else "function",
            "block_names": list(self._blocks.labels),
        }
        for group in self.param_groups[1:]:
            for name in [name for name in shown if name in group]:
                del group[name]
        if self.param_groups:
            self.param_groups[0].update(shown)

    @torch.no_grad()
    def _move_shared(self, params: list[Tensor]) -> None:
        """To where the parameters now are: a model may be moved after its optimizer was made."""
        device = next((p.device for p in params if p.requires_grad), params[0].device)
        if any(p.device == self._shared["beta"].device for p in params):
            return  # a model on several devices
        moved = {k: v.to(device) for k, v in self._shared.items() if isinstance(v, Tensor)}
        self._shared.update(moved)
        self._live.forget()
        self._whole = None
        self._show_shared()
        self._refresh_step_sizes()

    # State of each parameter

    def _init_states(self) -> None:
        rules: list[Rule] | None = None
        for i, p in enumerate(self._all_params()):
            if (p.requires_grad or p.grad is not None) and not self.state[p]:
                if rules is None:
                    rules = self._param_rules()
                self._init_state(p, self.state[p], rules[i])

    def _init_state(self, p: Tensor, state: dict[str, Any], rule: Rule) -> None:
        assert self._blocks is not None
        count = self._blocks.count
        init(p, state, rule, self._name_of(p), trace=self._trace, short=self._trace_dtype, count=count)
        state["block"] = torch.tensor(self._blocks.members[p].block, dtype=torch.int64, device="cpu")

    def _moving(self, p: Tensor, rule: Rule) -> list[Tensor]:
        """The state of a parameter that has its shape."""
        state = self.state[p]
        return [state[name] for name in (*rule.states, "h")]

    def _fit_state(self, p: Tensor, rule: Rule) -> dict[str, Any]:
        """The state of a parameter, after a look at whether it still fits it."""
        state: dict[str, Any] = self.state[p]
        fit(p, state, rule, self._name_of(p), short=self._trace_dtype)
        return state

    # Step sizes, live

    def step_sizes(self) -> Tensor:
        """exp β, one value a block (before the groups' and schedulers' multipliers lr_group / lr); a copy."""
        self._follow()
        beta: Tensor = self._shared["beta"]
        return beta.exp()

    def block_names(self) -> tuple[str, ...]:
        """What the entries of ``step_sizes()`` belong to, in the same order."""
        assert self._blocks is not None
        self._follow()
        return self._blocks.names

    def _refresh_step_sizes(self) -> None:
        """Write the live step sizes into the groups: one value for each block that occurs in the group."""
        assert self._blocks is not None
        self._live.refresh(self.param_groups, self._blocks, self._shared["beta"])

    def _check_shared(self) -> None:
        """Kernels write β, the meta rule's state and the live step sizes where they stand; other live step sizes are
        replaced.

        Raises:
            ValueError: β or the meta rule's state has been resized.
        """
        assert self._blocks is not None
        beta: Tensor = self._shared["beta"]
        like = (self._blocks.count,)
        for name in ("beta", "meta_step", *(f"meta_{name}" for name in self._meta.states)):
            x: Tensor = self._shared[name]
            if x.shape != (like if name == "beta" else self._shared_shapes[name]) or not x.is_contiguous():
                raise ValueError(
                    f"the shared state {name!r} in param_groups[0] has been resized to {tuple(x.shape)}: load a state "
                    "dict, or make a new optimizer"
                )
        if not self._live.intact(self.param_groups, beta):
            self._refresh_step_sizes()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is bound to this process (a kernel and its arrays are found again)."""
        return {**self.__dict__, "_kernel": None, "_whole": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()
