"""Several processes write one checkpoint: whoever reads finds one whole file, however the writers end."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from metaopt_hpo.training.checkpoint import load, save


def write_on(file: Path, who: int) -> None:
    while True:
        save(file, {"who": who, "weights": torch.full((100_000,), float(who))})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be replaced there")
def test_writers_of_one_checkpoint_leave_one_whole_file(tmp_path: Path) -> None:
    file, authors = tmp_path / "run.pt", set()
    forked = multiprocessing.get_context("fork")
    writers = [forked.Process(target=write_on, args=(file, i), daemon=True) for i in range(3)]
    for writer in writers:
        writer.start()
    try:
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.01)
        for i in range(200):
            state = load(file)  # raises where it is not whole
            authors.add(state["who"])
            assert state["weights"].shape == (100_000,)
            assert state["weights"].unique().tolist() == [float(state["who"])]
            if i == 150:
                writers[0].kill()
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert len(authors) > 1
    load(file)
    left = set(os.listdir(tmp_path)) - {"run.pt"}
    assert len(left) <= 3  # what each was writing as it was killed
    for name in left:
        os.utime(tmp_path / name, (0, time.time() - 7200))
    save(file, {"who": 9})
    assert os.listdir(tmp_path) == ["run.pt"]
