"""`imagenet`: classification of large images with ResNet-18, from the usual folders of JPEG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.workloads.base import step_generator
from metaopt_hpo.workloads.image_folders import (
    ImageFolder,
    Prefetcher,
    centre_box,
    decode,
    random_box,
    read_folders,
)
from metaopt_hpo.workloads.images import ImageWorkload, evenly, judged, part_losses
from metaopt_hpo.workloads.resnet import ResNetShape
from metaopt_hpo.workloads.sampling import batch_indices
from metaopt_hpo.workloads.settings import check_counts, check_parts, data_folder, placement
from metaopt_hpo.workloads.vision_data import normalised

EVALUATION_BATCH = 64

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels over 255, by channel; the customary constants."""


@dataclass(frozen=True, kw_only=True)
class ImageNet(ImageWorkload):
    """ResNet-18 on images in `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`; tokens and batch count images.

    Args:
        width: channels of the first stage; 64 is ResNet-18.
        resolution: side of the square the network sees.
        examples: images per optimizer step.
        data: folder that holds `train` and `val`; None looks for `imagenet` in the folder that the environment
            variable METAOPT_HPO_DATA names, or in `data`.
        held_out: at most this many validation images, evenly spaced, make the held-out loss.
        workers: threads that decode.
    """

    name: ClassVar[str] = "imagenet"
    default_widths: ClassVar[tuple[int, ...]] = (16, 24, 32, 64)

    width: int = 64
    resolution: int = 224
    examples: int = 256
    held_out: int = 5_000
    workers: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "resolution", "held_out", "workers")

    @property
    def shape(self) -> ResNetShape:
        """What the network is built from."""
        return ResNetShape("resnet18", self.width, len(self.folders()[0].classes), large=True)

    @property
    def side(self) -> int:
        """Pixels along an edge."""
        return self.resolution

    def folders(self) -> tuple[ImageFolder, ImageFolder]:
        """Training and validation images, listed once.

        Raises:
            WorkloadError: the layout is another one.
        """
        return read_folders(data_folder(self.data, "imagenet"))

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean cross-entropy of `parts` equal parts of the batch, cropped at random and mirrored.

        The next step's images are decoded meanwhile.
        """
        check_parts(parts, self.examples)
        train = self.folders()[0]
        key = (self, step, seed)
        pixels = _prefetcher(self.workers).get(key, (self, step + 1, seed), _training_jobs)
        labels = train.labels[batch_indices(len(train), self.examples, step, seed)]
        where = placement(model)
        x, y = normalised(pixels, where, MEAN, STD), labels.to(where[0])
        return part_losses(model, x, y, parts)

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean cross-entropy on the validation images, nats per image."""
        return self._held_out(model)[0]

    def scores(self, model: nn.Module) -> dict[str, float]:
        """`accuracy`: fraction of the validation images classified correctly (top-1, centre crop)."""
        return {"accuracy": self._held_out(model)[1]}

    def _held_out(self, model: nn.Module) -> tuple[float, float]:
        val, where = self.folders()[1], placement(model)
        return judged(
            model,
            (
                (
                    normalised(self._validation_pixels(val, part), where, MEAN, STD),
                    val.labels[part].to(where[0]),
                )
                for part in evenly(len(val), self.held_out).split(EVALUATION_BATCH)
            ),
        )

    def _validation_pixels(self, val: ImageFolder, chosen: Tensor) -> Tensor:
        jobs: list[Callable[[], Tensor]] = [
            partial(decode, val.files[i], self.resolution, centre_box, False) for i in chosen.tolist()
        ]
        return _prefetcher(self.workers).stack(jobs)


def _training_jobs(key: tuple[ImageNet, int, int]) -> list[Callable[[], Tensor]]:
    workload, step, seed = key
    train = workload.folders()[0]
    chosen = batch_indices(len(train), workload.examples, step, seed)
    draws = torch.rand(workload.examples, 5, generator=step_generator(seed, step), dtype=torch.float64)
    return [
        partial(decode, train.files[i], workload.resolution, random_box(draw[:4]), bool(draw[4] < 0.5))
        for i, draw in zip(chosen.tolist(), draws, strict=True)
    ]


@lru_cache(maxsize=1)
def _prefetcher(workers: int) -> Prefetcher:
    return Prefetcher(workers)
