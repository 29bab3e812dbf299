"""MetaOptimize: a torch optimizer that learns its own step sizes as training goes.

Source: arXiv 2402.02342, Algorithm 3 (Hessian-free). This class checks arguments and runs steps; the maths is
in ``rules``, ``kernels`` and ``traces``, what is kept in ``kept_state``, saving and loading in ``saved_state``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.arguments import bounds_of, check_meta_lr, check_positive
from metaopt_hpo.optim.blocks import Blocks, BlockSpec
from metaopt_hpo.optim.kernels.bucket import Bucket, Kernel
from metaopt_hpo.optim.kernels.choose import CHOICES, choose
from metaopt_hpo.optim.kernels.describe import is_described
from metaopt_hpo.optim.kernels.eager import EagerKernel
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.kernels.native import NativeKernel
from metaopt_hpo.optim.kernels.triton_step import TritonKernel, TritonStep, capturing, triton_step
from metaopt_hpo.optim.kernels.whole_step import WholeStep, whole_step
from metaopt_hpo.optim.meta import advance_beta
from metaopt_hpo.optim.rules import Rule, base_rule, meta_rule
from metaopt_hpo.optim.saved_state import SavedState
from metaopt_hpo.optim.sharding import ShardKey, is_sharded, like_shards, local, reduce_sums, shard_key
from metaopt_hpo.optim.traces import HESSIAN_TRACES, JointMap
from metaopt_hpo.optim.watch import Watch

TRACES = ("hessian_free", *HESSIAN_TRACES)
CAPTURE = (
    "a step of MetaOptimize can be captured into a CUDA graph only with compile='triton', for dense parameters on one "
    "device whose rules, the meta rule too, have a description, after steps outside the graph: take three first"
)


class MetaOptimize(SavedState):
    """Gradient descent whose step sizes α = exp β are themselves learned, by a meta-gradient through an
    eligibility trace.

    The step size of a weight is α = exp(β_block) · lr_group / lr, with β₀ = ln lr: ``lr`` is where the step
    size starts, a group's own ``lr`` and any scheduler multiply it. ``param_groups[i]["step_size"]`` holds the
    live values.

    Args:
        params: parameters, named parameters or parameter groups, as any torch optimizer takes them.
        lr: initial step size α₀ (> 0).
        base: rule of the weights: "sgd", "sgdm", "rmsprop", "adamw", "lion", "muon" (AdamW for embeddings, head and
            vectors), or a :class:`Rule`. A parameter group may have its own ``base``, and its own numbers of the
            rule (``betas``, ``eps``, ``momentum``, …), which schedulers may change.
        meta: rule of β: "sgd", "adam", "rmsprop", "lion", or a :class:`Rule`.
        meta_lr: η (≥ 0; 0 freezes the step sizes). 1e-3, as printed in the paper, moves ln α by at most about 1 in
            1,000 steps here: a run of a few thousand steps needs more. The paper's experiments ran in units of their
            own, in which 1e-3 moves ln α ten times as far (``presets.authors_units`` has them). Change it at any
            time through ``opt.meta_lr``.
        gamma: γ in [0, 1], discount of the trace; 1 (the paper's) looks at the whole run.
        blocks: which weights share a step size: "scalar" (all of them), "layer" (the parameters of one module),
            "tensor", "weight", "group" (a parameter group), "rule" (what one base rule advances), or a function
            from a parameter's name to its block's name. "layer" and a function need named parameters. A block
            belongs to its parameters, whatever is done to the groups.
        weight_decay: κ (≥ 0), decoupled and multiplied by α; a group may have its own.
        trace: how the influence of past step sizes is followed: "hessian_free" (h in ``state[p]["h"]``, one
            float a parameter), or with Hessian-vector products "l", "2x2" or "exact" (H in ``state[p]["H"]``, m
            floats a parameter for m blocks); these need ``step(closure)``, see :mod:`metaopt_hpo.optim.traces`.
        beta_bounds: least and greatest ln step size; None means none, but (−15, ln 0.1) for weight blocks.
        max_grad_norm: gradients are clipped to this global norm before the step (gradient buffers are left
            alone); None: not.
        compile: which kernel runs the step: "native" (one pass in C, built at first use), "triton" (two launches on
            a GPU), "inductor" (torch.compile), "eager" (torch operations), or "auto", which chooses and keeps its
            choice in the state, so that on one machine a resumed run is bitwise the run that never stopped.
        maximize: go up the objective instead of down; a group may have its own.
        trace_dtype: ``torch.bfloat16`` halves the memory of h, rounded at random in proportion; None: as the
            state.
        stochastic_rounding: whether bfloat16 weights are rounded at random in proportion, so that updates below
            1/512 of a weight are not lost ("triton" only; the other kernels refuse it).

    Raises:
        ValueError: a value out of range, a complex parameter, or blocks that need names where there are none.

    Source: arXiv 2402.02342, Algorithm 3.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo import MetaOptimize
        >>> optimizer = MetaOptimize(model.named_parameters(), lr=1e-3)
        >>> loss = model(torch.ones(2, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> optimizer.step_sizes().shape
        torch.Size([1])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float = 1e-4,
        *,
        base: str | Rule = "adamw",
        meta: str | Rule = "adam",
        meta_lr: float = 1e-3,
        gamma: float = 1.0,
        blocks: BlockSpec = "scalar",
        weight_decay: float = 0.0,
        trace: str = "hessian_free",
        beta_bounds: tuple[float, float] | None = None,
        max_grad_norm: float | None = None,
        compile: str = "auto",
        maximize: bool = False,
        trace_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
    ) -> None:
        lr = float(lr)
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"lr={lr!r} is not allowed: it must be a positive finite number, for β₀ = ln lr")
        check_meta_lr(meta_lr)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma!r} is not allowed: it must lie in [0, 1]")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={max_grad_norm!r} is not allowed: it must be positive, or None")
        if trace not in TRACES:
            raise ValueError(f"trace={trace!r} is not known: use one of {', '.join(TRACES)}")
        if compile not in CHOICES:
            raise ValueError(f"compile={compile!r} is not known: use one of {', '.join(CHOICES)}")
        if trace_dtype not in (None, torch.bfloat16) or (trace_dtype and trace != "hessian_free"):
            raise ValueError(
                f"trace_dtype={trace_dtype!r} is not allowed: use None, or torch.bfloat16 with trace='hessian_free'"
            )
        if stochastic_rounding and compile not in ("auto", "triton"):
            raise ValueError(f"stochastic_rounding needs compile='triton', not {compile!r}")
        self._trace_dtype = trace_dtype
        self._stochastic = bool(stochastic_rounding)
        self._base = base_rule(base)
        self._meta = meta_rule(meta)
        self._gamma = float(gamma)
        self._block_spec = blocks
        self._trace = trace
        self._max_grad_norm = max_grad_norm
        self._compile = compile
        self._kernel: Kernel | None = None
        self._eager = EagerKernel()
        self._whole: WholeStep | TritonStep | None = None
        self._live: list[Tensor | slice | int] | None = None
        self._shown: list[tuple[Tensor, torch.Size]] = []
        self._watch = Watch(math.log(lr))
        self._blocks: Blocks | None = None
        self._shared: dict[str, Any] = {}
        self._rules: dict[str, Rule] = {}
        self._variants: dict[Any, Rule] = {}
        self._param_rule_cache: tuple[list[Rule], list[Rule]] | None = None
        self._order: list[Tensor] = []
        self._away: dict[Tensor, Any] = {}
        self._sizes: list[int] = []
        self._groups: list[dict[str, Any]] = []
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": float(weight_decay), "maximize": bool(maximize)}
        options = {name: value for name, value in self._base.options().items() if name not in defaults}
        defaults |= {"base": self._register(self._base), **options}
        self._own_defaults = tuple(defaults)
        super().__init__(params, defaults)
        self._blocks = Blocks(blocks)
        self._bounds = bounds_of(beta_bounds, blocks, math.log(lr))
        self._init_shared(float(meta_lr))

    @property
    def meta_lr(self) -> float:
        """η, the step size of the meta update; set it at any time, 0 freezes the step sizes."""
        return float(self._shared["meta_lr"])

    @meta_lr.setter
    def meta_lr(self, value: float) -> None:
        check_meta_lr(value)
        self._shared["meta_lr"] = float(value)
        if self.param_groups:
            self.param_groups[0]["meta_lr"] = float(value)

    @property
    def skipped(self) -> int:
        """Number of steps in which z was not finite and some β kept its value (reading it waits for the device)."""
        return int(self._shared["skipped"])

    @torch.no_grad()
    def set_step_size(self, alpha: float | Tensor) -> None:
        """Overwrite exp β, with one number for all blocks or one value a block; traces and meta state stay.

        Raises:
            ValueError: a value that is not positive and finite (numbers only; a tensor is not looked at, to
                spare a sync), a tensor of another shape.
        """
        self._follow()
        beta: Tensor = self._shared["beta"]
        if isinstance(alpha, Tensor):
            if alpha.numel() not in (1, beta.numel()):
                raise ValueError(
                    f"alpha has {alpha.numel()} values; it must have 1 or one a block, {beta.numel()}"
                )
            beta.copy_(alpha.reshape(-1).to(beta).log().expand_as(beta))
        else:
            check_positive("alpha", alpha)
            beta.fill_(math.log(alpha))
            self._watch = Watch(math.log(alpha))  # far means far from where the caller put it
        if self._bounds is not None:
            beta.clamp_(*self._bounds)
        self._refresh_step_sizes()

    @torch.no_grad()
    def scale_step_size(self, factor: float) -> None:
        """Multiply every exp β by a positive factor; traces and meta state stay."""
        check_positive("factor", factor)
        self._follow()
        beta: Tensor = self._shared["beta"]
        beta.add_(math.log(factor))
        if self._bounds is not None:
            beta.clamp_(*self._bounds)
        self._refresh_step_sizes()

    @torch.no_grad()
    def set_state(self, name: str, values: dict[Tensor, Tensor]) -> None:
        """Overwrite one entry of the base rule's state, a tensor for each of these parameters; made where missing."""
        self._follow()
        self._init_states()
        for p, value in values.items():
            self.state[p][name].copy_(value)

    @torch.no_grad()
    def traces(self) -> Tensor:
        """The trace H, (total parameters × blocks); parameters in group order, each flattened.

        Raises:
            ValueError: more than 2²⁸ entries.
        """
        assert self._blocks is not None
        params = self._follow()
        total, m = sum(p.numel() for p in params), self._blocks.count
        if total * m > 2**28:
            raise ValueError(
                f"the trace would have {total} × {m} entries, more than 2^28: read state[p]['h'] instead"
            )
        beta: Tensor = self._shared["beta"]
        out = beta.new_zeros((total, m))
        row = 0
        for p, block in zip(params, self._blocks.of, strict=True):
            n = p.numel()
            if self._trace != "hessian_free":
                out[row : row + n] = self.state[p]["H"].reshape(m, n).T if p in self.state else 0.0
                row += n
                continue
            h = self.state[p]["h"].reshape(-1).to(out) if p in self.state else out.new_zeros(n)
            if self._blocks.per_weight:
                out[torch.arange(row, row + n), torch.arange(block, block + n)] = h
            else:
                out[row : row + n, block] = h
            row += n
        return out

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of Algorithm 3.

        Args:
            closure: optional, as for any torch optimizer: computes the loss and its gradients, and returns the
                loss. Traces with Hessian-vector products need one that returns the loss (a scalar) and does not
                call ``backward()``.

        Returns:
            What the closure returned (without its graph, where this differentiates it), or None.

        Raises:
            ValueError: a closure that the trace cannot use, or a sparse gradient.
        """
        if self._trace != "hessian_free":
            return self._step_with_hessian(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = self._follow()
        self._keep_step_sizes()
        captured = capturing(self._shared["beta"].device)
        if captured and not isinstance(self._whole, TritonStep):
            raise RuntimeError(CAPTURE)
        if self._kernel is None:
            self._kernel = choose(
                self._compile, self._shared["kernel"], self._param_rules(), self._meta, params
            )
            if self._stochastic and not isinstance(self._kernel, TritonKernel):
                raise ValueError("stochastic_rounding needs the triton kernel, which cannot run here")
            self._shared["kernel"] = self.param_groups[0]["kernel"] = self._kernel.name
        if not self._step_at_once(self._kernel, params, captured):
            if captured:
                raise RuntimeError(CAPTURE)
            self._step_by_buckets(self._kernel, params)
        return loss

    def refresh(self) -> None:
        """Tell a captured step of what has changed on the host: lr, weight decay, η, a rule's numbers. Call it after a
        scheduler has moved, before the graph is replayed; a step outside a graph needs no call.

        Raises:
            RuntimeError: there is no step on a GPU that could have been captured.
        """
        if not isinstance(self._whole, TritonStep):
            raise RuntimeError(
                "refresh() is for steps captured into a CUDA graph, and there is none: " + CAPTURE
            )
        self._whole.refresh(self.param_groups, self.defaults["lr"], self._shared, self._param_rules())

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
            self._trace,
            joint_map,
            [self._joins(i, params[i], owners[i], rules[i]) for i in graph.used],
            graph,
            factors,
            params,
            [self.state[p] for p in params],
            shared,
            self._meta.states,
            [rules[i].states for i in graph.used],
            self._gamma,
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
            self._check_gradient(p, g)
            if isinstance(kernel, NativeKernel) and not kernel.takes(p, g, self._moving(p, rule), rule):
                return None
        groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        make = (
            whole_step
            if isinstance(kernel, NativeKernel)
            else partial(triton_step, stochastic=self._stochastic)
        )
        return make(
            params,
            rules,
            grads,
            self.state,
            groups,
            self._blocks,
            self._shared,
            self._own_blocks(),
            self._meta,
            self._gamma,
            self._bounds,
        )

    def _check_gradient(self, p: Tensor, g: Tensor) -> None:
        if g.layout is not torch.strided:
            raise ValueError(f"{self._name_of(p)} has a sparse gradient, which is not supported")
        if g.shape != p.shape:
            raise ValueError(
                f"{self._name_of(p)} has the shape {tuple(p.shape)} and its gradient {tuple(g.shape)}: zero the "
                "gradients after a parameter has been changed in place"
            )
        if g.device != p.device:
            raise ValueError(f"{self._name_of(p)} is on {p.device} and its gradient on {g.device}")

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
                self._check_gradient(p, g)
                if is_sharded(p) and per_weight:
                    raise ValueError(f"{self._name_of(p)} is sharded, which blocks='weight' does not support")
                g = like_shards(g, p)
                runner = self._runner(kernel, p, g, rule)
                shards = shard_key(p)
                key = (number, id(rule), p.device, p.dtype, state["h"].dtype, runner.name, shards)
                if key not in buckets:
                    ratio = group["lr"] / self.defaults["lr"]
                    new = Bucket(ratio, group["weight_decay"], group["maximize"], per_weight)
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
