"""Checkpoints appear whole or not at all, and a file that would run code is refused."""

import contextlib
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaopt_hpo.strategies import make
from metaopt_hpo.training import CheckpointError, checkpoint
from metaopt_hpo.training.ending import RunDiverged
from metaopt_hpo.training.run import TrainingRun


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


@pytest.mark.parametrize("version", [checkpoint.VERSION - 1, checkpoint.VERSION + 1])
def test_another_version_and_a_missing_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", version)
        checkpoint.save(tmp_path / "c.pt", {})
    with pytest.raises(CheckpointError, match=f"version {version}, this installation reads"):
        checkpoint.load(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "none.pt")


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    checkpoint.save(file, {"x": torch.randn(40, 40), "n": 3})
    whole = file.read_bytes()
    draw = random.Random(0)
    damaged = [flipped(whole, draw.randrange(8 * len(whole))) for _ in range(200)]
    damaged += [whole[: draw.randrange(len(whole))] for _ in range(20)] + [whole + b"x", whole[:-1]]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"c\.pt"):
            checkpoint.load(file)


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def train(
    file: Path, steps: int = 40, strategy: str = "cosine", width: int = 8, **changed: Any
) -> TrainingRun:
    torch.manual_seed(0)
    model = torch.nn.Linear(width, 1)
    x = torch.randn(32, width)
    options: dict[str, Any] = {"size": 8, "tokens": 1280, "batch": 32, "seed": 0, "workload": "w"} | changed
    lr = options.pop("lr", 1e-2)

    def loss() -> torch.Tensor:
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    with TrainingRun(model, make(strategy, lr=lr), evaluate=loss, checkpoint=file, **options) as run:
        for step in run:
            run.step(loss())
            if step + 1 == steps:
                break
    return run


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"strategy": "wsd"}, "strategy 'cosine' instead of 'wsd'"),
        ({"lr": 2e-2}, "lr 0.01 instead of 0.02"),
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"size": 9}, "size 8.0 instead of 9.0"),
        ({"tokens": 2560}, "tokens 1280.0 instead of 2560.0"),
        ({"batch": 16}, "batch 32.0 instead of 16.0"),
        ({"workload": "v"}, "workload 'w' instead of 'v'"),
        ({"width": 9}, "model '9 weights"),
    ],
)
def test_a_run_goes_on_from_its_own_checkpoint_only(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    file = tmp_path / "c.pt"
    train(file, steps=16)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        train(file, **changed)
    assert train(file).loss == train(tmp_path / "whole.pt").loss


def test_a_foreign_state_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"x": 1})
    with pytest.raises(CheckpointError, match="does not say which run"):
        train(tmp_path / "c.pt")
    whose = train(tmp_path / "d.pt").identity()
    checkpoint.save(tmp_path / "c.pt", {"identity": whose, "model": {}})
    with pytest.raises(CheckpointError, match="does not fit this run"):
        train(tmp_path / "c.pt")


def test_bad_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = None
    reached = []
    for end in (6, 20):
        model = torch.nn.Linear(2, 1)
        run = TrainingRun(model, make("constant"), size=2, tokens=640, batch=32, evaluate=lambda: 1.0)
        if state is not None:
            run.load_state_dict(state)
        with contextlib.suppress(RunDiverged):
            while run.steps_taken < end:
                run.step(model(torch.ones(1, 2)).sum() * float("nan"))
        state = run.state_dict()
        reached.append(run.steps_taken)
    assert reached == [6, 10]


class OnDevice(torch.Tensor):
    """Stands for a tensor on a GPU: NumPy and the generators take it only after `.cpu()`."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(function, "__name__", "")
        if name == "numpy":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "cpu":
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_random_states_that_were_loaded_to_a_device_are_restored() -> None:
    state = checkpoint.random_state()
    expected = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    moved = torch.utils._pytree.tree_map(
        lambda x: x.as_subclass(OnDevice) if isinstance(x, torch.Tensor) else x, state
    )
    checkpoint.set_random_state(moved)
    again = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert torch.equal(expected[0], again[0])
    assert (expected[1] == again[1]).all()
    assert expected[2] == again[2]
