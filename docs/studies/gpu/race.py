"""A short race on this GPU: a byte-level transformer on Python's own source, one run of ours beside a grid of AdamW.

Small and short on purpose: it shows that the whole path trains on a GPU, not how the methods compare (the studies do).
"""

from __future__ import annotations

import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize

WIDTH, LAYERS, CONTEXT, BATCH = 512, 6, 256, 32
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LEAST, MOST = 200, 5000


class Model(nn.Module):
    """19 M parameters, pre-norm, bytes in and bytes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        y = self.embed(x) + self.place.weight[: x.shape[1]]
        out: Tensor = self.head(self.body(y, mask=mask, is_causal=True))
        return out


def corpus() -> Tensor:
    """The source of the standard library, as bytes."""
    parts = [path.read_bytes() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).long()


def batch(data: Tensor, step: int) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(step)
    starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=gen)
    rows = torch.stack([data[s : s + CONTEXT + 1] for s in starts.tolist()]).cuda()
    return rows[:, :-1], rows[:, 1:]


def rows(until: float) -> Iterator[dict[str, Any]]:
    """One row a run; the number of steps is what fits into the time."""
    data = corpus()
    train, held = data[: int(0.95 * len(data))], data[int(0.95 * len(data)) :]
    start = time.monotonic()
    run(train, held, 1e-3, 60, ours=False)
    each = (time.monotonic() - start) / 60
    steps = int(min(MOST, (until - time.monotonic()) / each / (len(GRID) + 1.5)))
    if steps < LEAST:
        yield {"method": "-", "why": f"only {steps} steps a run fit into the time, fewer than {LEAST}"}
        return
    for ours, lr in ((True, 1e-4), *((False, lr) for lr in GRID)):
        begin = time.monotonic()
        loss, found = run(train, held, lr, steps, ours)
        yield {
            "method": "metaoptimize" if ours else "adamw",
            "lr": lr,
            "found_lr": found,
            "steps": steps,
            "loss": round(loss, 4),
            "seconds": round(time.monotonic() - begin, 1),
            "parameters": sum(p.numel() for p in Model().parameters()),
        }


def run(train: Tensor, held: Tensor, lr: float, steps: int, ours: bool) -> tuple[float, float]:
    """(held-out loss, the step size before the last linear decay) of one run in bfloat16 autocast."""
    torch.manual_seed(0)
    model = Model().cuda()
    matrices = [(n, p) for n, p in model.named_parameters() if p.ndim >= 2]
    vectors = [(n, p) for n, p in model.named_parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    opt: torch.optim.Optimizer
    if ours:
        opt = MetaOptimize(groups, lr=lr, meta_lr=min(0.1, 20 / steps), max_grad_norm=1.0)
    else:
        plain = [{**g, "params": [p for _, p in g["params"]]} for g in groups]
        opt = torch.optim.AdamW(plain, lr=lr, fused=True)
    warm, decay = max(1, steps // 20), int(0.3 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min((s + 1) / warm, 1.0) * min(1.0, max(0.0, (steps - s) / decay))
    )
    found = lr
    for step in range(steps):
        x, y = batch(train, step)
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        if isinstance(opt, MetaOptimize):
            if step == steps - decay:
                found = float(opt.step_sizes()[0])
                opt.meta_lr = 0.0
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        losses = []
        for i in range(20):
            x, y = batch(held, 10_000_000 + i)
            losses.append(float(nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())))
    mean = sum(losses) / len(losses)
    return (mean if math.isfinite(mean) else math.inf), found
