"""What every framework's run shares, and that a new framework is a class of a few lines: here a JSON file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.strategies import available, get, make
from metaopt_hpo.training.framework_run import FrameworkRun, ReportedRun
from metaopt_hpo.trials.diverged import exploded, stand_in_loss
from metaopt_hpo.trials.record import TrialRecord

anything = st.floats(allow_nan=True, allow_infinity=True)


@given(anything, st.lists(anything, max_size=5), st.lists(anything, max_size=3))
def test_a_stand_in_is_finite_and_no_better_than_anything_seen(
    initial: float, seen: list[float], others: list[float]
) -> None:
    value = stand_in_loss(initial, seen, others)
    finite = [x for x in (initial, *seen) if math.isfinite(x)]
    if value is None:
        assert not finite
        assert not any(map(math.isfinite, others))
    else:
        assert math.isfinite(value)
        assert all(value >= x for x in finite)


@given(anything)
def test_what_is_not_finite_has_exploded(initial: float) -> None:
    assert exploded(math.nan, initial)
    assert exploded(math.inf, initial)


class FileRun(FrameworkRun):
    """A framework in a dozen lines: points and decisions go through a JSON file."""

    def __init__(self, path: Path, *args: Any, stop_after: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.path, self.points, self.stop_after = path, [], stop_after  # type: ignore[var-annotated]

    def report(self, tokens: int, loss: float) -> None:
        self.points.append((tokens, self._sign * loss))
        self.path.write_text(json.dumps({"points": self.points, "state": self.state}))

    def ask(self) -> str | None:
        return "enough" if self.stop_after is not None and len(self.points) >= self.stop_after else None


def file_run(path: Path, *, metric: float = 2.0, **options: Any) -> FileRun:
    return FileRun(
        path,
        nn.Linear(4, 1),
        make("constant", lr=1e-3),
        size=4,
        tokens=640,
        batch=10,
        evaluate=lambda: metric,
        **options,
    )


def step(run: FrameworkRun) -> None:
    loss: Tensor = run.model(torch.ones(2, 4)).square().mean()
    run.step(loss)


def test_a_loop_that_is_left_early_is_stopped_not_complete(tmp_path: Path) -> None:
    with file_run(tmp_path / "run.json") as run:
        for k in run:
            step(run)
            if k == 5:
                break
    assert run.record().state == "stopped"
    assert run.record().tokens == 60


@pytest.mark.filterwarnings("ignore::metaopt_hpo.training.NoProgress")
def test_a_metric_to_maximise_is_reported_as_it_is_and_recorded_negated(tmp_path: Path) -> None:
    with file_run(tmp_path / "run.json", metric=0.7, maximize=True) as run:
        for _ in run:
            step(run)
    assert run.value == 0.7
    assert run.record(direction=run.direction).loss == -0.7
    assert json.loads((tmp_path / "run.json").read_text())["points"][-1] == [640, 0.7]


class Told(ReportedRun):
    def __init__(self, **options: Any) -> None:
        super().__init__(size=100.0, tokens=1000.0, batch=10.0, lr=0.1, **options)
        self.told: list[tuple[int, float]] = []
        self.kept: TrialRecord | None = None

    def tell(self, point: int, loss: float) -> None:
        self.told.append((point, loss))

    def keep(self, record: TrialRecord) -> None:
        self.kept = record


@pytest.mark.parametrize("until", [250.0, 600.0, 985.0, 995.0, 1000.0])
def test_a_framework_that_stops_by_itself_says_how_far_it_came(until: float) -> None:
    run = Told()
    for tokens in (100.0, 200.0, until):
        assert run.report(tokens, 20 / tokens) is None
    assert run.finish() == 20 / until
    assert run.kept is not None
    assert run.kept.state == ("complete" if until >= 990 else "stopped")
    assert run.kept.tokens == until


def test_nothing_reported_is_an_error_that_says_so() -> None:
    with pytest.raises(MetaOptError, match="evaluate at least once"):
        Told().finish()


@pytest.mark.parametrize("name", available())
def test_every_strategy_says_from_where_its_loss_is_comparable(name: str) -> None:
    strategy = get(name)()
    assert 0.0 <= strategy.comparable_from <= 1.0
    assert strategy.comparable_from == 1.0 or not strategy.tunes_lr


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([2.3, 2.31, 2.3, 2.295], True),
        ([-0.1, -0.1, -0.1005, -0.1], True),
        ([2.3, 2.0, 1.5, 1.2], False),
        ([2.3, 1.2, 2.2, 2.4], False),
    ],
)
@pytest.mark.filterwarnings("ignore::metaopt_hpo.training.NoProgress")
def test_a_complete_run_that_learned_nothing_says_so(losses: list[float], says: bool) -> None:
    run = Told(strategy="metaoptimize")
    for tokens, loss in zip((200, 400, 700, 1000), losses, strict=True):
        run.report(tokens, loss)
    run.finish()
    assert run.kept is not None
    assert run.kept.state == "complete"
    assert ("made no progress" in run.kept.reason) == says


def test_one_late_evaluation_says_nothing_about_progress() -> None:
    run = Told()
    for tokens in (500, 1000):
        run.report(tokens, 0.5)
    run.finish()
    assert run.kept is not None
    assert run.kept.reason == ""
