"""Cutting the parameters of an optimizer into the chunks that the programs of a step on a GPU take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.layout import computed_in

SMALL, LARGE, MANY = 4096, 16384, 64_000_000
"""Elements a program, below and above so many elements in all: few programs leave a GPU idle, very many make the
second kernel's sums long."""

Kind = tuple[torch.dtype, torch.dtype, torch.dtype]
"""The dtypes of a weight, of its state and of its trace."""


@dataclass(frozen=True)
class Chunks:
    """Chunks in the order of tensors, which is that of blocks.

    Attributes:
        length: most elements of a chunk.
        chunks: how many there are.
        order: for each kind the numbers of its chunks.
        live_slots: for each live step size, in the order of blocks, its group and its place there.
        tables: "chunks": tensor and first element of each; "sizes": elements and block of each tensor; "ranges": for
            each block its first and last + 1 chunk, tensor and live step size; "lengths": how many chunks a block has.
    """

    length: int
    chunks: int
    order: dict[Kind, list[int]]
    live_slots: list[tuple[int, int]]
    tables: dict[str, list[int]]


def lay_out(
    params: Sequence[Tensor],
    traces: Sequence[Tensor],
    blocks: Sequence[int],
    count: int,
    live: Sequence[Sequence[int]],
) -> Chunks:
    """The chunks of parameters that are sorted by block.

    Args:
        params, traces: weights and traces.
        blocks: the block of each parameter.
        count: number of blocks.
        live: for each group the blocks of its live step sizes.
    """
    sizes = [p.numel() for p in params]
    length = SMALL if sum(sizes) <= MANY else LARGE
    chunks: list[int] = []
    order: dict[Kind, list[int]] = {}
    chunk_ends, tensor_ends = [0] * (count + 1), [0] * (count + 1)
    number = 0
    for i, (p, h, n) in enumerate(zip(params, traces, sizes, strict=True)):
        kind = (p.dtype, computed_in(p), h.dtype)
        for start in range(0, n, length):
            chunks += [i, start]
            order.setdefault(kind, []).append(number)
            number += 1
        chunk_ends[blocks[i] + 1] = number
        tensor_ends[blocks[i] + 1] = i + 1
    entries: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for group, own in enumerate(live):
        for place, block in enumerate(own):
            entries[block].append((group, place))
    live_ends, live_slots = [0], []
    for row in entries:
        live_slots += row
        live_ends.append(len(live_slots))
    for ends in (chunk_ends, tensor_ends):
        for b in range(count):
            ends[b + 1] = max(ends[b + 1], ends[b])
    tables = {
        "chunks": chunks,
        "ranges": [
            ends[b + k] for b in range(count) for ends in (chunk_ends, tensor_ends, live_ends) for k in (0, 1)
        ],
        "lengths": [chunk_ends[b + 1] - chunk_ends[b] for b in range(count)],
        "sizes": [x for pair in zip(sizes, blocks, strict=True) for x in pair],
    }
    return Chunks(length, number, order, live_slots, tables)
