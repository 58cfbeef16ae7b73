"""``llava-med keys``: who may use the service. Makes keys, lists their owners, revokes them.

Only digests are written; a key is shown once, when it is made. A running service follows the file.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from serve import secret_file
from serve.local_secrets import KEYS_FILE
from serve.principals import KeyEntry, KeysFileError, Role, keys_text, parse_keys, read_keys
from serve.settings import load, problems

app = typer.Typer(
    help="Keys: who may use the service, and for what. A running service follows the file.",
    no_args_is_help=True,
)
errors = Console(stderr=True)

NameArgument = Annotated[
    str, typer.Argument(help="Whose key: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, for example dr-jones.")
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        help="Keys file (YAML). Default: the setting `keys` (LLAVA_MED_KEYS), else keys.yaml in "
        "state_dir."
    ),
]


@app.command()
def add(
    name: NameArgument,
    roles: Annotated[
        list[Role],
        typer.Option("--role", help="What the key is good for; give it again for another."),
    ],
    file: FileOption = None,
) -> None:
    """Make a key for somebody and print it, this once; the file gets its SHA-256.

    The file is written anew, readable by you only; comments in it are lost.
    """
    path = _path(file)
    key = secrets.token_urlsafe(32)
    entry = _entry(name, frozenset(roles), sha256(key.encode()).hexdigest())

    def with_new(entries: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        if any(other.name == name for other in entries):
            _fail(f"{name} has a key already; revoke it first: llava-med keys revoke {name}")
        return (*entries, entry)

    _change(path, with_new)
    _say(
        f"{name} ({_words(entry.roles)}) is in {path}. Services that were started with this file "
        f"(LLAVA_MED_KEYS={path}) take the key within a second; others, when they are started "
        "again. The key, shown this once:"
    )
    typer.echo(key)


@app.command("list")
def list_keys(file: FileOption = None) -> None:
    """Print who has a key, and their roles."""
    entries = _read(_path(file))
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        typer.echo(f"{entry.name:<{width}}  {_words(entry.roles)}")


@app.command()
def revoke(name: NameArgument, file: FileOption = None) -> None:
    """Take somebody's key out of the file; running services refuse it a second later."""
    path = _path(file)
    _read(path)  # nothing is made where there is no file

    def without(entries: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        left = tuple(entry for entry in entries if entry.name != name)
        if left == entries:
            _fail(f"{name} has no key in {path}")
        return left

    _change(path, without)
    _say(f"{name} has no key any more in {path}")


def _entry(name: str, roles: frozenset[Role], digest: str) -> KeyEntry:
    try:
        return KeyEntry(name=name, roles=roles, sha256=digest)
    except ValidationError as error:
        _fail(error.errors(include_url=False, include_input=False)[0]["msg"])


def _path(file: Path | None) -> Path:
    """The file itself, not a link to it: a link would be replaced."""
    if file is None:
        try:
            settings = load()
        except ValidationError as error:
            _fail(problems(error))
        file = settings.keys or settings.state_dir / KEYS_FILE
    return file.expanduser().resolve()


def _read(path: Path) -> tuple[KeyEntry, ...]:
    try:
        return read_keys(path)
    except KeysFileError as error:
        _fail(str(error))


def _change(path: Path, change: Callable[[tuple[KeyEntry, ...]], tuple[KeyEntry, ...]]) -> None:
    """Puts what ``change`` makes of the file in its place, whole or not at all."""

    def text() -> str:
        made = keys_text(change(read_keys(path) if path.exists() else ()))
        parse_keys(made, source=str(path))  # what a service would refuse is never written
        return made

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret_file.change(path, text)
    except KeysFileError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{path} cannot be written: {error.strerror}")


def _words(roles: frozenset[Role]) -> str:
    return ", ".join(sorted(roles))


def _say(message: str) -> None:
    errors.print(message, highlight=False, markup=False, soft_wrap=True)


def _fail(message: str) -> NoReturn:
    errors.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(2)
