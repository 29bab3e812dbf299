"""A file is replaced whole or not at all, whatever ends the write."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaopt_hpo import atomic
from metaopt_hpo.atomic import WriteError, replacing, write_text


def test_text_and_missing_folders(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "t.txt"
    write_text(file, "ä\n")
    write_text(file, "β\n")
    assert file.read_bytes() == "β\n".encode()
    assert os.listdir(file.parent) == ["t.txt"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "t.txt"
    write_text(file, "old")

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)) as raised:
        fail()
    if isinstance(error, OSError):
        assert str(file) in str(raised.value)
        assert "No space left on device" in str(raised.value)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE stands for a full disk")
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    import resource

    file = tmp_path / "t.txt"
    write_text(file, "old" * 10)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(WriteError, match=r"t\.txt.*unchanged"):
            write_text(file, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert file.read_text() == "old" * 10


def test_places_that_take_no_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "t.txt"):
        with pytest.raises(WriteError, match="cannot write"):
            write_text(place, "x")


def test_links_are_written_through_and_permissions_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    write_text(real, "old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_what_killed_writers_left_is_removed_in_time(tmp_path: Path) -> None:
    file = tmp_path / "t[1].txt"
    old, young, other = (
        tmp_path / n for n in (".t[1].txt.1-ab.tmp", ".t[1].txt.2-cd.tmp", ".t1.txt.3-ef.tmp")
    )
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, times=(0, time.time() - 2 * atomic.ABANDONED))
    write_text(file, "x")
    assert sorted(tmp_path.iterdir()) == sorted([file, young, other])


def test_a_killed_writer_and_concurrent_ones_leave_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    code = (
        "import sys\nfrom metaopt_hpo.atomic import write_text\n"
        "while True: write_text(sys.argv[1], sys.argv[2] * 300_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), letter]) for letter in "abc"]
    try:
        while not file.exists():
            time.sleep(0.02)
        for _ in range(50):
            text = file.read_text()
            assert len(set(text)) == 1
            assert len(text) == 300_000
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    text = file.read_text()
    assert (len(set(text)), len(text)) == (1, 300_000)


def test_a_clock_set_ahead_removes_nothing_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.txt"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".t.txt.{gone.pid}-00000000.tmp"
    left.write_text("of a process that has ended")
    with replacing(file) as slow:
        slow.write_text("slow")
        now = time.time() + 10 * atomic.ABANDONED
        monkeypatch.setattr(atomic.time, "time", lambda: now)
        write_text(file, "quick")
        assert not left.exists()
        assert slow.exists()
    assert file.read_text() == "slow"
    assert os.listdir(tmp_path) == ["t.txt"]
