"""Runs that are halted and taken up again are the runs they would have been; another lr is taken up, or refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_workload import Tiny

from metaopt_hpo.comparison.live import LiveReplay, Resumable
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.table import TrialTable

TRAIN = TrainObjective([Tiny()])
RUN = Configuration(size=9, tokens=1000, batch=16, lr=0.02)


def table() -> TableObjective:
    records = [
        TrialRecord(
            size=1e6, tokens=4e7, batch=1e5, lr=lr, loss=3.0 + i / 10, trial=f"{i}", cost=6e6 * 4e7,
            curve=Curve((1e7, 2e7, 4e7), (4.0, 3.5, 3.0 + i / 10)),
        )
        for i, lr in enumerate((1e-3, 2e-3))
    ]  # fmt: skip
    return TableObjective(TrialTable.from_records(records))


def test_both_objectives_can_be_halted() -> None:
    assert isinstance(TRAIN, Resumable)
    assert isinstance(table(), Resumable)


@pytest.mark.parametrize("halts", [(500,), (100, 333, 334, 990), (16,)])
def test_a_run_halted_and_taken_up_again_is_the_run_itself(halts: tuple[int, ...], tmp_path: Path) -> None:
    whole = TRAIN.run(RUN)
    live = TRAIN.open(RUN)
    for i, tokens in enumerate(halts):
        reached, loss = live.advance(tokens)
        assert reached == TRAIN.stops_at(RUN, tokens) == math.ceil(tokens / 16) * 16
        assert live.record().cost == TRAIN.cost(RUN) * reached / TRAIN.stops_at(RUN, RUN.tokens)
        live.save(tmp_path / str(i))
        live = TRAIN.open(RUN, tmp_path / str(i))
        assert live.advance(tokens) == (reached, loss)
    live.advance(RUN.tokens)
    record = live.record()
    assert whole.curve is not None
    assert record.curve is not None
    shared = dict(zip(record.curve.tokens, record.curve.loss, strict=True))
    assert [shared[t] for t in whole.curve.tokens] == list(whole.curve.loss)
    assert (record.state, record.cost, record.loss) == ("complete", whole.cost, whole.loss)


def test_saved_weights_go_on_at_another_lr(tmp_path: Path) -> None:
    live = TRAIN.open(RUN)
    at, loss = live.advance(500)
    live.save(tmp_path / "saved")
    other = Configuration(**{**vars(RUN), "lr": 0.06})
    taken = TRAIN.open(other, tmp_path / "saved")
    assert taken.advance(500) == (at, loss)
    taken.advance(700)
    live.advance(700)
    faster, slower = taken.record(), live.record()
    assert faster.curve is not None
    assert slower.curve is not None
    assert faster.curve.step_size[-1] == pytest.approx(3 * slower.curve.step_size[-1])
    assert faster.loss != slower.loss


def test_a_diverged_run_says_so() -> None:
    live = TRAIN.open(Configuration(size=9, tokens=1000, batch=16, lr=1e4))
    _, loss = live.advance(1000)
    assert math.isnan(loss)
    assert live.record().state == "diverged"


def test_a_table_is_read_on_where_it_was_left_and_refuses_another_lr(tmp_path: Path) -> None:
    objective = table()
    c = Configuration(size=1e6, tokens=4e7, batch=1e5, lr=1e-3)
    assert objective.stops_at(c, 1.5e7) == 2e7
    live = objective.open(c)
    assert live.advance(1.5e7) == (2e7, 3.5)
    assert (live.record().state, live.record().cost) == ("running", 6e6 * 2e7)
    live.save(tmp_path / "at")
    again = objective.open(c, tmp_path / "at")
    assert again.tokens == 2e7
    assert again.advance(4e7) == (4e7, 3.0)
    assert (again.record().state, again.record().cost) == ("complete", 6e6 * 4e7)
    with pytest.raises(ObjectiveError, match="lr changed midway"):
        objective.open(Configuration(**{**vars(c), "lr": 2e-3}), tmp_path / "at")
    (tmp_path / "at").write_text("no JSON")
    with pytest.raises(ObjectiveError, match="not the place"):
        LiveReplay(objective.run(c), tmp_path / "at")
