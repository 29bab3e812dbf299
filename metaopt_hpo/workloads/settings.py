"""Checks and small helpers that the workloads share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.workloads.base import WorkloadError, measured_flops

DATA_VARIABLE = "METAOPT_HPO_DATA"
"""Environment variable: the folder that holds the data sets' own folders."""


def check_counts(config: Any, *names: str) -> None:
    """Raise ValueError for the first named field that is not a positive whole number."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def check_even(config: Any, *names: str) -> None:
    """Raise ValueError for the first named field that is not an even positive whole number.

    Batches are split in halves now and then, to measure gradient noise.
    """
    check_counts(config, *names)
    for name in names:
        if getattr(config, name) % 2:
            raise ValueError(
                f"{name} must be even, as batches are halved to measure noise, got {getattr(config, name)}"
            )


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of the model's weights, where its batches must go."""
    p = next(model.parameters())
    return p.device, p.dtype


def data_folder(given: str | None, usual: str) -> Path:
    """The data set's folder: `given`, or its usual name in $METAOPT_HPO_DATA, or in `data` beside where you are.

    Raises:
        WorkloadError: there is no such folder.
    """
    folder = Path(given) if given is not None else Path(os.environ.get(DATA_VARIABLE, "data")) / usual
    if not folder.is_dir():
        raise WorkloadError(
            f"no data folder {folder}; give it as data=FOLDER, or set {DATA_VARIABLE} to the folder that holds {usual}"
        )
    return folder


def check_parts(parts: int, examples: int) -> None:
    """Raise ValueError where a batch cannot be split into that many equal parts."""
    if parts < 1 or examples % parts:
        raise ValueError(f"a batch of {examples} examples cannot be split into {parts} equal parts")


def initialised(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a model from `seed`, whatever the global generator, which stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@lru_cache(maxsize=64)
def flops_per_example(build: Callable[[], nn.Module], shape: tuple[int, ...], tokens: bool) -> float:
    """Training FLOPs of one input of `shape`, counted without computing anything (meta tensors)."""
    with torch.device("meta"):
        model = build()
        x = torch.zeros((2, *shape), dtype=torch.long if tokens else torch.float32)

    def total(m: nn.Module) -> Tensor:
        out: Tensor = m(x).sum()
        return out

    return measured_flops(model, total) / 2


@lru_cache(maxsize=64)
def parameter_count(build: Callable[[], nn.Module]) -> int:
    """Trainable parameters outside embeddings; tied output layers count as embeddings."""
    with torch.device("meta"):
        model = build()
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in embeddings)
