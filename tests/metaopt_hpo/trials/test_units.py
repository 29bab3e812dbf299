"""Counts in another unit than tokens are noticed, refused, and converted when they are named."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from trial_frames import sweep

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.schema import TableError, TableWarning, UnitsWarning
from metaopt_hpo.trials.table import TrialTable


def test_sequences_for_tokens_are_noticed_and_converted() -> None:
    frame = pd.DataFrame(
        {
            "size": 1e8,
            "tokens": [1e11, 2e11, 3e11],
            "batch": [736, 512, 256],
            "lr": 1e-3,
            "loss": [2.4, 2.5, 2.6],
        }
    )
    with pytest.warns(UnitsWarning, match="sequences"):
        TrialTable.from_frame(frame, implausible="warn")
    with pytest.raises(TableError, match=r"units=\{'batch': 'sequences'\}"):
        TrialTable.from_frame(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = TrialTable.from_frame(frame, units={"batch": "sequences"}, sequence_length=2048)
    assert list(table.frame["batch"]) == [736 * 2048, 512 * 2048, 256 * 2048]
    mixed = frame.assign(tokens=1e11, batch=[736 * 2048, 512 * 2048, 256])
    gap, steps = (pytest.warns(UnitsWarning, match=m) for m in ("differ by a factor", "batch looks as if"))
    with steps, gap:
        TrialTable.from_frame(mixed, implausible="warn")
    with pytest.raises(TableError, match="implausible='warn'"):
        TrialTable.from_frame(mixed, units={"batch": 1})  # a unit that is named does not make two of them one


def codes(frame: pd.DataFrame) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        return {n.code for n in TrialTable.from_frame(frame, implausible="warn").notes}


def in_sequences(frame: pd.DataFrame, column: str, rows: slice, length: float = 4096.0) -> pd.DataFrame:
    out = frame.copy()
    out.loc[rows, column] /= length
    return out


def test_sequences_for_tokens_are_seen_in_whole_columns_and_in_some_rows() -> None:
    frame = sweep()
    everything, some = slice(None), slice(0, 2)
    assert codes(frame) == set()
    assert codes(in_sequences(frame, "tokens", everything)) == {"units-tokens"}
    assert codes(in_sequences(frame, "batch", everything)) == {"units-batch"}
    assert codes(in_sequences(frame, "tokens", some)) & {"units-tokens", "units-mixed"}
    assert codes(in_sequences(frame, "batch", some)) == {"units-mixed"}
    assert codes(in_sequences(frame, "batch", some, 1024.0)) == {"units-mixed"}
    both = in_sequences(in_sequences(frame, "batch", everything), "tokens", everything)
    assert codes(both) == {"units-both"}


def test_units_of_one_group_of_runs_alone_are_seen() -> None:
    frame = sweep(size=(3e7, 1e8, 3e8))
    one_size = frame["size"] == 1e8
    assert codes(frame.assign(batch=frame["batch"].where(~one_size, frame["batch"] / 4096))) == {
        "units-mixed"
    }
    assert codes(frame.assign(size=frame["size"].where(~one_size, 100.0))) == {
        "units-mixed",
        "units-size",
    }
    assert codes(frame.assign(size=frame["size"] / 1e6)) == {"units-size"}


def test_a_curve_counts_in_the_unit_of_its_run() -> None:
    frame = sweep().assign(curve_tokens=[[1.0, 2.0]] * 32, curve_loss=[[4.0, 3.5]] * 32)
    frame["tokens"] /= 1e9
    table = TrialTable.from_frame(frame, units={"tokens": "billions"})
    assert table.frame["curve_tokens"][0] == (1e9, 2e9)
    assert table.frame["curve_loss"][0] == (4.0, 3.5)


def test_wide_batch_grids_and_long_ranges_of_tokens_are_no_mix_up() -> None:
    assert codes(sweep(tokens=(3e8, 3e9, 3e10, 1e12))) == set()
    sparse = sweep()[lambda f: f["batch"].isin((2.0**16, 2.0**19))]
    assert codes(sparse.assign(batch=sparse["batch"].where(sparse["batch"] < 1e5, 2.0**22))) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1e-6}, {"size": 1e-9}, {"size": 1e-3}, {"tokens": 1e-6}, {"tokens": 1e-9}, {"batch": 1 / 2048},
        {"batch": 1e-3},
        {"size": 1e-6, "tokens": 1e-6}, {"size": 1e-6, "tokens": 1e-6, "batch": 1e-6},
        {"batch": 1 / 2048, "tokens": 1 / 2048},
        {"loss": 1e3}, {"lr": 1e6},
    ],
)  # fmt: skip
def test_numbers_in_another_unit_are_refused_and_taken_when_named(change: dict[str, float]) -> None:
    frame = pd.DataFrame(
        [
            {"size": n, "tokens": 20 * n, "batch": 65536.0, "lr": lr, "loss": 3.0 + lr}
            for n in (1e6, 4e6, 16e6, 64e6)
            for lr in (1e-3, 3e-3)
        ]
    )
    other = frame.assign(**{c: frame[c] * f for c, f in change.items()})
    with pytest.raises(TableError, match=r"units=\{"):
        TrialTable.from_frame(other)
    units: dict[str, float | str] = {c: 1 / f for c, f in change.items()}
    assert np.allclose(TrialTable.from_frame(other, units=units).frame["size"], frame["size"])
    if len(change) == 1 and min(change.values()) < 1e-2:
        half = frame.assign(
            **{c: frame[c].where(frame.index % 2 == 0, frame[c] * f) for c, f in change.items()}
        )
        with pytest.raises(TableError):
            TrialTable.from_frame(half)


@pytest.mark.parametrize("method", ["", "grid"])
def test_a_comparisons_own_counts_are_not_questioned(method: str) -> None:
    """Images are few for their model's parameters; of a user's own runs that is worth a question."""
    records = [
        TrialRecord(
            size=3e5, tokens=16384, batch=32, lr=lr, loss=2.0 + lr, cost=1e9, state="complete", method=method
        )
        for lr in (1e-3, 1e-2)
    ]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        TrialTable.from_records(records)
    assert [w.category.__name__ for w in said] == ([] if method else ["UnitsWarning"])


@pytest.mark.parametrize(
    ("column", "factor"), [("size", 1e-6), ("size", 1e-9), ("tokens", 1e-9), ("tokens", 1e-6)]
)
def test_a_part_of_a_column_in_another_unit_is_said_to_be_one(column: str, factor: float) -> None:
    """A unit of the whole column would only bring another refusal."""
    frame = sweep()
    frame[column] = frame[column].where(frame.index % 2 == 0, frame[column] * factor)
    with pytest.raises(TableError, match=rf"{column} were counted in another unit; write them alike"):
        TrialTable.from_frame(frame)


@pytest.mark.parametrize(
    ("column", "factor", "unit"),
    [
        ("size", 1e-3, "thousands"),
        ("size", 1e-6, "millions"),
        ("size", 1e-9, "billions"),
        ("batch", 1e-6, "millions"),
    ],
)
def test_the_unit_that_a_refusal_names_is_the_one_to_pass(column: str, factor: float, unit: str) -> None:
    frame = sweep()
    frame[column] *= factor
    with pytest.raises(TableError) as error:
        TrialTable.from_frame(frame)
    assert f"units={{{column!r}: {unit!r}}}" in str(error.value)
    assert np.allclose(TrialTable.from_frame(frame, units={column: unit}).frame[column], sweep()[column])


@pytest.mark.parametrize(
    ("name", "written", "unit"),
    [
        ("val_ppl", np.exp, "perplexity"),
        ("eval/perplexity", np.exp, "perplexity"),
        ("val_loss_bits", lambda v: v / np.log(2), "bits"),
    ],
)
def test_a_loss_that_is_no_nats_by_its_name_is_asked_for_and_converted(
    name: str, written: Any, unit: str
) -> None:
    frame = sweep()
    frame[name] = written(frame.pop("loss"))
    with pytest.raises(TableError, match=rf"columns=\{{'loss': '{name}'\}}.*units=\{{'loss': '{unit}'\}}"):
        TrialTable.from_frame(frame)
    with pytest.raises(TableError, match=rf"by its name holds {unit}.*units=\{{'loss': '{unit}'\}}"):
        TrialTable.from_frame(frame, {"loss": name})
    table = TrialTable.from_frame(frame, {"loss": name}, units={"loss": unit})
    assert np.allclose(table.frame["loss"], sweep()["loss"])


def test_bits_per_byte_are_no_bits_per_token() -> None:
    frame = sweep().rename(columns={"loss": "val_bpb"})
    with pytest.raises(TableError, match="ln 2 × bytes per token"):
        TrialTable.from_frame(frame, {"loss": "val_bpb"})
    assert len(TrialTable.from_frame(frame, {"loss": "val_bpb"}, units={"loss": 1})) == len(frame)


def test_a_perplexity_below_one_is_refused() -> None:
    with pytest.raises(TableError, match="below 1"):
        TrialTable.from_frame(sweep().assign(loss=0.5), units={"loss": "perplexity"})
