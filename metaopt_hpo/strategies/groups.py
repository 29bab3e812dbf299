"""Parameter groups of a model: which weights decay, and which do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

NORM_TYPES = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.LocalResponseNorm)

DECAY = {"sgd": 5e-4, "sgdm": 5e-4, "lion": 0.3}
"""Weight decay by base rule, 0.1 for all others. SGD: Zagoruyko & Komodakis 2016 (arXiv 1605.07146); Lion: three to ten
times AdamW's, as its learning rates are as many times smaller (Chen et al. 2023, arXiv 2302.06675)."""


def decay_groups(model: nn.Module | Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into a decayed and an exempt group.

    Exempt are biases and all tensors of fewer than two dimensions, normalisation layers and embeddings
    (`nn.Embedding` and parameters named `pos*`). Empty groups are left out.

    Returns:
        Parameter groups for an optimizer: `{"params", "weight_decay"}`, decayed first; `params` are
        (name, parameter) pairs where a module gave names, which block-wise step sizes need.

    Raises:
        ValueError: nothing to train.
    """
    decayed: list[Any] = []
    exempt: list[Any] = []
    if isinstance(model, nn.Module):
        seen: set[int] = set()
        for prefix, module in model.named_modules():
            special = isinstance(module, (*NORM_TYPES, nn.Embedding, nn.EmbeddingBag))
            for name, p in module.named_parameters(recurse=False):
                if not p.requires_grad or id(p) in seen:
                    continue
                seen.add(id(p))
                is_exempt = special or p.ndim < 2 or name.startswith("pos") or name.endswith("bias")
                (exempt if is_exempt else decayed).append((f"{prefix}.{name}" if prefix else name, p))
    else:
        for p in model:
            if p.requires_grad:
                (exempt if p.ndim < 2 else decayed).append(p)
    if not decayed and not exempt:
        raise ValueError("the model has no parameter with requires_grad=True; there is nothing to train")
    groups = [(decayed, weight_decay), (exempt, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
