"""MetaOptimize: a torch optimizer that learns its own step sizes as training goes.

Source: arXiv 2402.02342, Algorithm 3 (Hessian-free). This class is torch's face of parts that it has: ``settings``
(checked arguments), ``kept_state``, ``saved_state`` (loading) and ``stepping``; the maths is in ``rules``, ``kernels``
and ``traces``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.arguments import check_group, check_meta_lr, check_options, check_positive
from metaopt_hpo.optim.blocks import BlockSpec
from metaopt_hpo.optim.kept_state import KeptState
from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.outside_graphs import outside_graphs
from metaopt_hpo.optim.rules import Rule, base_rule, meta_rule
from metaopt_hpo.optim.saved_state import Loading
from metaopt_hpo.optim.settings import Settings
from metaopt_hpo.optim.stepping import HessianFreeSteps
from metaopt_hpo.optim.traces import HESSIAN_FREE
from metaopt_hpo.optim.watch import Watch
from metaopt_hpo.optim.with_hessian import step_with_hessian


class MetaOptimize(torch.optim.Optimizer):
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
        settings = Settings(
            lr=float(lr),
            base=base_rule(base),
            meta=meta_rule(meta),
            gamma=float(gamma),
            blocks=blocks,
            trace=trace,
            bounds=beta_bounds,
            max_grad_norm=max_grad_norm,
            compile=compile,
            trace_dtype=trace_dtype,
            stochastic=bool(stochastic_rounding),
        )
        check_meta_lr(meta_lr)
        self._settings = settings
        self._kept = KeptState(settings)
        self._steps = HessianFreeSteps(self._kept)
        super().__init__(params, self._kept.defaults(float(weight_decay), bool(maximize)))
        self._kept.start(self, float(meta_lr))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its blocks, where they are new ones, start at the initial step size.

        A group may have its own ``lr``, ``weight_decay``, ``maximize``, ``base`` (a rule or its name) and any number
        of that rule, such as ``betas``, ``eps`` or ``momentum``.
        """
        kept = self._kept
        own = {name: value for name, value in param_group.items() if name not in self.defaults}
        if "base" in param_group:
            rule = base_rule(param_group["base"])
            param_group = {**rule.options(), **param_group, "base": kept.rules.register(rule)}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            check_options(own, kept.rules.prototype(group))
            kept.rules.of(group)
            if kept.shared:
                kept.follow(self)
        except ValueError:
            self.param_groups.pop()
            kept.forget()
            raise
        group["lr"] = float(group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """As torch's; groups edited by hand are followed first."""
        self._kept.follow(self)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned; a run that goes on from it is bitwise the run that never
        stopped, whatever ``lr`` and ``meta_lr`` this optimizer was made with.

        Raises:
            ValueError: a state of another optimizer, of a newer version, or of other rules or blocks; then nothing
                has changed.
        """
        self._kept.follow(self)
        loading = Loading(self._kept, state_dict)
        super().load_state_dict(state_dict)
        loading.finish(self)
        self._steps.forget()

    def step_sizes(self) -> Tensor:
        """exp β, one value a block (before the groups' and schedulers' multipliers lr_group / lr); a copy."""
        self._kept.follow(self)
        return self._kept.beta.exp()

    def block_names(self) -> tuple[str, ...]:
        """What the entries of ``step_sizes()`` belong to, in the same order."""
        self._kept.follow(self)
        return self._kept.blocks.names

    @property
    def meta(self) -> Rule:
        """The rule of β."""
        return self._settings.meta

    @property
    def meta_lr(self) -> float:
        """η, the step size of the meta update; set it at any time, 0 freezes the step sizes."""
        return float(self._kept.shared["meta_lr"])

    @meta_lr.setter
    def meta_lr(self, value: float) -> None:
        check_meta_lr(value)
        self._kept.change("meta_lr", float(value))

    @property
    def skipped(self) -> int:
        """Number of steps in which z was not finite and some β kept its value (reading it waits for the device)."""
        return int(self._kept.shared["skipped"])

    @torch.no_grad()
    def set_step_size(self, alpha: float | Tensor) -> None:
        """Overwrite exp β, with one number for all blocks or one value a block; traces and meta state stay.

        Raises:
            ValueError: a value that is not positive and finite (numbers only; a tensor is not looked at, to
                spare a sync), a tensor of another shape.
        """
        kept, bounds = self._kept, self._settings.bounds
        kept.follow(self)
        beta = kept.beta
        if isinstance(alpha, Tensor):
            if alpha.numel() not in (1, beta.numel()):
                raise ValueError(
                    f"alpha has {alpha.numel()} values; it must have 1 or one a block, {beta.numel()}"
                )
            beta.copy_(alpha.reshape(-1).to(beta).log().expand_as(beta))
        else:
            check_positive("alpha", alpha)
            beta.fill_(math.log(alpha))
            kept.watch = Watch(math.log(alpha))  # far means far from where the caller put it
        if bounds is not None:
            beta.clamp_(*bounds)
        kept.refresh_step_sizes()

    @torch.no_grad()
    def scale_step_size(self, factor: float) -> None:
        """Multiply every exp β by a positive factor; traces and meta state stay."""
        check_positive("factor", factor)
        kept, bounds = self._kept, self._settings.bounds
        kept.follow(self)
        beta = kept.beta
        beta.add_(math.log(factor))
        if bounds is not None:
            beta.clamp_(*bounds)
        kept.refresh_step_sizes()

    @torch.no_grad()
    def set_state(self, name: str, values: dict[Tensor, Tensor]) -> None:
        """Overwrite one entry of the base rule's state, a tensor for each of these parameters; made where missing."""
        self._kept.follow(self)
        self._kept.init_states()
        for p, value in values.items():
            self.state[p][name].copy_(value)

    @torch.no_grad()
    def traces(self) -> Tensor:
        """The trace H, (total parameters × blocks); parameters in group order, each flattened.

        Raises:
            ValueError: more than 2²⁸ entries.
        """
        params, blocks = self._kept.follow(self), self._kept.blocks
        total, m = sum(p.numel() for p in params), blocks.count
        if total * m > 2**28:
            raise ValueError(
                f"the trace would have {total} × {m} entries, more than 2^28: read state[p]['h'] instead"
            )
        out = self._kept.beta.new_zeros((total, m))
        row = 0
        for p, block in zip(params, blocks.of, strict=True):
            n = p.numel()
            if self._settings.trace != HESSIAN_FREE:
                out[row : row + n] = self.state[p]["H"].reshape(m, n).T if p in self.state else 0.0
                row += n
                continue
            h = self.state[p]["h"].reshape(-1).to(out) if p in self.state else out.new_zeros(n)
            if blocks.per_weight:
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
        if self._settings.trace != HESSIAN_FREE:
            self._kept.follow(self)
            return step_with_hessian(self._kept, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps.step(self)
        return loss

    def refresh(self) -> None:
        """Tell a captured step of what has changed on the host: lr, weight decay, η, a rule's numbers. Call it after a
        scheduler has moved, before the graph is replayed; a step outside a graph needs no call.

        Raises:
            RuntimeError: there is no step on a GPU that could have been captured.
        """
        self._steps.refresh()

    @property
    def _kernel(self) -> Kernel | None:
        """What runs the steps; programs that look at it know it by this name."""
        return self._steps.kernel

    def __getstate__(self) -> dict[str, Any]:
        """All of it: torch's own leaves out everything but defaults, groups and state."""
        return dict(self.__dict__)
