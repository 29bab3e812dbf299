"""CIFAR images from the official binary files, and their standard augmentation.

Layout (Krizhevsky 2009): CIFAR-10, records of 1 label byte and 3,072 pixel bytes in `data_batch_*.bin` and
`test_batch.bin`; CIFAR-100, records of a coarse and a fine label byte and 3,072 pixel bytes in `train.bin` and
`test.bin`. Pixels are the red, green and blue plane of 32 × 32 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metaopt_hpo.workloads.base import WorkloadError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PADDING = 4

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training pixels over 255, by channel; the customary constants."""


@dataclass(frozen=True)
class Images:
    """A part of a data set: `pixels` uint8 (n, 3, 32, 32), `labels` int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class VisionData:
    """A data set of images with its held-out part."""

    train: Images
    test: Images
    classes: int


@lru_cache(maxsize=2)
def read_cifar(folder: Path, dataset: str) -> VisionData:
    """Read "cifar10" or "cifar100" (fine labels) from the folder of its binary files.

    Any number of `data_batch_*.bin` of any length is read, so that a subset serves too.

    Raises:
        WorkloadError: a file is missing, empty, truncated, or not of this layout; the message names it.
    """
    if dataset == "cifar10":
        names, test, classes, label_bytes = _batches(folder), "test_batch.bin", 10, 1
    elif dataset == "cifar100":
        names, test, classes, label_bytes = ["train.bin"], "test.bin", 100, 2
    else:
        raise ValueError(f"dataset must be 'cifar10' or 'cifar100', got {dataset!r}")
    parts = [_read(folder / name, classes, label_bytes) for name in names]
    train = Images(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]))
    return VisionData(train, _read(folder / test, classes, label_bytes), classes)


def _batches(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.glob("data_batch_*.bin"))
    if not names:
        raise WorkloadError(
            f"{folder} holds no data_batch_*.bin; it must be CIFAR-10's official binary version "
            "(cifar-10-batches-bin), not the pickled one"
        )
    return names


def _read(path: Path, classes: int, label_bytes: int) -> Images:
    record = label_bytes + PIXELS
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) == 0 or len(raw) % record:
        raise WorkloadError(
            f"{path} is truncated or no CIFAR file: {len(raw)} bytes are no whole number of records of {record} bytes"
        )
    rows = torch.from_numpy(raw.reshape(-1, record))
    labels = rows[:, label_bytes - 1].long()
    if int(labels.max()) >= classes:
        bad = int((labels >= classes).nonzero()[0])
        raise WorkloadError(
            f"{path} is no CIFAR file: record {bad} has label {int(labels[bad])}, allowed are 0 to {classes - 1}"
        )
    return Images(rows[:, label_bytes:].reshape(-1, 3, SIDE, SIDE).clone(), labels)


def normalised(
    pixels: Tensor,
    where: tuple[torch.device, torch.dtype],
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Tensor:
    """uint8 (n, 3, h, w) to about zero mean and unit variance by channel, on the device and in the dtype `where`."""
    device, dtype = where
    centre, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return ((pixels.to(device).float() / 255 - centre) / scale).to(dtype)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to four pixels over black and mirror every other image; uint8 (n, 3, h, w) in and out.

    The standard augmentation of CIFAR (He et al. 2016, arXiv 1512.03385). All randomness is the generator's.
    """
    n, _, height, width = pixels.shape
    shifts = torch.randint(2 * PADDING + 1, (n, 2), generator=generator)
    mirror = torch.rand(n, generator=generator) < 0.5
    rows = shifts[:, :1] + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(mirror[:, None], columns.flip(1), columns) + shifts[:, 1:]
    padded = F.pad(pixels, (PADDING,) * 4)
    index = torch.arange(n)[:, None, None]
    # advanced indices on both sides of a slice put the channel last
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
