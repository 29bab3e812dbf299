"""What a law answers: predictions, surface, JSON, verdicts, forecasts, proposals."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Caution, Config, Context, Law, fit, propose
from metaopt_hpo.trials.record import Curve
from metaopt_hpo.trials.table import TrialTable

Maker = Callable[..., TrialTable]
TARGET = (1e9, 1e11)


@pytest.fixture
def law(make_table: Maker) -> Law:
    return fit(make_table(), draws=60)


def test_the_prediction_minimises_the_surface(law: Law) -> None:
    p = law.predict(*TARGET)
    lr, batch = float(p.lr) * np.exp([-0.2, 0.0, 0.2]), float(p.batch) * np.exp([-0.2, 0.0, 0.2])
    grid = law.loss(*TARGET, batch[:, None], lr[None, :])
    assert np.unravel_index(grid.argmin(), grid.shape) == (1, 1)
    assert grid[1, 1] == pytest.approx(float(p.loss))


def test_at_a_given_batch_lr_minimises_the_slice(law: Law) -> None:
    for factor in (0.3, 3.0):
        batch = factor * float(law.predict(*TARGET).batch)
        p = law.predict(*TARGET, batch=batch)
        assert float(p.batch) == pytest.approx(batch)
        losses = law.loss(*TARGET, batch, float(p.lr) * np.exp([-0.1, 0.0, 0.1]))
        assert losses.argmin() == 1
        assert losses[1] == pytest.approx(float(p.loss))


def test_intervals_hold_the_value_and_widen_with_distance(law: Law) -> None:
    near, far = law.predict(1e8, 1e10), law.predict(1e11, 1e13)
    for p in (near, far):
        for e in (p.lr, p.batch, p.loss):
            assert e.low <= e.value <= e.high
            assert float(e) in e
    assert math.log(far.lr.high / far.lr.low) > math.log(near.lr.high / near.lr.low)
    assert "extrapolation" in {c.code for c in far.warnings}
    assert "extrapolation" not in {c.code for c in near.warnings}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "x"])
def test_bad_arguments_are_named(law: Law, bad: float) -> None:
    with pytest.raises(ValueError, match="size"):
        law.predict(bad, 1e10)
    with pytest.raises(ValueError, match="tokens"):
        law.predict(1e8, bad)
    with pytest.raises(ValueError, match="batch"):
        law.predict(1e8, 1e10, batch=bad)
    with pytest.raises(ValueError, match="lr"):
        law.verdict(size=1e8, tokens=1e10, batch=1e5, lr=bad)


def test_json_round_trip(law: Law, tmp_path: object) -> None:
    again = Law.from_json(law.to_json())
    assert again.predict(*TARGET) == law.predict(*TARGET)
    assert again.describe() == law.describe()
    assert again.to_json() == law.to_json()
    for text in ("{}", '{"a": 1}', "{nonsense", json.dumps({"format": "metaopt-hpo law", "version": 2})):
        with pytest.raises(MetaOptError, match=r"not a law"):
            Law.from_json(text)
    with pytest.raises(MetaOptError, match="version 99"):
        Law.from_json(law.to_json().replace('"version": 2', '"version": 99'))
    with pytest.raises(MetaOptError, match="cannot read"):
        Law.from_json("no/such/file.json")


def test_verdicts(law: Law) -> None:
    p = law.predict(*TARGET)
    good = {"size": TARGET[0], "tokens": TARGET[1], "lr": float(p.lr), "batch": float(p.batch)}
    hopeless = float(p.loss) * 0.8
    easy = float(p.loss) * 1.2
    assert law.verdict(**good, incumbent=easy).action == "launch"
    assert law.verdict(**good, incumbent=hopeless).action == "stop"
    assert law.verdict(**good).action == "launch"
    assert law.verdict(**{**good, "lr": good["lr"] * 100}).action == "stop"
    far = law.verdict(**{**good, "size": 1e14}, incumbent=easy)
    assert far.action == "abstain"
    curve = Curve((1e9, 1e10), (3.2, 2.8))
    assert law.verdict(**good, incumbent=easy, curve=curve).action == "keep"
    assert law.verdict(**good, incumbent=easy, curve=[(1e10, 9.0)]).action == "stop"
    v = law.verdict(**good, incumbent=easy)
    assert 0 <= v.probability <= 1
    assert v.reason


def test_no_verdict_where_the_law_may_be_wrong(law: Law) -> None:
    p = law.predict(*TARGET)
    bad = {"size": TARGET[0], "tokens": TARGET[1], "lr": float(p.lr) * 100, "batch": float(p.batch)}
    inside = bad | {"size": max(law.domain.sizes), "tokens": law.domain.tokens[1]}
    assert law.verdict(**bad).action == law.verdict(**inside).action == "stop"

    missed = dataclasses.replace(law, warnings=(Caution("missed-size", "it missed."),))
    assert missed.verdict(**bad).action == "abstain"
    assert "missed-size" in missed.verdict(**bad).reason
    assert missed.verdict(**inside).action == "stop"  # only beyond what was fitted
    assert (
        missed.verdict(**inside | {"tokens": 3 * inside["tokens"]}).action == "stop"
    )  # in its own direction
    assert missed.verdict(**inside | {"size": 1.001 * inside["size"]}).action == "stop"
    assert missed.verdict(**inside | {"size": 1.1 * inside["size"]}).action == "abstain"

    assert law.alternatives is not None
    anywhere = law.alternatives.lr.copy()
    anywhere[:, 0] += np.linspace(-2.0, 2.0, len(anywhere))
    unknown = dataclasses.replace(law.alternatives, lr=anywhere)
    lost = dataclasses.replace(law, alternatives=unknown)
    assert "unsure-optimum" in {c.code for c in lost.predict(*TARGET).warnings}
    # how unsure it is of the optimum is known: what wins under none of it is stopped, and only that
    assert lost.verdict(**bad).action == lost.verdict(**inside).action == "stop"
    maybe = bad | {"lr": float(p.lr) * math.exp(1.8), "incumbent": p.loss.value}
    assert law.verdict(**maybe).action == "stop"
    assert lost.verdict(**maybe).action == "launch"


def test_a_forecast_moves_from_the_law_to_the_curve(law: Law) -> None:
    at = {"size": 1e8, "tokens": 1e10, "lr": 3e-3, "batch": 5e5}
    prior = law.forecast(**at)
    worse = [
        law.forecast(**at, curve=[(t, 1.1 * float(law.loss(1e8, t, 5e5, 3e-3)))]) for t in (1e8, 1e9, 9e9)
    ]
    means = [prior.mean, *(f.mean for f in worse)]
    assert means == sorted(means)
    assert worse[-1].sd < worse[0].sd
    done = law.forecast(**at, curve=[(1e10, 2.5)])
    assert done.mean == pytest.approx(math.log(2.5))
    nothing = law.forecast(**at, curve=Curve((1e3,), (math.nan,)))
    assert nothing == prior


def _context(**over: object) -> Context:
    base: dict[str, object] = {
        "target": TARGET,
        "candidates": tuple((n, d) for n in (3e7, 1e8, 3e8) for d in (3e9, 1e10, 3e10)),
        "lr": (1e-4, 1e-1),
        "batch": (1e5, 4e6),
    }
    return Context(**(base | over))  # type: ignore[arg-type]


def test_proposals_are_deterministic_and_inside_bounds(make_table: Maker) -> None:
    table = make_table(noise=5e-3, lrs=4, batches=3)
    for context in (_context(), _context(seed=5), _context(lr=(1e-3, 1.1e-3))):
        a, b = propose(table, context), propose(table, context)
        assert a == b
        assert context.lr[0] <= a.config.lr <= context.lr[1]
        assert context.batch[0] <= a.config.batch <= context.batch[1]
        assert (a.config.size, a.config.tokens) in {*context.candidates, context.target}
        assert a.reason


def test_without_trials_the_cheapest_sizes_are_covered_first() -> None:
    context = _context()
    first = propose(None, context)
    assert (first.config.size, first.config.tokens) == (3e7, 3e9)
    running: list[Config] = []
    for _ in range(15):
        running.append(propose(None, _context(running=tuple(running))).config)
    assert {c.size for c in running} >= {3e7, 1e8}
    assert len(set(running)) == 15


def test_a_known_law_or_an_ending_budget_runs_the_target(make_table: Maker) -> None:
    sure = propose(make_table(noise=1e-5), _context())
    assert (sure.config.size, sure.config.tokens) == TARGET
    cost = 6 * TARGET[0] * TARGET[1]
    last = propose(make_table(noise=5e-3, lrs=4, batches=3), _context(budget=1.00001 * cost))
    assert (last.config.size, last.config.tokens) == TARGET


def test_a_context_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="lr must be"):
        _context(lr=(1.0, 0.1))
    with pytest.raises(ValueError, match="candidates"):
        _context(candidates=())


def test_the_predicted_lr_minimises_the_expected_loss(law: Law) -> None:
    skewed = dataclasses.replace(law, surface=dataclasses.replace(law.surface, skew=0.004))
    x, y, *_, var_x, _ = skewed.at(*TARGET)
    spread = math.sqrt(var_x + skewed.scatter["lr_given_batch"] ** 2)
    rng = np.random.default_rng(0)
    true = x + spread * rng.standard_normal(4000)
    candidates = np.linspace(x - 0.6, x + 0.6, 241)
    expected = [float(skewed.surface.excess(c - true, np.zeros_like(true)).mean()) for c in candidates]
    best = candidates[int(np.argmin(expected))]
    assert math.log(float(skewed.predict(*TARGET).lr)) == pytest.approx(best, abs=0.05)
    assert float(skewed.predict(*TARGET).lr) < math.exp(x)
    assert skewed.choose(*TARGET, np.exp(candidates), np.full(241, math.exp(y))) == pytest.approx(
        int(np.argmin(expected)), abs=12
    )
    with pytest.raises(ValueError, match="equally long"):
        law.choose(*TARGET, [1.0], [])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda law: law.choose(-1, 1e10, [1e-3], [1e5]), "size must be positive"),
        (lambda law: law.edge_lr(1e9, 0, 1e5), "tokens must be a positive"),
        (lambda law: law.forecast(size=1e9, tokens=1e10, lr=1e-3, batch=1e5, curve=[(1e9,)]), "curve must hold pairs"),
        (lambda law: law.verdict(size=1e9, tokens=1e10, lr=1e-3, batch=1e5, finished=[(1, 2)]), "finished must hold"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(law: Law, ask: Callable[[Law], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(law)
