"""Numbers from a device: read at once, which waits for everything queued there, or later, which does not.

What a step needs of them goes through here, so that a test can count it (``tests/metaopt_hpo/fake_cuda.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt_hpo.optim.sharding import is_sharded


def read(values: Sequence[Tensor]) -> list[float]:
    """The values of 0-dim tensors, all in one transfer. Waits for the device: not for every step."""
    if not values:
        return []
    whole = [x.full_tensor() if is_sharded(x) else x for x in values]  # type: ignore[attr-defined]
    out: list[float] = torch.stack([x.detach().double().to(whole[0].device) for x in whole]).tolist()
    return out


class Later:
    """A copy of a small tensor on its way to the host.

    Args:
        values: what to copy; what is written to it afterwards is not seen.
    """

    def __init__(self, values: Tensor) -> None:
        self.device_values = values.detach()
        """The values where they were, to be saved without waiting."""
        self.late = values.is_cuda
        """Whether it pays to come back for them, as they cannot be there yet."""
        self._event: torch.cuda.Event | None = None
        self._copy = self.device_values
        if values.is_cuda:
            self._copy = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._copy.copy_(self.device_values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def arrived(self) -> bool:
        """Whether they can be read without waiting."""
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        """The values; waits until they are there, a step later a matter of the work queued before the copy only."""
        if self._event is not None:
            self._event.synchronize()
        out: list[float] = self._copy.tolist()
        return out
