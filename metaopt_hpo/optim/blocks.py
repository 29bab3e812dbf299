"""Which weights share one step size: the map from parameters to blocks of β.

Source: arXiv 2402.02342, section on blockwise step sizes; β has one entry a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

BlockSpec = str | Callable[[str], str]

KINDS = ("scalar", "layer", "tensor", "weight")


@dataclass(frozen=True)
class Blocks:
    """The block of every parameter, parameters in the order of the optimizer's groups.

    Attributes:
        labels: one name a block; with ``per_weight``, one name a parameter.
        of: for each parameter the index of its block; with ``per_weight``, the offset of its first weight in β.
        count: number of blocks, the length of β.
        per_weight: whether every weight is a block of its own.
    """

    labels: tuple[str, ...]
    of: tuple[int, ...]
    count: int
    per_weight: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """One name a block; a weight's is its parameter's with its flat index, as in ``layer.weight[7]``."""
        if not self.per_weight:
            return self.labels
        ends = (*self.of[1:], self.count)
        return tuple(
            f"{label}[{j}]"
            for label, start, end in zip(self.labels, self.of, ends, strict=True)
            for j in range(end - start)
        )


def assign(params: Sequence[Tensor], names: Sequence[str] | None, spec: BlockSpec) -> Blocks:
    """Assign every parameter to a block.

    Args:
        params: all parameters, groups one after another.
        names: their names, or None where the optimizer was given bare tensors.
        spec: "scalar" (one block), "layer" (the parameters of one module), "tensor", "weight", or a function
            from a parameter's name to its block's name.

    Raises:
        ValueError: an unknown ``spec``; "layer" or a function without names.
    """
    if callable(spec):
        keys = [_block_name(spec, name) for name in _need_names(names, "blocks=<function>")]
    elif spec == "scalar":
        keys = ["all"] * len(params)
    elif spec == "layer":
        keys = [name.rpartition(".")[0] or "root" for name in _need_names(names, "blocks='layer'")]
    elif spec == "tensor":
        keys = list(names) if names is not None else [str(i) for i in range(len(params))]
    elif spec == "weight":
        return _per_weight(params, names)
    else:
        raise ValueError(
            f"blocks={spec!r} is not known: use {', '.join(KINDS)}, or a function from name to block"
        )
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return Blocks(tuple(order), tuple(order[key] for key in keys), len(order))


def _per_weight(params: Sequence[Tensor], names: Sequence[str] | None) -> Blocks:
    labels = tuple(names) if names is not None else tuple(str(i) for i in range(len(params)))
    ends = list(accumulate((p.numel() for p in params), initial=0))
    return Blocks(labels, tuple(ends[:-1]), ends[-1], per_weight=True)


def _need_names(names: Sequence[str] | None, what: str) -> Sequence[str]:
    if names is None:
        raise ValueError(
            f"{what} needs parameter names: pass model.named_parameters() instead of model.parameters()"
        )
    return names


def _block_name(spec: Callable[[str], str], name: str) -> str:
    block = spec(name)
    if not isinstance(block, str):
        raise ValueError(
            f"blocks: the function returned {block!r} for {name!r}; it must return the block's name, a str"
        )
    return block
