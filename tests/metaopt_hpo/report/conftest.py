"""Synthetic comparisons whose truth is known: loss = floor(size) · exp(bowl in ln lr), with seeded noise."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.methods import grid_points
from metaopt_hpo.comparison.outcome import Outcome, judge
from metaopt_hpo.comparison.results import PILOT, Comparison
from metaopt_hpo.trials.record import Curve, TrialRecord, token_grid
from metaopt_hpo.trials.table import TrialTable

# the tests are no package: makes the helper module beside it importable
sys.path.insert(0, str(Path(__file__).parent))

TOKENS, BATCH = 2.0**21, 4096.0
TARGET, PILOTS = 1.2e6, (4.0e4, 1.0e5, 2.5e5)
BOUNDS = (1e-4, 1e-1)
MACHINE = {
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64-with-glibc2.36",
    "processor": "A processor with a name of ordinary length @ 2.40GHz",
    "cpus": "2",
    "metaopt-hpo": "0.1.0",
    "torch": "2.13.0",
    "optuna": "5.0.0",
}


def best_lr(size: float) -> float:
    """The optimum the trials are drawn about."""
    return 8e-3 * (size / 1e5) ** -0.35


def true_loss(size: float, lr: float) -> float:
    """Loss without noise."""
    u = math.log(lr / best_lr(size))
    return (1.6 + 1.5 * (size / 4e4) ** -0.25) * math.exp(0.02 * u * u)


def make_trial(
    *, method: str, seed: int, number: int, size: float, lr: float, factor: float = 1.0, **changes: Any
) -> TrialRecord:
    """A trial of the synthetic world; an lr 12 times above the optimum or more diverges."""
    rng = np.random.default_rng([seed, number, round(size)])
    adaptive = method == "metaoptimize"
    cost = 6 * size * TOKENS
    grid = token_grid(TOKENS, stride=8, start=BATCH)
    plateau = best_lr(size) * math.exp(0.1 * rng.standard_normal()) if adaptive else math.nan
    peak = plateau if adaptive else lr
    loss = true_loss(size, peak) * factor * math.exp(0.002 * rng.standard_normal() + 0.001 * seed)
    diverged = not adaptive and lr > 12 * best_lr(size)
    shape = [min(1.0, t / (0.05 * TOKENS)) * min(1.0, (1.0001 - t / TOKENS) / 0.25) for t in grid]
    curve = Curve(
        tokens=tuple(map(float, grid)),
        loss=tuple(loss + 3 * math.exp(-4 * t / TOKENS) for t in grid),
        step_size=tuple(peak * s for s in shape),
    )
    values: dict[str, Any] = {
        "size": size,
        "tokens": TOKENS if not diverged else TOKENS / 8,
        "batch": BATCH,
        "lr": lr,
        "loss": math.nan if diverged else loss,
        "trial": str(number),
        "study": f"{method}/{size:.0f}/seed{seed}",
        "engine": "optuna",
        "method": method,
        "workload": "text-lm",
        "strategy": "metaoptimize" if adaptive else "wsd",
        "state": "diverged" if diverged else "complete",
        "reason": "loss was not finite at 262144 tokens" if diverged else "",
        "seed": seed,
        "target_tokens": TOKENS,
        "cost": cost / 8 if diverged else cost,
        "seconds": 3.25,
        "found_lr": plateau,
        "curve": None if diverged else curve,
    }
    return TrialRecord(**(values | changes))


def make_records(
    methods: Sequence[str], seeds: Sequence[int], pilots: Sequence[float], runs: int
) -> list[TrialRecord]:
    """Pilots, then each method's trials in order."""
    records = [
        make_trial(method=PILOT, seed=seed, number=i, size=size, lr=lr)
        for size in pilots
        for seed in seeds
        for i, lr in enumerate(grid_points(*BOUNDS, 6))
    ]
    for name in methods:
        for seed in seeds:
            rng = np.random.default_rng([seed, len(name)])
            rates = {
                "grid": grid_points(*BOUNDS, runs),
                "metaoptimize": [1e-4, 3e-5, 3e-4],
                "law": [best_lr(TARGET) * f for f in (1.15, 0.8, 1.4)],
            }.get(name) or list(np.exp(rng.uniform(*np.log(BOUNDS), runs)))
            records += [
                make_trial(method=name, seed=seed, number=i, size=TARGET, lr=float(lr))
                for i, lr in enumerate(rates)
            ]
    return records


def make_comparison(
    *,
    methods: Sequence[str] = ("grid", "tpe", "metaoptimize", "law"),
    seeds: Sequence[int] = (0, 1, 2),
    pilots: Sequence[float] = PILOTS,
    runs: int = 8,
    workload: str = "text-lm",
    records: Sequence[TrialRecord] | None = None,
    command: str = "metaopt-hpo compare text-lm --out results/demo",
    machine: dict[str, str] | None = None,
) -> Comparison:
    """A comparison of the synthetic world, or of the given records."""
    plan = ComparisonPlan(
        workload=workload,
        methods=tuple(methods),
        seeds=tuple(seeds),
        size=TARGET,
        pilot_sizes=tuple(pilots),
        tokens=TOKENS,
        batch=BATCH,
        lr_bounds=BOUNDS,
        runs=runs,
        pilot_runs=6,
    )
    trials = make_records(methods, seeds, pilots, runs) if records is None else records
    return Comparison(plan, TrialTable.from_records(trials), machine or MACHINE, command)


@pytest.fixture(scope="session")
def comparison() -> Callable[..., Comparison]:
    """Builder of comparisons."""
    return make_comparison


@pytest.fixture(scope="session")
def trial() -> Callable[..., TrialRecord]:
    """Builder of trials."""
    return make_trial


@pytest.fixture(scope="session")
def records() -> Callable[..., list[TrialRecord]]:
    """Builder of all trials of a comparison."""
    return make_records


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    """The ordinary case: four methods, three seeds, three smaller sizes, a few diverged trials."""
    return judge(make_comparison())


@pytest.fixture
def tables_may_warn() -> Iterator[None]:
    """Diverged synthetic trials make the table count notes; they are not the subject of a page's tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
