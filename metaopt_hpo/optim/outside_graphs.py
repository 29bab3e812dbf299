"""Keeping optimizer steps out of graphs that torch.compile traces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(function: F) -> F:
    """A method that torch.compile does not trace: a compiled training step breaks its graph there and goes on after.

    What a step does depends on where its tensors lie and what has changed since the last one, so that a trace of it
    would fail or be compiled anew every few steps. ``torch.compiler.disable``, but torch's compiler is imported when
    the method is first called and not with its module, for that takes longer than all of ours.
    """
    kept: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def outside(*args: Any, **named: Any) -> Any:
        if not kept:
            import torch

            kept.append(torch.compiler.disable(function))
        return kept[0](*args, **named)

    return outside  # type: ignore[return-value]
