"""Saving and loading MetaOptimize: a run that goes on from a loaded state is bitwise the run that never stopped.

A state dict is one of torch's: the shared state stands in its first group. Every parameter's state holds the index
of its block, so that a block finds its values again by its parameters, in whatever order these now are.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.kept_state import KeptState
from metaopt_hpo.optim.live import LiveStepSizes
from metaopt_hpo.optim.shared_state import STATE_VERSION
from metaopt_hpo.optim.traces import HESSIAN_FREE

Pairs = list[tuple[slice, slice]]


class SavedState(KeptState):
    """The part of MetaOptimize that saves and loads."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's; groups edited by hand are followed first."""
        self._follow()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned; a run that goes on from it is bitwise the run that never
        stopped, whatever ``lr`` and ``meta_lr`` this optimizer was made with.

        Raises:
            ValueError: a state of another optimizer, of a newer version, or of other rules or blocks; then nothing
                has changed.
        """
        self._follow()
        saved = self._check_loadable(state_dict)
        pairs = self._match_blocks(state_dict, saved)
        self._check_parameters(state_dict)
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, old in zip(self.param_groups, before, strict=True):
            if "param_names" in old:
                group["param_names"] = old["param_names"]
            for name in ("params", *self._own_defaults):
                if name not in group:
                    group[name] = old.get(name, self.defaults.get(name))
            if isinstance(group.get("base"), str) and group["base"] not in self._rules.by_name:
                group["base"] = old["base"]
            group.pop("step_size", None)
        self._take_shared(saved, pairs)
        self._restore_precision(state_dict)
        self._kernel = None
        self._order = []
        self._follow()

    def _shared_tensors(self) -> tuple[str, ...]:
        names = ("beta", "meta_step", "skipped", *(f"meta_{name}" for name in self._meta.states))
        if self._trace == HESSIAN_FREE:
            return names
        return (*names, *hessian.init_shared(self._trace, torch.zeros(0), self._meta))

    def _check_loadable(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The shared state in a state dict, fit to be loaded here."""
        groups = state_dict.get("param_groups") or [{}]
        shared: dict[str, Any] = next((group for group in groups if "state_version" in group), {})
        if not shared:
            raise ValueError("this state dict has no state_version: it is not one of MetaOptimize")
        version = int(shared["state_version"])
        if version > STATE_VERSION:
            raise ValueError(
                f"this state dict has state_version {version}, above {STATE_VERSION}: upgrade metaopt-hpo"
            )
        if shared["rules"] != self._rules_name():
            raise ValueError(
                f"this state dict was saved with other rules (base / meta / trace): {shared['rules']}, "
                f"not {self._rules_name()}"
            )
        if not bool(torch.isfinite(shared["beta"]).all()):
            raise ValueError("a step size in this state dict is not finite: it is damaged")
        start = float(shared.get("start_lr", self.defaults["lr"]))  # states before it was kept: as given here
        if not (start > 0 and math.isfinite(start)):
            raise ValueError(
                f"start_lr={start!r} in this state dict is not a positive finite number: it is damaged"
            )
        for i, (group, own) in enumerate(zip(groups, self.param_groups, strict=False)):
            name = group.get("base", own["base"])
            if name != own["base"] and str(name).partition(" ")[0] != own["base"].partition(" ")[0]:
                raise ValueError(
                    f"this state dict was saved with other rules: group {i} with {name}, not {own['base']}"
                )
        return shared

    def _check_parameters(self, state_dict: dict[str, Any]) -> None:
        """Every saved parameter's state must fit the parameter that takes it."""
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for key, p, rule in zip(ids, self._all_params(), self._param_rules(), strict=False):
            state = state_dict["state"].get(key)
            if not state:
                continue
            trace = ("h",) if self._trace == HESSIAN_FREE else ("H",)
            missing = [name for name in (*rule.states, *trace, "step") if name not in state]
            if missing:
                raise ValueError(
                    f"this state dict has no {missing[0]!r} for {self._name_of(p)}: it is damaged"
                )
            shape = state[trace[0]].shape[0 if trace == ("h",) else 1 :]
            if shape != p.shape:
                raise ValueError(
                    f"this state dict was saved with other parameters: {self._name_of(p)} has the shape "
                    f"{tuple(p.shape)}, and there {tuple(shape)}"
                )

    def _match_blocks(self, state_dict: dict[str, Any], saved: dict[str, Any]) -> Pairs:
        """Which stretch of this β is which stretch of the saved one."""
        assert self._blocks is not None
        count = saved["beta"].numel()
        other = ValueError(
            f"this state dict has {count} blocks and this optimizer {self._blocks.count}: saved with other blocks"
        )
        if int(saved["state_version"]) < 2 or "blocks_kind" not in saved:
            if count != self._blocks.count:
                raise other
            return [(slice(0, count), slice(0, count))]
        spec = self._blocks.spec
        if saved["blocks_kind"] != (spec if isinstance(spec, str) else "function"):
            raise other
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        found: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for key, p in zip(ids, self._all_params(), strict=False):
            state = state_dict["state"].get(key)
            if not state or "block" not in state:
                continue
            own, theirs = self._blocks.members[p], int(state["block"])
            if found.setdefault(own.block, theirs) != theirs:
                raise other
            sizes[own.block] = own.numel if self._blocks.per_weight else 1
        if len(set(found.values())) < len(found):
            raise other
        if any(start + sizes[own] > count for own, start in found.items()):
            raise other
        if not self._blocks.per_weight:  # blocks without a member in that state, by name
            taken = set(found.values())
            names = {name: i for i, name in enumerate(saved.get("block_names", ()))}
            for i, label in enumerate(self._blocks.labels):
                if i not in found and names.get(label) is not None and names[label] not in taken:
                    found[i], sizes[i] = names[label], 1
        return [(slice(a, a + sizes[a]), slice(b, b + sizes[a])) for a, b in found.items()]

    @torch.no_grad()
    def _take_shared(self, saved: dict[str, Any], pairs: Pairs) -> None:
        """Copy the saved shared state into this optimizer's own tensors, block by block."""
        assert self._blocks is not None
        beta: Tensor = self._shared["beta"]
        count, theirs = beta.numel(), saved["beta"].numel()
        same = count == theirs and all(a == b for a, b in pairs)
        for name in self._shared_tensors():
            own, new = self._shared[name], saved[name].to(device=beta.device)
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
        self._shared["meta_lr"] = float(saved["meta_lr"])
        self._shared["start_lr"] = self.defaults["lr"] = float(saved.get("start_lr", self.defaults["lr"]))
        self._live = LiveStepSizes(self.defaults["lr"])
        self._shared["kernel"] = saved.get("kernel", "")

    def _restore_precision(self, state_dict: dict[str, Any]) -> None:
        """Put back the saved values that torch has cast to the parameters' dtype while loading."""
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        self._rules.forget()
        for key, p, rule in zip(ids, self._all_params(), self._param_rules(), strict=True):
            saved = state_dict["state"].get(key)
            if not saved:
                continue
            fresh: dict[str, Any] = {}
            self._init_state(p, fresh, rule)
            for name, value in fresh.items():
                if name != "block":
                    value.copy_(saved[name])
            self.state[p] = fresh
