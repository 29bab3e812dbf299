"""Every storage an Optuna study can live in, a real PostgreSQL server among them, as fixtures."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna import OptunaEngine

# Optuna's conformance suites assert in their own modules; pytest must rewrite them to explain failures
pytest.register_assert_rewrite("optuna.testing.pytest_samplers")
sys.path.insert(0, str(Path(__file__).parent))  # the helper modules beside this one
optuna.logging.set_verbosity(optuna.logging.ERROR)

STORAGE_MODES = ["memory", "sqlite", "journal", "grpc", "postgresql"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Postgres:
    """A PostgreSQL server on loopback in a folder of its own, run as somebody other than root."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="metaopt-pg-"))
        self.port = free_port()
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            name = "postgres" if "postgres" in {p.pw_name for p in pwd.getpwall()} else "nobody"
            user = pwd.getpwnam(name)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", "optuna", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,  # the server keeps inherited pipes open
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            check=False,
            timeout=120,
            **self._user,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr!r}")

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F -c max_connections=200"
        self._run(
            "pg_ctl",
            "-D",
            str(self.folder / "data"),
            "-l",
            str(self.folder / "log"),
            "-o",
            options,
            "-w",
            "start",
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def new_database(self) -> str:
        """URL of a fresh, empty database."""
        import psycopg2

        name = f"t{uuid.uuid4().hex}"
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="optuna", dbname="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return f"postgresql+psycopg2://optuna@127.0.0.1:{self.port}/{name}"


def postgres_binaries() -> Path | None:
    places = [Path(p).parent for p in [shutil.which("pg_ctl")] if p]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists() and (p / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server; skips, with the reason, where no server is installed."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed (pip install psycopg2-binary)")
    server = Postgres(binaries)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], BaseStorage]]:
    """A function from a storage mode to a new, empty storage."""
    closers: list[Callable[[], object]] = []

    def make(mode: str) -> BaseStorage:
        if mode == "memory":
            return optuna.storages.InMemoryStorage()
        file = tmp_path / uuid.uuid4().hex
        if mode == "journal":
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
        if mode == "grpc":
            pytest.importorskip("grpc", reason="grpcio is not installed (pip install grpcio)")
            from optuna.storages._grpc.server import make_server

            port = free_port()
            server = make_server(make("sqlite"), "localhost", port)
            thread = threading.Thread(target=server.start)
            thread.start()
            proxy = optuna.storages.GrpcStorageProxy(host="localhost", port=port)
            proxy.wait_server_ready(timeout=30)
            closers.extend([thread.join, lambda: server.stop(1).wait(), proxy.close])
            return proxy
        url = f"sqlite:///{file}" if mode == "sqlite" else request.getfixturevalue("postgres").new_database()
        storage = optuna.storages.RDBStorage(url)
        closers.append(storage.engine.dispose)
        return optuna.storages._CachedStorage(storage)

    yield make
    for close in reversed(closers):
        close()


@pytest.fixture(params=STORAGE_MODES)
def storage(request: pytest.FixtureRequest, make_storage: Callable[[str], BaseStorage]) -> BaseStorage:
    """A new storage of each mode in turn."""
    return make_storage(request.param)


@pytest.fixture(scope="session")
def pilots() -> list[TrialRecord]:
    """Grid searches at small sizes: what a law is fitted to."""
    from engine_bowl import SIZES, Bowl

    engine, found = OptunaEngine(), []
    for size in SIZES:
        pilot = SearchTask(
            objective=Bowl(), size=size, tokens=1e5, batch=512.0, lr_bounds=(1e-3, 1.0), budget=6e5 * size * 7
        )
        found += engine.search(method("grid"), pilot, study=f"pilot/{size:g}")
    return found
