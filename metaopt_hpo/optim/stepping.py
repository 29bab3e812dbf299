"""A Hessian-free step of MetaOptimize: by one kernel for all parameters at once, or bucket by bucket."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
from metaopt_hpo.optim.with_hessian import HessianSteps

CAPTURE = (
    "a step of MetaOptimize can be captured into a CUDA graph only with compile='triton', for dense parameters on one "
    "device whose rules, the meta rule too, have a description, after steps outside the graph: take three first"
)


class Stepping(HessianSteps):
    """The part of MetaOptimize that steps without a Hessian."""

    _eager: EagerKernel
    _stochastic: bool
    _compile: str

    def _step_hessian_free(self) -> None:
        params = self._follow()
        self._check_shared()
        captured = capturing(self._shared["beta"].device)
        if captured and not isinstance(self._whole, TritonStep):
            raise RuntimeError(CAPTURE)
        if self._kernel is None:
            self._kernel = choose(
                self._compile, self._shared["kernel"], self._param_rules(), self._meta, params
            )
            self._shared["kernel"] = self.param_groups[0]["kernel"] = self._kernel.name
        if not self._step_at_once(self._kernel, params, captured):
            if captured:
                raise RuntimeError(CAPTURE)
            self._step_by_buckets(self._kernel, params)

    def _step_at_once(self, kernel: Kernel, params: list[Tensor], captured: bool) -> bool:
        """The whole step in one native call or two launches, where tensors allow it; whether it was done."""
        if not isinstance(kernel, NativeKernel | TritonKernel):
            return False
        rules = self._param_rules()
        grads = [p.grad for p in params]
        every = list(grads)
        assert self._blocks is not None
        if not self._blocks.per_weight:  # what has no description is advanced by plain operations beside it
            grads = [g if is_described(rule) else None for g, rule in zip(grads, rules, strict=True)]
        if self._whole is None or not self._whole.matches(rules, grads, self.state):
            self._whole = self._prepare(kernel, params, rules, grads)
            if self._whole is None or not self._whole.matches(rules, grads, self.state):
                return False
        pairs = [(p, g) for p, g in zip(params, every, strict=True) if g is not None]
        scale = self._clip_factor([p for p, _ in pairs], [g for _, g in pairs])
        rest = {id(p) for p, g, own in zip(params, every, grads, strict=True) if g is not own}
        if captured and (rest or not isinstance(self._whole, TritonStep) or not self._whole.publishes):
            return False
        extra = self._advance_rest(rest, scale) if rest else None
        seen = self._whole.run(grads, self.param_groups, self.defaults["lr"], self._shared, scale, extra)
        if captured:
            return True
        if seen is None:
            self._watch.see(self._shared["beta"])
        else:
            self._watch.range(*seen)
        idle = self._blocks.per_weight and len(pairs) < len(params)
        if idle or (isinstance(self._whole, TritonStep) and not self._whole.publishes):
            self._refresh_step_sizes()
        return True

    @torch.no_grad()
    def _advance_rest(self, those: set[int], scale: Tensor | None) -> Tensor | None:
        """Advance these parameters, where they have gradients, by plain operations; their part of z."""
        buckets = self._buckets(self._eager, those)
        if not buckets:
            return None
        beta: Tensor = self._shared["beta"]
        alpha, z = beta.exp(), torch.zeros_like(beta)
        for _, rule, runner, bucket in buckets:
            runner.advance(bucket.local(), rule, alpha, self._gamma, scale, z)
        return z

    def _prepare(
        self,
        kernel: NativeKernel | TritonKernel,
        params: list[Tensor],
        rules: list[Rule],
        grads: list[Tensor | None],
    ) -> WholeStep | TritonStep | None:
        assert self._blocks is not None
        if any(is_sharded(p) for p in params):
            return None
        self._init_states()
        for p, g, rule in zip(params, grads, rules, strict=True):
            if g is None:
                continue
            self._fit_state(p, rule)
            check_gradient(p, g, self._name_of(p))
            if isinstance(kernel, NativeKernel) and not kernel.takes(p, g, self._moving(p, rule), rule):
                return None
        groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        given = StepInputs(
            params=params,
            rules=rules,
            grads=grads,
            state=self.state,
            groups=groups,
            blocks=self._blocks,
            shared=self._shared,
            live=own_blocks(self.param_groups, self._blocks),
            meta=self._meta,
            gamma=self._gamma,
            bounds=self._bounds,
            dithered=self._stochastic,
        )
        return whole_step(given) if isinstance(kernel, NativeKernel) else triton_step(given)

    def _step_by_buckets(self, kernel: Kernel, params: list[Tensor]) -> None:
        shared = self._shared
        beta: Tensor = shared["beta"]
        self._init_states()
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
            runner.advance(shards, rule, alpha.to(device), self._gamma, factor, part)
            parts[key] = parts.get(key, torch.zeros_like(beta)) + part.to(beta.device)
        z = reduce_sums(parts, beta)
        meta_state = [shared[f"meta_{name}"] for name in self._meta.states]
        advance_beta(
            self._meta,
            beta,
            z,
            meta_state,
            shared["meta_step"],
            shared["skipped"],
            shared["meta_lr"],
            self._bounds,
        )
        self._refresh_step_sizes()
        self._watch.see(beta)

    def _buckets(
        self, kernel: Kernel, only: set[int] | None = None
    ) -> list[tuple[ShardKey, Rule, Kernel, Bucket]]:
        """Parameters with a gradient (of these ids only), by group, rule, device and dtype, each with the kernel that
        can advance it."""
        assert self._blocks is not None
        buckets: dict[Any, tuple[ShardKey, Rule, Kernel, Bucket]] = {}
        block, rules = iter(self._blocks.of), iter(self._param_rules())
        per_weight = self._blocks.per_weight
        for number, group in enumerate(self.param_groups):
            for p in group["params"]:
                own, rule = next(block), next(rules)
                g = p.grad
                if g is None or (only is not None and id(p) not in only):
                    continue
                state = self._fit_state(p, rule)
                check_gradient(p, g, self._name_of(p))
                if is_sharded(p) and per_weight:
                    raise ValueError(f"{self._name_of(p)} is sharded, which blocks='weight' does not support")
                g = like_shards(g, p)
                runner = self._runner(kernel, p, g, rule)
                shards = shard_key(p)
                key = (number, id(rule), p.device, p.dtype, state["h"].dtype, runner.name, shards)
                if key not in buckets:
                    ratio = group["lr"] / self.defaults["lr"]
                    new = Bucket(
                        ratio, group["weight_decay"], group["maximize"], per_weight, self._stochastic
                    )
                    new.states = tuple([] for _ in rule.states)
                    buckets[key] = shards, rule, runner, new
                bucket = buckets[key][3]
                bucket.params.append(p)
                bucket.grads.append(g)
                bucket.traces.append(state["h"])
                bucket.steps.append(state["step"])
                bucket.blocks.append(own)
                bucket.names.append(self._blocks.members[p].name)
                for tensors, name in zip(bucket.states, rule.states, strict=True):
                    tensors.append(state[name])
        return list(buckets.values())

    def _runner(self, kernel: Kernel, p: Tensor, g: Tensor, rule: Rule) -> Kernel:
        """The kernel, where it can advance this parameter, else plain operations."""
        assert self._blocks is not None
        if isinstance(kernel, NativeKernel):
            moving = [local(x) for x in self._moving(p, rule)]
            if self._blocks.per_weight or not kernel.takes(local(p), local(g), moving, rule):
                return self._eager
        elif not rule.elementwise or isinstance(kernel, TritonKernel):
            return self._eager
        return kernel
