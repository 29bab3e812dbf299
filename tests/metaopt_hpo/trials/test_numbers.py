"""Numbers as people write them: read where they mean one thing, asked for by row and column where they mean two."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from metaopt_hpo.trials.schema import TableError, TableWarning
from metaopt_hpo.trials.table import TrialTable


def rows(**columns: list[Any]) -> pd.DataFrame:
    n = len(next(iter(columns.values()))) if columns else 3
    base: dict[str, Any] = {
        "size": [1e8] * n, "tokens": [2e9] * n, "batch": [65536] * n, "lr": [1e-3 * 2**i for i in range(n)],
        "loss": [3.0] * n,
    }  # fmt: skip
    return pd.DataFrame(base | columns)


def read(frame: pd.DataFrame, **options: Any) -> TrialTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        return TrialTable.from_frame(frame, **options)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "125M", 125e6), ("size", "0.5 B", 5e8), ("size", "1.2 billion", 1.2e9), ("size", "124M params", 124e6),
        ("size", "1,234,567,890", 1234567890), ("size", "100 000 000", 1e8), ("size", "100'000'000", 1e8),
        ("tokens", "2.5e9 tokens", 2.5e9), ("tokens", "2_500_000_000", 2.5e9), ("batch", "512K", 512e3),
        ("batch", "512Ki", 2.0**19), ("batch", "2^16", 65536), ("batch", "2**16", 65536), ("batch", "65,536", 65536),
        ("lr", "1e-3*", 1e-3), ("lr", "1e-3 †", 1e-3), ("lr", "1×10⁻³", 1e-3), ("lr", "3x10^-4", 3e-4),
        ("lr", "5.E-04", 5e-4),
        ("lr", "2^-8", 2.0**-8), ("lr", "0,001", 1e-3), ("lr", "0.1%", 1e-3), ("loss", "3,4", 3.4), ("loss", "−0", 0.0),
        ("seed", "seed_0", 0), ("seed", "s3", 3), ("seed", "7", 7),
        ("seconds", "1h 2m 3s", 3723), ("seconds", "1:02:03", 3723), ("seconds", "2 days 01:00:00", 176400),
        ("seconds", "1.5h", 5400), ("seconds", "90", 90), ("seconds", "0 days 00:00:01.5", 1.5),
    ],
)  # fmt: skip
def test_a_notation_that_means_one_thing(name: str, text: str, value: float) -> None:
    table = read(rows(**{name: [text]}), implausible="warn")
    assert table.frame[name][0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("lr", "3m"), ("lr", "--1"), ("lr", "1e"), ("lr", "~1e-3"), ("lr", "1e-3 to 1e-2"), ("size", "big"),
     ("size", "1,23,456"),
     ("loss", "2.3.4"), ("loss", "3.0 ± 0.1"), ("batch", "32x2048"), ("seconds", "soon"), ("seed", "a-b"),
     ("loss", "1.2,3,4")],
)  # fmt: skip
def test_what_is_no_number_is_named_by_row_and_column(name: str, text: str) -> None:
    frame = rows(**{name: ["1", text]})
    with pytest.raises(TableError, match=rf"row 1 of column '{name}' holds"):
        read(frame)


def test_a_comma_is_settled_by_its_column_then_by_the_table_and_else_asked_for() -> None:
    own = read(rows(loss=["4,397", "3,5", "3,75"]))
    assert list(own.frame["loss"]) == [4.397, 3.5, 3.75]
    by_table = read(rows(loss=["4,397", "3,501"], lr=["0,001", "0,002"]))
    assert list(by_table.frame["loss"]) == [4.397, 3.501]
    for frame in (rows(loss=["4,397", "3,501"]), rows(loss=["4,397"], size=["1,000,000"])):
        with pytest.raises(
            TableError, match=r"row 0 of column 'loss' holds '4,397'.*4\.397 or 4397.*decimal='comma'"
        ):
            read(frame)
    frame = rows(loss=["4,397", "3,501"])
    assert list(read(frame, decimal="comma").frame["loss"]) == [4.397, 3.501]
    assert list(read(frame, decimal="point", units={"loss": 1}).frame["loss"]) == [4397, 3501]
    with pytest.raises(ValueError, match="decimal must be"):
        read(frame, decimal="both")


def test_a_column_that_writes_decimals_in_two_ways_is_refused() -> None:
    with pytest.raises(
        TableError, match=r"'lr' writes decimals in two ways: '0\.002' in row 1 and '0,001' in row 0"
    ):
        read(rows(lr=["0,001", "0.002"]))
    with pytest.raises(TableError, match="decimal mark is a comma, not a point"):
        read(rows(lr=["0,001", "0,002"]), decimal="point")
    with pytest.raises(TableError, match="mixes percent"):
        read(rows(lr=["0.1%", "0.002"]))


GERMAN = """size;tokens;batch;lr;loss
1.000.000;20.000.000;65.536;0,001;4,397
4.000.000;80.000.000;65.536;0,002;3,512
"""


def test_a_german_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    path.write_text(GERMAN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        frame = TrialTable.read(path).frame
    assert frame[["size", "tokens", "batch", "lr", "loss"]].to_numpy().tolist() == [
        [1e6, 2e7, 65536, 0.001, 4.397], [4e6, 8e7, 65536, 0.002, 3.512],
    ]  # fmt: skip
    path.write_text(GERMAN.replace("3,512", "viel"))
    with pytest.raises(TableError, match="row 1, line 3 of column 'loss' holds 'viel'"):
        TrialTable.read(path)


def test_layouts_of_text_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    plain = rows(loss=[3.0, 3.5]).to_csv(index=False)
    for text in (
        plain,
        "\ufeff" + plain,
        "sep=,\n" + plain,
        plain.replace(",", "\t"),
        plain.replace(",", ", "),
        plain.replace(",", ";"),
        "\n" + plain,
    ):
        path.write_text(text, encoding="utf-8")
        assert list(read_file(path).frame["loss"]) == [3.0, 3.5]
    path.write_text(plain, encoding="utf-16")
    assert len(read_file(path)) == 2
    path.write_text("size,tokens,batch,lr,loss\n1e6,2e7,65536,0,001,4,397\n")
    with pytest.raises(
        TableError, match=r"line 2 .* has 7 fields for 5 names"
    ):  # decimal commas without quotes
        TrialTable.read(path)
    rows(loss=[3.0, 3.5]).to_csv(tmp_path / "t.csv.gz", index=False)
    assert len(read_file(tmp_path / "t.csv.gz")) == 2
    rows(loss=[3.0, 3.5]).to_json(tmp_path / "t.jsonl.gz", orient="records", lines=True)
    assert len(read_file(tmp_path / "t.jsonl.gz")) == 2
    rows(loss=[3.0, 3.5]).to_json(tmp_path / "t.json")
    assert len(read_file(tmp_path / "t.json")) == 2
    rows(loss=[3.0, 3.5]).to_feather(tmp_path / "t.feather")
    assert len(read_file(tmp_path / "t.feather")) == 2


def read_file(path: Path, **options: Any) -> TrialTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        return TrialTable.read(path, **options)


@pytest.mark.parametrize(
    ("word", "state"),
    [("OOM", "failed"), ("diverged", "diverged"), ("CRASHED", "failed"), ("killed", "failed")],
)
def test_a_word_for_a_loss_says_how_the_run_ended(word: str, state: str) -> None:
    with (
        pytest.warns(TableWarning, match=f"first: '{word.lower()}' in row 1"),
        pytest.warns(TableWarning, match="were text"),
    ):
        table = TrialTable.from_frame(rows(loss=["3.5", word, "3.25"]))
    assert list(table.frame["state"]) == ["complete", state, "complete"]
    assert math.isnan(table.frame["loss"][1])


def test_multiples_and_epochs_are_asked_for_and_then_counted() -> None:
    frame = rows(tokens=["20x", "40x"])
    with pytest.raises(
        TableError, match=r"units=\{'tokens': 'per_parameter'\}.*units=\{'tokens': 'chinchilla'\}"
    ):
        read(frame)
    plain = rows(tokens=[20, 40])
    assert list(read(plain, units={"tokens": "per_parameter"}).frame["tokens"]) == [2e9, 4e9]
    assert list(read(rows(tokens=[1, 2]), units={"tokens": "chinchilla"}).frame["tokens"]) == [2e9, 4e9]
    assert list(read(frame, units={"tokens": "per_parameter"}).frame["tokens"]) == [2e9, 4e9]
    epochs = rows(tokens=[2, 4])
    assert list(read(epochs, units={"tokens": "epochs"}, columns={"unique_tokens": 1e9}).frame["tokens"]) == [
        2e9,
        4e9,
    ]
    with pytest.raises(TableError, match="unique_tokens"):
        read(epochs, units={"tokens": "epochs"})


def test_tokens_may_be_epochs_of_unique_tokens_or_steps_of_a_batch() -> None:
    frame = rows(loss=[3.0, 3.1]).drop(columns="tokens")
    table = read(frame.assign(epochs=[2, 4], unique_tokens=1e9))
    assert list(table.frame["tokens"]) == [2e9, 4e9]
    assert list(table.frame["unique_tokens"]) == [1e9, 1e9]
    assert list(read(frame.assign(steps=[30000, 60000])).frame["tokens"]) == [
        30000 * 65536.0,
        60000 * 65536.0,
    ]
