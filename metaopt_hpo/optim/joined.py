"""Tensors joined into long ones, advanced by the same operations, and parted again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.traces import Tensors


class Joined:
    """Tensors joined into long ones and parted again; what is joined is advanced by the same operations.

    Args:
        keys: one a tensor; neighbours in the order of first appearance with equal keys are joined, and flattened. None
            leaves a tensor alone and as it is.
        shapes: their shapes.
    """

    def __init__(self, keys: Sequence[Any], shapes: Sequence[torch.Size]) -> None:
        order: dict[Any, list[int]] = {}
        for i, key in enumerate(keys):
            order.setdefault(("alone", i) if key is None else key, []).append(i)
        self.members = list(order.values())
        self._alone = [keys[own[0]] is None for own in self.members]
        self._shapes = list(shapes)

    def join(self, tensors: Sequence[Tensor], leading: int = 0) -> Tensors:
        """One long tensor a key; ``leading`` dimensions are kept."""
        return tuple(
            tensors[own[0]]
            if alone
            else torch.cat([tensors[i].reshape(*tensors[i].shape[:leading], -1) for i in own], dim=-1)
            for own, alone in zip(self.members, self._alone, strict=True)
        )

    def part(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """The tensors again, in their order, with any leading dimensions kept."""
        out: dict[int, Tensor] = {}
        for own, alone, long in zip(self.members, self._alone, joined, strict=True):
            if alone:
                out[own[0]] = long
                continue
            pieces = long.split([self._shapes[i].numel() for i in own], dim=-1)
            for i, piece in zip(own, pieces, strict=True):
                out[i] = piece.reshape(*piece.shape[:-1], *self._shapes[i])
        return [out[i] for i in range(len(self._shapes))]

    def join_rows(self, rows: Sequence[Sequence[Tensor]], leading: int = 0) -> tuple[Tensors, ...]:
        """The states of the joined tensors, from those of each: equally many for equal keys."""
        out = []
        for own, alone in zip(self.members, self._alone, strict=True):
            if alone:
                out.append(tuple(rows[own[0]]))
                continue
            columns = zip(*(rows[i] for i in own), strict=True)
            out.append(
                tuple(torch.cat([x.reshape(*x.shape[:leading], -1) for x in col], dim=-1) for col in columns)
            )
        return tuple(out)

    def part_rows(self, joined: Sequence[Tensors]) -> list[Tensors]:
        """The states of each tensor again."""
        out: dict[int, Tensors] = {}
        for own, alone, row in zip(self.members, self._alone, joined, strict=True):
            if alone:
                out[own[0]] = row
                continue
            sizes = [self._shapes[i].numel() for i in own]
            pieces = [x.split(sizes, dim=-1) for x in row]
            for k, i in enumerate(own):
                out[i] = tuple(p[k].reshape(*p[k].shape[:-1], *self._shapes[i]) for p in pieces)
        return [out[i] for i in range(len(self._shapes))]
