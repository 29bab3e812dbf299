"""Settings that hold for every test: one thread for each process, for runs are deterministic per thread count; and
signals as a terminal has them, for what starts the tests in the background (nohup, a CI runner) may ignore some, and
processes inherit that."""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no hangup
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture
def ray_running() -> Iterator[None]:
    """A running Ray of two CPUs: this process's own, which other tests go on using, else one for this test."""
    ray = pytest.importorskip("ray", reason="needs Ray")
    if ray.is_initialized():
        yield
        return
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
