"""A step of MetaOptimize whose trace takes Hessian-vector products; the maths is in ``hessian`` and ``traces``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.saved_state import SavedState
from metaopt_hpo.optim.sharding import ShardKey, local, reduce_sums, shard_key
from metaopt_hpo.optim.traces import JointMap
from metaopt_hpo.optim.watch import Watch


class HessianSteps(SavedState):
    """The part of MetaOptimize that steps with Hessian-vector products, and clips."""

    _gamma: float
    _bounds: tuple[float, float] | None
    _max_grad_norm: float | None
    _watch: Watch

    def _step_with_hessian(self, closure: Callable[[], Any] | None) -> Any:
        assert self._blocks is not None
        params, shared, blocks = self._follow(), self._shared, self._blocks
        beta: Tensor = shared["beta"]
        loss, graph = hessian.loss_graph(closure, params, self._trace)
        for i, g in zip(graph.used, graph.grads, strict=True):
            params[i].grad = g.to(params[i].dtype)
        self._init_states()
        rules = self._param_rules()
        for i in graph.used:
            if self.state[params[i]]["H"].shape[1:] != params[i].shape:
                raise ValueError(f"{self._name_of(params[i])} has changed its shape: make a new optimizer")
        owners = [group for group in self.param_groups for _ in group["params"]]
        clip = self._clip_factor([params[i] for i in graph.used], list(graph.grads))
        one = beta.new_ones(()) if clip is None else clip
        factors = [(-one if owners[i]["maximize"] else one).to(computed_in(params[i])) for i in graph.used]

        def joint_map(used: list[int]) -> JointMap:
            return JointMap(
                tuple(rules[i] for i in used),
                tuple(blocks.members[params[i]].name for i in used),
                self._meta,
                tuple(blocks.of[i] for i in used),
                blocks.per_weight,
                tuple(owners[i]["lr"] / self.defaults["lr"] for i in used),
                tuple(owners[i]["weight_decay"] for i in used),
                tuple(float(self.state[params[i]]["step"]) + 1 for i in used),
                shared["meta_step"] + 1,
                shared["meta_lr"],
                self._bounds,
            )

        hessian.step(
            kind=self._trace,
            make_map=joint_map,
            keys=[self._joins(i, params[i], owners[i], rules[i]) for i in graph.used],
            graph=graph,
            factors=factors,
            params=params,
            states=[self.state[p] for p in params],
            shared=shared,
            meta=self._meta.states,
            base=[rules[i].states for i in graph.used],
            gamma=self._gamma,
        )
        self._refresh_step_sizes()
        self._watch.see(beta)
        return loss.detach()

    def _joins(self, i: int, p: Tensor, group: dict[str, Any], rule: Rule) -> Any:
        """Parameters with equal values here are advanced by the same operations on every element."""
        assert self._blocks is not None
        if not rule.elementwise or self._blocks.per_weight or "name" in rule.needs:
            return None
        return (
            rule,
            self._blocks.of[i],
            group["lr"],
            group["weight_decay"],
            float(self.state[p]["step"]),
            computed_in(p),
        )

    def _clip_factor(self, params: list[Tensor], grads: list[Tensor]) -> Tensor | None:
        """min(1, max_grad_norm / norm of all gradients), the norm over all shards; None without clipping."""
        if self._max_grad_norm is None or not grads:
            return None
        beta: Tensor = self._shared["beta"]
        squares: dict[ShardKey, Tensor] = {}
        for p, norm in zip(params, torch._foreach_norm([local(g) for g in grads], 2), strict=True):
            key = shard_key(p)
            squares[key] = squares.get(key, beta.new_zeros(())) + norm.to(beta) ** 2
        norm = reduce_sums(squares, beta.new_zeros(())).sqrt()
        return torch.clamp(self._max_grad_norm / (norm + 1e-6), max=1.0)
