"""A law of few trials that is unsure of its optimum still judges runs, by all that the trials leave open."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.scaling.policy import History, Refits
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

TOKENS, BATCH = 1e10, 5e5
TARGET = 1e9
CURVATURE = 0.1


def optimum(size: float) -> float:
    return 3e-3 * (size / 1e8) ** -0.45


def loss(size: float, lr: float) -> float:
    u = math.log(lr / optimum(size))
    return (1.7 + 0.6 * (size / 1e8) ** -0.3) * math.exp(0.5 * CURVATURE * u * u)


def records(
    seed: int, sizes: tuple[float, ...] = (1e8, 2e8, 4e8), scatter: float = 0.15
) -> list[TrialRecord]:
    """Five learning rates at each of three sizes, whose optima scatter: a small table of ordinary use."""
    rng = np.random.default_rng(seed)
    out = []
    for size in sizes:
        off = math.exp(scatter * rng.standard_normal())
        for lr in optimum(size) * np.exp(np.linspace(-1.7, 1.7, 5)):
            z = loss(size, lr / off) * math.exp(1e-3 * rng.standard_normal())
            out.append(
                TrialRecord(
                    size=size, tokens=TOKENS, batch=BATCH, lr=float(lr), loss=z, trial=f"{size:g}-{lr:g}"
                )
            )
    return out


@pytest.fixture(scope="module")
def unsure() -> list[Law]:
    """Those of some tables whose only doubt is that their optimum is unsure at the target."""
    laws = [fit(TrialTable.from_records(records(seed)), draws=20) for seed in range(12)]
    found = [law for law in laws if {d.code for d in law.at(TARGET, TOKENS).doubts} == {"unsure-optimum"}]
    assert len(found) >= 3
    return found


def verdict(law: Law, away: float, incumbent: float) -> str:
    run = {"size": TARGET, "tokens": TOKENS, "lr": optimum(TARGET) * math.exp(away), "batch": BATCH}
    return law.verdict(**run, incumbent=incumbent).action


def test_hopeless_runs_are_stopped_and_no_winner_is(unsure: list[Law]) -> None:
    incumbent = loss(TARGET, optimum(TARGET) * math.exp(0.6))
    away = np.linspace(-2.4, 2.4, 25)
    for law in unsure:
        actions = dict(zip(away.tolist(), [verdict(law, u, incumbent) for u in away], strict=True))
        assert "abstain" not in actions.values()
        assert all(a == "launch" for u, a in actions.items() if abs(u) < 0.6)
        assert any(a == "stop" for u, a in actions.items() if abs(u) > 2.0)


def test_without_an_incumbent_it_launches_what_may_be_good(unsure: list[Law]) -> None:
    for law in unsure:
        at = {"size": TARGET, "tokens": TOKENS, "batch": BATCH}
        assert law.verdict(**at, lr=optimum(TARGET)).action == "launch"
        assert law.verdict(**at, lr=optimum(TARGET) * math.exp(4.0)).action == "stop"


def test_a_run_below_what_it_holds_possible_silences_it(unsure: list[Law]) -> None:
    for law in unsure:
        assert verdict(law, 2.4, law.predict(TARGET, TOKENS).loss.low * 0.99) == "abstain"


def test_with_a_base_three_trials_of_one_size_are_a_law() -> None:
    history = History.of(records(0, sizes=(1e8,))[1:4])
    assert Refits(background=False).in_force(history).law is None
    base = fit(TrialTable.from_records(records(1, sizes=(1e7, 4e7, 16e7), scatter=0.0)), draws=20)
    fitted = Refits(background=False, base=base).in_force(history)
    assert fitted.law is not None
    assert fitted.law.predict(TARGET, TOKENS).lr.value == pytest.approx(optimum(TARGET), rel=0.4)


def test_laws_of_equal_trials_with_another_base_are_other_laws() -> None:
    history = History.of(records(0))
    bases = [fit(TrialTable.from_records(records(s, scatter=0.0)), draws=20) for s in (1, 2)]
    laws = [Refits(background=False, base=b).in_force(history).law for b in (None, *bases)]
    assert len({law.surface.a.tobytes() for law in laws if law is not None}) == 3
