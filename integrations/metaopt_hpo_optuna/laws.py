"""Fits of laws, each made once in a process, and made ahead by a thread where that is possible.

A fit with its bootstrap takes 0.2 to 2 s. What needs one that is being made waits for it; nothing is decided by who
was faster.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.trials.record import TrialRecord

if TYPE_CHECKING:
    from metaopt_hpo.scaling import Law

DRAWS = 60
"""Bootstrap draws of a law behind decisions; intervals for people take more."""

KEPT = 32
"""Laws kept in a process."""


class _Fit:
    """A law that is being fitted, or has been."""

    def __init__(self, records: Sequence[TrialRecord], allow_weak: bool) -> None:
        self._records: Sequence[TrialRecord] | None = records
        self._allow_weak = allow_weak
        self._lock = threading.Lock()
        self._result: tuple[Law | None, str] = (None, "")

    def result(self) -> tuple[Law | None, str]:
        """The law, or None and the reason; made here unless another thread has, or is at it."""
        with self._lock:
            if self._records is not None:
                self._result = _fit(self._records, self._allow_weak)
                self._records = None
            return self._result


_fits: OrderedDict[bytes, _Fit] = OrderedDict()
_lock = threading.Lock()


def _after_fork() -> None:
    """A child has no thread that would finish a fit its parent has begun."""
    global _lock
    _lock = threading.Lock()
    _fits.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def fit_once(records: Sequence[TrialRecord], allow_weak: bool) -> tuple[Law | None, str]:
    """The law of these trials, or None and the reason; equal trials are fitted once in a process."""
    return _entry(records, allow_weak)[0].result()


def prepare(records: Sequence[TrialRecord], allow_weak: bool) -> None:
    """Begin to fit the law of these trials in a thread, so that `fit_once` finds it."""
    entry, new = _entry(records, allow_weak)
    if new:
        threading.Thread(target=entry.result, name="metaopt-law", daemon=True).start()


def _entry(records: Sequence[TrialRecord], allow_weak: bool) -> tuple[_Fit, bool]:
    numbers = np.array([(r.size, r.tokens, r.batch, r.lr, r.loss, r.found_lr) for r in records])
    text = "\n".join(r.strategy for r in records)
    key = hashlib.sha256(numbers.tobytes() + text.encode() + bytes([allow_weak])).digest()
    with _lock:
        new = key not in _fits
        if new:
            _fits[key] = _Fit(list(records), allow_weak)
            while len(_fits) > KEPT:
                _fits.popitem(last=False)
        _fits.move_to_end(key)
        return _fits[key], new


def _fit(records: Sequence[TrialRecord], allow_weak: bool) -> tuple[Law | None, str]:
    from metaopt_hpo.scaling import LawRefused, fit
    from metaopt_hpo.trials.table import TrialTable

    try:
        # remarks about the table are in law.warnings, and catching warnings in a thread would disturb the others
        table = TrialTable.from_records(records, warn=False)
        return fit(table, allow_weak=allow_weak, draws=DRAWS), ""
    except LawRefused as refused:
        return None, refused.reason
