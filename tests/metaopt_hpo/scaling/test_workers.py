"""Several workers and a deadline: proposals without repeats, and only of what can finish."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metaopt_hpo import MetaOptError
from metaopt_hpo.scaling import Config, Context, propose, propose_batch

TARGET = (1e9, 2e10)
SMALL = ((1e7, 2e8), (1e8, 2e9), (3e8, 6e9))
COST = 6.0 * TARGET[0] * TARGET[1]
SPEED = 1e15


def context(**options: Any) -> Context:
    box: dict[str, Any] = {"lr": (1e-4, 1e-2), "batch": (2**16, 2**20)}
    return Context(**{"target": TARGET, "candidates": SMALL, **box, **options})


def apart(configs: list[Config]) -> bool:
    return len(
        {(c.size, c.tokens, round(math.log(c.lr), 3), round(math.log(c.batch), 3)) for c in configs}
    ) == len(configs)


@pytest.mark.parametrize("workers", [2, 8, 32])
@pytest.mark.parametrize("candidates", [SMALL, (TARGET,)], ids=["pilots", "the target alone"])
def test_no_two_workers_run_the_same(workers: int, candidates: tuple[tuple[float, float], ...]) -> None:
    made = context(workers=workers, candidates=candidates)
    configs = [p.config for p in propose_batch(None, made)]
    assert len(configs) == workers
    assert apart(configs)
    # those under way are neither repeated nor replaced
    rest = [
        p.config
        for p in propose_batch(
            None, context(workers=workers, candidates=candidates, running=tuple(configs[:1]))
        )
    ]
    assert len(rest) == workers - 1
    assert apart([configs[0], *rest])


def test_one_worker_is_asked_as_before() -> None:
    assert propose_batch(None, context()) == [propose(None, context())]


def test_a_batch_keeps_within_the_budget_for_pilots() -> None:
    made = context(workers=64, budget=1.02 * COST)
    pilots = [p.config for p in propose_batch(None, made) if p.config.size < TARGET[0]]
    assert 0 < sum(c.cost for c in pilots) <= 0.02 * COST


@pytest.mark.parametrize("share", [1.0001, 1.02, 1.2, 10.0])
def test_after_every_pilot_the_target_can_still_finish(share: float) -> None:
    left, running = share * COST / SPEED, ()
    for _ in range(100):
        config = propose(None, context(seconds=left, speed=SPEED, running=running)).config
        assert config.cost / SPEED <= left
        left, running = left - config.cost / SPEED, (*running, config)
        if config.size == TARGET[0]:
            return
        assert left >= COST / SPEED
    pytest.fail("the target was never run")


def test_a_target_that_cannot_finish_is_not_proposed() -> None:
    for share in (0.9, 0.1, 0.011):
        made = propose(None, context(seconds=share * COST / SPEED, speed=SPEED))
        assert made.config.cost <= share * COST
    with pytest.raises(MetaOptError, match="nothing can finish within"):
        propose(None, context(seconds=1e-5 * COST / SPEED, speed=SPEED))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 10.0}, "seconds needs speed"),
        ({"seconds": -1.0, "speed": 1.0}, "seconds must be"),
        ({"seconds": math.nan, "speed": 1.0}, "seconds must be"),
        ({"speed": 0.0}, "speed must be"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        context(**options)
