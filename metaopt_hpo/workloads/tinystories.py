"""`tinystories`: a Llama-style byte-level language model on TinyStories (Eldan & Li 2023, arXiv 2305.07759).

The files are the published ones: plain text whose stories end with the line `<|endoftext|>`. The vocabulary is
the 256 bytes: no tokenizer has to be trained or shipped, losses are nats per byte and compare with those of
`text-lm`, and all of the 15 M parameters are in the network. The separator, 13 bytes of no content, is read as the
single byte 0, which never occurs in text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metaopt_hpo.workloads.base import WorkloadError, step_generator
from metaopt_hpo.workloads.llama import LlamaShape
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
from metaopt_hpo.workloads.text_lm import next_token_loss

SEPARATOR = b"<|endoftext|>"
VOCABULARY = 256
FILES = (
    ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
    ("TinyStories-train.txt", "TinyStories-valid.txt"),
)
"""Training and held-out file, the newer version first."""

LOOK = 2**20
"""Bytes within which the first separator must come; stories are about a thousand bytes long."""


@dataclass(frozen=True, kw_only=True)
class TinyStories:
    """One member of the family; tokens are bytes.

    Args:
        width: model width, a multiple of 8, and of 64 from 128 on (heads are 64 wide). 448 with 6 layers is the
            15 M model.
        layers: transformer blocks.
        context: bytes per sequence; 512 is about half a story.
        sequences: sequences per optimizer step.
        data: folder of the two text files; None looks for `tinystories` in the folder that the environment
            variable METAOPT_HPO_DATA names, or in `data`.
        held_out: windows of `context` bytes, evenly spaced, that make the held-out loss.
    """

    name: ClassVar[str] = "tinystories"
    default_widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 448)

    width: int = 448
    layers: int = 6
    context: int = 512
    sequences: int = 64
    data: str | None = None
    held_out: int = 256

    def __post_init__(self) -> None:
        check_counts(self, "width", "layers", "context", "held_out")
        check_even(self, "sequences")
        if self.width % 8 or (self.width >= 128 and self.width % 64):
            raise ValueError(f"width must be a multiple of 8, and of 64 from 128 on, got {self.width}")

    @property
    def _shape(self) -> LlamaShape:
        return LlamaShape(self.width, self.layers, VOCABULARY)

    @property
    def size(self) -> int:
        """Trainable parameters without the embedding, which is the output layer too."""
        return parameter_count(self._shape)

    @property
    def batch(self) -> int:
        """Bytes per optimizer step."""
        return self.context * self.sequences

    @property
    def flops_per_token(self) -> float:
        """Measured training FLOPs per byte, output layer and attention included."""
        return flops_per_example(self._shape, (self.context,), True) / self.context

    def with_batch(self, batch: int) -> Self:
        """The same job at `batch` bytes per step, a multiple of `context`."""
        if batch < self.context or batch % self.context:
            raise ValueError(f"batch must be a multiple of the context, {self.context} bytes, got {batch!r}")
        return replace(self, sequences=int(batch) // self.context)

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised transformer."""
        return initialised(self._shape, seed)

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean next-byte losses of `parts` equal parts of the batch."""
        check_parts(parts, self.sequences)
        text = stories(data_folder(self.data, "tinystories"))[0]
        starts = torch.randint(len(text), (self.sequences,), generator=step_generator(seed, step))
        x = windows(text, starts.tolist(), self.context + 1).to(placement(model)[0], torch.long)
        return tuple(next_token_loss(model, part) for part in x.chunk(parts))

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean next-byte loss on windows spread evenly over the held-out file, nats per byte."""
        text = stories(data_folder(self.data, "tinystories"))[1]
        starts = np.linspace(0, len(text), self.held_out, endpoint=False).astype(int).tolist()
        x = windows(text, starts, self.context + 1)
        device, total = placement(model)[0], 0.0
        with torch.no_grad():
            for part in x.split(32):
                total += float(next_token_loss(model, part.to(device, torch.long))) * len(part)
        return total / len(x)


@lru_cache(maxsize=2)
def stories(folder: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Training and held-out text, mapped and not read: the training file has 2 GB.

    Raises:
        WorkloadError: a file is missing, empty, or not of TinyStories' layout; the message names it.
    """
    for names in FILES:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            train, valid = (_mapped(path) for path in paths)
            return train, valid
    raise WorkloadError(f"{folder} lacks the files of TinyStories: it needs {' and '.join(FILES[0])}")


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    if path.stat().st_size == 0:
        raise WorkloadError(f"{path} is empty")
    text = np.memmap(path, dtype=np.uint8, mode="r")
    head = text[:LOOK].tobytes()
    if SEPARATOR not in head or 0 in head:
        raise WorkloadError(
            f"{path} is not a TinyStories text file: its stories must end with {SEPARATOR.decode()} "
            "and it must be plain text"
        )
    return text


def windows(text: npt.NDArray[np.uint8], starts: list[int], length: int) -> Tensor:
    """Windows of `length` symbols from the given places of the file, uint8 (len(starts), length).

    Each separator, with the line break after it, is one symbol 0. A start inside one moves to its beginning; the
    file goes on at its beginning after its end.
    """
    rows = []
    for start in starts:
        edge = max(0, start - len(SEPARATOR) + 1)
        inside = text[edge : start + len(SEPARATOR)].tobytes().find(SEPARATOR)
        if inside >= 0 and edge + inside < start:
            start = edge + inside
        rows.append(_symbols(text, start, length))
    return torch.from_numpy(np.stack(rows))


def _symbols(text: npt.NDArray[np.uint8], start: int, length: int) -> npt.NDArray[np.uint8]:
    # enough raw bytes for the usual window, and more only where separators are dense
    raw, wanted = b"", length + 4 * (len(SEPARATOR) + 1)
    while True:
        while len(raw) < wanted:
            position = (start + len(raw)) % len(text)
            raw += text[position : position + wanted - len(raw)].tobytes()
        symbols = raw.replace(SEPARATOR + b"\n", b"\0").replace(SEPARATOR, b"\0")
        # the last bytes may be part of a separator that is cut off
        if len(symbols) >= length + len(SEPARATOR) + 1:
            return np.frombuffer(symbols[:length], dtype=np.uint8)
        wanted *= 2
