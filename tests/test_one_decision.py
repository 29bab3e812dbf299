"""One decision: both integrations, given the same history and the same running trial, say the same at every report."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from metaopt_hpo.scaling import fit
from metaopt_hpo.scaling.policy import History, Limits, Refits, Run, decide
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler
from metaopt_hpo_optuna.trial_link import TrialLink  # noqa: F401  the integration loads as a user has it

orders = pytest.importorskip("metaopt_hpo.scaling.policy.launching")
books = pytest.importorskip("metaopt_hpo.trials.logbook")
schedulers = pytest.importorskip("metaopt_hpo_ray.scheduler")

BATCH = 65536
SIZES = (1e6, 4e6, 1.6e7, 6.4e7)
PARTS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 0.3, 0.5, 0.7, 0.9, 1.0)


def loss_of(size: float, lr: float, part: float = 1.0, noise: float = 0.0) -> float:
    final = 1.7 + 300 * size**-0.35 + 0.03 * math.log(lr / (0.8 * size**-0.3)) ** 2
    return final * (1 + 0.1 * (part**-0.5 - 1)) * (1 + noise)


def finished(
    size: float, u: float, number: int, *, state: Any = "complete", noise: float = 0.0
) -> TrialRecord:
    lr, tokens = 0.8 * size**-0.3 * math.exp(u), 20 * size
    at = [p for p in PARTS if state == "complete" or p <= 0.25]
    losses = tuple(loss_of(size, lr, p, noise) for p in at)
    return TrialRecord(
        size=size,
        tokens=tokens * at[-1],
        target_tokens=tokens,
        batch=BATCH,
        lr=lr,
        loss=losses[-1],
        trial=str(number),
        state=state,
        curve=Curve(tokens=tuple(tokens * p for p in at), loss=losses),
    )


def way_to_the_verdict(told: Callable[[], Any]) -> list[str]:
    """Functions of ours that are open when the policy is asked, from the framework's hook on."""
    found: list[str] = []

    def look(frame: Any, event: str, _: Any) -> None:
        if event != "call" or found or frame.f_code is not decide.__code__:
            return
        while frame is not None:
            if "metaopt_hpo" in frame.f_globals.get("__name__", ""):
                found.append(frame.f_code.co_qualname)
            frame = frame.f_back

    sys.setprofile(look)
    try:
        told()
    finally:
        sys.setprofile(None)
    return found[::-1]


def history(seed: int, count: int = 28) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        size = SIZES[min(i // 7, 3)]
        state = "pruned" if size > SIZES[2] and rng.random() < 0.5 else "complete"
        records.append(
            finished(size, float(rng.uniform(-1.5, 1.5)), i, state=state, noise=0.002 * rng.standard_normal())
        )
    return records


ANY_LR = FloatDistribution(1e-9, 1e3, log=True)


def _study(records: Sequence[TrialRecord], pruner: ScalingLawPruner) -> optuna.Study:
    """A study that holds these trials."""
    study = optuna.create_study(pruner=pruner)
    for r in records:
        curve = {round(t): x for t, x in zip(r.curve.tokens, r.curve.loss, strict=True)}  # type: ignore[union-attr]
        study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.COMPLETE
                if r.state == "complete"
                else optuna.trial.TrialState.PRUNED,
                value=r.loss,
                params={"lr": r.lr},
                distributions={"lr": ANY_LR},
                user_attrs={"size": r.size, "tokens": r.target_tokens, "batch": r.batch},
                intermediate_values=curve,
            )
        )
    return study


def _asked(study: optuna.Study, size: float, lr: float) -> optuna.Trial:
    """The study's next trial, a run of this size and learning rate."""
    study.enqueue_trial({"lr": lr})
    trial = study.ask({"lr": ANY_LR})
    for name, value in (("size", size), ("tokens", 20 * size), ("batch", BATCH)):
        trial.set_user_attr(name, value)
    return trial


def optuna_says(records: Sequence[TrialRecord], size: float, u: float, worse: float) -> list[bool]:
    lr = 0.8 * size**-0.3 * math.exp(u)
    trial = _asked(_study(records, ScalingLawPruner()), size, lr)
    said = []
    for part in PARTS[:-1]:
        trial.report(worse * loss_of(size, lr, part), round(20 * size * part))
        said.append(trial.should_prune())
    return said


def ray_says(records: Sequence[TrialRecord], size: float, u: float, worse: float) -> list[bool]:
    book = books.Logbook()
    order = orders.LaunchOrder(book, background=False)
    for r in records:
        book.add(r.trial, size=r.size, tokens=r.target_tokens, batch=r.batch, lr=r.lr)
        assert r.curve is not None
        for t, x in zip(r.curve.tokens, r.curve.loss, strict=True):
            book.report(r.trial, float(round(t)), x)
        book.close(r.trial, r.state)
        order.ended(r.trial)
    lr = 0.8 * size**-0.3 * math.exp(u)
    book.add("now", size=size, tokens=20 * size, batch=BATCH, lr=lr)
    said = []
    for part in PARTS[:-1]:
        book.report("now", float(round(20 * size * part)), worse * loss_of(size, lr, part))
        said.append(order.decision("now").action == "stop")
    return said


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize(("u", "worse"), [(0.0, 1.0), (0.1, 1.3), (3.0, 1.0), (-2.5, 1.1), (0.5, 1.03)])
def test_both_integrations_say_the_same_at_every_report(
    seed: int, size: float, u: float, worse: float
) -> None:
    records = history(seed)
    assert optuna_says(records, size, u, worse) == ray_says(records, size, u, worse)


def test_the_same_run_is_stopped_by_both_and_a_good_one_by_neither() -> None:
    records = history(0)
    assert any(optuna_says(records, SIZES[3], 0.1, 1.3))
    assert not any(ray_says(records, SIZES[3], 0.0, 0.99))


def test_a_running_loss_reaches_the_policy_in_few_steps() -> None:
    records, size = history(0), SIZES[2]
    study = optuna.create_study(pruner=ScalingLawPruner())
    trial = study.ask({"lr": FloatDistribution(1e-9, 1e3, log=True)})
    for name, value in (("size", size), ("tokens", 20 * size), ("batch", BATCH)):
        trial.set_user_attr(name, value)
    trial.report(5.0, round(5 * size))
    scheduler = schedulers.ScalingLawScheduler(background=False, evidence=records, hold=False)
    config = {"size": size, "tokens": 20 * size, "batch": BATCH, "lr": 0.01}
    from ray.tune.experiment import Trial

    stub = Trial("__fake", trial_id="t", config=config, stub=True)
    scheduler.on_trial_add(None, stub)
    result = {"loss": 5.0, "tokens_seen": 5 * size, "trial_id": "t", "training_iteration": 1}
    ways = {
        "optuna": way_to_the_verdict(trial.should_prune),
        "ray": way_to_the_verdict(lambda: scheduler.on_trial_result(None, stub, result)),
    }
    assert ways["optuna"][0] == "ScalingLawPruner.prune"
    assert ways["ray"][0] == "ScalingLawScheduler.on_trial_result"
    assert len(ways["optuna"]) <= 6, ways
    assert len(ways["ray"]) <= 8, ways


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_in_which_a_history_is_told_does_not_matter(random: Any) -> None:
    """When a trial ended decides, not when it was read."""
    records = list(enumerate(history(1)))
    told = list(records)
    random.shuffle(told)
    one, other = History(), History()
    for i, r in records:
        one.add((i,), r)
    for i, r in told:
        other.add((i,), r)
    run = Run(
        size=SIZES[3], tokens=20 * SIZES[3], batch=BATCH, lr=0.8 * SIZES[3] ** -0.3, curve=((1e9, 3.0),)
    )
    refits = [Refits(background=False) for _ in range(2)]
    answers = [decide(run, h, r.in_force(h)) for h, r in zip((one, other), refits, strict=True)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("off", [0.4, 0.004, 0.0])
def test_tokens_that_are_no_multiple_of_the_batch_find_their_rivals(off: float) -> None:
    """A finished run is filed under what it was planned for, though its last step overshot."""
    h = History.of([finished(SIZES[3], 0.0, 0)])
    planned = 20 * SIZES[3] + off * BATCH
    assert h.best(SIZES[3], planned, BATCH) is not None
    assert h.best(SIZES[3] * 1.5, planned, BATCH) is None


def test_a_run_at_its_end_is_never_stopped() -> None:
    """Stopping it would save nothing and lose a finished run; its last step may fall short of the plan or pass it."""
    h = History.of(history(0))
    fitted = Refits(background=False).in_force(h)
    planned = 20 * SIZES[3]

    def says(part: float) -> str:
        curve = ((part * planned, 9.0),)
        return decide(Run(size=SIZES[3], tokens=planned, batch=BATCH, lr=1.0, curve=curve), h, fitted).action

    assert [says(part) for part in (0.5, 0.9)] == ["stop", "stop"]
    assert {says(part) for part in (0.995, 1.0, 1.001, 1.3)} == {"keep"}


@pytest.mark.parametrize("wrapped", [False, True], ids=["law", "wrapped"])
def test_both_integrations_keep_a_hopeless_run_from_the_same_part_of_it_on(wrapped: bool) -> None:
    """What the law would stop, or a wrapped pruner where there is no law, is let finish from 99 % of its plan on."""
    records = [] if wrapped else history(0)
    size, parts = SIZES[3], (0.94, 0.96, 0.98, 0.995, 1.0)
    lr = 0.8 * size**-0.3
    study = _study(
        records, ScalingLawPruner(wrapped=optuna.pruners.ThresholdPruner(upper=5.0) if wrapped else None)
    )
    trial = _asked(study, size, lr)
    one = []
    for part in parts:
        trial.report(9.0, round(20 * size * part))
        one.append(trial.should_prune())
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import ASHAScheduler

    asha = ASHAScheduler(time_attr="tokens_seen", grace_period=1, max_t=10**12, reduction_factor=2)
    scheduler = schedulers.ScalingLawScheduler(
        background=False, evidence=records, hold=False, wrapped=asha if wrapped else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_search_properties("loss", "min")
    config = {"size": size, "tokens": 20 * size, "batch": BATCH, "lr": lr}
    other = []
    for part in parts:
        tokens = round(20 * size * part)
        stub = Trial("__fake", trial_id=f"at {part}", config=config, stub=True)
        rival = Trial("__fake", trial_id=f"rival at {part}", config=config, stub=True)
        for told, loss in ((rival, 2.0), (stub, 9.0)):
            scheduler.on_trial_add(None, told)
            result = {"loss": loss, "tokens_seen": tokens, "trial_id": told.trial_id, "training_iteration": 1}
            said = scheduler.on_trial_result(None, told, result)
        other.append(said == "STOP")
    assert one == other == [True, True, True, False, False]


def test_a_run_of_another_strategy_is_not_judged_by_the_laws() -> None:
    h = History.of([r for r in history(0) if r.state == "complete"])
    fitted = Refits(background=False).in_force(h)
    assert fitted.law is not None
    run = Run(size=SIZES[3], tokens=20 * SIZES[3], batch=BATCH, lr=1e3, self_tuning=True)
    assert decide(run, h, fitted).action == "abstain"


MODELS = {str(i): (size, 20 * size) for i, size in enumerate(SIZES)}
LR, TARGET = (1e-4, 1e-1), (SIZES[3], 20 * SIZES[3])
RUN = 6.0 * TARGET[0] * TARGET[1]
"""FLOPs of a run of the target."""


def optuna_proposes(records: Sequence[TrialRecord], **lent: Any) -> tuple[float, float] | None:
    """Size and learning rate of the next trial; None where the study is stopped instead."""
    sampler = ScalingLawSampler(models=MODELS, batch=BATCH, seed=3, **lent)
    study = optuna.create_study(sampler=sampler)
    choices = CategoricalDistribution(list(MODELS))
    now = datetime(2026, 1, 1)
    for i, r in enumerate(records):
        model = next(m for m, (size, _) in MODELS.items() if size == r.size)
        trial = optuna.create_trial(
            value=r.loss,
            params={"model": model, "lr": r.lr},
            distributions={"model": choices, "lr": FloatDistribution(*LR, log=True)},
            user_attrs={"batch": BATCH},
        )
        trial.datetime_complete = now + timedelta(seconds=i)
        study.add_trial(trial)
    trial = study.ask()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = trial.suggest_categorical("model", list(MODELS))
    if any("study is stopped" in str(w.message) for w in said):
        return None
    return MODELS[model][0], trial.suggest_float("lr", *LR, log=True)


def ray_proposes(records: Sequence[TrialRecord], **lent: Any) -> tuple[float, float] | None:
    """The same of a searcher; None where it has finished."""
    searcher = pytest.importorskip("metaopt_hpo_ray.searcher")
    search = searcher.ScalingLawSearch(
        candidates=list(MODELS.values()), lr=LR, batch=BATCH, metric="loss", mode="min", seed=3, **lent
    )
    for r in records:
        search.book.add(r.trial, size=r.size, tokens=r.target_tokens, batch=r.batch, lr=r.lr)
        search.book.report(r.trial, r.target_tokens, r.loss)
        search.book.close(r.trial, "complete")
    found = search.suggest("next")
    return None if isinstance(found, str) else (found["size"], found["lr"])


@pytest.mark.parametrize("count", [0, 6, 12])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"budget": 1.3 * RUN},
        {"budget": 0.2 * RUN},
        {"tokens": 1.4 * TARGET[1]},
        {"energy": 1.2, "power": 3.6e6, "speed": RUN / 1.2},
        {"money": 1.3, "price": 3600.0, "speed": RUN},
        {"seconds": 1.5, "speed": RUN / 1.4, "workers": 4},
    ],
    ids=["unlimited", "budget", "poor", "tokens", "energy", "money", "deadline"],
)
def test_both_integrations_propose_the_same_within_what_may_be_spent(
    limits: dict[str, Any], count: int
) -> None:
    bounds = Limits(**limits)
    records = [finished(SIZES[i % 2], 0.3 * (i // 2) - 0.6, i) for i in range(count)]
    one, other = optuna_proposes(records, limits=bounds), ray_proposes(records, limits=bounds)
    assert one == (other if other is None else pytest.approx(other))
    if limits.get("budget") == 0.2 * RUN:
        assert one is None or one[0] < SIZES[3]


def test_both_integrations_lean_on_the_same_prior() -> None:
    earlier = [(s, u) for s in SIZES[:3] for u in (-1.0, 0.0, 1.0)]
    prior = fit(TrialTable.from_records([finished(*at, i) for i, at in enumerate(earlier)]), draws=20)
    records = [finished(SIZES[0], u, i) for i, u in enumerate((-0.5, 0.0, 0.5))]
    leaning = optuna_proposes(records, prior=prior)
    assert leaning == pytest.approx(ray_proposes(records, prior=prior))
    order = orders.LaunchOrder(books.Logbook(), background=False, prior=prior)
    pruner = ScalingLawPruner(prior=prior)
    assert order._refits.base.to_dict() == pruner._evidence.base.to_dict()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="prior or base, not both"):
        ScalingLawPruner(prior=prior, base=prior)
