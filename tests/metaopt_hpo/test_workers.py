"""Workers end with their parent however it ends, and a killed one is one sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaopt_hpo.locks import InUse, only_process
from metaopt_hpo.workers import WorkerKilled, worker_pool

PARENT = """
import os, sys, time
from metaopt_hpo.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*sorted({pool.submit(os.getpid).result() for _ in range(20)}), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(number: int, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    parent.send_signal(number)
    parent.wait(30)
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return not Path("/proc/self/stat").exists()
    return state != "Z"


def test_a_killed_worker_is_one_sentence() -> None:
    def run() -> None:
        with worker_pool(2) as pool:
            pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()

    with pytest.raises(WorkerKilled, match="a worker process was killed") as raised:
        run()
    assert raised.value.__suppress_context__


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "x.lock"
    code = (
        "import sys, time\nfrom metaopt_hpo.locks import only_process\nwith only_process(sys.argv[1], 'x'):\n"
    )
    code += "    print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InUse, match="the results is in use"), only_process(lock, "the results", patience=0.0):
        pass
    holder.kill()
    holder.wait()
    with only_process(lock, "x", patience=30.0):
        pass
