"""A copy of everything that trains, in host memory that is allocated once and restored in place.

Copies go into one buffer a dtype, pinned where a tensor lies on a GPU, so that they are queued behind the step and
nobody waits for them; restoring writes into the tensors that exist, so that no second copy ever lies on the device.
Frozen weights are left out. A tensor that is sharded is copied as the part that this process holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """The last kept state of one run.

    Args:
        model: what trains; of a module the buffers are kept too (BatchNorm's statistics), of bare parameters not.
        optimizer: its state and the values of its groups are kept.
    """

    def __init__(self, model: nn.Module | Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._module = model if isinstance(model, nn.Module) else None
        self._bare = [] if isinstance(model, nn.Module) else list(model)
        self._optimizer = optimizer
        self._tree: dict[str, Any] | None = None
        self._kept: list[Tensor] = []
        """What was kept; weights that were unfrozen since are not among them."""
        self._layout: list[tuple[torch.Size, torch.dtype]] = []
        self._views: list[Tensor] = []
        self._on_device = False
        self.beside: Snapshot | None = None
        """Kept and restored together with this one: of a second optimizer."""

    @property
    def empty(self) -> bool:
        """True before the first `keep`."""
        return self._tree is None

    def weights(self) -> list[Tensor]:
        """The tensors of the model that are kept, in a fixed order: weights that train, then buffers."""
        if self._module is None:
            return [p for p in self._bare if p.requires_grad]
        trained = [p for p in self._module.parameters() if p.requires_grad]
        return [*trained, *self._module.buffers()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the state as it is; on a GPU without waiting."""
        if self.beside is not None:
            self.beside.keep()
        weights = self.weights()
        state, groups = self._optimizer.state, self._optimizer.param_groups
        leaves = [*weights, *_tensors_of(state, groups)]
        shards = [_local(t) for t in leaves]
        layout = [(t.shape, t.dtype) for t in shards]
        if layout != self._layout:
            self._allocate(shards)
            self._layout = layout
        for view, shard in zip(self._views, shards, strict=True):
            view.copy_(shard, non_blocking=True)
        self._kept = weights
        views = iter(self._views)
        self._tree = {
            "tensors": [next(views) for _ in weights],
            "optimizer": {
                "state": {
                    i: {name: next(views) if isinstance(v, Tensor) else v for name, v in state[p].items()}
                    for i, p in enumerate(_params(groups))
                    if p in state
                },
                "param_groups": [
                    {
                        name: next(views) if isinstance(v, Tensor) else v
                        for name, v in group.items()
                        if name not in ("params", "param_names")
                    }
                    for group in groups
                ],
            },
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Write the kept state back into the tensors that exist.

        Raises:
            RuntimeError: nothing was kept yet.
        """
        if self._tree is None:
            raise RuntimeError("there is no snapshot to go back to; call keep() first")
        if self.beside is not None and not self.beside.empty:
            self.beside.restore()
        for tensor, kept in zip(self._kept, self._tree["tensors"], strict=True):
            _local(tensor).copy_(kept, non_blocking=True)
        state, groups = self._optimizer.state, self._optimizer.param_groups
        saved = self._tree["optimizer"]
        for i, p in enumerate(_params(groups)):
            if i not in saved["state"]:
                state.pop(p, None)  # it had not been stepped yet
                continue
            _put_back(state[p], saved["state"][i])
        for group, kept in zip(groups, saved["param_groups"], strict=False):
            _put_back(group, {k: v for k, v in kept.items() if k not in ("params", "param_names")})

    def state_dict(self) -> dict[str, Any] | None:
        """The kept state, for a checkpoint (its tensors are the buffer's: save them before the next `keep`)."""
        if self._on_device:
            torch.cuda.synchronize()
        if self._tree is None or self.beside is None:
            return self._tree
        return {**self._tree, "beside": self.beside.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take a kept state from a checkpoint; it stays in host memory."""
        if self.beside is not None and state is not None:
            self.beside.load_state_dict(state.get("beside"))
        self._tree = state
        self._kept = self.weights()
        self._layout, self._views = [], []

    def _allocate(self, shards: list[Tensor]) -> None:
        self._on_device = any(t.is_cuda for t in shards)
        room: dict[
            torch.dtype, int
        ] = {}  # a buffer for each dtype: torch saves no storage that is viewed as two
        for t in shards:
            room[t.dtype] = room.get(t.dtype, 0) + t.numel()
        buffers = {d: torch.empty(n, dtype=d, pin_memory=self._on_device) for d, n in room.items()}
        used = dict.fromkeys(room, 0)
        self._views = []
        for t in shards:
            start = used[t.dtype]
            used[t.dtype] += t.numel()
            self._views.append(buffers[t.dtype][start : used[t.dtype]].view(t.shape))


def _params(groups: list[dict[str, Any]]) -> Iterator[Tensor]:
    for group in groups:
        yield from group["params"]


def _tensors_of(state: Any, groups: list[dict[str, Any]]) -> Iterator[Tensor]:
    for p in _params(groups):
        if p in state:
            yield from (v for v in state[p].values() if isinstance(v, Tensor))
    for group in groups:
        yield from (v for k, v in group.items() if isinstance(v, Tensor) and k != "params")


def _put_back(live: dict[str, Any], kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        old = live.get(name)
        if isinstance(value, Tensor) and isinstance(old, Tensor) and _local(old).shape == value.shape:
            _local(old).copy_(value, non_blocking=True)
        else:
            live[name] = value.clone() if isinstance(value, Tensor) else value


def _local(t: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded."""
    to_local = getattr(t, "to_local", None)
    whole: Tensor = t.detach() if to_local is None else to_local().detach()
    return whole
