"""Opening the place where trials live: SQLite by default, any Optuna storage by URL, a Journal by file name."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import sqlalchemy.exc
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from metaopt_hpo.comparison.engine import EngineError

LOCK_SECONDS = 120
"""How long SQLite waits for another process's write; the searches of one comparison share a file."""

JOURNAL_SUFFIXES = (".journal", ".log")
CREATE_ATTEMPTS = 20


def open_store(store: str | None) -> BaseStorage:
    """The storage for `store`: None for memory, an SQLAlchemy URL, a `.journal` or `.log` file, else SQLite.

    Raises:
        EngineError: the file is corrupt, is not Optuna's, or cannot be written; the database cannot be reached.
    """
    if store is None:
        return InMemoryStorage()
    if "://" in store and not store.startswith("sqlite:///"):
        return _relational(store, store, {})
    path = Path(store.removeprefix("sqlite:///"))
    if path.suffix in JOURNAL_SUFFIXES:
        try:
            return JournalStorage(JournalFileBackend(str(path)))
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(
                f"{path} cannot be used as a journal of trials: {error}; choose another file"
            ) from error
    if not path.parent.is_dir():
        raise EngineError(f"cannot keep trials in {path}: there is no folder {path.parent}; create it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise EngineError(f"cannot keep trials in {path}: it is not writable; choose another file")
    _check_sqlite(path)
    return _relational(f"sqlite:///{path}", str(path), {"timeout": LOCK_SECONDS})


def _check_sqlite(path: Path) -> None:
    """Refuse a file that is no database, or somebody else's: Optuna would add its tables to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=LOCK_SECONDS)
        try:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise EngineError(
            f"{path} is not a readable SQLite database ({error}); move it away or choose another file"
        ) from error
    tables = {name for (name,) in rows}
    if tables and "version_info" not in tables:
        raise EngineError(f"{path} is a database of another program; choose another file for the trials")


def _relational(url: str, shown: str, connect: dict[str, int]) -> BaseStorage:
    for attempt in range(CREATE_ATTEMPTS):
        try:
            # pre_ping: a connection that a server restart has cut is replaced instead of failing the trial
            return RDBStorage(url, engine_kwargs={"connect_args": connect, "pool_pre_ping": True})
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


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
