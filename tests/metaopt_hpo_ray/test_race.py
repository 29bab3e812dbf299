"""Races: the real searchers and schedulers, driven in Tune's order; what was stopped is paid for what it saw."""

from __future__ import annotations

import math

import pytest

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import method as method_named
from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo_ray import RayEngine
from metaopt_hpo_ray.race import METHODS

TARGET = (8e6, 1.6e8)


class World:
    """A known loss over (size, tokens, lr), flat in batch; runs report at eighths, quarters and halves."""

    name = "world"
    sizes = (1e6, 2e6, 4e6, 8e6)

    def cost(self, c: Configuration) -> float:
        return 6.0 * c.size * c.tokens

    def run(self, c: Configuration, report: Report = no_report) -> TrialRecord:
        u = math.log(c.lr / 3e-3) + 0.3 * math.log(c.size / 1e6)
        seen: list[tuple[float, float]] = []
        stopped = False
        for part in (0.125, 0.25, 0.5, 1.0):
            t = part * c.tokens
            loss = (1.7 + (c.size / 1e6) ** -0.3 + (t / 2e7) ** -0.3) * (1 + 0.02 * u * u)
            seen.append((t, loss))
            if part < 1 and report(math.ceil(t), loss) is not None:
                stopped = True
                break
        tokens, loss = seen[-1]
        return TrialRecord(
            size=c.size, tokens=tokens, batch=c.batch, lr=c.lr, loss=loss, target_tokens=c.tokens,
            state="pruned" if stopped else "complete", cost=6 * c.size * tokens,
            curve=Curve(*zip(*seen, strict=True)),
        )  # fmt: skip


RACE = SearchTask(
    objective=World(),
    size=TARGET[0],
    tokens=TARGET[1],
    batch=3e4,
    pilots=tuple((n, 20 * n) for n in (1e6, 2e6, 4e6)),
    lr_bounds=(1e-4, 1e-1),
    batch_bounds=(1e4, 1e5),
    budget=5 * 6 * TARGET[0] * TARGET[1],
)


@pytest.mark.parametrize("method", METHODS)
def test_a_race_spends_its_budget_and_repeats(method: str) -> None:
    records = list(RayEngine().race(method_named(method), RACE))
    spent = math.fsum(r.cost for r in records)
    assert RACE.budget <= spent < RACE.budget + 6 * TARGET[0] * TARGET[1]
    if method != "law+scheduler":  # its fits take seconds
        again = list(RayEngine().race(method_named(method), RACE))
        assert [(r.lr, r.state, r.cost) for r in again] == [(r.lr, r.state, r.cost) for r in records]
    stopped = [r for r in records if r.state == "pruned"]
    assert stopped or method != "asha"
    assert not stopped or method not in ("random", "tpe", "law")
    assert all(r.cost < World().cost(configuration(r)) for r in stopped)
    if method.startswith("law"):
        first = next(r for r in records if (r.size, r.target_tokens) == TARGET)
        assert first.lr == pytest.approx(3e-3 * 8**-0.3, rel=0.25)


def configuration(r: TrialRecord) -> Configuration:
    return Configuration(size=r.size, tokens=r.target_tokens, batch=r.batch, lr=r.lr)


def test_what_cannot_be_raced_is_named() -> None:
    with pytest.raises(EngineError, match="not 'pbt'"):
        next(RayEngine().race(method_named("pbt"), RACE))
