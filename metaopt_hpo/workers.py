"""Worker processes that end with their parent, and say in one sentence when one of them was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from metaopt_hpo.errors import MetaOptError


class WorkerKilled(MetaOptError):
    """A worker process ended from outside."""


@contextmanager
def worker_pool(
    count: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes. Where the block raises, they are terminated; where this process ends, they end.

    Ctrl-C reaches the whole process group: workers ignore it, and this process decides.

    Raises:
        WorkerKilled: instead of concurrent.futures' BrokenProcessPool, from the block.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin, initargs=(initializer, initargs)
    )
    try:
        yield pool
    except BaseException as error:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkerKilled(
                "a worker process was killed, perhaps for want of memory; what is finished is kept: start the same "
                "command again, with fewer --workers if memory is short"
            ) from None
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name="metaopt-parent").start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
