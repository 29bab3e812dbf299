"""Which weights share one step size: the map from parameters to blocks of β.

A block belongs to its parameters, known by identity, and not to positions in the optimizer's groups: groups and
their members may be removed, added and put in another order, and every parameter keeps its block. A block that
has lost its last member stays, for the member may come back.

Source: arXiv 2402.02342, section on blockwise step sizes; β has one entry a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

BlockSpec = str | Callable[[str], str]

KINDS = ("scalar", "layer", "tensor", "weight", "group", "rule")


@dataclass(frozen=True)
class Member:
    """One parameter.

    Attributes:
        name: its name, or None.
        block: index of its block; of weight blocks the offset of its first weight in β.
        numel: its size when it joined.
    """

    name: str | None
    block: int
    numel: int


@dataclass
class Blocks:
    """The block of every parameter.

    Attributes:
        spec: "scalar" (one block), "layer" (the parameters of one module), "tensor", "weight", "group" (a
            parameter group), "rule" (the parameters that one base rule advances), or a function from a
            parameter's name to its block's name.
        members: every parameter ever met.
        labels: one name a block; of weight blocks, one name a parameter in the order of joining.
        of: the block of each present parameter, in the order of the optimizer's groups.
        count: number of blocks, the length of β.
    """

    spec: BlockSpec
    members: dict[Tensor, Member] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    of: tuple[int, ...] = ()
    count: int = 0
    _index: dict[str, int] = field(default_factory=dict)
    _groups: int = 0

    def __post_init__(self) -> None:
        if not callable(self.spec) and self.spec not in KINDS:
            raise ValueError(
                f"blocks={self.spec!r} is not known: use {', '.join(KINDS)}, or a function from name to block"
            )

    @property
    def per_weight(self) -> bool:
        """Whether every weight is a block of its own."""
        return self.spec == "weight"

    @property
    def names(self) -> tuple[str, ...]:
        """One name a block; a weight's is its parameter's with its flat index, as in ``layer.weight[7]``."""
        if not self.per_weight:
            return tuple(self.labels)
        sizes = [member.numel for member in self.members.values()]
        return tuple(f"{label}[{j}]" for label, n in zip(self.labels, sizes, strict=True) for j in range(n))

    def new_group(self) -> str:
        """The label of a group's block under "group"."""
        self._groups += 1
        return f"group {self._groups - 1}"

    def join(self, p: Tensor, name: str | None, group: str, rule: str) -> Member:
        """The member for a parameter; a new one goes to the block that ``spec`` names.

        Args:
            p: the parameter.
            name: its name, or None where the optimizer does not know one.
            group: its group's label.
            rule: the name of its base rule.

        Raises:
            ValueError: "layer" or a function without a name.
        """
        known = self.members.get(p)
        if known is not None:
            return known
        if self.per_weight:
            label = name if name is not None else str(len(self.members))
            member = Member(name, self.count, p.numel())
            self.labels.append(label)
            self.count += p.numel()
        else:
            label = self._label(name, group, rule)
            if label not in self._index:
                self._index[label] = self.count
                self.labels.append(label)
                self.count += 1
            member = Member(name, self._index[label], p.numel())
        self.members[p] = member
        return member

    def describe(self, p: Tensor, params: Sequence[Tensor]) -> str:
        """What a message calls a parameter: by its name, else by its place among all parameters."""
        member = self.members.get(p)
        if member is not None and member.name:
            return f"parameter {member.name!r}"
        return next((f"parameter number {i}" for i, q in enumerate(params) if q is p), "a parameter")

    def _label(self, name: str | None, group: str, rule: str) -> str:
        if callable(self.spec):
            block = self.spec(_need_name(name, "blocks=<function>"))
            if not isinstance(block, str):
                raise ValueError(
                    f"blocks: the function returned {block!r} for {name!r}; it must return the block's name, a str"
                )
            return block
        if self.spec == "layer":
            return _need_name(name, "blocks='layer'").rpartition(".")[0] or "root"
        if self.spec == "tensor":
            return name if name is not None else str(len(self.members))
        return {"group": group, "rule": rule}.get(self.spec, "all")


def _need_name(name: str | None, what: str) -> str:
    if name is None:
        raise ValueError(
            f"{what} needs parameter names: pass model.named_parameters() instead of model.parameters()"
        )
    return name
