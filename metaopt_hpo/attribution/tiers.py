"""The tiers of the experiment: quadratics in minutes, tiny language models, one GPU, a cluster through an engine.

All share one config format; a tier is a choice of worlds, grids and device, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from metaopt_hpo.attribution.config import ExperimentConfig
from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.experiment import WorldRuns, run_world
from metaopt_hpo.attribution.findings import attribute
from metaopt_hpo.attribution.outcome import Attribution
from metaopt_hpo.attribution.stepping import World

TIERS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Job:
    """One world of a tier; it is built when its turn comes, as language models read their corpus."""

    world: Callable[[], Any]
    config: ExperimentConfig


def tier_jobs(tier: int, *, device: str | None = None) -> list[Job]:
    """The worlds of a tier.

    * 0: quadratics and logistic regression, every factor and level; minutes on one core.
    * 1: a neural bigram model and a tiny `text-lm` transformer with real minibatches; about 10 CPU minutes.
    * 2: a larger `text-lm` on one GPU (device "cuda" unless said).
    * 3: the same through an engine (`run_tier(3, engine="optuna")`): real optimizers, one trial a run.

    Raises:
        ValueError: an unknown tier.
    """
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(map(str, TIERS))}, got {tier!r}")
    if tier == 0:
        from metaopt_hpo.attribution.worlds import tier0_worlds

        base = ExperimentConfig(device=device or "cpu")
        # The variant of the hard world answers one question more, so it does without the single levels.
        special = {
            "logistic": replace(base, seeds=base.seeds[:4]),
            "hard-at-rest": replace(base, levels=False),
        }
        return [Job(partial(_same, w), special.get(n, base)) for n, w in tier0_worlds().items()]
    from metaopt_hpo.attribution.neural import Bigram, TextWorld
    from metaopt_hpo.workloads.text_lm import TextLM

    if tier == 1:
        bigram = ExperimentConfig(
            seeds=tuple(range(4)),
            factors=("schedule", "init", "noise"),
            levels=False,
            piece=1,
            device=device or "cpu",
        )
        text = replace(
            bigram,
            tokens=tuple(2**i for i in range(10, 16)),
            batch=(16, 32, 64, 128),
            seeds=(0, 1, 2),
            factors=("schedule",),
            base_noise="minibatch",
            piece=1,
        )
        return [Job(Bigram, bigram), Job(lambda: TextWorld(TextLM(width=16, layers=1, context=16)), text)]
    config = ExperimentConfig(
        tokens=tuple(2**i for i in range(15, 22)),
        batch=tuple(2**i for i in range(9, 14)),
        seeds=(0, 1, 2),
        factors=("schedule", "init", "warmup") if tier == 2 else ("schedule",),
        method="pairs",
        levels=False,
        base_noise="minibatch",
        piece=1,
        device=device or ("cuda" if tier == 2 else "cpu"),
    )
    workload = TextLM(width=64, layers=2, context=64)
    return [Job(lambda: TextWorld(workload) if tier == 2 else workload, config)]


def run_tier(
    tier: int,
    *,
    out: Path | str | None = None,
    device: str | None = None,
    engine: str | None = None,
    budget_seconds: float | None = None,
    jobs: list[Job] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution | None:
    """Run a tier, or go on with it, and attribute every world's gap.

    Args:
        out: folder of stored grids; with it an interrupted run goes on where it stopped.
        device: torch device; default cuda for tier 2, cpu for the others.
        engine: of tier 3: name of an installed engine, such as "optuna".
        budget_seconds: start no further grid after this long and return None if any is missing.
        jobs: other worlds or configs than the tier's own.
        progress: called with the number of worlds that are done, and of all, after each one.

    Raises:
        ValueError: an unknown tier, tier 3 without an engine, or an engine with another tier.
        AttributionError: an experiment that cannot answer; a device that torch lacks; a folder that cannot be written.
    """
    if (tier == 3) != (engine is not None):
        raise ValueError(
            "tier 3 runs through an engine, and no other tier does: give engine='optuna' with tier=3"
        )
    chosen = tier_jobs(tier, device=device) if jobs is None else jobs
    folder = None if out is None else Path(out)
    if folder is not None:
        _make(folder)
    start, clock = time.process_time(), time.monotonic()
    deadline = None if budget_seconds is None else clock + budget_seconds
    findings = []
    for done, job in enumerate(chosen, 1):
        runs = _run(tier, job, folder, engine, deadline)
        if runs is None:
            return None
        # Worlds with a planted spectrum say what the proxy must give.
        planted = {n: getattr(job.world(), n, None) for n in ("source", "capacity")} if tier == 0 else {}
        findings.append(attribute(runs, job.config, **planted))
        if progress is not None:
            progress(done, len(chosen))
    return Attribution(tier, tuple(findings), time.process_time() - start)


def _run(
    tier: int, job: Job, folder: Path | None, engine: str | None, deadline: float | None
) -> WorldRuns | None:
    if engine is not None:
        from metaopt_hpo.attribution.engine_runs import run_with_engine

        return run_with_engine(engine, job.world(), job.config, store=folder)
    _check_device(job.config.device)
    world: World = job.world()
    return run_world(world, job.config, out=folder, deadline=deadline)


def _make(folder: Path) -> None:
    """Before anything runs, so that a folder that cannot be written costs no time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AttributionError(
            f"out must be a folder that can be written, got {str(folder)!r}: {error.strerror}"
        ) from error


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise AttributionError(
            f"cannot compute on device {name!r}: {reason}; give device 'cpu', or one that torch has"
        ) from error


def _same(world: Any) -> Any:
    return world
