"""What a study knows so far: finished trials, the best of each size, and the law they bear, fitted once.

A law is a function of the finished trials alone, so that every worker that has seen the same trials decides
alike: they are taken in the order they finished, and the law is fitted to the first K of them, K growing by a
tenth at a time. Fits are shared by everything in the process that meets the same trials.
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import Fields, StudyWarning
from metaopt_hpo_optuna.study_table import check_single_objective, trial_record

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law

GROWTH = 1.1
"""Evidence grows by this factor before the law is fitted again: the number of fits is logarithmic in trials."""

EXACT = 20
"""Up to so many trials every new one counts."""

DRAWS = 60
"""Bootstrap draws of a law behind decisions; intervals for people take more."""

KEPT_LAWS = 32

MAD_TO_SD = 1.4826
"""Median absolute deviation to standard deviation, for normal errors."""

Cell = tuple[float, float]
"""Size and planned tokens."""


@dataclass
class Known:
    """What has been read of one study."""

    seen: set[int] = field(default_factory=set)
    finished: list[tuple[Any, int, TrialRecord]] = field(default_factory=list)
    """Completed trials with a size, by the time they finished."""
    best: dict[Cell, float] = field(default_factory=dict)
    """Lowest final loss of each (size, tokens)."""
    still_to_fall: dict[Cell, list[float]] = field(default_factory=dict)
    """(planned tokens, tokens so far) → ln(final loss / loss so far) of every finished trial."""
    count: int = 0
    law: Law | None = None
    refusal: str = ""
    fitted: tuple[int, int] = (-1, -1)
    sources: list[Known] = field(default_factory=list)
    expected: dict[Cell, tuple[int, float, float]] = field(default_factory=dict)

    def fall(self, tokens: float, seen: float) -> tuple[int, float, float]:
        """How much finished trials planned for `tokens` still fell from `seen` tokens on.

        Returns:
            Their number, and the median and robust standard deviation of ln(final loss / loss at `seen`).
        """
        lists = [k.still_to_fall.get((tokens, seen), ()) for k in (self, *self.sources)]
        count = sum(map(len, lists))
        found = self.expected.get((tokens, seen))
        if found is None or found[0] != count:
            falls = np.concatenate([np.asarray(x, dtype=float) for x in lists])
            middle = float(np.median(falls)) if count else math.nan
            spread = MAD_TO_SD * float(np.median(np.abs(falls - middle))) if count else math.nan
            found = self.expected[tokens, seen] = (count, middle, spread)
        return found


class Evidence:
    """Laws of studies, from their own trials and those of `source_studies`.

    Args:
        names: where trials keep size, tokens, batch and lr.
        source_studies: studies whose trials count as well, read again when they have grown.
        allow_weak: fit from two sizes too.
        need: completed trials with a size below which no law is fitted.
    """

    def __init__(
        self, names: Fields, source_studies: Sequence[Study], *, allow_weak: bool, need: int
    ) -> None:
        for source in source_studies:
            if not isinstance(source, Study):
                raise ValueError(
                    f"source_studies must hold optuna studies, got {type(source).__name__}; load one with "
                    "optuna.load_study, or make one of a table with metaopt_hpo_optuna.add_records"
                )
            check_single_objective(source, "a law")
        self.names = names
        self.sources = tuple(source_studies)
        self._allow_weak = allow_weak
        self._need = max(need, 1)
        self._forget()

    def _forget(self) -> None:
        self._known: weakref.WeakKeyDictionary[BaseStorage, dict[int, Known]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_known", "_lock", "_told")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def place(self, trial: FrozenTrial) -> Cell | None:
        """Size and planned tokens of a trial, None where it has not both."""
        size, tokens = self.names.get(trial, "size"), self.names.get(trial, "tokens")
        return None if size is None or tokens is None else (size, tokens)

    def read(self, study: Study, *, at_ask: bool = False) -> Known:
        """The study's finished trials and the law they bear, up to date.

        Args:
            study: the study.
            at_ask: as of the present trial's beginning, which a sampler has read already; less to read.

        Raises:
            ValueError: a multi-objective study, or a source whose direction contradicts the study's.
        """
        with self._lock:
            known = self._update(study, at_ask)
            known.sources = sources = [self._update(s, False) for s in self.sources]
            for source in self.sources:
                if source.direction != study.direction:
                    raise ValueError(
                        f"source study {source.study_name!r} is to {source.direction.name.lower()} and study "
                        f"{study.study_name!r} to {study.direction.name.lower()}; a law cannot serve both, "
                        "negate the values of one of them"
                    )
            others = sum(len(s.finished) for s in sources)
            key = (step(len(known.finished)), others)
            if key != known.fitted:
                chosen = [r for _, _, r in known.finished[: key[0]]]
                for other in sources:
                    chosen += [r for _, _, r in other.finished]
                known.law, known.refusal = self._fit(chosen)
                known.fitted = key
            return known

    def tell_once(self, code: str, message: str) -> None:
        """Warn with a `StudyWarning`, the first time for each code."""
        if code not in self._told:
            self._told.add(code)
            warnings.warn(message, StudyWarning, stacklevel=4)

    def _update(self, study: Study, at_ask: bool) -> Known:
        storage, study_id = _compat.storage_of(study), _compat.study_id(study)
        known = self._known.setdefault(storage, {}).setdefault(study_id, Known())
        if at_ask:
            complete = [t for t in _compat.trials_at_ask(study) if t.state == TrialState.COMPLETE]
        else:
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) == known.count:
            return known
        check_single_objective(study, "a law")
        fresh = False
        for trial in complete:
            if trial.number in known.seen:
                continue
            known.seen.add(trial.number)
            record = trial_record(trial, self.names, study.study_name, study.direction)
            if record is None or record.state != "complete":
                continue
            fresh = True
            known.finished.append((trial.datetime_complete, trial.number, record))
            cell = (record.size, record.target_tokens)
            known.best[cell] = min(record.loss, known.best.get(cell, record.loss))
            if record.curve is not None and record.loss > 0:
                for t, loss in zip(record.curve.tokens, record.curve.loss, strict=True):
                    if 0 < loss < math.inf:
                        falls = known.still_to_fall.setdefault((record.target_tokens, t), [])
                        falls.append(math.log(record.loss / loss))
        known.count = len(complete)
        if fresh:
            known.finished.sort(key=lambda item: item[:2])
        return known

    def _fit(self, records: list[TrialRecord]) -> tuple[Law | None, str]:
        if len(records) < self._need:
            return None, f"{len(records)} of the {self._need} completed trials a law needs first"
        return fit_once(records, self._allow_weak)


def step(count: int) -> int:
    """The number of trials a law is fitted to when `count` have finished: the same in every worker."""
    if count <= EXACT:
        return count
    k = EXACT
    while (nxt := int(k * GROWTH) + 1) <= count:
        k = nxt
    return k


_laws: OrderedDict[bytes, tuple[Law | None, str]] = OrderedDict()
_laws_lock = threading.Lock()


def fit_once(records: Sequence[TrialRecord], allow_weak: bool) -> tuple[Law | None, str]:
    """The law of these trials, or None and the reason; equal trials are fitted once in a process."""
    from metaopt_hpo.scaling import LawRefused, fit
    from metaopt_hpo.trials.table import TrialTable

    numbers = np.array([(r.size, r.tokens, r.batch, r.lr, r.loss, r.plateau_lr) for r in records])
    text = "\n".join(r.strategy for r in records)
    key = hashlib.sha256(numbers.tobytes() + text.encode() + bytes([allow_weak])).digest()
    with _laws_lock:
        if key in _laws:
            _laws.move_to_end(key)
            return _laws[key]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about the table are in law.warnings
            table = TrialTable.from_records(records)
        found: tuple[Law | None, str] = (fit(table, allow_weak=allow_weak, draws=DRAWS), "")
    except LawRefused as refused:
        found = (None, refused.reason)
    with _laws_lock:
        _laws[key] = found
        while len(_laws) > KEPT_LAWS:
            _laws.popitem(last=False)
    return found
