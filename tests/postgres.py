"""A real PostgreSQL on a free loopback port and a Unix socket, gone afterwards.

with postgres() as server:
    engine_for(server.url, timeout_s=5)
    server.kill()  # as if its power had failed
    server.start()
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.running import free_port

START_TIMEOUT_S = 60
# Small and quick to start. fsync stays on: what is tested is what survives.
_SETTINGS = {
    "shared_buffers": "64MB",
    "max_connections": "40",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "listen_addresses": "127.0.0.1",
}
_INIT = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--no-sync",
)


class Postgres:
    """A server: ``url`` for SQLAlchemy, ``socket`` the folder of its Unix socket."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._data, self.socket, self._log = folder / "data", folder, folder / "log"
        self._user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        self._port, self._password = free_port(), secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
        self._initdb(folder / "password")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres:{self._password}@127.0.0.1:{self._port}/postgres"

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Runs a statement outside of a transaction."""
        with psycopg.connect(self._address(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"{self.url.rpartition('/')[0]}/{name}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        options = [part for item in _SETTINGS.items() for part in ("-c", "=".join(item))]
        command = [self._programs / "postgres", "-D", self._data, "-p", str(self._port)]
        command += ["-c", f"unix_socket_directories={self.socket}", *options]
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    command, stdout=output, stderr=output, cwd="/", **self._user
                )
            # A server that was killed holds its memory until its last process has gone.
            if self._answers(self._process, deadline):
                return
            time.sleep(0.2)
        raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Ends it, and every connection."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it at once, without a word to anybody: what a failure of power does."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _address(self, database: str) -> str:
        return (
            f"host=127.0.0.1 port={self._port} user=postgres password={self._password} "
            f"dbname={database} connect_timeout=5"
        )

    def _answers(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                psycopg.connect(self._address("postgres")).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        return False

    def _initdb(self, password: Path) -> None:
        password.write_text(self._password)
        if self._user:
            shutil.chown(password, "postgres", "postgres")
        subprocess.run(
            [self._programs / "initdb", "-D", self._data, *_INIT, f"--pwfile={password}"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **self._user,
        )
        password.unlink()


def programs() -> Path:
    """Where PostgreSQL's are, or the test is skipped; in CI, where they have to be, it fails."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    missing = "Debian's postgresql is not installed"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Starts one and waits until it answers."""
    # A short path: that of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        server = Postgres(programs(), Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
