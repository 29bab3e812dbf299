"""A decoder-only transformer of the Llama family: RMSNorm, rotary positions, SwiGLU, tied embeddings, no biases.

Sources: Touvron et al. 2023 (arXiv 2302.13971); rotary positions, Su et al. 2021 (arXiv 2104.09864).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64
"""Width of a head, less where the model is narrower."""


@dataclass(frozen=True)
class LlamaShape:
    """What a model is built from; callable, so that it can be counted and cached."""

    width: int
    layers: int
    vocabulary: int

    def __call__(self) -> Llama:
        return Llama(self)

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward layer: 8/3 of the model's, rounded up to a multiple of 32."""
        return 32 * math.ceil(8 * self.width / 3 / 32)


class LlamaBlock(nn.Module):
    """Pre-norm attention with rotary positions, and SwiGLU."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        w = shape.width
        self.heads = max(1, w // HEAD)
        self.norm_attention = nn.RMSNorm(w, eps=1e-5)
        self.qkv = nn.Linear(w, 3 * w, bias=False)
        self.out = nn.Linear(w, w, bias=False)
        self.norm_mlp = nn.RMSNorm(w, eps=1e-5)
        self.gate = nn.Linear(w, shape.hidden, bias=False)
        self.up = nn.Linear(w, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, w, bias=False)
        for layer in (self.qkv, self.gate, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.out, self.down):  # so that the residual stream keeps its scale over depth
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotated(q, rotation), rotated(k, rotation), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, w))
        y = self.norm_mlp(x)
        mlp: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + mlp


class Llama(nn.Module):
    """Tokens (batch, time) to logits (batch, time, vocabulary)."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.head_width = shape.width // max(1, shape.width // HEAD)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        rotation = angles(tokens.shape[1], self.head_width, x.device)
        for block in self.blocks:
            x = block(x, rotation)
        return F.linear(self.norm(x), self.embedding.weight)


def angles(time: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of t · 10000^(−2i / width), each (time, width / 2)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(time, device=device)[:, None] * frequencies
    return angle.cos(), angle.sin()


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_i, x_{i + width/2}) by its angle; x (batch, heads, time, width), in x's dtype."""
    cos, sin = (r.to(x.dtype) for r in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
