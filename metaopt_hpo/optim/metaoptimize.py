"""MetaOptimize: a torch optimizer that learns its own step sizes as training goes.

Source: arXiv 2402.02342, Algorithm 3 (Hessian-free). This class checks arguments and runs steps; the maths is
in ``rules``, ``kernels`` and ``traces``, what is kept in ``kept_state``, saving and loading in ``saved_state``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.arguments import bounds_of, check_meta_lr, check_positive
from metaopt_hpo.optim.blocks import Blocks, BlockSpec
from metaopt_hpo.optim.group_rules import GroupRules
from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.kernels.choose import CHOICES
from metaopt_hpo.optim.kernels.eager import EagerKernel
from metaopt_hpo.optim.kernels.triton_step import TritonStep
from metaopt_hpo.optim.kernels.whole_step import WholeStep
from metaopt_hpo.optim.live import LiveStepSizes
from metaopt_hpo.optim.outside_graphs import outside_graphs
from metaopt_hpo.optim.rules import Rule, base_rule, meta_rule
from metaopt_hpo.optim.stepping import CAPTURE, Stepping
from metaopt_hpo.optim.traces import HESSIAN_FREE, TRACES
from metaopt_hpo.optim.watch import Watch


class MetaOptimize(Stepping):
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
            1/512 of a weight are not lost; other weights are stored as they are.

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
        trace: str = HESSIAN_FREE,
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
        if trace_dtype not in (None, torch.bfloat16) or (trace_dtype and trace != HESSIAN_FREE):
            raise ValueError(
                f"trace_dtype={trace_dtype!r} is not allowed: use None, or torch.bfloat16 with trace='hessian_free'"
            )
        if stochastic_rounding and trace != HESSIAN_FREE:
            raise ValueError(f"stochastic_rounding is not supported with trace={trace!r}: use 'hessian_free'")
        self._trace_dtype = trace_dtype
        self._stochastic = bool(stochastic_rounding)
        self._base = base_rule(base)
        self._meta = meta_rule(meta)
        self._gamma = float(gamma)
        self._block_spec = blocks
        self._trace = trace
        self._max_grad_norm = max_grad_norm
        self._compile = compile
        self._lock = threading.RLock()
        self._kernel: Kernel | None = None
        self._eager = EagerKernel()
        self._whole: WholeStep | TritonStep | None = None
        self._live = LiveStepSizes(lr)
        self._watch = Watch(math.log(lr))
        self._blocks: Blocks | None = None
        self._shared: dict[str, Any] = {}
        self._rules = GroupRules()
        self._order: list[Tensor] = []
        self._away: dict[Tensor, Any] = {}
        self._sizes: list[int] = []
        self._groups: list[dict[str, Any]] = []
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": float(weight_decay), "maximize": bool(maximize)}
        options = {name: value for name, value in self._base.options().items() if name not in defaults}
        defaults |= {"base": self._rules.register(self._base), **options}
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
            if self._trace != HESSIAN_FREE:
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
        return self._take_step(closure)

    @outside_graphs
    def _take_step(self, closure: Callable[[], Any] | None) -> Any:
        if self._trace != HESSIAN_FREE:
            return self._step_with_hessian(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock:
            self._step_hessian_free()
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
