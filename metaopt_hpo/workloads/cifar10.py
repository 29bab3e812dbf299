"""`cifar10`: image classification with a small residual network or ResNet-18."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from metaopt_hpo.workloads.base import step_generator
from metaopt_hpo.workloads.images import ImageWorkload, evenly, judged, part_losses
from metaopt_hpo.workloads.resnet import ResNetShape, check_network
from metaopt_hpo.workloads.sampling import batch_indices
from metaopt_hpo.workloads.settings import check_counts, check_parts, data_folder, placement
from metaopt_hpo.workloads.vision_data import SIDE, VisionData, augmented, normalised, read_cifar

FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
"""The folders' names in the official archives."""

EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Cifar10(ImageWorkload):
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
    default_widths: ClassVar[tuple[int, ...]] = (8, 12, 16, 32)

    network: str = "resnet8"
    held_out: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "held_out")
        check_network(self.network)

    @classmethod
    def resnet18(cls, **options: object) -> Self:
        """ResNet-18 at its usual width."""
        return cls(**{"network": "resnet18", "width": 64, **options})  # type: ignore[arg-type]

    @property
    def shape(self) -> ResNetShape:
        """What the network is built from."""
        return ResNetShape(self.network, self.width, 10)

    @property
    def side(self) -> int:
        """Pixels along an edge."""
        return SIDE

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
        return part_losses(model, x, y, parts)

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean cross-entropy on the held-out images, nats per image."""
        return self._held_out(model)[0]

    def scores(self, model: nn.Module) -> dict[str, float]:
        """`accuracy`: fraction of the held-out images classified correctly."""
        return {"accuracy": self._held_out(model)[1]}

    def _held_out(self, model: nn.Module) -> tuple[float, float]:
        test, where = self.images().test, placement(model)
        return judged(
            model,
            (
                (normalised(test.pixels[part], where), test.labels[part].to(where[0]))
                for part in evenly(len(test), self.held_out).split(EVALUATION_BATCH)
            ),
        )
