"""What MetaOptimize keeps: state shared by all parameters, state of each, live step sizes.

What does not belong to a single parameter (β, the meta rule's state, counters) belongs to the optimizer. It is also
shown in the first parameter group, whichever that is, as tensors and numbers, for that is what every checkpoint
format of torch, the distributed one included, carries along. Parameters are known by identity: groups and their
members may be edited by hand, and the next step, ``state_dict`` or ``load_state_dict`` follows. Saving and loading
are in ``saved_state``.
"""

from __future__ import annotations

import math
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.arguments import check_group, check_options
from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.rules import Rule, base_rule
from metaopt_hpo.optim.sharding import is_sharded, shard_key
from metaopt_hpo.optim.traces import LIMITS

STATE_VERSION = 2


class KeptState(torch.optim.Optimizer):
    """The part of MetaOptimize that makes, follows and publishes its state; the steps are in a class above it."""

    _base: Rule
    _meta: Rule
    _trace: str
    _trace_dtype: torch.dtype | None
    _blocks: Blocks | None
    _shared: dict[str, Any]
    _own_defaults: tuple[str, ...]
    _rules: dict[str, Rule]
    _variants: dict[Any, Rule]
    _param_rule_cache: tuple[list[Rule], list[Rule]] | None
    _order: list[Tensor]
    _away: dict[Tensor, Any]
    _sizes: list[int]
    _groups: list[dict[str, Any]]
    _kernel: Kernel | None
    _whole: Any
    _live: list[Tensor | slice | int] | None
    _shown: list[tuple[Tensor, torch.Size]]
    _shared_shapes: dict[str, torch.Size]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its blocks, where they are new ones, start at the initial step size.

        A group may have its own ``lr``, ``weight_decay``, ``maximize``, ``base`` (a rule or its name) and any number
        of that rule, such as ``betas``, ``eps`` or ``momentum``.
        """
        own = {name: value for name, value in param_group.items() if name not in self.defaults}
        if "base" in param_group:
            rule = base_rule(param_group["base"])
            param_group = {**rule.options(), **param_group, "base": self._register(rule)}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            check_options(own, self._prototype(group))
            self._rule_of(group)
            if self._blocks is not None:
                self._follow()
        except ValueError:
            self.param_groups.pop()
            self._order = []
            raise
        group["lr"] = float(group["lr"])

    # Rules of groups and parameters

    def _register(self, rule: Rule) -> str:
        """The name under which groups refer to a rule; rules that differ in more than options have different names."""
        for name, known in self._rules.items():
            if type(known) is type(rule) and known.with_options(rule.options()) == rule:
                return name
        name = type(rule).__name__
        if name in self._rules:
            name = f"{name} {len(self._rules)}"
        self._rules[name] = rule
        return name

    def _prototype(self, group: dict[str, Any]) -> Rule:
        name = group["base"]
        if not isinstance(name, str) or name not in self._rules:
            rule = base_rule(name)
            group["base"] = self._register(rule)
            for option, value in rule.options().items():
                group.setdefault(option, value)
        return self._rules[group["base"]]

    def _rule_of(self, group: dict[str, Any]) -> Rule:
        """The base rule of a group, with the options that stand in the group now."""
        rule = self._prototype(group)
        values = rule.options()
        given = {name: group[name] for name in values if name in group}
        if given == values:
            return rule
        key = (group["base"], tuple((name, _hashable(value)) for name, value in given.items()))
        found = self._variants.get(key)
        if found is None:
            if len(self._variants) > 64:
                self._variants.clear()
            found = self._variants[key] = rule.with_options(given)
        return found

    def _param_rules(self) -> list[Rule]:
        """The base rule of every present parameter, in the order of the groups."""
        rules = [self._rule_of(group) for group in self.param_groups]
        if self._param_rule_cache is not None and all(map(is_, rules, self._param_rule_cache[0])):
            return self._param_rule_cache[1]
        assert self._blocks is not None
        out: list[Rule] = []
        alike: dict[Rule, Rule] = {}  # one object for equal rules, for parameters are put together by it
        for group, rule in zip(self.param_groups, rules, strict=True):
            for p in group["params"]:
                own = rule.for_parameter(self._blocks.members[p].name, p)
                out.append(_same_object(own, alike))
        self._param_rule_cache = rules, out
        return out

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
        self._live = self._whole = self._param_rule_cache = None
        if self._shared:
            self._grow()
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
        if fresh and self._shared and self._trace != "hessian_free":
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
        member = self._blocks.members.get(p)
        if member is not None and member.name:
            return f"parameter {member.name!r}"
        for i, q in enumerate(self._all_params()):
            if q is p:
                return f"parameter number {i}"
        return "a parameter"

    # Shared state

    def _init_shared(self, meta_lr: float) -> None:
        params = self._follow()
        assert self._blocks is not None
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
        device = next((p.device for p in params if p.requires_grad), params[0].device)
        beta = torch.full((self._blocks.count,), math.log(self.defaults["lr"]), dtype=dtype, device=device)
        shared: dict[str, Any] = {"meta_lr": meta_lr, "beta": beta}
        shared["meta_step"] = beta.new_zeros(1 if self._blocks.per_weight else beta.shape)
        for name, value in zip(self._meta.states, self._meta.init_state(beta), strict=True):
            shared[f"meta_{name}"] = value
        shared["skipped"] = torch.zeros((), dtype=torch.int64, device=device)
        shared["state_version"] = STATE_VERSION
        shared["rules"] = self._rules_name()
        shared["kernel"] = ""
        if self._trace != "hessian_free":
            if any(is_sharded(p) for p in params):
                raise ValueError(
                    f"trace={self._trace!r} does not support sharded parameters: use 'hessian_free'"
                )
            self._check_trace_size()
            shared |= hessian.init_shared(self._trace, beta, self._meta)
        self._shared = shared
        if self._trace != "hessian_free":
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

    def _check_trace_size(self) -> None:
        assert self._blocks is not None
        n, m = sum(p.numel() for p in self._all_params()), self._blocks.count
        size, limit = n * m * (m if self._trace == "exact" else 1), LIMITS[self._trace]
        if size > limit:
            product = f"{n} weights × {m} blocks" + (f" × {m}" if self._trace == "exact" else "")
            raise ValueError(
                f"trace={self._trace!r} would keep {product} = {size} numbers, more than {limit}: "
                "use coarser blocks, or trace='hessian_free'"
            )

    @torch.no_grad()
    def _move_shared(self, params: list[Tensor]) -> None:
        """To where the parameters now are: a model may be moved after its optimizer was made."""
        device = next((p.device for p in params if p.requires_grad), params[0].device)
        if any(p.device == self._shared["beta"].device for p in params):
            return  # a model on several devices
        moved = {k: v.to(device) for k, v in self._shared.items() if isinstance(v, Tensor)}
        self._shared.update(moved)
        self._live = self._whole = None
        self._show_shared()
        self._refresh_step_sizes()

    @torch.no_grad()
    def _grow(self) -> None:
        """Room in the shared state for blocks that are new; they start at the initial step size."""
        assert self._blocks is not None
        beta: Tensor = self._shared["beta"]
        extra = self._blocks.count - beta.numel()
        if extra <= 0:
            return
        start = beta.new_full((extra,), math.log(self.defaults["lr"]))
        old, self._shared["beta"] = beta.numel(), torch.cat([beta, start])
        for name in ("meta_step", *(f"meta_{name}" for name in self._meta.states)):
            if self._shared[name].shape == (old,) and not (name == "meta_step" and self._blocks.per_weight):
                self._shared[name] = torch.cat([self._shared[name], torch.zeros_like(start)])

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
        if is_sharded(p) and not rule.elementwise and shard_key(p):
            raise ValueError(
                f"{self._name_of(p)} is sharded, and {type(rule).__name__} needs whole tensors (it is not "
                "elementwise): use an elementwise rule, or do not shard this parameter"
            )
        device = p.device if p.is_cuda else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["block"] = torch.tensor(self._blocks.members[p].block, dtype=torch.int64, device="cpu")
        wide = p.detach().to(computed_in(p))
        zeros = torch.zeros_like(wide, memory_format=torch.preserve_format)
        for name, value in zip(rule.states, rule.init_state(wide), strict=True):
            state[name] = value.clone() if value is wide or value is p else value
        if self._trace == "hessian_free":
            short = self._trace_dtype if p.dtype != torch.float64 else None
            state["h"] = zeros if short is None else zeros.to(short)
        else:
            states = {name: state[name] for name in rule.states}
            state |= hessian.init_state(self._trace, zeros, self._blocks.count, states)

    def _fit_state(self, p: Tensor, rule: Rule) -> dict[str, Any]:
        """The state of a parameter, after a look at whether it still fits it.

        A parameter that has moved to another device or dtype takes its state along; one that has changed its shape is
        refused, for which of its weights are which is not known.
        """
        state: dict[str, Any] = self.state[p]
        if not p.is_floating_point():
            raise ValueError(
                f"{self._name_of(p)} has become {p.dtype}: only floating-point parameters can be optimised"
            )
        for name in ("h", *rule.states):
            if not isinstance(state.get(name), Tensor):
                raise ValueError(
                    f"the state of {self._name_of(p)} has no tensor {name!r}: delete it with `del optimizer.state[p]`"
                )
        count = state.get("step", 0.0)
        if not isinstance(count, Tensor) or count.dtype != torch.float32 or count.ndim:
            where = p.device if p.is_cuda else torch.device("cpu")
            state["step"] = torch.as_tensor(count).detach().to(where, torch.float32, copy=True).reshape(())
        h = state["h"]
        if h.shape != p.shape:
            raise ValueError(
                f"{self._name_of(p)} has changed its shape from {tuple(h.shape)} to {tuple(p.shape)} since its last "
                "step: put a new Parameter into the group, or delete its state with `del optimizer.state[p]`"
            )
        bad = next((name for name in rule.states if rule.elementwise and state[name].shape != p.shape), None)
        if bad is not None and type(rule).init_state is Rule.init_state:
            raise ValueError(
                f"the state {bad!r} of {self._name_of(p)} has the shape {tuple(state[bad].shape)}, not "
                f"{tuple(p.shape)}: delete it with `del optimizer.state[p]`"
            )
        wide = computed_in(p)
        if (
            h.device != p.device
            or (h.dtype not in (wide, torch.bfloat16))
            or (h.dtype != wide != torch.float32)
        ):
            for name in (*rule.states, "h"):
                x = state[name]
                if x.device != p.device or (
                    x.is_floating_point() and x.dtype not in (wide, self._trace_dtype)
                ):
                    kind = wide if x.is_floating_point() else x.dtype
                    state[name] = x.to(device=p.device, dtype=kind)
            state["step"] = state["step"].to(p.device if p.is_cuda else "cpu")
        return state

    def _moving(self, p: Tensor, rule: Rule) -> list[Tensor]:
        """The state of a parameter that has its shape."""
        state = self.state[p]
        return [state[name] for name in (*rule.states, "h")]

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

    def _own_blocks(self) -> list[list[int]]:
        """For each group the blocks that occur in it, in order (not for weight blocks)."""
        assert self._blocks is not None
        of = iter(self._blocks.of)
        return [list(dict.fromkeys(next(of) for _ in group["params"])) for group in self.param_groups]

    def _live_index(self) -> list[Tensor | slice | int]:
        """Where each group's step sizes are in β; kept, for making an index on a device waits for it."""
        if self._live is not None:
            return self._live
        assert self._blocks is not None
        device = self._shared["beta"].device
        self._live = []
        if not self._blocks.per_weight:
            for own in self._own_blocks():
                index = torch.tensor(own, dtype=torch.int64, device=device)
                self._live.append(own[0] if len(own) == 1 else index)
            return self._live
        for group in self.param_groups:
            spans = [self._blocks.members[p] for p in group["params"]]
            ends = [member.block + member.numel for member in spans]
            if all(end == member.block for end, member in zip(ends, spans[1:], strict=False)):
                self._live.append(slice(spans[0].block, ends[-1]) if spans else slice(0, 0))
            else:
                ranges = [torch.arange(m.block, m.block + m.numel, device=device) for m in spans]
                self._live.append(torch.cat(ranges))
        return self._live

    @torch.no_grad()
    def _refresh_step_sizes(self) -> None:
        """Write the live step sizes into the groups: one value for each block that occurs in the group."""
        alpha = self._shared["beta"].exp()
        for group, index in zip(self.param_groups, self._live_index(), strict=True):
            value = alpha[index] * (group["lr"] / self.defaults["lr"])
            live = group.get("step_size")
            if isinstance(live, Tensor) and _alike(live, value):
                live.copy_(value)
            else:
                group["step_size"] = value
        self._shown = [(group["step_size"], group["step_size"].shape) for group in self.param_groups]

    def _keep_step_sizes(self) -> None:
        """Kernels write the live step sizes where they stand: whatever else has been put there is replaced first.

        Raises:
            ValueError: β or the meta rule's state has been resized.
        """
        assert self._blocks is not None
        beta: Tensor = self._shared["beta"]
        dtype, device, like = beta.dtype, beta.device, (self._blocks.count,)
        for name in ("beta", "meta_step", *(f"meta_{name}" for name in self._meta.states)):
            x: Tensor = self._shared[name]
            if x.shape != (like if name == "beta" else self._shared_shapes[name]) or not x.is_contiguous():
                raise ValueError(
                    f"the shared state {name!r} in param_groups[0] has been resized to {tuple(x.shape)}: load a state "
                    "dict, or make a new optimizer"
                )
        for group, (mine, shape) in zip(self.param_groups, self._shown, strict=True):
            same = group.get("step_size") is mine and mine.shape == shape and mine.dtype == dtype
            if not (same and mine.device == device and mine.is_contiguous()):
                self._refresh_step_sizes()
                return

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is bound to this process (a kernel and its arrays are found again)."""
        bound = {"_kernel": None, "_whole": None, "_live": None, "_param_rule_cache": None}
        return {**self.__dict__, **bound}


def _alike(x: Tensor, y: Tensor) -> bool:
    return (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device) and x.is_contiguous()


def _same_object(rule: Rule, known: dict[Rule, Rule]) -> Rule:
    """The first of equal rules; one that cannot be hashed stands for itself."""
    try:
        return known.setdefault(rule, rule)
    except TypeError:
        return rule


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
