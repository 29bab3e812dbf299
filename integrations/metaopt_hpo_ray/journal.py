"""Where the journal of an experiment of Tune lies, and which scheduler of this process owns its state."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import pyarrow.fs  # type: ignore[import-untyped]

from metaopt_hpo.atomic import WriteError, write_bytes
from metaopt_hpo.trials.journal import DECISIONS, Journal
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import JOURNAL
from metaopt_hpo.trials.logged_results import Results
from metaopt_hpo_ray.columns import Columns, TuneWarning
from metaopt_hpo_ray.restoring import copy_tuner
from metaopt_hpo_ray.trial_files import read_trials

__all__ = ["DECISIONS", "JOURNAL", "Journal", "Owner", "open_journal", "own", "owner_of", "warn_unkept"]


def open_journal(
    journal: Journal, storage: Any, trials: Iterable[str], columns: Columns, results: Results
) -> None:
    """Open a journal where Tune stores the experiment; see `Journal.open`.

    It lies in the experiment's folder where that is on this machine's file system, and else in the folder that Tune
    uploads with each of its own snapshots.

    Args:
        storage: Tune's storage of the experiment.
        trials: of this experiment.
        columns, results: how the trials' own files are read where a restored experiment has no journal.
    """
    files, place = storage.storage_filesystem, str(storage.experiment_fs_path)
    local = isinstance(files, pyarrow.fs.LocalFileSystem)
    folder = Path(place if local else storage.experiment_driver_staging_path)
    if local:
        with contextlib.suppress(OSError, WriteError):
            copy_tuner(str(folder))

    def fetch(path: Path) -> None:
        source = f"{place}/{JOURNAL}"
        if files.get_file_info(source).type == pyarrow.fs.FileType.File:
            with files.open_input_stream(source) as stream:
                write_bytes(path, stream.readall())

    def rebuild() -> Logbook:
        return read_trials(files, place, columns, results, ended=False)

    journal.open(folder, trials, fetch=None if local else fetch, rebuild=rebuild)


class Owner(Protocol):
    """What a `JournalCallback` needs of a scheduler that owns the experiment's state."""

    journal: Journal

    @property
    def book(self) -> Logbook:
        """What is known of every trial."""
        ...

    def keep_with(self) -> None:
        """Told that its state is kept."""
        ...

    def get_state(self) -> dict[str, Any]:
        """What Tune's snapshot holds."""
        ...

    def set_state(self, state: Any) -> None:
        """Take up what `get_state` gave."""
        ...

    def finish(self) -> None:
        """The experiment has ended."""
        ...


_owners: WeakValueDictionary[str, Owner] = WeakValueDictionary()
"""Folder of an experiment → its scheduler in this process, whoever pickled the two apart on their way here."""


def owner_of(storage: Any, otherwise: Owner) -> Owner:
    """The scheduler of this process that owns the state of an experiment; `otherwise` where none is known."""
    return _owners.get(str(storage.experiment_fs_path), otherwise)


def own(storage: Any, owner: Owner) -> None:
    """Make a scheduler known as the one that owns the state of an experiment."""
    _owners[str(storage.experiment_fs_path)] = owner


def warn_unkept(*, endless: bool) -> None:
    """Say what is missing where no `JournalCallback` keeps the state of a `ScalingLawScheduler`.

    Raises:
        ValueError: trials are to be drawn without end.
    """
    if endless:
        raise ValueError(
            "num_samples=-1 with ScalingLawScheduler needs metaopt_hpo_ray.tuner_configs(scheduler=…, "
            "num_samples=-1): trials that are held back do not count as pending, and Tune would draw new ones "
            "for ever"
        )
    warnings.warn(
        "ScalingLawScheduler runs without a JournalCallback: Tuner.restore will not bring its law and its "
        "decisions back, since Tune does not save schedulers; build the Tuner's configs with "
        "metaopt_hpo_ray.tuner_configs(scheduler=…)",
        TuneWarning,
        stacklevel=3,
    )
