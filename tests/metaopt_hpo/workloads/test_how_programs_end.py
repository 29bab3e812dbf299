"""How a program ends: by itself, by a fault, by a reason to stop, with its parent; and begins again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import LINE, configuration


@pytest.mark.parametrize(
    ("body", "state", "says"),
    [
        ("print('loss: 3.0'); sys.exit(7)", "failed", "exit code 7"),
        (
            "raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')",
            "failed",
            "out of memory at 16",
        ),
        ("raise FloatingPointError('loss is NaN at step 3')", "diverged", "NaN"),
        (
            "for s in points: print(json.dumps({'step': s, 'loss': float('nan') if s > 10 else 3.0}))",
            "diverged",
            "not finite",
        ),
        ("for s in points: print(json.dumps({'step': s, 'loss': 3.0 + s}))", "diverged", "more than 2 times"),
        ("raise ValueError('inf/nan in the gradients')", "diverged", "inf/nan"),
        ("import nanochat_that_is_not_there", "failed", "nanochat"),
        ("open('/home/hernan/nan.bin')", "failed", "nan.bin"),
        ("print(json.dumps({'step': 8, 'loss': 3.0}))", "stopped", "128 of 640"),
        ("for s in (0, 15, 30): print(json.dumps({'step': s, 'loss': 3.0}))", "complete", ""),
        ("for s in (0, 10, 20): print(json.dumps({'step': s, 'loss': 3.0}))", "stopped", "320 of 640"),
        ("os.kill(os.getpid(), 9)", "failed", "SIGKILL"),
        ("print(json.dumps({'step': 8, 'loss': 3.0}), flush=True); time.sleep(60)", "failed", "limit of 1"),
    ],
)
def test_how_a_run_ended_is_said(make, body: str, state: str, says: str) -> None:
    began = time.monotonic()
    record = make(body, timeout=1.5 if "sleep" in body else None, retries=0).run(configuration())
    assert record.state == state
    assert says.lower() in record.reason.lower() or (says == "SIGKILL" and "out of memory" in record.reason)
    assert time.monotonic() - began < 30


def test_a_run_that_failed_by_chance_is_tried_again_in_its_folder(make) -> None:
    body = """
    if not (out / "once").exists():
        (out / "once").touch()
        sys.exit("the network is down")
    print(json.dumps({"step": a.steps, "loss": 2.0}))
    """
    record = make(body, retries=1).run(configuration())
    assert (record.state, record.params["attempts"]) == ("complete", 2)
    assert "network" in Path(str(record.params["logs"]), "stderr.log.1").read_text()


def test_a_reason_to_stop_ends_the_program_and_what_it_started(make, tmp_path: Path) -> None:
    body = """
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out / "child").write_text(str(child.pid))
    for s in range(1, 41):
        print(json.dumps({"step": s, "loss": 5.0}), flush=True)
        time.sleep(0.05)
    time.sleep(60)
    """
    seen: list[int] = []

    def report(tokens: int, loss: float) -> str | None:
        seen.append(tokens)
        return "worse than others" if tokens > 100 else None

    record = make(body).run(configuration(), report)
    assert (record.state, record.reason) == ("pruned", "worse than others")
    assert seen == sorted(set(seen))
    child = int(Path(str(record.params["logs"]), "out", "child").read_text())
    assert not alive(child)


def test_nothing_is_left_when_the_parent_is_killed(make, tmp_path: Path) -> None:
    make('(out.parent.parent / "pid").write_text(str(os.getpid())); time.sleep(60)')
    code = f"""
from pathlib import Path
from metaopt_hpo.comparison.command_objective import CommandObjective
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.workloads.jobs import command_job
here = Path({str(tmp_path)!r})
job = command_job({LINE!r}, sizes={{8: 100.0}}, batch=16, cwd=here, folder=here / "jobs")
CommandObjective(job).run(Configuration(size=100.0, tokens=640.0, batch=16.0, lr=0.01))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid = tmp_path / "jobs" / "pid"
    wait(lambda: pid.exists() and pid.read_text() != "")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait(lambda: not alive(int(pid.read_text())))


def test_a_run_goes_on_in_the_folder_it_began_in(make, tmp_path: Path) -> None:
    body = """
    (out / "starts").open("a").write("x")
    if len((out / "starts").read_text()) == 1: sys.exit(1)
    print(json.dumps({"step": a.steps, "loss": 2.0}))
    """
    objective = make(body, retries=0)
    marker = tmp_path / "marker"
    assert objective.run_saved(configuration(), lambda t, v: None, marker).state == "failed"
    record = objective.run_saved(configuration(), lambda t, v: None, marker)
    assert record.state == "complete"
    assert len(list((tmp_path / "jobs").iterdir())) == 1


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait(done, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
