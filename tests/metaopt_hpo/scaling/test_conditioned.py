"""A law conditioned on what has finished at a target judges where the law alone is unsure, or may be wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.scaling.policy import Fitted, History, Run, decide
from metaopt_hpo.scaling.policy.conditioned import ENOUGH, Finished, conditioned
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

TOKENS, BATCH, TARGET, NOISE = 1e10, 5e5, 1e9, 1e-3
OFF = 0.03
"""How much lower the target's losses are than the law's power law says."""


def optimum(size: float) -> float:
    return math.log(3e-3) - 0.45 * math.log(size / 1e8)


def loss(size: float, away: float, rng: np.random.Generator) -> float:
    level = math.log(1.7 + 0.6 * (size / 1e8) ** -0.3) - OFF * (size == TARGET)
    return math.exp(level + 0.02 * away * away + NOISE * rng.standard_normal())


def law_of(bend: float, seed: int) -> Law:
    """Of three sizes, five learning rates each; with a bend a law says that it may be wrong."""
    rng = np.random.default_rng(seed)
    records = []
    for k, size in enumerate((1e8, 2e8, 4e8)):
        for u in np.linspace(-1.7, 1.7, 5):
            lr = math.exp(optimum(size) + bend * (k == 1) + u)
            records.append(TrialRecord(size=size, tokens=TOKENS, batch=BATCH, lr=lr, loss=loss(size, u, rng)))
    return fit(TrialTable.from_records(records), draws=20, allow_weak=True)


def target_runs(n: int, seed: int, centre: float = 0.0) -> list[tuple[float, float, float]]:
    """At random about the optimum, which lies `centre` ln units from the power law's."""
    rng = np.random.default_rng([seed, 1])
    away = rng.uniform(-2, 2, n)
    return [(math.exp(optimum(TARGET) + centre + u), BATCH, loss(TARGET, u, rng)) for u in away]


def asked(away: float, **more: Any) -> dict[str, Any]:
    """A run of the target so far from the optimum."""
    return {"size": TARGET, "tokens": TOKENS, "batch": BATCH, "lr": math.exp(optimum(TARGET) + away), **more}


@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_of_the_runs_that_it_stops_hardly_one_would_have_won(centre: float) -> None:
    worse, stopped, lost = 0, 0, 0
    for seed in range(12):
        law = law_of(0.0, seed)
        runs = target_runs(15, seed, centre)
        known, others = runs[:ENOUGH], runs[ENOUGH:]
        best = min(z for *_, z in known)
        for lr, batch, z in others:
            v = law.verdict(size=TARGET, tokens=TOKENS, lr=lr, batch=batch, finished=known)
            assert v.action in ("launch", "stop")
            worse += z > best
            stopped += v.action == "stop"
            lost += v.action == "stop" and z < best
    assert lost <= 0.05 * stopped
    assert stopped > worse / 3


def test_a_law_that_may_be_wrong_abstains_alone_and_judges_with_finished_runs() -> None:
    law = law_of(0.4, 0)
    assert law.at(TARGET, TOKENS).doubts
    far = asked(2.5)
    known = target_runs(6, 0)
    assert law.verdict(**far, incumbent=2.0).action == "abstain"
    assert law.verdict(**far, finished=known[: ENOUGH - 1], incumbent=2.0).action == "abstain"
    assert law.verdict(**far, finished=known).action == "stop"
    assert law.verdict(**asked(0.0, finished=known)).action == "launch"


def test_a_running_loss_moves_the_verdict() -> None:
    law, known = law_of(0.0, 1), target_runs(6, 1)
    best = min(z for *_, z in known)
    at = asked(0.0, finished=known)
    assert law.verdict(**at, curve=[(0.9 * TOKENS, best * 1.01)]).action == "keep"
    assert law.verdict(**at, curve=[(0.9 * TOKENS, best * 1.5)]).action == "stop"
    assert law.verdict(**at, curve=[(TOKENS, best * 0.99)]).probability > 0.95


@pytest.mark.parametrize("falls", [0.1, 0.3])
def test_how_far_a_loss_still_falls_is_what_it_fell_in_finished_runs(falls: float) -> None:
    """The law has seen no curve: without those of the finished runs it holds every run to be where its losses are."""
    law, known = law_of(0.0, 1), target_runs(6, 1)
    best = min(z for *_, z in known)
    half = 0.5 * TOKENS
    told = [
        Finished(lr, batch, z, [(0.1 * TOKENS, 2 * z), (half, z * math.exp(falls))]) for lr, batch, z in known
    ]
    there = conditioned(law, TARGET, TOKENS, told)
    assert there is not None
    found = there.fall(half, TOKENS)
    assert found is not None
    assert found[0] == pytest.approx(falls)
    assert there.fall(0.05 * TOKENS, TOKENS) is None  # earlier than they reported
    at = asked(1.0, finished=told)
    assert law.verdict(**at, curve=[(half, best * math.exp(falls + 0.3))]).action == "stop"
    assert law.verdict(**at, curve=[(half, best * math.exp(falls - 0.1))]).probability > 0.5


def test_the_lowest_loss_of_noisy_runs_is_not_what_is_to_be_beaten() -> None:
    """One of many runs at one place is lucky by 2 %: another there may still win."""
    law = law_of(0.0, 1)
    rng = np.random.default_rng(0)
    noisy = [(lr, batch, z * math.exp(0.006 * rng.standard_normal())) for lr, batch, z in target_runs(20, 1)]
    lucky = [*noisy, (math.exp(optimum(TARGET)), BATCH, 0.98 * min(z for *_, z in noisy))]
    at = asked(0.1, finished=lucky)
    assert law.verdict(**at).action == "launch"
    assert law.verdict(**at, incumbent=0.9 * min(z for *_, z in noisy)).action == "stop"


def test_an_incumbent_below_the_finished_runs_is_what_is_to_be_beaten() -> None:
    law, known = law_of(0.0, 2), target_runs(6, 2)
    at = asked(0.0, finished=known)
    assert law.verdict(**at).action == "launch"
    assert law.verdict(**at, incumbent=0.9 * min(z for *_, z in known)).action == "stop"


def test_runs_that_give_no_loss_or_losses_beyond_all_bounds_are_no_error() -> None:
    law = law_of(0.0, 3)
    bad = [(1e-3, BATCH, math.nan), (math.inf, BATCH, 2.0), (0.0, BATCH, 2.0), (1e-3, BATCH, -1.0)]
    assert conditioned(law, TARGET, TOKENS, bad) is None
    huge = [(1e-300, BATCH, 1e-300), (1e300, BATCH, 1e300), (1e-3, 1e300, 5e-324)]
    v = law.verdict(size=TARGET, tokens=TOKENS, lr=1e-3, batch=BATCH, finished=huge)
    assert 0 <= v.probability <= 1


def record(lr: float, z: float, **more: Any) -> TrialRecord:
    plain = TrialRecord(size=TARGET, tokens=TOKENS, batch=BATCH, lr=lr, loss=z)
    return replace(plain, **more)


def test_a_history_hands_over_runs_of_the_same_kind_and_asks_once() -> None:
    law = law_of(0.0, 4)
    run = Run(size=TARGET, tokens=TOKENS, batch=BATCH, lr=1e-3, strategy="wsd")
    history = History.of(record(lr, z) for lr, _, z in target_runs(ENOUGH - 1, 4))
    assert history.conditioned(law, run) is None
    history.add((10,), record(1e-3, 1.9, tuning="self"))
    history.add((11,), record(1e-3, 1.9, strategy="cosine"))
    history.add((12,), record(1e-3, 1.9, size=2 * TARGET))
    assert history.conditioned(law, run) is None
    history.add((13,), record(2e-3, 1.9))
    found = history.conditioned(law, run)
    assert found is not None
    assert history.conditioned(law, run) is found
    assert history.conditioned(law_of(0.0, 5), run) is not found  # another law
    history.add((14,), record(3e-3, 1.95))
    assert history.conditioned(law, run) is not found


def test_the_decision_of_a_search_uses_its_finished_runs() -> None:
    law = law_of(0.4, 0)
    far = Run(size=TARGET, tokens=TOKENS, batch=BATCH, lr=math.exp(optimum(TARGET) + 2.5))
    known = [record(lr, z) for lr, _, z in target_runs(6, 0)]
    assert decide(far, History.of(known[:2]), Fitted(law=law)).action == "abstain"
    assert decide(far, History.of(known), Fitted(law=law)).action == "stop"
