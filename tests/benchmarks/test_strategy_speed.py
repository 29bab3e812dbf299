"""What a whole training step costs under every strategy, as a ratio to AdamW's, and what it keeps in memory.

Forward, backward, clipping, update and the strategy's own bookkeeping; the loss is handed to the strategy as a
training loop does. Steps of the reference and of the strategy alternate, so that whatever else the machine does hits
both. Nothing is asserted. `make bench` prints the table; on a device give METAOPT_HPO_BENCH_DEVICE=cuda.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.base import LRRun
from metaopt_hpo.workloads import members
from studies.one_run.cases import RIVALS

STEPS = 60
WARM = 8
DEVICE = os.environ.get("METAOPT_HPO_BENCH_DEVICE", "cpu")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar-10-batches-bin"
STRATEGIES = ("metaoptimize", "metaoptimize, no guard", *RIVALS)
JOBS = {"text-lm": {"width": 64}, "cifar10": {"width": 16, "examples": 64, "data": str(DATA)}}
ROWS: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def only_as_a_benchmark(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--benchmark-only"):
        pytest.skip("measures speed: run `make bench`")


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    if ROWS:
        head = ["workload", "strategy", "whole step / AdamW's", "state, floats a parameter (AdamW 2)"]
        print("\n\n" + markdown_table(head, ROWS))


def stepper(job: object, strategy: str) -> tuple[Callable[[], None], LRRun, nn.Module]:
    name, _, rest = strategy.partition(",")
    options = {"guard": False} if rest else {}
    model = job.model(0).to(DEVICE)  # type: ignore[attr-defined]
    run = make(name, **options).build(model, 10_000)
    count = [0]

    def step() -> None:
        (loss,) = job.losses(model, count[0], 0, 1)  # type: ignore[attr-defined]
        loss.backward()
        run.step(loss.detach())
        count[0] += 1
        if DEVICE != "cpu":
            torch.cuda.synchronize()

    return step, run, model


def floats(run: LRRun, model: nn.Module) -> float:
    """Elements of all tensors the optimizer keeps, a parameter, counted in units of four bytes."""
    seen: dict[int, int] = {}

    def walk(value: object) -> None:
        if isinstance(value, Tensor):
            seen[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, dict):
            for v in value.values():
                walk(v)
        elif isinstance(value, list | tuple):
            for v in value:
                walk(v)

    walk(dict(run.optimizer.state))
    weights = {p.data_ptr() for p in model.parameters()}
    kept = sum(n for pointer, n in seen.items() if pointer not in weights)
    return kept / 4 / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("workload", JOBS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whole_step(benchmark, workload: str, strategy: str) -> None:
    if workload == "cifar10" and not DATA.is_dir():
        pytest.skip(f"no images in {DATA}")
    options = dict(JOBS[workload])
    job = members(workload, [options.pop("width")], **options)[0]  # type: ignore[list-item, arg-type]
    reference, _, _ = stepper(job, "constant")
    step, run, model = stepper(job, strategy)
    for _ in range(WARM):
        reference()
        step()
    times: list[float] = []

    def before() -> None:
        start = time.perf_counter()
        reference()
        times.append(time.perf_counter() - start)

    benchmark.pedantic(step, setup=before, rounds=STEPS)
    ratio = benchmark.stats.stats.median / statistics.median(times)
    benchmark.extra_info.update(ratio_median=ratio)
    ROWS.append((workload, strategy, f"{ratio:.3f}", f"{floats(run, model):.2f}"))
