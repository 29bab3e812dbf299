"""Tiny language models as worlds: a neural bigram model with an exact population, and the `text-lm` transformer.

Both train on real English text with real minibatches; the bigram's population gradient and loss are exact sums over its
table of pairs, so that the bounded quantity itself can be measured on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt_hpo.attribution.levels import Noise
from metaopt_hpo.attribution.stepping import RECORDS
from metaopt_hpo.attribution.worlds import BLOCK, common
from metaopt_hpo.workloads.text_lm import TextLM, corpus, next_token_loss

LETTERS = b"abcdefghijklmnopqrstuvwxyz .,\n"


class Bigram:
    """Predict a letter from the one before: logits = (E·U)[letter], E (letters × width), U (width × letters).

    The population is the table of letter pairs of the training text (lower-cased; 30 letters and "other"), so a
    minibatch is a multinomial draw of B pairs from it: real minibatch noise, with an exact mean. gaussian noise has the
    same mean variance a coordinate as one pair's gradient at the start.

    Args:
        width: of the factorisation.
        pairs: (letters, letters) counts; default those of the `text-lm` corpus.
    """

    noises: tuple[Noise, ...] = ("gaussian", "minibatch")
    floor = 0.0
    records = RECORDS

    def __init__(self, name: str = "bigram", *, width: int = 12, pairs: Tensor | None = None) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width!r}")
        self.name, self.width = name, width
        counts = _letter_pairs() if pairs is None else pairs.double()
        self.joint = (counts / counts.sum()).float()
        self.letters = len(counts)
        self.sigma = self._noise_at_start()

    def start(self, seeds: Sequence[int]) -> Tensor:
        size = 2 * self.letters * self.width
        rows = [torch.randn(size, generator=torch.Generator().manual_seed(1_000_003 * s + 1)) for s in seeds]
        # Embeddings of unit scale and a small output layer: the first predictions are nearly uniform.
        scale = torch.cat(
            [torch.full((size // 2,), 0.5), torch.full((size // 2,), 0.1 / math.sqrt(self.width))]
        )
        return torch.stack(rows) * scale

    def loss(self, w: Tensor) -> Tensor:
        logits, _, _ = self._forward(w)
        losses: Tensor = -(torch.log_softmax(logits, -1) * self.joint.to(w.device))
        return losses.sum((-1, -2))

    def gradient(self, w: Tensor) -> Tensor:
        return self._backward(w, self.joint.to(w.device))

    def stream(self, noise: Noise, batch: int, seeds: int, generator: torch.Generator) -> Iterator[Any]:
        if noise == "gaussian":
            while True:
                z = torch.randn(BLOCK, seeds, 2 * self.letters * self.width, generator=generator)
                yield from z.mul_(self.sigma / math.sqrt(batch))
        owner = torch.arange(BLOCK * seeds).repeat_interleave(batch)
        while True:
            picks = torch.multinomial(self.joint.flatten(), len(owner), replacement=True, generator=generator)
            table = torch.zeros(BLOCK * seeds, self.letters**2)
            table.index_put_((owner, picks), torch.tensor(1 / batch), accumulate=True)
            yield from table.view(BLOCK, seeds, self.letters, self.letters)

    def noisy_gradient(
        self, w: Tensor, noise: Noise, batches: Sequence[int], drawn: Sequence[Any], out: Tensor
    ) -> Tensor:
        shared = common(drawn, w)
        if noise == "gaussian":
            return torch.add(self.gradient(w), shared, out=out)
        return out.copy_(self._backward(w, shared))

    def _forward(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = self.letters * self.width
        embed = w[..., :half].unflatten(-1, (self.letters, self.width))
        out = w[..., half:].unflatten(-1, (self.width, self.letters))
        return embed @ out, embed, out

    def _backward(self, w: Tensor, joint: Tensor) -> Tensor:
        """Gradient of the cross-entropy under pair frequencies `joint`, written out: autograd would store every run."""
        logits, embed, out = self._forward(w)
        slope = torch.softmax(logits, -1) * joint.sum(-1, keepdim=True) - joint
        return torch.cat([(slope @ out.mT).flatten(-2), (embed.mT @ slope).flatten(-2)], dim=-1)

    def _noise_at_start(self) -> float:
        w = self.start([0])
        mean = self._backward(w, self.joint)
        picks = torch.multinomial(
            self.joint.flatten(), 2048, replacement=True, generator=torch.Generator().manual_seed(0)
        )
        one = torch.zeros(2048, self.letters**2).scatter_(1, picks[:, None], 1.0)
        each = self._backward(w, one.view(2048, self.letters, self.letters))
        return float((each - mean).square().mean().sqrt())


class TextWorld:
    """The workload `text-lm` (a byte-level transformer) under the batched loop, all runs vectorised with `torch.func`.

    Its noise is real minibatches only: an exact gradient of the corpus is out of reach, so the population gradient is
    that of a fixed sample of training windows and the loss is the held-out one.

    Args:
        workload: the member of the family; its own batch is not used.
        sample: training windows behind `gradient`.
        held_out: windows behind `loss`.
        chunk: runs evaluated at once, which bounds memory.
    """

    noises: tuple[Noise, ...] = ("minibatch",)
    floor = 0.0
    records = 8

    def __init__(
        self,
        workload: TextLM,
        *,
        name: str = "text-lm",
        sample: int = 32,
        held_out: int = 64,
        chunk: int = 64,
    ) -> None:
        self.name, self.workload, self.chunk = name, workload, chunk
        self.model = workload.model(0)
        self.shapes = {n: p.shape for n, p in self.model.named_parameters()}
        train, held = corpus()
        self.sample = _windows(train, workload.context, sample)
        self.held_out = _windows(held, workload.context, held_out)
        self.text = train

    def start(self, seeds: Sequence[int]) -> Tensor:
        models = [self.workload.model(s) for s in seeds]
        return torch.stack([torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models])

    def loss(self, w: Tensor) -> Tensor:
        flat = w.flatten(0, -2)
        windows = self.held_out.to(w.device)
        run = vmap(lambda x: self._mean_loss(x, windows))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.cat([run(part) for part in flat.split(self.chunk)]).view(w.shape[:-1])

    def gradient(self, w: Tensor) -> Tensor:
        flat = w.flatten(0, -2)
        windows = self.sample.to(w.device)
        run = vmap(grad(self._mean_loss), in_dims=(0, None))
        with sdpa_kernel(SDPBackend.MATH):
            return torch.cat([run(part, windows) for part in flat.split(self.chunk)]).view(w.shape)

    def stream(self, noise: Noise, batch: int, seeds: int, generator: torch.Generator) -> Iterator[Any]:
        context, rows = self.workload.context, batch // self.workload.context
        while True:
            starts = torch.randint(len(self.text) - context, (seeds, rows), generator=generator)
            yield self.text[starts[..., None] + torch.arange(context + 1)].long()

    def noisy_gradient(
        self, w: Tensor, noise: Noise, batches: Sequence[int], drawn: Sequence[Any], out: Tensor
    ) -> Tensor:
        run = vmap(vmap(grad(self._mean_loss), in_dims=(0, None)), in_dims=(1, 0), out_dims=1)
        for c, windows in enumerate(drawn):
            # (settings · lrs, seeds, parameters): the minibatch is common to a seed's settings and learning rates.
            with sdpa_kernel(SDPBackend.MATH):
                # The plain kernel is the only one that vectorises over runs.
                out[c] = run(w[c].flatten(0, 1), windows.to(w.device)).view(w.shape[1:])
        return out

    def _mean_loss(self, flat: Tensor, windows: Tensor) -> Tensor:
        weights, at = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            weights[name] = flat[at : at + size].view(shape)
            at += size
        return next_token_loss(lambda x: functional_call(self.model, weights, (x,)), windows)  # type: ignore[arg-type]


def _windows(text: Tensor, context: int, count: int) -> Tensor:
    starts = torch.linspace(0, len(text) - context - 1, count).long()
    return text[starts[:, None] + torch.arange(context + 1)].long()


def _letter_pairs() -> Tensor:
    """Counts of neighbouring letters in the training text."""
    table = torch.full((256,), len(LETTERS), dtype=torch.long)
    for i, byte in enumerate(LETTERS):
        table[byte] = i
        table[ord(chr(byte).upper())] = i
    text = table[corpus()[0].long()]
    n = len(LETTERS) + 1
    return torch.bincount(text[:-1] * n + text[1:], minlength=n * n).view(n, n).double()
