"""What bfloat16 costs in loss, and what rounding at random gives back: ``python -m studies.gpu.precision``.

A byte-level transformer (text-lm, width 48) trained with the same seeds and batches by MetaOptimize over AdamW, its
weights in float32 or in bfloat16 throughout, its trace in float32 or bfloat16. The base rule's state is in float32
always. Rows are printed; nothing is kept.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import torch

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.workloads.text_lm import TextLM

SETTINGS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32 weights": (torch.float32, {}),
    "float32 weights, bfloat16 trace": (torch.float32, {"trace_dtype": torch.bfloat16}),
    "bfloat16 weights, to nearest": (torch.bfloat16, {}),
    "bfloat16 weights, at random": (torch.bfloat16, {"stochastic_rounding": True}),
    "bfloat16 weights, at random, bfloat16 trace": (
        torch.bfloat16,
        {"stochastic_rounding": True, "trace_dtype": torch.bfloat16},
    ),
}
"""Dtype of the weights and options of MetaOptimize."""


def trained(
    dtype: torch.dtype, seed: int, steps: int, device: str, options: dict[str, Any]
) -> tuple[float, float]:
    """The held-out loss of the last weights, in float32 arithmetic, and the last step size."""
    job = TextLM(width=48)
    model = job.model(seed).to(device, dtype)
    optimizer = MetaOptimize(
        model.parameters(), lr=1e-3, meta_lr=1e-2, weight_decay=0.1, max_grad_norm=1.0, **options
    )
    for step in range(steps):
        (loss,) = job.losses(model, step, seed, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return job.held_out_loss(model.float()), float(optimizer.step_sizes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    setting = f"{given.steps} steps, {given.seeds} seeds"
    head = [setting, "held-out loss", "against float32, seed by seed", "step size"]
    rows: list[tuple[str, ...]] = []
    base: list[float] = []
    for name, (dtype, options) in SETTINGS.items():
        ends = [trained(dtype, seed, given.steps, given.device, options) for seed in range(given.seeds)]
        losses = [loss for loss, _ in ends]
        base = base or losses
        against = [100 * (loss / own - 1) for loss, own in zip(losses, base, strict=True)]
        change = f"{statistics.mean(against):+.2f} % ({min(against):+.2f} … {max(against):+.2f})"
        rows.append(
            (name, f"{statistics.mean(losses):.4f}", change, f"{statistics.mean(a for _, a in ends):.2g}")
        )
        print(f"{name}: {change}", file=sys.stderr, flush=True)
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
