"""Optuna's storages are read by URL or file, whatever the trials call their quantities."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import optuna
import pytest

from metaopt_hpo.trials.schema import TableError, TableWarning
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna.reader import READER

EXPORTS = Path(__file__).parents[1] / "metaopt_hpo/trials/exports/optuna"


def read(path: str, columns: dict[str, str | float] | None = None) -> TrialTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        from metaopt_hpo.trials.conform import Options

        assert READER.recognises(path)
        return TrialTable._from_reading(READER.read(path).reading(Options(columns or {}, {})))


@pytest.mark.parametrize("where", ["url", "file", "journal"])
def test_a_storage_that_optuna_wrote(where: str, tmp_path: Path) -> None:
    shutil.copytree(EXPORTS, tmp_path, dirs_exist_ok=True)
    path = {
        "url": f"sqlite:///{tmp_path}/study.db",
        "file": f"{tmp_path}/study.db",
        "journal": f"{tmp_path}/study.log",
    }
    table = read(path[where])
    assert [r.state for r in table.records()] == ["complete"] * 4 + ["pruned", "failed"]
    first = table.records()[0]
    assert (first.size, first.tokens, first.batch, first.lr) == (1e6, 2e7, 65536, 1e-3)
    assert first.curve is not None
    assert len(first.curve.tokens) == 4


def test_attributes_of_other_names_are_mapped(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    for i in range(3):
        trial = optuna.trial.create_trial(
            value=-3.0 - i,
            params={"learning_rate": 1e-3 * (i + 1)},
            distributions={"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)},
            user_attrs={"N": 1e6, "train_tokens": 2e7, "tokens_per_step": 65536, "weight_decay": 0.1},
        )
        study.add_trial(trial)
    with pytest.raises(TableError, match=r"columns=\{'size': 'user_attrs\.N'\}"):
        read(storage)
    table = read(storage, {"size": "N"})
    assert [r.loss for r in table.records()] == [3.0, 4.0, 5.0]
    assert {r.direction for r in table.records()} == {"maximize"}
    assert table.records()[0].params == {"weight_decay": 0.1}


def test_a_storage_without_studies_and_other_files_are_no_tables(tmp_path: Path) -> None:
    optuna.storages.get_storage(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(TableError, match="holds no studies"):
        read(f"{tmp_path}/empty.db")
    (tmp_path / "notes.log").write_text("no journal\n")
    assert not READER.recognises(str(tmp_path / "notes.log"))
    assert not READER.recognises("https://example.org/x")
