"""When a law is fitted again, and the law in force: a function of the finished trials alone.

Trials are taken in the order they finished, and a law is fitted to the first K of them, K growing by a tenth at a
time. Decisions lag by one of these steps: while the law of the last step but one decides, that of the last is fitted
by a thread, so that no report waits for a fit. What needs a law that is being fitted waits for it: decisions do not
depend on thread timing, and every worker that has seen the same trials decides alike.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling import ending
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import BaseLike, lent
from metaopt_hpo.scaling.build import fit
from metaopt_hpo.scaling.estimates import LawRefused
from metaopt_hpo.scaling.fitting.reading import main_strategy
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy.history import History
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

GROWTH = 1.1
"""Evidence grows by this factor before the law is fitted again: the number of fits is logarithmic in trials."""

EXACT = 20
"""Up to so many trials every new one counts."""

START = 6
"""Completed trials before the first fit: two of each of three sizes; fewer show no law."""

START_WITH_BASE = 3
"""The same with a base, whose exponents and curvature are known: three runs of one cell show where its optimum lies."""

DRAWS = 60
"""Bootstrap draws of a law behind decisions; intervals for people take more."""

DEADLINE = 300.0
"""Seconds after which a fit in another thread is waited for no longer: one takes tenths of a second, and one that hangs
must not hold a search."""

KEPT = 32
"""Laws kept in a process."""


@functools.cache
def step(count: int) -> int:
    """The number of trials a law is fitted to when `count` have finished: the same in every worker."""
    if count <= EXACT:
        return count
    k = EXACT
    while (nxt := int(k * GROWTH) + 1) <= count:
        k = nxt
    return k


def before(count: int) -> int:
    """The step before `step(count)`: whose law decides when `count` have finished."""
    return step(step(count) - 1) if count else 0


@dataclass(frozen=True)
class Fitted:
    """A law in force, or why there is none.

    Attributes:
        law: the law; None before there is one.
        strategy: the strategy whose runs it was fitted to; empty where they have none.
        refusal: why there is no law.
    """

    law: Law | None = None
    strategy: str = ""
    refusal: str = "no trial has completed"


class Refits:
    """The law in force for one search.

    Args:
        need: completed trials, those of earlier searches included, below which no law is fitted (default 6, with a base
            3).
        allow_weak: fit from two sizes too.
        seed: of the bootstrap.
        background: fit ahead in a thread. False fits where the law is asked for.
        first: a law to begin with, until one can be fitted.
        base: what every law borrows strength from, as in `metaopt_hpo.fit`.
        prior: a law whose exponents are believed, as in `metaopt_hpo.fit`; not together with `base`.
    """

    def __init__(
        self,
        *,
        need: int | None = None,
        allow_weak: bool = False,
        seed: int = 0,
        background: bool = True,
        first: Law | None = None,
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
    ) -> None:
        self.base = lent(base, prior)
        usual = START if self.base is None else START_WITH_BASE
        self.need = max(usual if need is None else need, 1)
        self.allow_weak = allow_weak
        self.seed = seed
        self.background = background
        self.first = Fitted(first, refusal="") if first is not None else Fitted()
        self._key: tuple[int, ...] = ()
        self._prepared: tuple[int, ...] = ()
        self._now = self.first

    def begin_with(self, law: Law) -> None:
        """Decide by this law until one can be fitted."""
        self.first = self._now = Fitted(law, refusal="")
        self._key = ()

    def in_force(self, own: History, others: Sequence[History] = ()) -> Fitted:
        """The law that decides now, from a search's trials and those of earlier ones.

        Where the law of the step before is refused, that of the present step is waited for.
        """
        count = len(own.finished)
        ready, coming = before(count), step(count)
        key = (ready, coming, own.late, *(n for o in others for n in (step(len(o.finished)), o.late)))
        if key != self._key:
            self._key, self._now = key, self._find(own, others, ready, coming)
        return self._now

    def ahead(self, own: History, others: Sequence[History] = ()) -> None:
        """Begin the fit of the present step in a thread, without waiting for any."""
        records = _first(own, others, step(len(own.finished)))
        key = (len(records), step(len(own.finished)), own.late, *(o.late for o in others))
        if len(records) >= self.need and key != self._prepared:
            self._prepared = key
            prepare(records, self.allow_weak, self.seed, self.base)

    def _find(self, own: History, others: Sequence[History], ready: int, coming: int) -> Fitted:
        if self.background:
            self.ahead(own, others)
        fitted = self._fit(_first(own, others, ready))
        if fitted.law is None and coming > ready:
            fitted = self._fit(_first(own, others, coming))
        return self.first if fitted.law is None and self.first.law is not None else fitted

    def _fit(self, records: list[TrialRecord]) -> Fitted:
        if len(records) < self.need:
            return Fitted(refusal=f"{len(records)} of the {self.need} completed trials a law needs first")
        return fit_once(records, self.allow_weak, self.seed, self.base)


def _first(own: History, others: Sequence[History], count: int) -> list[TrialRecord]:
    """The first `count` finished trials of a search, and as many of each earlier one as count by steps."""
    chosen = [r for _, r in own.finished[:count]]
    for other in others:
        chosen += [r for _, r in other.finished[: step(len(other.finished))]]
    return chosen


# -- each law once in a process ------------------------------------------------------------------------------


class _Fit:
    """A law that is being fitted, or has been."""

    def __init__(
        self, records: Sequence[TrialRecord], allow_weak: bool, seed: int, base: Base | None
    ) -> None:
        self._records: Sequence[TrialRecord] | None = records
        self._options = allow_weak, seed, base
        self._lock = threading.Lock()
        self._result = Fitted()
        self._given_up = False

    def result(self) -> Fitted:
        """The law, or the reason why there is none; made here unless another thread has, or is at it."""
        if not self._lock.acquire(timeout=0.0 if self._given_up else DEADLINE):
            self._given_up = True  # nobody waits for it twice
            return Fitted(refusal=f"the fit was given up after {DEADLINE:g} s")
        try:
            if self._records is not None:
                self._result = _fit(self._records, *self._options)
                self._records = None
            return self._result
        finally:
            self._lock.release()


_fits: OrderedDict[bytes, _Fit] = OrderedDict()
_lock = threading.Lock()


def _after_fork() -> None:
    """A child has no thread that would finish a fit its parent has begun."""
    global _lock
    _lock = threading.Lock()
    _fits.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def fit_once(
    records: Sequence[TrialRecord], allow_weak: bool = False, seed: int = 0, base: Base | None = None
) -> Fitted:
    """The law of these trials; equal trials are fitted once in a process."""
    return _entry(records, allow_weak, seed, base)[0].result()


def prepare(
    records: Sequence[TrialRecord], allow_weak: bool = False, seed: int = 0, base: Base | None = None
) -> None:
    """Begin to fit the law of these trials in a thread, so that `fit_once` finds it."""
    entry, new = _entry(records, allow_weak, seed, base)
    if new:
        ending.start(entry.result, "metaopt-law")


def _entry(
    records: Sequence[TrialRecord], allow_weak: bool, seed: int, base: Base | None
) -> tuple[_Fit, bool]:
    key = digest(records) + bytes([allow_weak]) + seed.to_bytes(8, "little")
    if base is not None:
        key += hashlib.sha256(json.dumps(base.to_dict(), sort_keys=True).encode()).digest()
    with _lock:
        new = key not in _fits
        if new:
            _fits[key] = _Fit(list(records), allow_weak, seed, base)
            while len(_fits) > KEPT:
                _fits.popitem(last=False)
        _fits.move_to_end(key)
        return _fits[key], new


def digest(records: Sequence[TrialRecord]) -> bytes:
    """Of everything that a fit reads: quantities, planned tokens, who tunes lr, further hyperparameters, curves."""
    numbers = np.array(
        [(r.size, r.tokens, r.target_tokens, r.batch, r.lr, r.loss, r.found_lr) for r in records], dtype=float
    )
    whole = hashlib.sha256(numbers.tobytes())
    for r in records:
        text = (r.strategy, r.tuning, r.state, r.trial, r.study, sorted(r.params.items()))
        whole.update(repr(text).encode())
        if r.curve is not None:
            whole.update(np.array([r.curve.tokens, r.curve.loss], dtype=float).tobytes())
    return whole.digest()


def _fit(records: Sequence[TrialRecord], allow_weak: bool, seed: int, base: Base | None) -> Fitted:
    strategy = main_strategy([r.strategy for r in records if not r.self_tuning])
    try:
        # remarks about the table are in law.warnings, and catching warnings in a thread would disturb the others
        table = TrialTable.from_records(records, warn=False)
        return Fitted(fit(table, allow_weak=allow_weak, base=base, draws=DRAWS, seed=seed), strategy, "")
    except LawRefused as refused:
        return Fitted(None, strategy, refused.reason)
    except Exception as error:  # a fit that fails must not end a search
        return Fitted(None, strategy, f"the fit failed: {type(error).__name__}: {error}")
