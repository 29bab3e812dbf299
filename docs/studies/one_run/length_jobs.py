"""Small training jobs of several architectures that can be run at any length; data that are at hand everywhere.

Text is the Python standard library's own source, byte by byte; every tenth piece of 20,000 bytes is held out. Digits
come with scikit-learn, images from the folder of CIFAR-10's binary files that `METAOPT_HPO_DATA` names. Batches are
pure functions of seed and step, so that strategies are compared on the same ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.workloads.base import WorkloadError
from metaopt_hpo.workloads.text_lm import Transformer

CONTEXT, SEQUENCES, SYMBOLS = 64, 16, 128
SHORT = (16, 8)
PIECE = 20_000
HELD_OUT_WINDOWS = 256


class Job(Protocol):
    """A model, its loss on the batch of a step, and the held-out losses, one an example (a window of text)."""

    def model(self, seed: int) -> nn.Module: ...
    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor: ...
    def held_out(self, model: nn.Module) -> Tensor: ...


def job(name: str) -> Job:
    """The job of that name: its kind (tf, gru, mlp, teach, res) and width, as in "gru64".

    "short" before tf or gru takes 8 sequences of 16 bytes a step instead of 16 of 64, a fifth of the time.

    Raises:
        ValueError: an unknown kind.
    """
    kinds: dict[str, Callable[[str, int], Job]] = {
        "tf": Text,
        "gru": Text,
        "shorttf": Text,
        "shortgru": Text,
        "mlp": Digits,
        "teach": Taught,
        "res": Images,
    }
    found = re.fullmatch(rf"({'|'.join(kinds)})(\d+)", name)
    if found is None:
        raise ValueError(f"job {name!r} is not known: give {', '.join(kinds)} and a width, as in 'gru64'")
    return kinds[found[1]](found[1], int(found[2]))


@lru_cache(maxsize=1)
def _source() -> tuple[Tensor, Tensor]:
    folder = Path(os.__file__).parent
    files = sorted(str(f) for part in ("", "asyncio", "email") for f in (folder / part).glob("*.py"))
    text = b"\n".join(Path(f).read_bytes() for f in files)
    pieces = plain(torch.frombuffer(bytearray(text), dtype=torch.uint8)).split(PIECE)
    train = torch.cat([p for i, p in enumerate(pieces) if i % 10 != 9])
    return train, torch.cat([p for i, p in enumerate(pieces) if i % 10 == 9])


def plain(text: Tensor) -> Tensor:
    """Bytes with a question mark in place of those that are not ASCII."""
    return torch.where(text < SYMBOLS, text, ord("?"))


class CharGRU(nn.Module):
    """Embedding, one GRU layer, linear head; torch's own initialisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(SYMBOLS, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(self.emb(x))[0])
        return out


class Text:
    """Next-byte prediction: the two-layer transformer of text-lm, or a GRU; 16 sequences of 64 bytes a step."""

    def __init__(self, kind: str, width: int, text: tuple[Tensor, Tensor] | None = None) -> None:
        """`text` to train on and held out, as bytes under `SYMBOLS`; None: Python's own source."""
        self.kind, self.width = kind.removeprefix("short"), width
        self.context, self.sequences = (CONTEXT, SEQUENCES) if kind == self.kind else SHORT
        self.train, held = _source() if text is None else text
        windows = HELD_OUT_WINDOWS * CONTEXT // self.context
        starts = torch.linspace(0, len(held) - self.context - 2, windows).long()
        self.held = held[starts[:, None] + torch.arange(self.context + 1)].long()

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return CharGRU(self.width) if self.kind == "gru" else Transformer(self.width, 2, self.context, seed)

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed + 1) * 10_000_019 + step)
        starts = torch.randint(len(self.train) - self.context - 1, (self.sequences,), generator=generator)
        return _next_byte(model, self.train[starts[:, None] + torch.arange(self.context + 1)].long())

    def held_out(self, model: nn.Module) -> Tensor:
        parts = [_next_byte(model, p, "none").view(len(p), -1).mean(1) for p in self.held.split(64)]
        return torch.cat(parts)


def _next_byte(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(windows[:, :-1]).flatten(0, 1)
    return F.cross_entropy(logits, windows[:, 1:].flatten(), reduction=reduction)


class Classified:
    """Classification over epochs in an order drawn anew each epoch."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    batch = 64

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        epoch, k = divmod(step, len(self.x) // self.batch)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        i = order[k * self.batch : (k + 1) * self.batch]
        return F.cross_entropy(model(self.x[i]), self.y[i])

    def held_out(self, model: nn.Module) -> Tensor:
        parts = zip(self.held_x.split(500), self.held_y.split(500), strict=True)
        return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in parts])


class Digits(Classified):
    """Scikit-learn's digits and a two-layer ReLU network."""

    def __init__(self, kind: str, width: int) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        parts = train_test_split(
            torch.tensor(x / 16, dtype=torch.float32),
            torch.tensor(y),
            test_size=0.3,
            random_state=0,
            stratify=y,
        )
        self.x, self.held_x, self.y, self.held_y = parts
        self.width = width

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        w = self.width
        return nn.Sequential(nn.Linear(64, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10))


class Taught:
    """A two-layer ReLU network that learns another's classes from fresh inputs; one label in ten is drawn at random.

    No input is seen twice, so nothing is learned by heart, and 8,192 held-out inputs leave little noise.
    """

    inputs, classes, batch = 32, 10, 64

    def __init__(self, kind: str, width: int) -> None:
        self.width = width
        g = torch.Generator().manual_seed(12_345)
        self.first = torch.randn(self.inputs, 48, generator=g) / self.inputs**0.5
        self.second = torch.randn(48, self.classes, generator=g)
        self.held_x, self.held_y = self._examples(8192, 54_321)

    def _examples(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(count, self.inputs, generator=g)
        y = (F.relu(x @ self.first) @ self.second).argmax(1)
        other = torch.randint(self.classes, (count,), generator=g)
        return x, torch.where(torch.rand(count, generator=g) < 0.1, other, y)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        w = self.width
        return nn.Sequential(
            nn.Linear(self.inputs, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, self.classes)
        )

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        x, y = self._examples(self.batch, (seed + 1) * 10_000_019 + step)
        return F.cross_entropy(model(x), y)

    def held_out(self, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(self.held_x), self.held_y, reduction="none")


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.c2, self.n2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.s = nn.Identity() if stride == 1 and i == o else nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.n2(self.c2(F.relu(self.n1(self.c1(x))))) + self.s(x))


def image_rows(name: str) -> np.ndarray:
    """CIFAR-10's file of that name: an image a row, the label before its 3,072 bytes.

    Raises:
        WorkloadError: the data are not at hand.
    """
    folder = Path(os.environ.get("METAOPT_HPO_DATA", "")) / "cifar-10-batches-bin"
    if not folder.is_dir():
        raise WorkloadError("images need METAOPT_HPO_DATA, the folder that holds cifar-10-batches-bin")
    return np.fromfile(folder / f"{name}.bin", np.uint8).reshape(-1, 3073)


class Images(Classified):
    """CIFAR-10 and a small residual network, without augmentation."""

    def __init__(self, kind: str, width: int) -> None:
        train = np.concatenate([image_rows(f"data_batch_{i}") for i in range(1, 6)])
        self.x, self.y = _images(train)
        self.held_x, self.held_y = _images(image_rows("test_batch")[:2000])
        self.width = width

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        w = self.width
        return nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            *(Residual(i * w, o * w, s) for i, o, s in ((1, 1, 1), (1, 2, 2), (2, 4, 2))),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * w, 10),
        )


def _images(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    pixels = torch.tensor(rows[:, 1:]).reshape(-1, 3, 32, 32).float() / 255
    return (pixels - 0.45) / 0.25, torch.tensor(rows[:, 0]).long()
