"""Saving and loading MetaOptimize: a run that goes on from a loaded state is bitwise the run that never stopped.

A state dict is one of torch's: the shared state stands in its first group. Every parameter's state holds the index
of its block, so that a block finds its values again by its parameters, in whatever order these now are.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.kept_state import KeptState
from metaopt_hpo.optim.shared_state import STATE_VERSION
from metaopt_hpo.optim.traces import HESSIAN_FREE

Pairs = list[tuple[slice, slice]]


class Loading:
    """A state dict on its way into an optimizer: checked here, before torch loads it, and finished after.

    Args:
        kept: the optimizer's state, which has followed its groups.
        state_dict: what ``state_dict()`` returned.

    Raises:
        ValueError: a state of another optimizer, of a newer version, or of other rules or blocks.
    """

    def __init__(self, kept: KeptState, state_dict: dict[str, Any]) -> None:
        self._kept, self._state_dict = kept, state_dict
        self._saved = self._check_loadable()
        self._pairs = self._match_blocks()
        self._check_parameters()
        self._before = [dict(group) for group in kept.groups]

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        """Put right what torch has loaded: names, options and rules of the groups, shared state, precision."""
        kept = self._kept
        for group, old in zip(optimizer.param_groups, self._before, strict=True):
            if "param_names" in old:
                group["param_names"] = old["param_names"]
            for name in ("params", *kept.own_defaults):
                if name not in group:
                    group[name] = old.get(name, optimizer.defaults.get(name))
            if isinstance(group.get("base"), str) and group["base"] not in kept.rules.by_name:
                group["base"] = old["base"]
            group.pop("step_size", None)
        self._take_shared()
        optimizer.defaults["lr"] = kept.lr
        self._restore_precision(optimizer)
        kept.forget()
        kept.follow(optimizer)

    def _shared_tensors(self) -> tuple[str, ...]:
        settings = self._kept.settings
        names = ("beta", "meta_step", "skipped", *(f"meta_{name}" for name in settings.meta.states))
        if settings.trace == HESSIAN_FREE:
            return names
        return (*names, *hessian.init_shared(settings.trace, torch.zeros(0), settings.meta))

    def _check_loadable(self) -> dict[str, Any]:
        """The shared state in a state dict, fit to be loaded here."""
        kept, settings = self._kept, self._kept.settings
        groups = self._state_dict.get("param_groups") or [{}]
        shared: dict[str, Any] = next((group for group in groups if "state_version" in group), {})
        if not shared:
            raise ValueError("this state dict has no state_version: it is not one of MetaOptimize")
        version = int(shared["state_version"])
        if version > STATE_VERSION:
            raise ValueError(
                f"this state dict has state_version {version}, above {STATE_VERSION}: upgrade metaopt-hpo"
            )
        if shared["rules"] != settings.rules_name:
            raise ValueError(
                f"this state dict was saved with other rules (base / meta / trace): {shared['rules']}, "
                f"not {settings.rules_name}"
            )
        if not bool(torch.isfinite(shared["beta"]).all()):
            raise ValueError("a step size in this state dict is not finite: it is damaged")
        start = float(shared.get("start_lr", kept.lr))  # states before it was kept: as given here
        if not (start > 0 and math.isfinite(start)):
            raise ValueError(
                f"start_lr={start!r} in this state dict is not a positive finite number: it is damaged"
            )
        for i, (group, own) in enumerate(zip(groups, kept.groups, strict=False)):
            name = group.get("base", own["base"])
            if name != own["base"] and str(name).partition(" ")[0] != own["base"].partition(" ")[0]:
                raise ValueError(
                    f"this state dict was saved with other rules: group {i} with {name}, not {own['base']}"
                )
        return shared

    def _ids(self) -> chain[Any]:
        """What the state dict calls its parameters, in their order."""
        return chain.from_iterable(group["params"] for group in self._state_dict["param_groups"])

    def _check_parameters(self) -> None:
        """Every saved parameter's state must fit the parameter that takes it."""
        kept = self._kept
        for key, p, rule in zip(self._ids(), kept.params, kept.param_rules(), strict=False):
            state = self._state_dict["state"].get(key)
            if not state:
                continue
            trace = ("h",) if kept.settings.trace == HESSIAN_FREE else ("H",)
            missing = [name for name in (*rule.states, *trace, "step") if name not in state]
            if missing:
                raise ValueError(
                    f"this state dict has no {missing[0]!r} for {kept.name_of(p)}: it is damaged"
                )
            shape = state[trace[0]].shape[0 if trace == ("h",) else 1 :]
            if shape != p.shape:
                raise ValueError(
                    f"this state dict was saved with other parameters: {kept.name_of(p)} has the shape "
                    f"{tuple(p.shape)}, and there {tuple(shape)}"
                )

    def _match_blocks(self) -> Pairs:
        """Which stretch of this β is which stretch of the saved one."""
        saved, blocks = self._saved, self._kept.blocks
        count = saved["beta"].numel()
        other = ValueError(
            f"this state dict has {count} blocks and this optimizer {blocks.count}: saved with other blocks"
        )
        if int(saved["state_version"]) < 2 or "blocks_kind" not in saved:
            if count != blocks.count:
                raise other
            return [(slice(0, count), slice(0, count))]
        spec = blocks.spec
        if saved["blocks_kind"] != (spec if isinstance(spec, str) else "function"):
            raise other
        found: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for key, p in zip(self._ids(), self._kept.params, strict=False):
            state = self._state_dict["state"].get(key)
            if not state or "block" not in state:
                continue
            own, theirs = blocks.members[p], int(state["block"])
            if found.setdefault(own.block, theirs) != theirs:
                raise other
            sizes[own.block] = own.numel if blocks.per_weight else 1
        if len(set(found.values())) < len(found):
            raise other
        if any(start + sizes[own] > count for own, start in found.items()):
            raise other
        if not blocks.per_weight:  # blocks without a member in that state, by name
            taken = set(found.values())
            names = {name: i for i, name in enumerate(saved.get("block_names", ()))}
            for i, label in enumerate(blocks.labels):
                if i not in found and names.get(label) is not None and names[label] not in taken:
                    found[i], sizes[i] = names[label], 1
        return [(slice(a, a + sizes[a]), slice(b, b + sizes[a])) for a, b in found.items()]

    @torch.no_grad()
    def _take_shared(self) -> None:
        """Copy the saved shared state into this optimizer's own tensors, block by block."""
        kept, saved, pairs = self._kept, self._saved, self._pairs
        beta = kept.beta
        count, theirs = beta.numel(), saved["beta"].numel()
        same = count == theirs and all(a == b for a, b in pairs)
        for name in self._shared_tensors():
            own, new = kept.shared[name], saved[name].to(device=beta.device)
            if same and own.shape == new.shape:
                own.copy_(new)
            elif own.shape == (count,) and new.shape == (theirs,):
                for a, b in pairs:
                    own[a] = new[b].to(own.dtype)
            elif own.shape == new.shape:
                own.copy_(new)
            elif name == "meta_step" and own.numel() == 1:  # weight blocks of version 1 counted each weight
                own.copy_(new.max().reshape(1))
            else:
                raise ValueError(
                    f"this state dict was saved with other blocks: {name!r} has the shape {tuple(new.shape)}, "
                    f"not {tuple(own.shape)}"
                )
        kept.shared["meta_lr"] = float(saved["meta_lr"])
        kept.shared["kernel"] = saved.get("kernel", "")
        kept.restart_from(float(saved.get("start_lr", kept.lr)))

    def _restore_precision(self, optimizer: torch.optim.Optimizer) -> None:
        """Put back the saved values that torch has cast to the parameters' dtype while loading."""
        kept = self._kept
        kept.rules.forget()
        rules = kept.rules.per_parameter(optimizer.param_groups, kept.blocks.members)
        for key, p, rule in zip(self._ids(), kept.params, rules, strict=True):
            saved = self._state_dict["state"].get(key)
            if not saved:
                continue
            fresh: dict[str, Any] = {}
            kept.init_state(p, fresh, rule)
            for name, value in fresh.items():
                if name != "block":
                    value.copy_(saved[name])
            optimizer.state[p] = fresh
