"""The live step sizes in the parameter groups: exp β times the group's multiplier, one value for each of its blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.blocks import Blocks


class LiveStepSizes:
    """Writes ``group["step_size"]``.

    Args:
        lr: the optimizer's lr, whose quotient with a group's own multiplies its step sizes.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self._index: list[Tensor | slice | int] | None = None
        self._shown: list[tuple[Tensor, torch.Size]] = []

    def forget(self) -> None:
        """The groups or blocks have changed: where step sizes stand is found anew."""
        self._index = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}

    @torch.no_grad()
    def refresh(self, groups: list[dict[str, Any]], blocks: Blocks, beta: Tensor) -> None:
        """Write them."""
        if self._index is None:
            self._index = _where(groups, blocks, beta.device)
        alpha = beta.exp()
        for group, index in zip(groups, self._index, strict=True):
            value = alpha[index] * (group["lr"] / self._lr)
            live = group.get("step_size")
            if isinstance(live, Tensor) and _alike(live, value):
                live.copy_(value)
            else:
                group["step_size"] = value
        self._shown = [(group["step_size"], group["step_size"].shape) for group in groups]

    def intact(self, groups: list[dict[str, Any]], beta: Tensor) -> bool:
        """Whether the groups still hold what was written here: kernels write to its memory."""
        for group, (mine, shape) in zip(groups, self._shown, strict=True):
            same = group.get("step_size") is mine and mine.shape == shape and mine.dtype == beta.dtype
            if not (same and mine.device == beta.device and mine.is_contiguous()):
                return False
        return True


def own_blocks(groups: list[dict[str, Any]], blocks: Blocks) -> list[list[int]]:
    """For each group the blocks that occur in it, in order (not for weight blocks)."""
    of = iter(blocks.of)
    return [list(dict.fromkeys(next(of) for _ in group["params"])) for group in groups]


def _where(groups: list[dict[str, Any]], blocks: Blocks, device: torch.device) -> list[Tensor | slice | int]:
    """Where each group's step sizes are in β; to be kept, for making an index on a device waits for it."""
    found: list[Tensor | slice | int] = []
    if not blocks.per_weight:
        for own in own_blocks(groups, blocks):
            index = torch.tensor(own, dtype=torch.int64, device=device)
            found.append(own[0] if len(own) == 1 else index)
        return found
    for group in groups:
        spans = [blocks.members[p] for p in group["params"]]
        ends = [member.block + member.numel for member in spans]
        if all(end == member.block for end, member in zip(ends, spans[1:], strict=False)):
            found.append(slice(spans[0].block, ends[-1]) if spans else slice(0, 0))
        else:
            ranges = [torch.arange(m.block, m.block + m.numel, device=device) for m in spans]
            found.append(torch.cat(ranges))
    return found


def _alike(x: Tensor, y: Tensor) -> bool:
    return (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device) and x.is_contiguous()
