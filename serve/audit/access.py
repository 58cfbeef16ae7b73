"""Who runs a command on the store, and what is said when it cannot run: one line, no trace.

Knows the command line's surroundings: settings, the key in the environment, the kept ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy import inspect, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from serve.audit import reading, schema
from serve.audit.entries import AuditUnavailableError
from serve.audit.keyring import AlteredError, WrongKeyError
from serve.audit.opening import open_writer
from serve.audit.schema import WrongStoreError
from serve.audit.store import ShreddedError, Store, UnknownError, open_store, url_of
from serve.audit.writer import Writer
from serve.local_secrets import with_kept_secrets
from serve.principals import Principals, Role
from serve.settings import Settings, load, problems

KEY_VARIABLE = "LLAVA_MED_USER_KEY"  # not the service's own, which is a caller's
errors = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Session:
    """An open store, and who asks."""

    settings: Settings
    store: Store
    writer: Writer
    principal: str

    def note(self, what: str, *, of: str | None = None, **query: str) -> None:
        """Records a look; returns once it is on disk."""
        reading.note(self.store, self.writer, self.principal, what, of=of, query=query).result()


def settings_of(config: Path | None) -> Settings:
    """The settings, with the keys that a local service has kept; ends the command if unfit."""
    try:
        return with_kept_secrets(load(config))
    except FileNotFoundError as error:
        fail(str(error))
    except ValidationError as error:
        fail(problems(error))
    except OSError as error:
        fail(f"a key in state_dir cannot be read: {error.strerror}")


def principal_of(settings: Settings, role: Role) -> str:
    """Whose key this command is given; ends the command without the role."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None and settings.admin_key is not None:
        key = settings.admin_key.get_secret_value()
    if not key:
        fail(f"no key: set {KEY_VARIABLE} to that of somebody with the role {role}")
    try:
        known = Principals.of(api_key=None, admin_key=settings.admin_key, keys=settings.keys)
    except ValueError as error:
        fail(f"nobody has the role {role}: {error}" if settings.keys is None else str(error))
    principal = known.find(key.encode())
    if principal is None:
        fail(f"the key in {KEY_VARIABLE} is nobody's with the role {role}")
    if role not in principal.roles:
        fail(f"{principal.name} does not have the role {role}")
    return principal.name


@contextmanager
def session(config: Path | None, role: Role) -> Iterator[Session]:
    """Opens the store for somebody with a role; every failure ends the command with exit code 2."""
    settings = settings_of(config)
    principal = principal_of(settings, role)
    with told(settings):
        require_store(settings)
        store = open_store(settings)
        try:
            writer = open_writer(store, settings, "command")
            try:
                yield Session(settings, store, writer, principal)
            finally:
                writer.close()
        finally:
            store.engine.dispose()


def require_store(settings: Settings) -> None:
    """Ends the command where there is no store: reading must not make one."""
    url = url_of(settings)
    if url.startswith("sqlite"):
        there = Path(url.partition("///")[2]).is_file()
    else:
        engine = schema.engine_for(url, timeout_s=settings.audit.timeout_s)
        try:
            there = inspect(engine).has_table(schema.meta.name)
        finally:
            engine.dispose()
    if not there:
        fail(
            f"there is no audit store at {database(settings)}: a service makes it when it starts; "
            "another one is named by audit.url (LLAVA_MED_AUDIT__URL) or --config"
        )


def database(settings: Settings) -> str:
    """The database's URL without its password."""
    return make_url(url_of(settings)).render_as_string(hide_password=True)


@contextmanager
def told(settings: Settings) -> Iterator[None]:
    """Says what went wrong, and what to do."""
    try:
        yield
    except WrongKeyError as error:
        fail(
            f"{error}. Give the right one (audit.key_file or audit.key). If it is lost, nothing "
            "can be read any more; the chain is still verified by: "
            "llava-med audit verify --without-key"
        )
    except WrongStoreError as error:
        fail(f"{error}: {database(settings)}")
    except UnknownError:
        fail(
            "there is nothing under this id. search finds exchanges by their time (--since, "
            "--until) and, with --kind refusal, what was turned down"
        )
    except ShreddedError:
        fail("this was shredded: its key is destroyed, and nobody can read it any more")
    except AlteredError:
        fail("the content does not open: it was changed. Find out what: llava-med audit verify")
    except AuditUnavailableError:
        fail(
            "the store does not take a record of this, so it is not done: see whether "
            f"{database(settings)} is up and has space"
        )
    except ArgumentError:
        fail("audit.url is not a database's URL")
    except SQLAlchemyError as error:
        fail(
            f"the audit database does not answer ({type(error).__name__}): see whether it is up: "
            f"{database(settings)}"
        )
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror}")
    except ValueError as error:  # of our own wording: keys and policies
        fail(str(error))


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Ends the command."""
    errors.print(
        f"llava-med: {message}", style="red", highlight=False, markup=False, soft_wrap=True
    )
    raise typer.Exit(code)
