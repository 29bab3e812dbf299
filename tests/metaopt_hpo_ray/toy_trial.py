"""A trial of milliseconds that can be told to die: a tiny regression under `TrialRun`."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import nn

from metaopt_hpo.strategies import make
from metaopt_hpo.training.run import TrainingRun
from metaopt_hpo_ray import TrialRun

BATCH = 8


def build(config: dict[str, Any], run_class: Any) -> tuple[TrainingRun, Any]:
    """The run and its loss of a step; `run_class` gets the arguments of `TrainingRun`."""
    torch.manual_seed(config.get("seed", 0))
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    goal = torch.randn(4, 1, generator=torch.Generator().manual_seed(1))

    def batch(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
        return x, torch.sin(x @ goal)

    held_out = batch(10**6, 256)

    def loss(step: int) -> torch.Tensor:
        x, y = batch(step, BATCH)
        # draws from the global generator, so that an exact resume needs its state
        return nn.functional.mse_loss(model(x + 0.01 * torch.randn_like(x)), y)

    run = run_class(
        model,
        make("wsd", lr=config["lr"], weight_decay=0.0),
        size=config["size"],
        tokens=config["tokens"],
        batch=BATCH,
        evaluate=lambda: nn.functional.mse_loss(model(held_out[0]), held_out[1]),
        seed=config.get("seed", 0),
        workload="toy",
    )
    return run, loss


def train(config: dict[str, Any]) -> None:
    """The trainable. Entries of the config that are not the run's own tell it how to end.

    `die_at`: tokens at which it is killed; `deaths`: how often; `forget`: what of its checkpoints it deletes
    before ("folder", "file", or "last", the newest folder alone); `nan_at`: tokens from which its loss is NaN;
    `seconds`: how long a step takes.
    """
    run, loss = build(config, lambda *a, **k: TrialRun(config, *a, **k))
    with run:
        for step in run:
            if config.get("seconds"):
                time.sleep(config["seconds"])
            value = loss(step)
            if run.tokens >= config.get("nan_at", float("inf")):
                value = value * float("nan")
            run.step(value)
            if run.tokens >= config.get("die_at", float("inf")):
                _maybe_die(config)


def _maybe_die(config: dict[str, Any]) -> None:
    folder = Path(config["graves"]) / tune.get_context().get_trial_id()
    folder.mkdir(parents=True, exist_ok=True)
    deaths = len(list(folder.iterdir()))
    if deaths >= config.get("deaths", 1):
        return
    (folder / str(deaths)).touch()
    if config.get("forget"):
        own = f"*/*{tune.get_context().get_trial_id()}*/checkpoint_*"
        found = sorted(Path(config["storage"]).glob(own))
        for path in found[-1:] if config["forget"] == "last" else found:
            if config["forget"] != "file":
                shutil.rmtree(path)
            else:
                (path / "run.pt").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
