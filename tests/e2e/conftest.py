"""One running stack for all end-to-end tests: `llava-med up`, as a user starts it.

With what stands beside it: a PACS, a database, whoever is told of urgent findings.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from anyio.from_thread import start_blocking_portal
from openai import OpenAI

from guardrails import policy
from serve import processes
from serve.local import run_dir
from serve.local_secrets import with_kept_secrets
from serve.settings import Settings, load
from tests.hooks import SECRET, Receiver, receiver
from tests.orthanc import Orthanc, orthanc
from tests.postgres import Postgres, postgres
from tests.running import LLAVA_MED, NotReadyError, free_port, start, wait_ready

PEOPLE = {"dr-jones": "reviewer", "dr-smith": "reviewer", "viewer": "caller"}
# Of an urgent finding that nobody acknowledges: soon, so that a test can wait for it, and once,
# since other tests leave thousands.
REMIND_S = 4


@dataclass(frozen=True)
class Stack:
    """A running service."""

    url: str
    key: str
    people: dict[str, str]  # names and keys
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    policy: Path
    pacs: Orthanc | None
    database: Postgres | None
    hooks: Receiver
    environment: dict[str, str]  # what it was started with
    ready_s: float

    def openai(self, **options: object) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **options)  # type: ignore[arg-type]

    def http(self, who: str | None = None) -> httpx.Client:
        """A client of the default caller, or of somebody else's key."""
        key = self.key if who is None else self.people[who]
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def command(self, *arguments: str, who: str = "admin") -> subprocess.CompletedProcess[str]:
        """Runs `llava-med` beside this service, with somebody's key."""
        environment = {**self.environment, "LLAVA_MED_USER_KEY": self.people[who]}
        return subprocess.run(
            [LLAVA_MED, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def reload(self, text: str) -> subprocess.CompletedProcess[str]:
        """Puts another policy in force."""
        self.policy.write_text(text)
        return self.command("policy", "reload", "--port", str(self.port))

    def settings(self) -> Settings:
        """Its settings, with the keys that it has kept."""
        url = self.environment.get("LLAVA_MED_AUDIT__URL")
        state = self.environment["LLAVA_MED_STATE_DIR"]
        return with_kept_secrets(load(state_dir=state, audit={} if url is None else {"url": url}))

    def secrets(self) -> list[str]:
        """What may be in no log."""
        signing_key = self.settings().audit.signing_key
        assert signing_key is not None
        state = Path(self.environment["LLAVA_MED_STATE_DIR"])
        kept = [(state / name).read_text().strip() for name in ("audit-key", "uid-key")]
        database = [] if self.database is None else [self.database.url]
        given = [self.key, *self.people.values(), SECRET, self.hooks.url]
        return [*given, *kept, *database, signing_key.get_secret_value()]

    def replica(self, name: str) -> psutil.Process:
        """The process of a deployment's one replica, such as `reviews:AuditLog`."""
        (found,) = (
            process
            for process in processes.ours(run_dir(self.port))
            if process.cmdline()[:1]
            and process.cmdline()[0].startswith(f"ray::ServeReplica:{name}")
        )
        return found

    def metric(self, name: str) -> float:
        """The sum of a counter or gauge over its labels."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        values = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, f"no metric {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in values)


@pytest.fixture(scope="session")
def pacs() -> Iterator[Orthanc | None]:
    """A real PACS; None where Orthanc is not installed, outside of CI."""
    with ExitStack() as running:
        try:
            yield running.enter_context(orthanc())
        except pytest.skip.Exception:
            yield None


@pytest.fixture(scope="session")
def database() -> Iterator[Postgres | None]:
    """A real PostgreSQL; None where it is not installed, outside of CI: SQLite then."""
    with ExitStack() as running:
        try:
            yield running.enter_context(postgres())
        except pytest.skip.Exception:
            yield None


@pytest.fixture(scope="session")
def hooks() -> Iterator[Receiver]:
    """Who is told of urgent findings, in a thread of its own."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(receiver()) as hooks:
        yield hooks


def _pacs_settings(pacs: Orthanc | None) -> dict[str, str]:
    if pacs is None:
        return {}
    prefix = "LLAVA_MED_IMAGING__DICOMWEB__"
    return {
        f"{prefix}URL": pacs.dicomweb,
        f"{prefix}USERNAME": pacs.username,
        f"{prefix}PASSWORD": pacs.password,
    }


def _audit_settings(database: Postgres | None) -> dict[str, str]:
    return {} if database is None else {"LLAVA_MED_AUDIT__URL": database.url}


def _escalation_settings(hooks: Receiver, port: int) -> dict[str, str]:
    prefix = "LLAVA_MED_ESCALATION__"
    return {
        f"{prefix}URL": hooks.url,
        f"{prefix}SECRET": SECRET,
        f"{prefix}REMIND_S": str(REMIND_S),
        f"{prefix}MAX_REMINDERS": "1",
        f"{prefix}CONSOLE_URL": f"http://127.0.0.1:{port}/v1/reviews/console/",
    }


def new_key(name: str, role: str, environment: dict[str, str]) -> str:
    """The key of somebody new, made as an administrator makes it."""
    done = subprocess.run(
        [LLAVA_MED, "keys", "add", name, "--role", role],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def left_behind(port: int) -> list[psutil.Process]:
    """Whatever still has the run folder in its environment, as all that a service starts has."""
    marker = f"{run_dir(port)}/".encode()
    found = []
    for process in psutil.process_iter():
        with suppress(OSError):  # gone
            # Read as it is: psutil finds nothing where Ray has written a process's title over it.
            if marker in Path("/proc", str(process.pid), "environ").read_bytes():
                found.append(process)
    return found


@contextmanager
def _running(
    port: int, log: Path, rules: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = start(port, log, "--policy", str(rules), **environment)
    try:
        try:
            wait_ready(f"http://127.0.0.1:{port}/ready", process, log)
        except NotReadyError as error:
            pytest.exit(f"the service did not start: {error}", returncode=1)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert left_behind(port) == []


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    pacs: Orthanc | None,
    database: Postgres | None,
    hooks: Receiver,
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    port, log, rules = free_port(), folder / "up.log", folder / "policy.yaml"
    rules.write_text(policy.read())
    key, admin_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    environment = {
        "LLAVA_MED_API_KEY": key,
        "LLAVA_MED_ADMIN_KEY": admin_key,
        "LLAVA_MED_STATE_DIR": str(folder / "state"),
        **_pacs_settings(pacs),
        **_audit_settings(database),
        **_escalation_settings(hooks, port),
    }
    people = {name: new_key(name, role, environment) for name, role in PEOPLE.items()}
    people["admin"] = admin_key
    started = time.monotonic()
    with _running(port, log, rules, environment) as process:
        yield Stack(
            url=f"http://127.0.0.1:{port}",
            key=key,
            people=people,
            port=port,
            process=process,
            log=log,
            policy=rules,
            pacs=pacs,
            database=database,
            hooks=hooks,
            environment=environment,
            ready_s=time.monotonic() - started,
        )
