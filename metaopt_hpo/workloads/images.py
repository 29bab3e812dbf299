"""What the image workloads share: a residual network, counted in images, trained and judged by cross-entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.workloads.resnet import ResNetShape
from metaopt_hpo.workloads.settings import (
    check_counts,
    check_even,
    flops_per_example,
    initialised,
    parameter_count,
)


@dataclass(frozen=True, kw_only=True)
class ImageWorkload(ABC):
    """One member of an image family; tokens and batch count images.

    Args:
        width: channels of the first stage.
        examples: images per optimizer step.
        data: folder of the data; None looks for the family's usual folder in the one that the environment variable
            METAOPT_HPO_DATA names, or in `data`.
    """

    width: int = 16
    examples: int = 128
    data: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, "width")
        check_even(self, "examples")

    @property
    @abstractmethod
    def shape(self) -> ResNetShape:
        """What the network is built from."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels along an edge of the square the network sees."""

    @property
    def size(self) -> int:
        """Trainable parameters, the output layer included."""
        return parameter_count(self.shape)

    @property
    def batch(self) -> int:
        """Images per optimizer step."""
        return self.examples

    @property
    def flops_per_token(self) -> float:
        """Measured training FLOPs per image."""
        return flops_per_example(self.shape, (3, self.side, self.side), False)

    def with_batch(self, batch: int) -> Self:
        """The same job, as many steps, at `batch` images per step."""
        return replace(self, examples=batch)

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        return initialised(self.shape, seed)


def part_losses(model: nn.Module, x: Tensor, y: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Mean cross-entropy of `parts` equal parts of a batch."""
    return tuple(
        F.cross_entropy(model(a).float(), b) for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
    )


def evenly(total: int, count: int) -> Tensor:
    """Indices of at most `count` of `total` images, evenly spaced."""
    return torch.linspace(0, total - 1, min(count, total)).long()


@torch.no_grad()
def judged(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over batches of (what the network takes, labels), both on its device."""
    loss, correct, count = 0.0, 0, 0
    for x, labels in batches:
        logits = model(x).float()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count
