"""Signs of life for trials where the storage has none, and retries of trials whose worker is gone.

Optuna's heartbeat exists on relational storages inside `Study.optimize` only. A lease is a user attribute of
the running trial, the time until which it counts as alive, renewed by a thread of its worker; it works on every
storage, with ask-and-tell too. Workers' clocks must agree to within the lease. Where this process's own clock jumps
ahead (it is set, or the machine was asleep), other workers' leases look run out until they renew them: the jump is not
counted for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import sqlalchemy.exc
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt_hpo.clock import SteadyNow, retried
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import FLOPS_PER_TOKEN, LEASE, REASON

RENEWALS = 4
"""A lease is renewed this often before it would run out, so that one slow write does not lose it."""

PATIENCE = 120.0
"""Seconds for which a storage that does not answer is tried again before the trial gives up."""

T = TypeVar("T")


class Lease:
    """Keeps a trial's lease up to date while the block runs.

    Args:
        trial: a running trial.
        seconds: length of the lease; a worker that is silent so long has lost its trial.
    """

    def __init__(self, trial: Trial, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a lease must last more than 0 seconds, got {seconds!r}")
        self._trial = trial
        self._seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="metaopt-lease", daemon=True)

    def take(self) -> None:
        """Write the lease once, before anything else of the run is written."""
        patiently(self._renew)

    def __enter__(self) -> Lease:
        self.take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self) -> None:
        # past the trial's own attributes, which the training thread may be reading
        _compat.write_live_attr(self._trial, LEASE, time.time() + self._seconds)

    def _keep(self) -> None:
        while not self._done.wait(self._seconds / RENEWALS):
            try:
                self._renew()
            except optuna.exceptions.UpdateFinishedTrialError:
                return  # the trial has ended; there is nothing to keep
            except Exception:  # the next renewal tries again
                continue


GRACE = 600.0
"""Seconds from a trial's beginning to its lease: enough to load data and build a model."""


_now = SteadyNow(GRACE)
"""Other workers' leases lag behind a jump of this process's own clock until they renew them."""


def retry_stale_trials(
    study: Study, trial: FrozenTrial | None = None, *, max_retry: int = 3, grace: float | None = GRACE
) -> list[int]:
    """Close running trials whose lease has run out and queue each again, to go on from its checkpoint.

    A worker that is killed between `ask` and `TrialRun` leaves a trial that never had a lease. In a study whose
    trials take leases, one that is `grace` seconds old and has neither a lease, nor a report, nor what `TrialRun`
    writes at its start, counts as stale as well.

    Call it before each trial, or give it to `study.optimize` as a callback (then `trial` is the one that
    finished). The retry has the parameters and user attributes of the stale trial, the checkpoint's path among
    them, and Optuna's own notes of a retry. When several workers call it, one of them queues each trial.

    Args:
        study: the study.
        trial: not used; callbacks are given it.
        max_retry: a trial is queued at most so many times.
        grace: seconds a trial may take from its beginning to its `TrialRun` (default 600); raise it where
            preparing a model takes longer, None leaves such trials alone.

    Returns:
        Numbers of the trials that were closed.

    Examples:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> from metaopt_hpo_optuna import retry_stale_trials
        >>> retry_stale_trials(study)
        []
    """
    if max_retry < 0:
        raise ValueError(f"max_retry must be at least 0, got {max_retry!r}")
    if grace is not None and not grace > 0:
        raise ValueError(f"grace must be more than 0 seconds, or None, got {grace!r}")
    now = _now()
    closed = []
    for stale in study.get_trials(deepcopy=True, states=(TrialState.RUNNING,)):
        expiry = stale.user_attrs.get(LEASE)
        if not isinstance(expiry, int | float):  # none, or somebody else's
            expiry = None
        if expiry is None and not _never_began(study, stale, now, grace):
            continue
        if expiry is not None and expiry > now:
            continue
        try:
            study.tell(stale.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):
            continue  # another worker was first
        closed.append(stale.number)
        history = [*stale.system_attrs.get("retry_history", []), stale.number]
        if len(history) > max_retry:
            continue
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=stale.params,
                distributions=stale.distributions,
                user_attrs={k: v for k, v in stale.user_attrs.items() if k not in (LEASE, REASON)},
                system_attrs={
                    **stale.system_attrs,
                    "failed_trial": stale.system_attrs.get("failed_trial", stale.number),
                    "retry_history": history,
                },
            )
        )
    return closed


def _never_began(study: Study, trial: FrozenTrial, now: float, grace: float | None) -> bool:
    """Whether a trial without a lease was asked for, longer than `grace` ago, and no run of it was ever begun."""
    if grace is None or trial.datetime_start is None or now - trial.datetime_start.timestamp() < grace:
        return False
    if trial.intermediate_values or FLOPS_PER_TOKEN in trial.user_attrs:
        return False  # it is a run without a lease: not known to be stale
    return any(LEASE in other.user_attrs for other in study.get_trials(deepcopy=False))


def patiently(call: Callable[[], T], patience: float = PATIENCE) -> T:
    """`call()`, tried again with growing pauses while the storage does not answer, for `patience` seconds.

    A training run is worth more than the seconds for which a database restarts.
    """
    return retried(call, is_outage, patience)


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the storage cannot be reached now, rather than that the call was wrong.

    Optuna wraps every error of a database in one class; which it was says its cause. A value that a column cannot hold
    is not there a moment later either.
    """
    if isinstance(error, optuna.exceptions.StorageInternalError):
        cause = error.__cause__ or error.__context__
        wrong = (sqlalchemy.exc.DataError, sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)
        return not isinstance(cause, wrong)
    if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return True
    code: Any = getattr(error, "code", None)  # grpc.RpcError, without importing grpc
    return callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
