"""The short form of `make chaos`: a few kills of two commands, and what they leave is that of an undisturbed run."""

from pathlib import Path

import pytest
from kills import disturbed, undisturbed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers in /proc")
@pytest.mark.parametrize("name", ["compare-one-process", "live-table"])
def test_a_killed_and_resumed_command_leaves_what_an_undisturbed_one_does(name: str, tmp_path: Path) -> None:
    whole, seconds = undisturbed(name, tmp_path)
    tally = disturbed(name, tmp_path, whole, seconds, kills=3, seed=1)
    assert (tally.lost, tally.hangs, tally.tracebacks, tally.orphans) == (0, 0, 0, 0), tally.notes
    assert tally.equal == tally.compared == 1, tally.notes
