"""What the guard's copies cost: `pytest tests/benchmarks/test_guard_cost.py --benchmark-only -s`.

A run takes at most 100 copies. By arithmetic at 1B parameters under AdamW: 16 bytes a parameter (weights, m, v, h) make
16 GB a copy, 0.64 s at 25 GB/s over PCIe; 100 copies are 64 s of a run of 20 tokens a parameter, 1.2e20 FLOPs, which at
4e14 FLOP/s takes 3e5 s: 0.02 %.
"""

import time
from typing import Any

import torch
from torch import nn

from metaopt_hpo import MetaOptimize
from metaopt_hpo.strategies.snapshot import Snapshot

WIDTH = 3162
"""10 M parameters."""


def test_share_of_a_run_of_two_thousand_steps(benchmark: Any) -> None:
    model = nn.Linear(WIDTH, WIDTH)
    optimizer = MetaOptimize(model.parameters(), lr=1e-4)
    x = torch.randn(256, WIDTH)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    begun = time.perf_counter()
    for _ in range(5):
        step()
    whole = (time.perf_counter() - begun) / 5
    snapshot = Snapshot(model, optimizer)
    snapshot.keep()
    benchmark.pedantic(snapshot.keep, rounds=5)
    copy = benchmark.stats.stats.median
    share = 100 * copy / (2000 * whole)
    print(f"\none step {whole:.4f} s, one copy {copy:.4f} s; 100 copies are {share:.2%} of 2,000 steps")
