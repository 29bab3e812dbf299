"""A process that ends while laws are being fitted in threads ends as it would have without them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from metaopt_hpo.scaling import ending

PROGRAM = """
import atexit, os, sys, threading

def left():
    if any(t.name == "metaopt-law" for t in threading.enumerate()):
        os.write(2, b"a fit goes on while the interpreter is torn down")
        os._exit(99)

atexit.register(left)  # before the imports below: what is registered first is called last
import torch  # its libraries abort when a thread is ended by force
import math, time
import numpy as np
from metaopt_hpo.scaling.policy import refits
from metaopt_hpo.trials.record import TrialRecord

refits.DRAWS = 100_000  # a fit that does not end while this test looks on
rng = np.random.default_rng(0)

def record(i):
    n, u = [1e6, 4e6, 16e6, 64e6][i % 4], rng.uniform(-1.5, 1.5)
    loss = 1.7 + 300 * n**-0.35 + 0.03 * u * u + 0.002 * rng.standard_normal()
    return TrialRecord(size=n, tokens=20 * n, batch=65536, lr=0.8 * n**-0.3 * math.exp(u), loss=loss, trial=str(i))

records = [record(i) for i in range(200)]

def begin_and_end(delay):
    for seed in range(2):
        refits.prepare(records, seed=seed)
    time.sleep(delay)
    assert any(t.name == "metaopt-law" for t in threading.enumerate()), "the fits were too quick for this test"
    END

REPEAT
"""

ENDS = {
    "the end of the program": ("pass", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an error": ("raise RuntimeError('an error of the program')", 1, "an error of the program"),
}

FORKS = """
for i in range(10):
    child = os.fork()
    if child == 0:
        begin_and_end(0.01 * i)
        sys.exit(0)
    ended = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(ended) == 0, f"process {i} ended with {os.waitstatus_to_exitcode(ended)}"
"""


def run(end: str, repeat: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("END", end).replace("REPEAT", repeat)
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_while_laws_are_fitted(how: str) -> None:
    end, code, said = ENDS[how]
    done = run(end, "begin_and_end(0.05)")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "terminate called" not in done.stderr
    assert "metaopt-law" not in done.stderr, "no thread leaves a traceback"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_processes_that_end_at_ten_moments_of_a_fit() -> None:
    done = run("pass", FORKS)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr


def test_a_fit_in_another_thread_is_not_stopped_by_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_ending", True)
    ending.go_on()  # a hook at exit that fits a law of its own
    ending.start(lambda: pytest.fail("nothing begins once the interpreter is ending"), "late")
