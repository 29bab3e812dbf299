"""size_of: how large the model of a config is, counted without making its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metaopt_hpo.training.size import model_size


def size_of(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> int:
    """Trainable non-embedding parameters of `build(*args, **kwargs)`, what a config's `size` should hold.

    The model is made on torch's meta device: no memory is taken, so that a size costs milliseconds whatever it is.

        space = {
            "width": tune.grid_search([32, 64]),
            "size": tune.sample_from(lambda spec: size_of(mlp, spec.config["width"])),
        }

    Raises:
        ValueError: nothing in the model is trainable but embeddings.

    Examples:
        >>> import torch
        >>> from metaopt_hpo_ray import size_of
        >>> size_of(torch.nn.Linear, 8, 4, bias=False)
        32
    """
    with torch.device("meta"):
        return model_size(build(*args, **kwargs))
