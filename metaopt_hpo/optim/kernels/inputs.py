"""What a kernel that does the whole step of an optimizer is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.rules import Rule


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """All parameters of an optimizer and what their step depends on.

    Attributes:
        params: all parameters.
        rules: the base rule of each; those with gradients may differ in numbers only.
        grads: their gradients; a parameter without one is left out.
        state: the optimizer's state, one dict a parameter.
        groups: the index of each parameter's group.
        blocks: which weights share a step size.
        shared: the optimizer's shared state.
        live: for each group the indices of its blocks, in the order of its ``step_size``.
        meta: the meta rule.
        gamma: γ.
        bounds: of β, or None.
        dithered: whether bfloat16 weights are rounded at random in proportion.
    """

    params: Sequence[Tensor]
    rules: Sequence[Rule]
    grads: Sequence[Tensor | None]
    state: Any
    groups: Sequence[int]
    blocks: Blocks
    shared: dict[str, Any]
    live: Sequence[Sequence[int]]
    meta: Rule
    gamma: float
    bounds: tuple[float, float] | None
    dithered: bool

    @property
    def used(self) -> list[int]:
        """Indices of the parameters with a gradient."""
        return [i for i, g in enumerate(self.grads) if g is not None]
