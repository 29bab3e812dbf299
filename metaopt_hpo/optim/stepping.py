"""A Hessian-free step of MetaOptimize: by one kernel for all parameters at once, or bucket by bucket."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.clipping import clip_factor
from metaopt_hpo.optim.kept_state import KeptState
from metaopt_hpo.optim.kernels.bucket import Bucket, Kernel
from metaopt_hpo.optim.kernels.choose import choose
from metaopt_hpo.optim.kernels.describe import is_described
from metaopt_hpo.optim.kernels.device_tables import capturing
from metaopt_hpo.optim.kernels.eager import EagerKernel
from metaopt_hpo.optim.kernels.inputs import StepInputs
from metaopt_hpo.optim.kernels.native import NativeKernel
from metaopt_hpo.optim.kernels.triton_step import TritonKernel, TritonStep, triton_step
from metaopt_hpo.optim.kernels.whole_step import WholeStep, whole_step
from metaopt_hpo.optim.live import own_blocks
from metaopt_hpo.optim.meta import advance_beta
from metaopt_hpo.optim.param_state import check_gradient
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.sharding import ShardKey, is_sharded, like_shards, local, reduce_sums, shard_key

CAPTURE = (
    "a step of MetaOptimize can be captured into a CUDA graph only with compile='triton', for dense parameters on one "
    "device whose rules, the meta rule too, have a description, after steps outside the graph: take three first"
)


class HessianFreeSteps:
    """Steps an optimizer without a Hessian; what is found here is bound to this process and is not saved.

    Args:
        kept: the optimizer's state.

    Attributes:
        kernel: what runs the steps; None before the first.
    """

    def __init__(self, kept: KeptState) -> None:
        self._kept = kept
        self._lock = threading.RLock()  # threads that share an optimizer step one after another
        self.kernel: Kernel | None = None
        self._eager = EagerKernel()
        self._whole: WholeStep | TritonStep | None = None
        self._version = kept.version

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        HessianFreeSteps.__init__(self, state["_kept"])

    def forget(self) -> None:
        """A state has been loaded: the kernel is chosen anew."""
        self.kernel = None

    @property
    def whole(self) -> WholeStep | TritonStep | None:
        """The kernel for all parameters at once, where one is prepared that still fits them."""
        if self._version != self._kept.version:
            self._whole, self._version = None, self._kept.version
        return self._whole

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of Algorithm 3 with the gradients at hand."""
        with self._lock:
            self._step(self._kept.follow(optimizer))

    def _step(self, params: list[Tensor]) -> None:
        kept = self._kept
        kept.check_shared()
        captured = capturing(kept.beta.device)
        if captured and not isinstance(self.whole, TritonStep):
            raise RuntimeError(CAPTURE)
        if self.kernel is None:
            settings = kept.settings
            self.kernel = choose(
                settings.compile, kept.shared["kernel"], kept.param_rules(), settings.meta, params
            )
            kept.change("kernel", self.kernel.name)
        if not self._step_at_once(self.kernel, params, captured):
            if captured:
                raise RuntimeError(CAPTURE)
            self._step_by_buckets(self.kernel)

    def _step_at_once(self, kernel: Kernel, params: list[Tensor], captured: bool) -> bool:
        """The whole step in one native call or two launches, where tensors allow it; whether it was done."""
        if not isinstance(kernel, NativeKernel | TritonKernel):
            return False
        kept = self._kept
        rules = kept.param_rules()
        grads = [p.grad for p in params]
        every = list(grads)
        if not kept.blocks.per_weight:  # what has no description is advanced by plain operations beside it
            grads = [g if is_described(rule) else None for g, rule in zip(grads, rules, strict=True)]
        whole = self.whole
        if whole is None or not whole.matches(rules, grads, kept.state):
            whole = self._whole = self._prepare(kernel, params, rules, grads)
            if whole is None or not whole.matches(rules, grads, kept.state):
                return False
        pairs = [(p, g) for p, g in zip(params, every, strict=True) if g is not None]
        scale = self._clip_factor([p for p, _ in pairs], [g for _, g in pairs])
        rest = {id(p) for p, g, own in zip(params, every, grads, strict=True) if g is not own}
        if captured and (rest or not isinstance(whole, TritonStep) or not whole.publishes):
            return False
        extra = self._advance_rest(rest, scale) if rest else None
        seen = whole.run(grads, kept.groups, kept.lr, kept.shared, scale, extra)
        if captured:
            return True
        if seen is None:
            kept.watch.see(kept.beta)
        else:
            kept.watch.range(*seen)
        idle = kept.blocks.per_weight and len(pairs) < len(params)
        if idle or (isinstance(whole, TritonStep) and not whole.publishes):
            kept.refresh_step_sizes()
        return True

    def refresh(self) -> None:
        """As ``MetaOptimize.refresh``."""
        whole, kept = self.whole, self._kept
        if not isinstance(whole, TritonStep):
            raise RuntimeError(
                "refresh() is for steps captured into a CUDA graph, and there is none: " + CAPTURE
            )
        whole.refresh(kept.groups, kept.lr, kept.shared, kept.param_rules())

    def _clip_factor(self, params: list[Tensor], grads: list[Tensor]) -> Tensor | None:
        return clip_factor(self._kept.settings.max_grad_norm, params, grads, self._kept.beta)

    @torch.no_grad()
    def _advance_rest(self, those: set[int], scale: Tensor | None) -> Tensor | None:
        """Advance these parameters, where they have gradients, by plain operations; their part of z."""
        buckets = self._buckets(self._eager, those)
        if not buckets:
            return None
        beta = self._kept.beta
        alpha, z = beta.exp(), torch.zeros_like(beta)
        for _, rule, runner, bucket in buckets:
            runner.advance(bucket.local(), rule, alpha, self._kept.settings.gamma, scale, z)
        return z

    def _prepare(
        self,
        kernel: NativeKernel | TritonKernel,
        params: list[Tensor],
        rules: list[Rule],
        grads: list[Tensor | None],
    ) -> WholeStep | TritonStep | None:
        kept, settings = self._kept, self._kept.settings
        if any(is_sharded(p) for p in params):
            return None
        kept.init_states()
        for p, g, rule in zip(params, grads, rules, strict=True):
            if g is None:
                continue
            kept.fit_state(p, rule)
            check_gradient(p, g, kept.name_of(p))
            if isinstance(kernel, NativeKernel) and not kernel.takes(p, g, kept.moving(p, rule), rule):
                return None
        groups = [i for i, group in enumerate(kept.groups) for _ in group["params"]]
        given = StepInputs(
            params=params,
            rules=rules,
            grads=grads,
            state=kept.state,
            groups=groups,
            blocks=kept.blocks,
            shared=kept.shared,
            live=own_blocks(kept.groups, kept.blocks),
            meta=settings.meta,
            gamma=settings.gamma,
            bounds=settings.bounds,
            dithered=settings.stochastic,
        )
        return whole_step(given) if isinstance(kernel, NativeKernel) else triton_step(given)

    def _step_by_buckets(self, kernel: Kernel) -> None:
        kept, shared, settings = self._kept, self._kept.shared, self._kept.settings
        beta = kept.beta
        kept.init_states()
        buckets = self._buckets(kernel)
        scale = self._clip_factor(
            [p for _, _, _, bucket in buckets for p in bucket.params],
            [g for _, _, _, bucket in buckets for g in bucket.grads],
        )
        alpha = beta.exp()
        parts: dict[ShardKey, Tensor] = {(): torch.zeros_like(beta)}
        for key, rule, runner, bucket in buckets:
            shards = bucket.local()
            device = shards.params[0].device
            part = torch.zeros_like(beta, device=device)
            factor = None if scale is None else scale.to(device)
            runner.advance(shards, rule, alpha.to(device), settings.gamma, factor, part)
            parts[key] = parts.get(key, torch.zeros_like(beta)) + part.to(beta.device)
        z = reduce_sums(parts, beta)
        meta_state = [shared[f"meta_{name}"] for name in settings.meta.states]
        advance_beta(
            settings.meta,
            beta,
            z,
            meta_state,
            shared["meta_step"],
            shared["skipped"],
            shared["meta_lr"],
            settings.bounds,
        )
        kept.refresh_step_sizes()
        kept.watch.see(beta)

    def _buckets(
        self, kernel: Kernel, only: set[int] | None = None
    ) -> list[tuple[ShardKey, Rule, Kernel, Bucket]]:
        """Parameters with a gradient (of these ids only), by group, rule, device and dtype, each with the kernel that
        can advance it."""
        kept, settings = self._kept, self._kept.settings
        buckets: dict[Any, tuple[ShardKey, Rule, Kernel, Bucket]] = {}
        block, rules = iter(kept.blocks.of), iter(kept.param_rules())
        per_weight = kept.blocks.per_weight
        for number, group in enumerate(kept.groups):
            for p in group["params"]:
                own, rule = next(block), next(rules)
                g = p.grad
                if g is None or (only is not None and id(p) not in only):
                    continue
                state = kept.fit_state(p, rule)
                check_gradient(p, g, kept.name_of(p))
                if is_sharded(p) and per_weight:
                    raise ValueError(f"{kept.name_of(p)} is sharded, which blocks='weight' does not support")
                g = like_shards(g, p)
                runner = self._runner(kernel, p, g, rule)
                shards = shard_key(p)
                key = (number, id(rule), p.device, p.dtype, state["h"].dtype, runner.name, shards)
                if key not in buckets:
                    ratio = group["lr"] / kept.lr
                    new = Bucket(
                        ratio, group["weight_decay"], group["maximize"], per_weight, settings.stochastic
                    )
                    new.states = tuple([] for _ in rule.states)
                    buckets[key] = shards, rule, runner, new
                bucket = buckets[key][3]
                bucket.params.append(p)
                bucket.grads.append(g)
                bucket.traces.append(state["h"])
                bucket.steps.append(state["step"])
                bucket.blocks.append(own)
                bucket.names.append(kept.blocks.members[p].name)
                for tensors, name in zip(bucket.states, rule.states, strict=True):
                    tensors.append(state[name])
        return list(buckets.values())

    def _runner(self, kernel: Kernel, p: Tensor, g: Tensor, rule: Rule) -> Kernel:
        """The kernel, where it can advance this parameter, else plain operations."""
        kept = self._kept
        if isinstance(kernel, NativeKernel):
            moving = [local(x) for x in kept.moving(p, rule)]
            if kept.blocks.per_weight or not kernel.takes(local(p), local(g), moving, rule):
                return self._eager
        elif not rule.elementwise or isinstance(kernel, TritonKernel):
            return self._eager
        return kernel
