"""The trial table: round trips, checks, selection, costs."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trial_frames import sweep, two_trials

from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.schema import COLUMN_NAMES, TableError, TableWarning, UnitsWarning
from metaopt_hpo.trials.table import VERSION_KEY, TrialTable

positive = st.floats(min_value=1e-9, max_value=1e13, allow_nan=False)


@st.composite
def records(draw: st.DrawFn) -> list[TrialRecord]:
    n = draw(st.integers(1, 5))
    out = []
    for i in range(n):
        m = draw(st.integers(0, 3))
        ticks = tuple(float(2**k) for k in range(m))
        curve = Curve(ticks, tuple(draw(positive) for _ in ticks)) if m else None
        batch = draw(st.floats(1, 1e6))
        params = draw(
            st.dictionaries(
                st.text(max_size=5), st.one_of(st.integers(-5, 5), st.text(max_size=5), st.booleans())
            )
        )
        out.append(
            TrialRecord(
                size=draw(positive),
                tokens=batch * draw(st.floats(1, 1e6)),
                batch=batch,
                lr=draw(positive),
                loss=draw(positive),
                trial=str(i),
                study=draw(st.sampled_from(["", "a", 'quote "x", y\nz'])),
                seed=draw(st.integers(0, 2**31)),
                cost=draw(st.one_of(st.just(math.nan), positive)),
                params=params,
                curve=curve,
            )
        )
    return out


def _key(r: TrialRecord) -> str:
    params = dict(sorted(r.params.items()))  # JSON sorts keys; a dict's order means nothing
    return repr(dataclasses.replace(r, params=params))


@settings(max_examples=25, deadline=None)
@given(rows=records(), suffix=st.sampled_from([".parquet", ".csv"]))
def test_files_keep_every_field(
    rows: list[TrialRecord], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / f"t{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitsWarning)  # the numbers drawn mean nothing
        table = TrialTable.from_records(rows)
        assert [_key(r) for r in table.records()] == [_key(r) for r in rows]
        table.write(path)
        assert [_key(r) for r in TrialTable.read(path).records()] == [_key(r) for r in rows]


def test_frame_has_the_schema_and_parquet_its_version(tmp_path: Path) -> None:
    table = TrialTable.from_records([TrialRecord(1e6, 2e7, 1e4, 1e-3, 3.0, trial="a")])
    assert list(table.frame.columns) == list(COLUMN_NAMES)
    path = table.write(tmp_path / "t.parquet")
    meta = pq.read_schema(path).metadata
    assert meta[VERSION_KEY] == b"1"
    newer = pq.read_table(path).replace_schema_metadata({VERSION_KEY: b"99"})
    pq.write_table(newer, path)
    with pytest.raises(TableError, match="version 99"):
        TrialTable.read(path)


def test_cost_is_float64_where_integers_would_overflow() -> None:
    frame = pd.DataFrame(
        {"size": [7_000_000_000], "tokens": [1_400_000_000_000], "batch": 4_000_000, "lr": 1e-3, "loss": 2.0}
    )
    assert TrialTable.from_frame(frame).cost() == 6.0 * 7e9 * 1.4e12


def test_cost_takes_what_was_measured_and_counts_every_state() -> None:
    rows = [
        TrialRecord(10, 100, 1, 0.1, 1.0, trial="a", cost=5.0),
        TrialRecord(10, 100, 1, 0.2, math.inf, trial="b", state="diverged"),
        TrialRecord(10, 0, 1, 0.3, math.nan, trial="c", state="failed"),
    ]
    assert TrialTable.from_records(rows).cost() == 5.0 + 6000.0


@pytest.mark.parametrize("name", ["size", "tokens", "batch", "lr"])
@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_impossible_values_name_their_column(name: str, value: float) -> None:
    with pytest.raises(TableError, match=rf"'{name}'.*1 row \(first: row 1\)"):
        TrialTable.from_frame(two_trials(**{name: [1e6, value]}))


@pytest.mark.parametrize("name", ["size", "tokens", "batch", "lr", "loss"])
def test_a_missing_column_is_named(name: str) -> None:
    with pytest.raises(TableError, match=rf"'{name}'.*is missing"):
        TrialTable.from_frame(two_trials().drop(columns=name))
    with pytest.raises(TableError, match="'elsewhere'"):
        TrialTable.from_frame(two_trials(), columns={name: "elsewhere"})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_loss_is_kept_as_diverged_and_counted(value: float) -> None:
    with pytest.warns(TableWarning, match="1 row"):
        table = TrialTable.from_frame(two_trials(loss=[3.0, value]))
    assert len(table) == 2
    assert list(table.frame["state"]) == ["complete", "diverged"]
    assert [(n.code, n.count) for n in table.notes] == [("loss-not-finite", 1)]


def test_a_run_that_was_refused_is_pruned_and_needs_no_loss() -> None:
    refused = TrialRecord(10, 0, 1, 0.1, math.nan, trial="a", state="pruned", reason="not started: no chance")
    with pytest.warns(TableWarning, match="1 row"):
        records = TrialTable.from_records(
            [refused, dataclasses.replace(refused, trial="b", tokens=5.0)]
        ).records()
    assert [r.state for r in records] == ["pruned", "diverged"]


def test_texts_are_read_and_counted_or_refused() -> None:
    with pytest.warns(TableWarning, match="2 values of column 'size'"):
        table = TrialTable.from_frame(two_trials(size=["124M", "1.3e8"]))
    assert list(table.frame["size"]) == [124e6, 1.3e8]
    with pytest.raises(TableError, match="row 0 of column 'size' holds 'big'"):
        TrialTable.from_frame(two_trials(size=["big", "2"]))


def test_duplicates_are_counted_and_contradictions_refused() -> None:
    frame = pd.concat([two_trials(), two_trials().iloc[:1]])
    with pytest.warns(TableWarning, match="1 rows repeat"):
        assert len(TrialTable.from_frame(frame)) == 2
    with pytest.raises(TableError, match="'a' of study"):
        TrialTable.from_frame(two_trials(trial=["a", "a"]))


def test_unknown_columns_become_hyperparameters() -> None:
    table = TrialTable.from_frame(two_trials(beta2=[0.99, math.nan], name=["x", "y"]))
    assert [r.params for r in table.records()] == [{"beta2": 0.99, "name": "x"}, {"name": "y"}]


def test_constants_fill_columns() -> None:
    table = TrialTable.from_frame(two_trials().drop(columns="batch"), columns={"batch": 32.0})
    assert list(table.frame["batch"]) == [32.0, 32.0]


def test_select_concat_join() -> None:
    table = TrialTable.from_frame(two_trials(trial=["a", "b"]))
    assert len(table.select(size=1e6)) == 1
    assert len(table.select(size=[1e6, 2e6], lr=lambda c: c > 1.5e-3)) == 1
    assert len(table.select(where=lambda f: f["loss"] < 2.95)) == 1
    twice = TrialTable.concat([table, table])
    assert len(twice) == 2
    assert [(n.code, n.count) for n in twice.notes] == [("duplicates", 2)]
    joined = table.join(
        pd.DataFrame({"study": ["", ""], "trial": ["a", "b"], "seconds": [1.0, 2.0], "wd": [0.1, 0.2]})
    )
    assert list(joined.frame["seconds"]) == [1.0, 2.0]
    assert joined.records()[1].params == {"wd": 0.2}
    with pytest.raises(TableError, match="match no trial"):
        table.join(pd.DataFrame({"study": [""], "trial": ["zzz"], "seconds": [1.0]}))


def test_foreign_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no table at"):
        TrialTable.read(tmp_path / "none.csv")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(TableError, match="cannot read"):
        TrialTable.read(tmp_path / "x.parquet")
    (tmp_path / "empty.csv").write_text("size,tokens,batch,lr,loss\n")
    with pytest.raises(TableError, match="no rows"):
        TrialTable.read(tmp_path / "empty.csv")
    foreign = pa.table({"N": [1e6], "D": [1e8], "B": [1e4], "eta": [0.1], "L": [2.0]})
    pq.write_table(foreign, tmp_path / "f.parquet")
    table = TrialTable.read(
        tmp_path / "f.parquet", {"size": "N", "tokens": "D", "batch": "B", "lr": "eta", "loss": "L"}
    )
    assert table.frame.loc[0, "lr"] == 0.1
    with pytest.raises(TableError, match="cannot write"):
        table.write(tmp_path / "f.parquet" / "t.csv")


def test_chunks_make_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt_hpo.trials.files.CHUNK_ROWS", 7)
    n = 30
    frame = pd.DataFrame(
        {
            "size": 1e6,
            "tokens": 1e8,
            "batch": 1e4,
            "lr": np.geomspace(1e-4, 1, n),
            "loss": np.linspace(2, 3, n),
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = TrialTable.read(tmp_path / "t.csv")
    assert len(table) == n
    assert np.allclose(table.frame["loss"], frame["loss"])
    assert table.frame["trial"].is_unique


def test_a_completed_trial_was_planned_for_what_it_saw_unless_it_says_otherwise() -> None:
    assert TrialRecord(1e6, 2e7, 1e4, 1e-3, 3.0).target_tokens == 2e7
    assert TrialRecord(1e6, 2e7, 1e4, 1e-3, 3.0, target_tokens=3e7).target_tokens == 3e7
    assert math.isnan(TrialRecord(1e6, 2e7, 1e4, 1e-3, 3.0, state="pruned").target_tokens)


def test_every_remark_about_a_file_is_kept(tmp_path: Path) -> None:
    frame = sweep(size=(3e7, 1e8, 3e8))
    odd = frame.assign(batch=frame["batch"].where(frame["size"] != 1e8, frame["batch"] / 4096))
    odd = pd.concat([odd, odd[odd["size"] == 3e7].head(4).assign(batch=lambda f: f["batch"] / 4096)])
    odd.to_csv(tmp_path / "t.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        whole = TrialTable.from_frame(odd, implausible="warn")
        read = TrialTable.read(tmp_path / "t.csv", implausible="warn")
    assert len(whole.notes) > 1
    assert read.notes == whole.notes


def test_dates_and_lists_of_a_parquet_file_are_kept_as_hyperparameters(tmp_path: Path) -> None:
    frame = sweep().assign(when=pd.Timestamp("2024-05-01"), never=pd.NaT, shape=[[4, 8]] * 32, good=True)
    frame.to_parquet(tmp_path / "t.parquet")
    params = TrialTable.read(tmp_path / "t.parquet").records()[0].params
    assert params == {"when": "2024-05-01 00:00:00", "shape": [4, 8], "good": True}


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    frame = sweep()
    twice = pd.concat([frame, frame["lr"] * 2], axis=1)
    with pytest.raises(TableError, match="'lr' stands twice"):
        TrialTable.from_frame(twice)
    twice.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match="'lr' stands twice"):
        TrialTable.read(tmp_path / "t.csv")


@pytest.mark.parametrize("text", ["3", '"runs"', "[1, 2]", '{"size": 1}', "null"])
def test_json_that_is_no_list_of_trials_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TableError, match="list of objects"):
        TrialTable.read(tmp_path / "t.json")


def test_a_bad_value_is_said_as_a_plain_number() -> None:
    frame = sweep()
    frame.loc[3, "lr"] = 0.0
    with pytest.raises(TableError, match=r"got 0 in 1 row \(first: row 3\)"):
        TrialTable.from_frame(frame)


@pytest.mark.parametrize("other", ["val_loss", "eval/loss", "test_loss", "loss/val", "validation loss"])
def test_a_loss_beside_one_on_held_out_data_is_asked_for(other: str) -> None:
    frame = sweep()
    frame[other] = frame["loss"] + 0.1
    with pytest.raises(TableError, match="several losses") as error:
        TrialTable.from_frame(frame)
    assert f"columns={{'loss': {other!r}}}" in str(error.value)
    assert (TrialTable.from_frame(frame, {"loss": "loss"}).frame["loss"] == frame["loss"]).all()


def test_a_table_of_ours_keeps_its_loss(tmp_path: Path) -> None:
    table = TrialTable.from_frame(
        sweep().assign(initial_loss=9.0, curve_tokens=[(1.0,)] * 32, curve_loss=[(5.0,)] * 32)
    )
    again = TrialTable.read(table.write(tmp_path / "own.csv"))
    assert (again.frame["loss"] == table.frame["loss"]).all()


@pytest.mark.parametrize("written", [lambda v: v, lambda v: f"{v / 1e6:g}M", lambda v: f"{v:,.0f}"])
def test_params_that_are_numbers_are_the_size(written: Callable[[float], object]) -> None:
    frame = sweep()
    frame["params"] = frame.pop("size").map(written)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        table = TrialTable.from_frame(frame)
    assert "size is read from the column 'params'" in [n.message for n in table.notes]
    assert list(table.frame["size"]) == list(sweep()["size"])
    named = TrialTable.from_frame(sweep().assign(params=7.0))
    assert list(named.frame["size"]) == list(sweep()["size"])
    assert set(named.frame["params"]) == {"{}"}
