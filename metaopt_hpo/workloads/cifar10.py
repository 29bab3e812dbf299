"""`cifar10`: image classification with a small residual network or ResNet-18."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.workloads.base import step_generator
from metaopt_hpo.workloads.resnet import NETWORKS, ResNetShape
from metaopt_hpo.workloads.sampling import batch_indices
from metaopt_hpo.workloads.settings import (
    check_counts,
    check_even,
    check_parts,
    data_folder,
    flops_per_example,
    initialised,
    parameter_count,
    placement,
)
from metaopt_hpo.workloads.vision_data import SIDE, Images, VisionData, augmented, normalised, read_cifar

FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
"""The folders' names in the official archives."""

EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Cifar10:
    """One member of the family; tokens and batch count images.

    Args:
        width: channels of the first stage: 16 for the small network, 64 for ResNet-18.
        network: "resnet8", three stages of one block, or "resnet18", four of two.
        examples: images per optimizer step.
        data: folder of the official binary files; None looks for `cifar-10-batches-bin` in the folder that the
            environment variable METAOPT_HPO_DATA names, or in `data`.
        held_out: at most this many test images, evenly spaced, make the held-out loss.
    """

    name: ClassVar[str] = "cifar10"
    default_widths: ClassVar[tuple[int, ...]] = (8, 16, 32)

    width: int = 16
    network: str = "resnet8"
    examples: int = 128
    data: str | None = None
    held_out: int = 10_000

    def __post_init__(self) -> None:
        check_counts(self, "width", "held_out")
        check_even(self, "examples")
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {self.network!r}")

    @classmethod
    def resnet18(cls, **options: object) -> Self:
        """ResNet-18 at its usual width."""
        return cls(**{"network": "resnet18", "width": 64, **options})  # type: ignore[arg-type]

    @property
    def shape(self) -> ResNetShape:
        """What the network is built from."""
        return ResNetShape(self.network, self.width, 10)

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
        return flops_per_example(self.shape, (3, SIDE, SIDE), False)

    def with_batch(self, batch: int) -> Self:
        """The same job at `batch` images per step."""
        return replace(self, examples=batch)

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        return initialised(self.shape, seed)

    def images(self) -> VisionData:
        """The data, read once.

        Raises:
            WorkloadError: missing, truncated or foreign files.
        """
        return read_cifar(data_folder(self.data, FOLDERS["cifar10"]), "cifar10")

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean cross-entropy of `parts` equal parts of the augmented batch."""
        check_parts(parts, self.examples)
        train = self.images().train
        chosen = batch_indices(len(train), self.examples, step, seed)
        where = placement(model)
        x = normalised(augmented(train.pixels[chosen], step_generator(seed, step)), where)
        y = train.labels[chosen].to(where[0])
        return tuple(
            F.cross_entropy(model(a).float(), b) for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
        )

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean cross-entropy on the held-out images, nats per image."""
        return self._held_out(model)[0]

    def scores(self, model: nn.Module) -> dict[str, float]:
        """`accuracy`: fraction of the held-out images classified correctly."""
        return {"accuracy": self._held_out(model)[1]}

    def _held_out(self, model: nn.Module) -> tuple[float, float]:
        return evaluated(model, evenly(self.images().test, self.held_out))


def evenly(images: Images, count: int) -> Images:
    """At most `count` images, evenly spaced."""
    if count >= len(images):
        return images
    chosen = torch.linspace(0, len(images) - 1, count).long()
    return Images(images.pixels[chosen], images.labels[chosen])


def evaluated(model: nn.Module, images: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    where = placement(model)
    loss, correct = 0.0, 0
    with torch.no_grad():
        for pixels, labels in zip(
            images.pixels.split(EVALUATION_BATCH), images.labels.split(EVALUATION_BATCH), strict=True
        ):
            logits = model(normalised(pixels, where)).float()
            labels = labels.to(where[0])
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
    return loss / len(images), correct / len(images)
