"""A nested state as JSON can hold it, for checkpoint formats that take text and tensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FEW = 1024
"""Tensors of more numbers stay tensors."""


def packed(value: Any, large: list[Tensor]) -> Any:
    """Nested state as JSON can hold it; tensors as their dtype, shape and numbers, or their place in `large`."""
    if isinstance(value, Tensor):
        if value.numel() > FEW:
            large.append(value)
            return {"large": len(large) - 1}
        dtype = str(value.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(value.shape), "values": value.flatten().tolist()}
    if isinstance(value, dict):
        return {k: packed(v, large) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [packed(v, large) for v in value]
    return value


def unpacked(value: Any, large: list[Tensor]) -> Any:
    """The inverse of `packed`."""
    if isinstance(value, dict):
        if value.keys() == {"large"}:
            return large[value["large"]]
        if value.keys() == {"dtype", "shape", "values"}:
            return torch.tensor(value["values"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
        return {k: unpacked(v, large) for k, v in value.items()}
    if isinstance(value, list):
        return [unpacked(v, large) for v in value]
    return value
