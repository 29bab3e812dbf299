"""Tables with one row a report become one row a run; tables of runs stay as they are."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.trials.schema import TableError, TableWarning
from metaopt_hpo.trials.table import TrialTable

PARTS = (0.125, 0.25, 0.5, 1.0)


def reports(**over: Any) -> pd.DataFrame:
    """Four reports of each of nine runs, as Ray writes them."""
    rows = [
        {
            "trial_id": f"t{j}{i}", "training_iteration": k, "time_total_s": 10.0 * k, "tokens_seen": 20 * n * part,
            "config/size": n, "config/tokens": 20 * n, "config/batch": 65536, "config/lr": lr, "loss": 3.0 / part**0.1,
        }
        for j, n in enumerate((1e6, 4e6, 16e6))
        for i, lr in enumerate((1e-3, 3e-3, 1e-2))
        for k, part in enumerate(PARTS, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**over)


def read(frame: pd.DataFrame, *args: Any, **options: Any) -> TrialTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        return TrialTable.from_frame(frame, *args, **options)


def check(table: TrialTable) -> None:
    assert len(table) == 9
    for r in table.records():
        assert (r.tokens, r.loss, r.state) == (20 * r.size, 3.0, "complete")
        assert r.curve is not None
        assert r.curve.tokens == pytest.approx([20 * r.size * p for p in PARTS])
        assert r.curve.loss == pytest.approx([3.0 / p**0.1 for p in PARTS])


def test_reports_are_folded_and_said() -> None:
    with pytest.warns(TableWarning, match="36 rows are reports of 9 runs"):
        check(TrialTable.from_frame(reports()))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.sample(frac=1, random_state=0),
        lambda f: f.rename(columns={"trial_id": "run_id", "training_iteration": "step"}),
        lambda f: f.rename(columns={"trial_id": "Name", "training_iteration": "_step"}),
        lambda f: f.drop(columns="training_iteration"),
        lambda f: f.drop(columns="config/tokens").rename(columns={"tokens_seen": "tokens"}),
        lambda f: f.drop(columns=["tokens_seen", "training_iteration"]).assign(
            step=f["tokens_seen"] / f["config/batch"]
        ),
        lambda f: f.drop(columns="trial_id"),  # the settings tell the runs apart
        lambda f: pd.concat([f, f.iloc[::4].assign(loss=9.0), f.iloc[::4]]),  # a retry reported again
        lambda f: f.assign(
            lr=f["config/lr"] * (1 - f["tokens_seen"] / f["config/tokens"])
        ),  # a scheduler's lr
    ],
)
def test_whatever_names_the_runs_and_counts_their_reports(change: Any) -> None:
    check(read(change(reports())))


def test_what_counts_neither_tokens_nor_steps_gives_no_curve() -> None:
    table = read(reports().drop(columns="tokens_seen"))
    assert [(r.tokens, r.loss, r.curve) for r in table.records()] == [
        (20 * r.size, 3.0, None) for r in table.records()
    ]


def test_an_early_end_is_no_complete_run() -> None:
    frame = reports()
    with pytest.warns(TableWarning, match="1 runs ended before their planned tokens"):
        table = TrialTable.from_frame(frame.drop(index=[3]))
    first = table.records()[0]
    assert (first.state, first.tokens, first.target_tokens) == ("pruned", 1e7, 2e7)
    by_share = read(frame.drop(index=[3], columns="tokens_seen")).records()[0]
    assert (by_share.state, by_share.tokens) == ("pruned", 1.5e7)  # three of four iterations


def test_a_loss_that_is_lost_and_one_that_is_not_evaluated() -> None:
    lost = reports()
    lost.loc[2:3, "loss"] = np.nan
    assert read(lost).records()[0].state == "diverged"
    between = reports()
    between.loc[[0, 2], "loss"] = np.nan
    record = read(between).records()[0]
    assert (record.state, record.loss) == ("complete", 3.0)
    assert record.curve is not None
    assert len(record.curve.loss) == 2


def test_the_state_of_the_last_row_counts() -> None:
    frame = reports(status="RUNNING")
    frame.loc[3::4, "status"] = "TERMINATED"
    frame.loc[3, "status"] = "ERROR"
    assert [r.state for r in read(frame).records()] == ["failed"] + ["complete"] * 8


def test_an_lr_that_is_set_anew_while_a_run_goes_on_is_no_lr_of_its_own() -> None:
    frame = reports()
    frame.loc[2:3, "config/lr"] = 5e-3
    with pytest.warns(TableWarning, match="no law uses them"):
        table = TrialTable.from_frame(frame)
    assert [r.state for r in table.records()] == ["stopped"] + ["complete"] * 8


def runs(**over: Any) -> pd.DataFrame:
    frame = pd.DataFrame(
        [
            {"size": n, "tokens": t * n, "batch": 65536, "lr": lr, "loss": 3.0 + lr}
            for n in (1e6, 4e6)
            for t in (20, 40)
            for lr in (1e-3, 3e-3)
        ]
    )
    return frame.assign(**over)


@pytest.mark.parametrize(
    "over",
    [
        {"name": ["a", "b"] * 4},
        {
            "name": ["1M", "1M", "1M", "1M", "4M", "4M", "4M", "4M"],
            "steps": lambda f: f["tokens"] / f["batch"],
        },
        {"run": [0, 0, 0, 0, 1, 1, 1, 1]},
        {"step": lambda f: f["tokens"] / f["batch"]},
        {"runtime": range(8), "name": "sweep"},
        {"epoch": 3, "version": 1},
        {"experiment_id": "e1", "time_total_s": range(8)},
    ],
)
def test_a_table_of_runs_stays_one(over: dict[str, Any]) -> None:
    assert len(read(runs(**over))) == 8


def test_repeats_of_one_setting_are_no_reports() -> None:
    frame = pd.concat([runs(), runs(loss=3.3)], ignore_index=True)
    frame = frame.assign(runtime=range(16), epoch=[3, 4] * 8)
    assert len(read(frame)) == 16


def test_without_anything_that_tells_runs_apart_it_is_asked_for() -> None:
    frame = pd.concat([reports(), reports(loss=3.3)]).drop(columns="trial_id")
    with pytest.raises(TableError, match=r"nothing tells its runs apart; name .*columns=\{'trial': …\}"):
        read(frame)
    frame["label"] = np.repeat(np.arange(18), 4)
    assert len(read(frame, {"trial": "label"})) == 18


def test_a_counter_of_another_name_is_named() -> None:
    frame = (
        reports()
        .rename(columns={"training_iteration": "eval_no"})
        .drop(columns=["tokens_seen", "time_total_s"])
    )
    with pytest.raises(TableError, match=r"'t00' .* appears 4 times .*columns=\{'progress': …\}"):
        read(frame)
    table = read(frame, {"progress": "eval_no"})
    assert [(r.tokens, r.loss, r.curve) for r in table.records()] == [
        (20 * r.size, 3.0, None) for r in table.records()
    ]


def grid(**over: Any) -> pd.DataFrame:
    """Five reports of each run of a grid in which every lr occurs at two budgets; nothing names the runs."""
    rows = [
        {
            "step": 1000 * k, "tokens": d, "tokens_seen": d * k / 5, "batch": 65536, "lr": lr, "size": n,
            "val_loss": 3.0 + 1 / k - 0.1 * np.log10(d),
        }
        for n in (1e6, 4e6, 16e6)
        for d in (20 * 1e7, 40 * 1e7)
        for lr in (1e-3, 3e-3, 1e-2)
        for k in range(1, 6)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**over)


@pytest.mark.parametrize("name", ["step", "global_step", "epoch", "iteration"])
def test_reports_without_ids_are_runs_where_their_settings_say_so(name: str) -> None:
    frame = grid().drop(columns="tokens_seen").rename(columns={"step": name})
    for options in ({}, {"progress": name}):
        table = read(frame, options)
        assert len(table) == 18
        assert {r.state for r in table.records()} == {"complete"}
        assert {r.loss for r in table.records()} == set(frame["val_loss"][frame[name] == 5000])


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        (lambda f: f.drop(columns="tokens"), {}),  # every row would be a run of as many tokens as it had seen
        (lambda f: f.drop(columns=["tokens", "step"]), {}),
        (lambda f: f.drop(columns=["tokens", "tokens_seen"]), {"steps": "step"}),
        (lambda f: f.drop(columns="tokens_seen").assign(lr=f["lr"] * (1 - f["step"] / 6000)), {}),  # a scheduler's
        (lambda f: f.drop(columns="tokens_seen").sample(frac=1, random_state=0), {}),
        (lambda f: f.drop(columns="tokens").sample(frac=1, random_state=0), {"progress": "step"}),
    ],
)  # fmt: skip
def test_reports_that_nothing_assigns_to_runs_are_refused(change: Any, columns: dict[str, str]) -> None:
    frame = change(grid())
    with pytest.raises(TableError, match=r"runs' ids with columns=\{'trial': …\}"):
        read(frame, columns)
    frame["label"] = grid().groupby(["size", "tokens", "lr"]).ngroup()
    assert len(read(frame, {**columns, "trial": "label"})) == 18
    noted = read(frame.drop(columns="label"), columns, implausible="warn").notes
    assert any("nothing says which run" in n.message for n in noted)


@pytest.mark.parametrize("name", ["step", "global_step", "epoch", "iteration", "tokens_seen", "steps"])
@pytest.mark.parametrize(
    "by", ["size tokens lr", "size lr tokens", "lr tokens size", "tokens", "loss", "step"]
)
def test_a_grid_of_finished_runs_is_no_table_of_reports(name: str, by: str) -> None:
    frame = pd.DataFrame(
        [
            {"size": n, "tokens": d, "batch": 65536, "lr": lr, "step": d / 65536, "loss": 9 - 0.3 * np.log(d) + lr}
            for n in (1e6, 4e6, 16e6)
            for d in (1e8, 2e8, 4e8, 8e8, 16e8)
            for lr in (1e-3, 3e-3, 1e-2)
        ]
    ).sort_values(by.split())  # fmt: skip
    assert len(read(frame.rename(columns={"step": name}))) == 45
    few = frame[frame["tokens"] < 3e8]  # two budgets are evenly spaced whatever they are
    assert len(read(few.rename(columns={"step": name}))) == 18


def test_an_id_in_every_row_says_that_rows_are_runs() -> None:
    frame = grid().drop(columns="tokens")
    assert len(read(frame.assign(run_id=range(len(frame))))) == len(frame)
