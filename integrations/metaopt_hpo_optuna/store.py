"""Opening the place where trials live: SQLite by default, any Optuna storage by URL, a Journal by file name."""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL

from metaopt_hpo.comparison.engine import EngineError
from metaopt_hpo_optuna import _compat

LOCK_SECONDS = 120
"""How long SQLite waits for another process's write; the searches of one comparison share a file."""

JOURNAL_SUFFIXES = (".journal", ".log")
CREATE_ATTEMPTS = 20
COLUMNS = "SELECT name FROM pragma_table_info(?)"

TABLES = frozenset({"version_info", "studies", "trials", "trial_params", "trial_values"})
"""Some of Optuna's tables, by which its databases are known, those of its older versions too."""


def store_file(store: str | None) -> Path | None:
    """The file behind a store; None for memory and for servers."""
    if store is None or ("://" in store and not store.startswith("sqlite:///")):
        return None
    return Path(store.removeprefix("sqlite:///"))


def check_folder(path: Path) -> None:
    """Raise EngineError unless the file's folder is there."""
    if not path.parent.is_dir():
        raise EngineError(f"cannot keep trials in {path}: there is no folder {path.parent}; create it first")


def open_store(store: str | None) -> BaseStorage:
    """The storage for `store`: None for memory, an SQLAlchemy URL, a `.journal` or `.log` file, else SQLite.

    Raises:
        EngineError: the file is corrupt, is not Optuna's, or cannot be written; the database cannot be reached.
    """
    if store is None:
        return InMemoryStorage()
    path = store_file(store)
    if path is None:
        return _relational(store, store, {})
    check_folder(path)
    if path.suffix in JOURNAL_SUFFIXES:
        return _journal(path)
    places = [path.parent, *([path] if path.exists() else [])]  # SQLite keeps a journal beside the file
    if path.is_dir() or not all(os.access(place, os.W_OK) for place in places):
        raise EngineError(f"cannot keep trials in {path}: it is not writable; choose another file")
    _check_sqlite(path)
    # connected by name rather than by URL, which would cut it at a question mark
    connect = functools.partial(sqlite3.connect, str(path), timeout=LOCK_SECONDS, check_same_thread=False)
    url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    return _relational(url.replace("{", "%7B").replace("}", "%7D"), str(path), {"creator": connect})


def _journal(path: Path) -> BaseStorage:
    try:
        _drop_half_line(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{path} cannot be used as a journal of trials: {_first_line(error)}; choose another file"
        ) from error


def _drop_half_line(path: Path) -> None:
    """Cut off what a process killed in the middle of its write left: Optuna would refuse the journal for ever."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    lock = optuna.storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("rb+") as file:
            data = file.read()
            end = data.rfind(b"\n") + 1
            ours = end > 0 or data.startswith(b'{"op_code"')  # else another program's file: nothing is cut
            if ours and end < len(data):
                file.truncate(end)
                os.fsync(file.fileno())
    finally:
        lock.release()


def _check_sqlite(path: Path) -> None:
    """Refuse a file that is no database, or somebody else's: Optuna would add its tables to it.

    Opened for writing, so that SQLite takes back what a killed process left half written.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=LOCK_SECONDS)
        try:
            found = {
                name: frozenset(column for (column,) in connection.execute(COLUMNS, (name,)))
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                ).fetchall()
            }
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise EngineError(
            f"{path} cannot be opened now ({error}); the trials in it are kept: see that the disk has room and that "
            "file and folder can be written, and start again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise EngineError(
            f"{path} is not a readable SQLite database ({error}); restore it, or choose another file"
        ) from error
    if found and not (found.keys() >= TABLES or _being_made(found)):
        raise EngineError(f"{path} is a database of another program; choose another file for the trials")


def _being_made(found: dict[str, frozenset[str]]) -> bool:
    """Whether these are some of the tables of a new Optuna database.

    Another process is making the rest, or was killed while it did; Optuna adds what is missing.
    """
    own = _compat.table_columns()
    return all(own.get(name) == columns for name, columns in found.items())


@contextmanager
def store_errors(store: str | None) -> Iterator[None]:
    """Say in one sentence that the store failed under way: a full disk, a damaged page, a server that is gone."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        raise EngineError(
            f"the store {store} cannot be used: {_first_line(cause or error)}; finished trials are kept: "
            "start again once it can"
        ) from error


def _relational(url: str, shown: str, options: dict[str, Any]) -> BaseStorage:
    for attempt in range(CREATE_ATTEMPTS):
        try:
            # pre_ping: a connection that a server restart has cut is replaced instead of failing the trial
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, **options})
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.IntegrityError) as error:
            # two processes that create the tables at once: the loser finds them there
            racing = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)
            if not racing or attempt + 1 == CREATE_ATTEMPTS:
                raise EngineError(f"cannot open the store {shown}: {_first_line(error)}") from error
            time.sleep(0.05 * (attempt + 1))
        except sqlalchemy.exc.ProgrammingError as error:
            if "already exists" not in str(error) or attempt + 1 == CREATE_ATTEMPTS:
                raise EngineError(f"cannot open the store {shown}: {_first_line(error)}") from error
            time.sleep(0.05 * (attempt + 1))
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ImportError) as error:
            raise EngineError(f"cannot open the store {shown}: {_first_line(error)}") from error
    raise AssertionError("unreachable")


def _first_line(error: BaseException) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
