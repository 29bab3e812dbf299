"""What `meta_parameters` trains: its jobs, their rates and defaults, and one run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.optim.rules import SGDM, AdamW
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.groups import decay_groups
from metaopt_hpo.strategies.schedules import WSD
from studies.one_run.length_jobs import Job, Taught, job
from studies.one_run.traced import TracedOptimizer

STEPS = 2000
NOTHING = "nothing"
"""In place of what z is on: the logarithm of decay falls by `FALL` in a straight line, whatever the gradients."""

FALL = 1.4
"""From 0.1 to the 0.025 at which decay ended in the geometric mean of the outside jobs with fresh data."""

RATES = {
    "adamw": {
        "teach64": 0.0113,
        "shorttf48": 0.004,
        "shortgru48": 0.0095,
        "few64": 0.001,
        "teach32": 0.0096,
        "shorttf16": 0.011,
        "few32": 0.002,
    },
    "sgdm": {"teach64": 1.0},
}
"""Best peak rates, of `bases` and `corrections`; jobs named few by `meta_parameters.TRIED`. SGD with momentum has the
average as momentum, so that its rates are ten times torch's."""

DEFAULTS = {"adamw": {"decay": 0.1, "momentum": 0.9, "clip": 1.0}}
DEFAULTS["sgdm"] = DEFAULTS["adamw"] | {"decay": 5e-4}


class Few(Taught):
    """The taught network's task from 4,096 examples, another set for each seed, of which the last may be held back."""

    examples = 4096

    def __init__(self, kind: str, width: int) -> None:
        super().__init__(kind, width)
        self.held_back = 0
        self._of = lru_cache(lambda seed: self._examples(self.examples, 77_000_000 + seed))

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        x, y = self._of(seed)
        kept = self.examples - self.held_back
        epoch, k = divmod(step, kept // self.batch)
        order = torch.randperm(kept, generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        rows = order[k * self.batch : (k + 1) * self.batch]
        return F.cross_entropy(model(x[rows]), y[rows])

    def check(self, model: nn.Module, seed: int) -> Tensor:
        """Loss on the examples held back."""
        x, y = (part[-self.held_back :] for part in self._of(seed))
        return F.cross_entropy(model(x), y)


def find(name: str) -> Job:
    """The job of that name, those named few included."""
    return Few("few", int(name[3:])) if name.startswith("few") else job(name)


def train(cell: dict[str, Any]) -> dict[str, float]:
    """One run: held-out and last training loss, and the adapted value before the cooldown and at the end."""
    data, seed = find(cell["job"]), cell["seed"]
    checked, falls = cell["against"] == "held back", cell["against"] == NOTHING
    if checked:
        assert isinstance(data, Few)
        data.held_back = data.examples // 8
    schedule = make("wsd", lr=cell["lr"])
    assert isinstance(schedule, WSD)
    model = data.model(seed)
    optimizer = TracedOptimizer(
        decay_groups(model, 1.0),
        AdamW(betas=schedule.betas) if cell["base"] == "adamw" else SGDM(),
        {name: cell[name] for name in DEFAULTS[cell["base"]]},
        adapt=(cell["adapt"],) if cell["adapt"] else (),
        meta_lr=cell["meta_lr"],
        gamma=cell["gamma"],
    )
    params = [p for piece in optimizer.pieces for p in piece.params]
    losses, middle = [], 0.0
    for step in range(STEPS):
        against = torch.autograd.grad(data.check(model, seed), params) if checked else None  # type: ignore[attr-defined]
        loss = data.loss(model, step, seed)
        loss.backward()
        ramp = schedule.multiplier(step, STEPS)
        moves = step >= schedule.warmup * STEPS
        optimizer.step(cell["lr"] * ramp, adapt=moves and not falls, against=against)
        if moves and falls:
            optimizer.theta -= FALL / STEPS
        if step == int((1 - schedule.cooldown) * STEPS):
            middle = optimizer.values()[cell["adapt"]] if cell["adapt"] else 0.0
        if step >= 0.98 * STEPS:
            losses.append(float(loss.detach()))
    model.eval()
    with torch.no_grad():
        held = float(data.held_out(model).mean())
    end = optimizer.values()[cell["adapt"]] if cell["adapt"] else 0.0
    return {"held_out": held, "training": float(np.mean(losses)), "middle": middle, "end": end}
