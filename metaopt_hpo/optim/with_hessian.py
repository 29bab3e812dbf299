"""A step of MetaOptimize whose trace takes Hessian-vector products; the maths is in ``hessian`` and ``traces``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.clipping import clip_factor
from metaopt_hpo.optim.kept_state import KeptState
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.traces import JointMap


def step_with_hessian(kept: KeptState, closure: Callable[[], Any] | None) -> Any:
    """One step from a closure that returns the loss and leaves its graph alone; the loss without its graph.

    Raises:
        ValueError: a closure that the trace cannot use, or a parameter of another shape than its state.
    """
    settings, params, shared, blocks = kept.settings, kept.params, kept.shared, kept.blocks
    loss, graph = hessian.loss_graph(closure, params, settings.trace)
    for i, g in zip(graph.used, graph.grads, strict=True):
        params[i].grad = g.to(params[i].dtype)
    kept.init_states()
    rules = kept.param_rules()
    for i in graph.used:
        if kept.state[params[i]]["H"].shape[1:] != params[i].shape:
            raise ValueError(f"{kept.name_of(params[i])} has changed its shape: make a new optimizer")
    owners = [group for group in kept.groups for _ in group["params"]]
    clip = clip_factor(settings.max_grad_norm, [params[i] for i in graph.used], graph.grads, kept.beta)
    one = kept.beta.new_ones(()) if clip is None else clip
    factors = [(-one if owners[i]["maximize"] else one).to(computed_in(params[i])) for i in graph.used]

    def joint_map(used: list[int]) -> JointMap:
        return JointMap(
            base=tuple(rules[i] for i in used),
            names=tuple(blocks.members[params[i]].name for i in used),
            meta=settings.meta,
            blocks=tuple(blocks.of[i] for i in used),
            per_weight=blocks.per_weight,
            ratios=tuple(owners[i]["lr"] / kept.lr for i in used),
            decays=tuple(owners[i]["weight_decay"] for i in used),
            steps=tuple(float(kept.state[params[i]]["step"]) + 1 for i in used),
            meta_steps=shared["meta_step"] + 1,
            meta_lr=shared["meta_lr"],
            bounds=settings.bounds,
        )

    def joins(i: int) -> Any:
        """Parameters with equal values here are advanced by the same operations on every element."""
        rule, group = rules[i], owners[i]
        if not rule.elementwise or blocks.per_weight or "name" in rule.needs:
            return None
        steps = float(kept.state[params[i]]["step"])
        return rule, blocks.of[i], group["lr"], group["weight_decay"], steps, computed_in(params[i])

    hessian.step(
        kind=settings.trace,
        make_map=joint_map,
        keys=[joins(i) for i in graph.used],
        graph=graph,
        factors=factors,
        params=params,
        states=[kept.state[p] for p in params],
        shared=shared,
        meta=settings.meta.states,
        base=[rules[i].states for i in graph.used],
        gamma=settings.gamma,
    )
    kept.refresh_step_sizes()
    kept.watch.see(kept.beta)
    return loss.detach()
