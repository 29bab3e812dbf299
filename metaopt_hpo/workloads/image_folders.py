"""ImageNet as it lies on disk: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, decoded and cropped in threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt_hpo.workloads.base import WorkloadError

SUFFIXES = {".jpeg", ".jpg", ".png"}

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a crop, pixels."""


@dataclass(frozen=True)
class ImageFolder:
    """One part of the data set.

    Attributes:
        files: every image, sorted.
        labels: the class of each, int64 (n,).
        classes: folder names in the order of the labels.
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)


@lru_cache(maxsize=4)
def read_folders(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """List the training and the validation part; classes are the sorted folders of `train`.

    Raises:
        WorkloadError: a part is missing or empty, or `val` has images outside the classes of `train`.
    """
    train = root / "train"
    classes = tuple(sorted(p.name for p in train.iterdir() if p.is_dir())) if train.is_dir() else ()
    if not classes:
        raise WorkloadError(
            f"{root} is not laid out as ImageNet: it needs train/<class>/*.JPEG and val/<class>/*.JPEG"
        )
    return _list(train, classes), _list(root / "val", classes)


def _list(part: Path, classes: tuple[str, ...]) -> ImageFolder:
    entries = sorted(part.iterdir()) if part.is_dir() else []
    loose = [p for p in entries if p.is_file() and p.suffix.lower() in SUFFIXES]
    if loose:
        raise WorkloadError(
            f"{loose[0]} lies outside a class folder; sort the images of {part} into folders named after the classes"
        )
    unknown = [p.name for p in entries if p.is_dir() and p.name not in set(classes)]
    if unknown:
        raise WorkloadError(f"{part / unknown[0]} is a class that train does not have")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = part / name
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise WorkloadError(f"{part} holds no images; it needs {part.name}/<class>/*.JPEG")
    return ImageFolder(tuple(files), torch.tensor(labels), classes)


def decode(path: Path, resolution: int, box: Callable[[int, int], Box], mirror: bool) -> Tensor:
    """One image as uint8 (3, resolution, resolution): cropped to `box(width, height)`, resized, mirrored.

    Raises:
        WorkloadError: Pillow is missing, or the file is no readable image; the message names it.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise WorkloadError(
            "the imagenet workload decodes images with Pillow, which is not installed; "
            'run: pip install "metaopt-hpo[images]"'
        ) from error
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise WorkloadError(f"{path} is not a readable image: {error}") from error
    small = image.resize(
        (resolution, resolution), Image.Resampling.BILINEAR, box=box(image.width, image.height)
    )
    if mirror:
        small = ImageOps.mirror(small)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


def centre_box(width: int, height: int) -> Box:
    """The middle seven eighths of the shorter side, squared: 224 out of 256."""
    side = min(width, height) * 0.875
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def random_box(draw: Tensor) -> Callable[[int, int], Box]:
    """Inception's random crop: 8–100 % of the area, aspect 3/4 to 4/3 (Szegedy et al. 2015, arXiv 1409.4842).

    Args:
        draw: four uniform numbers in [0, 1): area, aspect, and the two offsets.
    """
    area, aspect, u, v = draw.tolist()

    def box(width: int, height: int) -> Box:
        ratio = (3 / 4) ** (1 - aspect) * (4 / 3) ** aspect
        target = (0.08 + 0.92 * area) * width * height
        # a crop that would not fit is cut to the image
        w, h = min(width, (target * ratio) ** 0.5), min(height, (target / ratio) ** 0.5)
        left, upper = u * (width - w), v * (height - h)
        return left, upper, left + w, upper + h

    return box


class Prefetcher:
    """Makes batches by number in the background: asking for one also starts the next.

    Results do not depend on it: a batch is a pure function of its key.
    """

    def __init__(self, workers: int) -> None:
        self._images = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._batches = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._pending: dict[Any, Future[Tensor]] = {}

    def get(self, key: Any, following: Any, jobs: Callable[[Any], list[Callable[[], Tensor]]]) -> Tensor:
        """The stacked results of `jobs(key)`; those of `following` are begun.

        Raises:
            WorkloadError: whatever a job raises.
        """
        current = self._pending.pop(key, None) or self._batches.submit(self._make, jobs, key)
        self._pending = {following: self._batches.submit(self._make, jobs, following)}
        return current.result()

    def stack(self, jobs: list[Callable[[], Tensor]]) -> Tensor:
        """The stacked results, in order."""
        return torch.stack(list(self._images.map(lambda job: job(), jobs)))

    def _make(self, jobs: Callable[[Any], list[Callable[[], Tensor]]], key: Any) -> Tensor:
        return self.stack(jobs(key))
