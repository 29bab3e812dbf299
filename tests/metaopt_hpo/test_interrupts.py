"""Signals end a command in one sentence, with the signal's exit code; a second one at once."""

import signal
import subprocess
import sys

import pytest

COMMAND = """
import sys, time
from metaopt_hpo.cli.interrupts import interruptible
with interruptible():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("kept", flush=True)
        time.sleep(float(sys.argv[1]))
        sys.exit(130)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_is_an_interrupt_and_a_second_one_the_end(name: str, times: int) -> None:
    number = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "60" if times == 2 else "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for said in ("kept\n", "")[:times]:
        process.send_signal(number)
        assert process.stdout.readline() == said
    assert process.wait(30) == 128 + number


def test_an_ignored_hangup_stays_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + COMMAND.replace("60", "0.5")
    process = subprocess.Popen([sys.executable, "-c", code, "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0


def test_a_second_signal_ends_a_process_that_is_ending() -> None:
    # whose end takes a minute
    slow = "import atexit, time\natexit.register(lambda: (print('ending', flush=True), time.sleep(60)))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", slow + COMMAND, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for said in ("ready\n", "kept\nending\n"):
        assert "".join(process.stdout.readline() for _ in said.splitlines()) == said
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_signal_after_the_work_leaves_no_traceback() -> None:
    code = """
import atexit, time
atexit.register(lambda: (print("ending", flush=True), time.sleep(60)))
from metaopt_hpo.cli.interrupts import interruptible
with interruptible():
    pass
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    assert process.stderr is not None
    assert process.stderr.read() == ""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_in_a_finalizer_is_not_dropped(name: str) -> None:
    """Python ignores exceptions there, and prints them."""
    code = f"""
import os, signal, weakref
class Thing: pass
def gone(_):
    os.kill(os.getpid(), signal.{name})
    sum(range(1000))
thing = Thing()
kept = weakref.ref(thing, gone)
""" + COMMAND.replace('print("ready", flush=True)', "del thing")
    done = subprocess.run(
        [sys.executable, "-c", code, "0"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("kept\n", "")
    assert done.returncode == 128 + getattr(signal, name)


def test_other_errors_in_finalizers_are_said_as_ever() -> None:
    code = """
class Thing:
    def __del__(self): raise ValueError("of its own")
thing = Thing()
""" + COMMAND.replace("time.sleep(60)", "del thing")
    done = subprocess.run(
        [sys.executable, "-c", code, "0"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "of its own" in done.stderr
    assert done.returncode == 0
