"""Tables of numbers and addresses on a device, from which the kernels of a step on a GPU read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where tensors lie in memory."""
    return [x.data_ptr() for x in tensors]


def capturing(device: torch.device) -> bool:
    """Whether what is done on a device now is being recorded into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class DeviceTables:
    """Tables by name; what has not changed is not sent again.

    A step that is captured into a CUDA graph shares these tables with the steps outside it, but for addresses.

    Attributes:
        by_name: the tables.
        kept: what captured graphs read, for as long as this object lives.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kept: list[Tensor] = []
        self._uploaded: dict[str, list[Any]] = {}
        self.by_name: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self.by_name[name]

    def put(self, name: str, values: list[Any], dtype: torch.dtype) -> Tensor:
        """The table with these values; it is written only when they have changed.

        Raises:
            RuntimeError: they have changed while a graph is captured, which would keep them for ever.
        """
        if self._uploaded.get(name) == values:
            return self.by_name[name]
        if capturing(self._device):
            raise RuntimeError(
                "what a captured step of MetaOptimize reads (lr, weight decay, a rule's numbers, which tensors) "
                "has changed since its last step outside the graph: take a step, or call refresh(), before capturing"
            )
        self._uploaded[name] = list(values)
        host = self._on_host(values, dtype)
        table = self.by_name.get(name)
        if table is None or table.numel() != host.numel():
            table = self.by_name[name] = torch.empty(host.numel(), dtype=dtype, device=self._device)
        table.copy_(host, non_blocking=True)
        return table

    def put_addresses(self, name: str, values: list[int]) -> Tensor:
        """As ``put``; but a graph has a table of its own, which every replay writes first, for steps outside it may
        have other gradients."""
        if not capturing(self._device):
            return self.put(name, values, torch.int64)
        host = self._on_host(values, torch.int64)
        self.kept.append(host)  # a replay copies from it
        table = torch.empty(host.numel(), dtype=torch.int64, device=self._device)
        self.kept.append(table)
        table.copy_(host, non_blocking=True)
        return table

    def _on_host(self, values: list[Any], dtype: torch.dtype) -> Tensor:
        host = torch.tensor(values or [0], dtype=dtype, device="cpu")
        return host.pin_memory() if self._device.type == "cuda" else host
