"""How large a model is and how much different data a run sees: the counts a law is a function of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def model_size(model: nn.Module) -> int:
    """N: trainable parameters outside embeddings, each counted once.

    Left out are weights that do not train (`requires_grad=False`), those of embedding modules (`nn.Embedding`,
    `nn.EmbeddingBag`, and the own tensors of any module whose class has "Embedding" in its name) and an output layer
    that is tied to one. An output layer of its own counts, as in Kaplan et al. 2020 (arXiv 2001.08361).

    Raises:
        ValueError: nothing that counts would train.

    Examples:
        >>> import torch
        >>> from metaopt_hpo import model_size
        >>> model_size(torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 4, bias=False)))
        32
    """
    embeddings = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Embedding" in type(module).__name__
        for p in module.parameters(recurse=False)
    }
    size = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in embeddings)
    if size == 0:
        raise ValueError(
            "the model has no trainable parameter outside embeddings; unfreeze some, or give size=… yourself"
        )
    return size


def size_of(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> int:
    """Trainable non-embedding parameters of `build(*args, **kwargs)`, what a trial's `size` should hold.

    The model is made on torch's meta device: no memory is taken, so that a size costs milliseconds whatever it is.

        space = {
            "width": tune.grid_search([32, 64]),
            "size": tune.sample_from(lambda spec: size_of(mlp, spec.config["width"])),
        }

    Raises:
        ValueError: nothing in the model is trainable but embeddings.

    Examples:
        >>> import torch
        >>> from metaopt_hpo.training.size import size_of
        >>> size_of(torch.nn.Linear, 8, 4, bias=False)
        32
    """
    with torch.device("meta"):
        return model_size(build(*args, **kwargs))


def unique_count(tokens: float, unique_tokens: float, epochs: float | None) -> float:
    """Different tokens in the data of a run of `tokens`; NaN where nobody says.

    Raises:
        ValueError: both are given, or one that is not positive.
    """
    if epochs is None:
        if not (math.isnan(unique_tokens) or unique_tokens > 0):
            raise ValueError(f"unique_tokens must be > 0, got {unique_tokens!r}")
        return float(unique_tokens)
    if not math.isnan(unique_tokens):
        raise ValueError("give unique_tokens or epochs, not both; epochs is tokens / unique_tokens")
    if not (epochs > 0 and math.isfinite(epochs)):
        raise ValueError(f"epochs must be a finite number > 0, got {epochs!r}")
    return tokens / epochs
