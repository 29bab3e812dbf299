"""An objective without training, and searches on it."""

from __future__ import annotations

import math
from collections.abc import Callable

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.trials.record import Curve, TrialRecord, token_grid

SIZES = (2e3, 5e3, 1e4)


class Bowl:
    """A loss that is a bowl in ln lr, whose optimum falls with size, with curves, divergence and interrupts."""

    name = "bowl"
    sizes = (*SIZES, 1e5)

    def __init__(
        self, interrupt: tuple[int, int] | None = None, error: Callable[[], BaseException] = KeyboardInterrupt
    ):
        self.started: list[Configuration] = []
        self.interrupt = interrupt
        self.error = error

    def cost(self, configuration: Configuration) -> float:
        return 6.0 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report=lambda tokens, loss: None) -> TrialRecord:
        self.started.append(configuration)
        c = configuration
        x = math.log(c.lr / (0.05 * (c.size / 1e4) ** -0.3))
        points: list[tuple[float, float]] = []
        state, reason = "complete", ""
        for t in token_grid(c.tokens, start=c.batch, stride=4):
            if x > 2.5 and t > c.batch * 3:
                state, reason = "diverged", "held-out loss is nan"
                break
            points.append((float(t), 1 + 50 * t**-0.5 + 0.1 * x * x))
            if self.interrupt == (len(self.started), len(points)):
                raise self.error()
            stop = report(t, points[-1][1])
            if stop:
                state, reason = "pruned", stop
                break
        seen = c.tokens if state == "complete" else points[-1][0]
        return TrialRecord(
            size=c.size, tokens=seen, batch=c.batch, lr=c.lr, strategy=c.strategy, seed=c.seed,
            loss=math.nan if state == "diverged" else points[-1][1], state=state, reason=reason,
            cost=6.0 * c.size * seen, target_tokens=c.tokens, initial_loss=5.0,
            curve=Curve(tuple(t for t, _ in points), tuple(v for _, v in points)),
        )  # fmt: skip


def task(objective: Bowl, runs: float = 6, **changes: object) -> SearchTask:
    settings: dict[str, object] = {
        "size": 1e5, "tokens": 1e5, "batch": 512.0, "lr_bounds": (1e-3, 1.0), "budget": 6e10 * runs, "seed": 3,
    }  # fmt: skip
    return SearchTask(objective=objective, **{**settings, **changes})


def evidence_for(name: str, pilots: list[TrialRecord]) -> dict[str, object]:
    return {"evidence": tuple(pilots)} if name == "law" else {}
