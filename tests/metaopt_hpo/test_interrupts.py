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
