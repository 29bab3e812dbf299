"""Time of a step and objects in memory at the begin and at the end of 20,000 steps, for every strategy over every base.

`pytest tests/benchmarks/test_long_runs.py --benchmark-only -s` prints the table; `SOAK_ONLY=wsd,linear` runs a part.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import StrategyError, available, get, make

STEPS, BLOCK, BLOCKS = 20_000, 50, 20
EARLY = 500
ONLY = os.environ.get("SOAK_ONLY", "")
PAIRS = [
    (name, base)
    for name in available()
    if get(name).__module__.startswith("metaopt_hpo.") and (not ONLY or name in ONLY.split(","))
    for base in get(name).bases
]
ROWS: list[tuple[str, ...]] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    if ROWS:
        head = ["strategy", "base", "µs a step, early", "µs a step, late", "late / early", "objects", "loss"]
        print("\n\n" + markdown_table(head, ROWS))


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def run_of(name: str, base: str) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    lr = {} if get(name).tunes_lr else {"lr": 1e-2}
    return model, make(name, base=base, **lr).build(model, STEPS)


@pytest.mark.filterwarnings("ignore::metaopt_hpo.errors.MetaOptWarning")
@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_a_step_costs_the_same_at_the_end(name: str, base: str, benchmark: Any) -> None:
    try:
        model, run = run_of(name, base)
    except StrategyError as error:
        pytest.skip(str(error))
    x = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.3], [0.2, 0.1]])
    y = x.sum(1, keepdim=True)

    def steps(count: int) -> float:
        """Seconds a step, in the fastest block."""
        best = float("inf")
        for _ in range(max(1, count // BLOCK)):
            begun = time.perf_counter()
            for _ in range(min(count, BLOCK)):
                loss = (model(x) - y).square().mean()
                loss.backward()
                run.step(loss)
            best = min(best, time.perf_counter() - begun)
        return best / min(count, BLOCK)

    run.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = (model(x) - y).square().mean().item()
        steps(EARLY)
        early, kept = steps(BLOCKS * BLOCK), objects()
        steps(STEPS - EARLY - 2 * BLOCKS * BLOCK)
        late, grown = steps(BLOCKS * BLOCK), objects() - kept
    last = (model(x) - y).square().mean().item()
    times = (f"{early * 1e6:.0f}", f"{late * 1e6:.0f}", f"{late / early:.2f}")
    ROWS.append((name, base, *times, f"{grown:+d}", f"{first:.3f} → {last:.1e}"))
    benchmark.extra_info.update(early=early, late=late, objects=grown)
    benchmark.pedantic(lambda: None, rounds=1)
    assert run.steps_taken == STEPS
    assert last < first
    assert grown < EARLY, "nothing is kept for a step"
