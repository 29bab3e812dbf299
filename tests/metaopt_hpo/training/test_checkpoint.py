"""Checkpoints appear whole or not at all, and a file that would run code is refused."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from metaopt_hpo.training import CheckpointError, checkpoint


def test_round_trip_and_random_state(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "c.pt"
    checkpoint.save(file, {"x": torch.arange(3), "random": checkpoint.random_state()})
    drawn = torch.rand(2), np.random.rand(), random.random()  # noqa: NPY002
    checkpoint.set_random_state(checkpoint.load(file)["random"])
    again = torch.rand(2), np.random.rand(), random.random()  # noqa: NPY002
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]
    assert os.listdir(file.parent) == ["c.pt"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.pt"
    checkpoint.save(file, {"x": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(file, {"x": 2})
    assert checkpoint.load(file)["x"] == 1
    assert os.listdir(tmp_path) == ["c.pt"]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["bomb", "garbage", "foreign", "empty", "folder"])
def test_foreign_files_are_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "c.pt"
    if kind == "bomb":
        file.write_bytes(pickle.dumps(Bomb()))
    elif kind == "garbage":
        file.write_bytes(b"not a checkpoint")
    elif kind == "foreign":
        torch.save({"x": 1}, file)
    elif kind == "empty":
        file.touch()
    else:
        file.mkdir()
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        checkpoint.load(file)
    assert not (tmp_path / "exploded").exists()


def test_a_newer_version_and_a_missing_file_are_named(tmp_path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION + 1}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="upgrade"):
        checkpoint.load(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "none.pt")
