"""What MetaOptimize's arguments may be: each check names the argument, the value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

from metaopt_hpo.optim.blocks import BlockSpec
from metaopt_hpo.optim.rules import Rule

RULE_OPTIONS = (
    "betas", "eps", "momentum", "beta", "beta1", "beta2", "dampening", "nesterov", "amsgrad", "alpha", "rho",
    "centered", "momentum_decay", "lr_decay", "ns_steps", "differentiable", "foreach", "fused",
)  # fmt: skip
"""Options of optimizers that groups are known to carry: one that the base rule has not is refused, for it would be
ignored in silence. ``foreach`` and ``fused`` say how, not what, and are let pass."""
HARMLESS = ("foreach", "fused")

WEIGHT_BOUNDS = (-15.0, math.log(0.1))
"""Bounds of β for weight blocks: unguarded, the step sizes of single weights overflow float32."""


def bounds_of(
    given: tuple[float, float] | None, blocks: BlockSpec, beta: float
) -> tuple[float, float] | None:
    if given is None:
        if blocks != "weight":
            return None
        return min(WEIGHT_BOUNDS[0], beta), max(WEIGHT_BOUNDS[1], beta)
    low, high = (float(bound) for bound in given)
    if not low < high:
        raise ValueError(f"beta_bounds={given!r} is not allowed: the first must be less than the second")
    if not low <= beta <= high:
        raise ValueError(f"beta_bounds={given!r} does not contain ln lr = {beta:.4g}, where β starts")
    return low, high


def check_meta_lr(value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"meta_lr={value!r} is not allowed: it must be a finite number, at least 0")


def check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} is not allowed: it must be a positive finite number")


def check_group(group: dict[str, Any]) -> None:
    lr, decay = float(group["lr"]), group["weight_decay"]
    if not (lr >= 0 and math.isfinite(lr)):
        raise ValueError(
            f"lr={lr!r} of a parameter group is not allowed: it must be a finite number, at least 0"
        )
    if not (decay >= 0 and math.isfinite(decay)):
        raise ValueError(f"weight_decay={decay!r} is not allowed: it must be a finite number, at least 0")
    for i, p in enumerate(group["params"]):
        names = group.get("param_names", ())
        name = repr(names[i]) if i < len(names) else f"number {i}"
        if p.is_complex():
            raise ValueError(
                f"parameter {name} is complex, which is not supported: optimise torch.view_as_real of it"
            )
        if any(stride == 0 and size > 1 for stride, size in zip(p.stride(), p.shape, strict=True)):
            raise ValueError(
                f"several elements of parameter {name} share one place in memory (expand): clone it first"
            )
        if not p.is_floating_point():
            raise ValueError(
                f"parameter {name} has dtype {p.dtype}: only floating-point parameters can be optimised"
            )


def check_options(given: dict[str, Any], rule: Rule) -> None:
    """Refuse an option of a group that another optimizer would obey and this rule would ignore."""
    known = rule.options()
    for name, value in given.items():
        if name in RULE_OPTIONS and name not in HARMLESS and name not in known and value:
            has = ", ".join(known) or "none"
            raise ValueError(
                f"{name}={value!r} of a parameter group is not an option of {type(rule).__name__} (it has: {has}): "
                "leave it out, or give the group a base rule that has it"
            )
