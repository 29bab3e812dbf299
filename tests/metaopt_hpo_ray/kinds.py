"""Trainables of every kind, told by their config how they end: what the table in docs/ray-tune.md promises is held."""

from __future__ import annotations

import time
from typing import Any

import torch
from ray import tune

from metaopt_hpo.strategies import make
from metaopt_hpo_ray import TrialRun

TOKENS = 80
BATCH = 8


def function(config: dict[str, Any], scale: float = 1.0) -> None:
    """A plain function; `kind` says what it does."""
    kind = config["kind"]
    if kind == "TrialRun":
        return with_trial_run(config)
    steps = 4 if kind == "returns early" else 10
    for i in range(1, steps + 1):
        tokens, loss = TOKENS * i / 10, scale * (3.0 - 0.1 * i)
        if kind == "raises" and i == 5:
            raise ValueError("a bad batch")
        if kind == "diverges" and i == 5:
            loss = float("nan")
        if kind == "is cut off":
            time.sleep(0.5)
        name = {"counts no tokens": None, "another progress name": "tokens"}.get(kind, "tokens_seen")
        short = 0.97 if kind == "falls short of its tokens" else 1.0
        tune.report({"loss": loss, **({name: tokens * short} if name else {})})
    return None


def with_trial_run(config: dict[str, Any]) -> None:
    """A function that holds a `TrialRun`."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)

    def loss() -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(x), y)

    strategy = make("cosine", lr=config["lr"])
    with TrialRun(
        config, model, strategy, size=config["size"], tokens=TOKENS, batch=BATCH, evaluate=loss
    ) as run:
        for _ in run:
            run.step(loss())


class Net(tune.Trainable):
    """A class Trainable: it says `done`, or a criterion ends it."""

    def setup(self, config: dict[str, Any]) -> None:
        self.kind, self.i = config["kind"], 0

    def step(self) -> dict[str, Any]:
        self.i += 1
        done = self.kind == "says done" and self.i == 10
        return {"loss": 3.0 - 0.1 * self.i, "tokens_seen": TOKENS * self.i / 10, "done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        with open(f"{checkpoint_dir}/i", "w") as file:
            file.write(str(self.i))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        with open(f"{checkpoint_dir}/i") as file:
            self.i = int(file.read())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True
