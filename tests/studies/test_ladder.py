"""The ladder of pilots: its order, that finished runs stay, and that a known law is judged rightly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.ladder import judge, runs


def record(size: float, tokens: float, seed: int, lr: float | None) -> TrialRecord:
    best = 0.02 * (size / 1e4) ** -0.3
    used = 0.6 * best if lr is None else lr
    loss = (2 + 40 * size**-0.4) * math.exp(0.05 * math.log(used / best) ** 2)
    return TrialRecord(
        size=size, tokens=tokens, batch=1024.0, lr=1e-3 if lr is None else lr, loss=loss, seed=seed,
        found_lr=used if lr is None else math.nan, cost=6 * size * tokens,
        strategy="metaoptimize" if lr is None else "wsd", tuning="self" if lr is None else "external",
        trial=f"{size}/{tokens}/{seed}/{lr}",
    )  # fmt: skip


def table() -> TrialTable:
    sizes = (6e3, 1.5e4, 2.5e4, 5.5e4, 1e5)
    return TrialTable.from_records(
        [record(s, t, 0, lr) for s in sizes for t in (2.6e5, 5.2e5) for lr in (None, *runs.GRID)]
    )


def test_cheap_runs_come_first_seed_by_seed() -> None:
    rungs = list(runs.design(2))
    assert len(rungs) == 2 * 6 * 3 * 6
    assert [r.seed for r in rungs] == sorted(r.seed for r in rungs)
    assert rungs[0].lr is None
    assert len({r.key for r in rungs}) == len(rungs)


def test_what_is_known_is_found_again() -> None:
    cells = judge.cells(table().records())
    assert "bias -0.5" in judge.found(cells).note
    rows = judge.worth(cells, shares=(0.5,)).rows
    assert {row[1] for row in rows} == set(judge.DESIGNS)
    grid = next(float(row[5]) for row in rows if row[1] == "grid")
    own = next(float(row[5]) for row in rows if row[1] == "MetaOptimize")
    assert grid < 0.4
    assert own == pytest.approx(
        0.5, abs=0.3
    )  # the offset of found rates is not to be seen without schedule runs


def test_nothing_finished_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(rung: runs.Rung) -> TrialRecord:
        trained.append(rung.key)
        return replace(record(1e4 + rung.width, 1e5, rung.seed, rung.lr), trial=rung.key)

    monkeypatch.setattr(runs, "train_rung", train)
    rungs = list(runs.design(1, widths=(16,), steps=(8,), grid=(1e-2,)))
    runs.collect(rungs[:1], tmp_path / "l.parquet")
    runs.collect(rungs, tmp_path / "l.parquet")
    assert trained == [r.key for r in rungs]
    with pytest.raises(runs.LadderError, match="make ladder"):
        runs.read(tmp_path / "none.parquet")
    with pytest.raises(runs.LadderError, match="complete cells"):
        judge.cells([record(1e4, 1e5, 0, None)])
