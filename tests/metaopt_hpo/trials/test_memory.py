"""Memory of large tables: a million rows must be read and fitted within 2 GiB."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling.fitting.cells import MAX_RUNS
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.trials import files
from metaopt_hpo.trials.table import TrialTable

ROWS = 6000
BYTES_A_ROW = 1200.0
"""A million rows at this and the interpreter with its libraries stay under 2 GiB."""


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": rng.choice([1e7, 1e8, 1e9], ROWS),
            "tokens": 1e10,
            "batch": 1e5,
            "lr": rng.uniform(1e-4, 1e-2, ROWS),
            "loss": rng.uniform(2, 3, ROWS),
            "weight_decay": 0.1,
            "note": "run of the sweep",
        }
    )
    out = tmp_path / f"t{request.param}"
    frame.to_csv(out, index=False) if request.param == ".csv" else frame.to_parquet(out)
    return out


@pytest.mark.parametrize("path", [".csv", ".parquet"], indirect=True)
def test_reading_and_thinning_take_little_more_than_the_table(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK_ROWS", 500)
    TrialTable.read(path)  # what is imported and cached once does not count
    tracemalloc.start()
    try:
        cells = from_table(TrialTable.read(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cells.n == ROWS
    assert peak / ROWS < BYTES_A_ROW


@pytest.mark.parametrize("path", [".csv", ".parquet"], indirect=True)
def test_a_file_is_never_whole_in_memory_before_it_is_conformed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK_ROWS", 500)
    assert max(len(chunk) for chunk in files.chunks(path)) == 500
    assert sum(len(chunk) for chunk in files.chunks(path)) == ROWS
    assert MAX_RUNS <= 10_000  # a fit's time and memory are bounded by this, whatever the table
