"""`llava-med keys`: what is printed where, what the file has, and what is refused."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve.key_commands import app
from serve.principals import Principals, Role, read_keys


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "keys.yaml"


def add(name: str, file: Path, *roles: str) -> str:
    options = [word for role in roles or ("reviewer",) for word in ("--role", role)]
    result = run("add", name, *options, "--file", file)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_new_key_opens_the_service_with_its_roles(file: Path) -> None:
    key = add("dr-jones", file, "reviewer", "auditor")
    principals = Principals.of(api_key=None, admin_key=None, keys=file)
    found = principals.find(key.encode())
    assert found is not None
    assert (found.name, found.roles) == ("dr-jones", {Role.REVIEWER, Role.AUDITOR})


def test_the_key_alone_is_on_stdout_and_nothing_of_it_elsewhere(file: Path) -> None:
    result = run("add", "dr-jones", "--role", "reviewer", "--file", file)
    key = result.stdout.removesuffix("\n")
    assert len(key) >= 43, "32 random bytes"
    assert not set(key) & set(" \n")
    assert key not in result.stderr
    assert "dr-jones" in result.stderr
    assert key not in file.read_text()
    assert sha256(key.encode()).hexdigest() in file.read_text()
    assert sha256(key.encode()).hexdigest() not in result.output


def test_the_file_is_for_its_owner_only_whatever_it_was_before(file: Path) -> None:
    add("a", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    add("b", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file], "nothing else is left beside it"


def test_keys_are_added_to_those_that_are_there(file: Path) -> None:
    keys = {name: add(name, file) for name in ("a", "b", "c")}
    assert len(set(keys.values())) == 3
    assert [(entry.name, entry.digest) for entry in read_keys(file)] == [
        (name, sha256(key.encode()).digest()) for name, key in keys.items()
    ]


def test_a_revoked_key_is_gone_and_the_others_stay(file: Path) -> None:
    first, second = add("a", file), add("b", file)
    result = run("revoke", "a", "--file", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "a has no key any more" in result.stderr
    principals = Principals.of(api_key=None, admin_key=None, keys=file)
    assert principals.find(first.encode()) is None
    assert principals.find(second.encode()) is not None
    assert run("revoke", "b", "--file", file).exit_code == 0
    assert read_keys(file) == ()


def test_a_list_has_names_and_roles_and_no_digest(file: Path) -> None:
    add("dr-jones", file, "reviewer", "auditor")
    add("b", file, "caller")
    result = run("list", "--file", file)
    assert result.stdout == "dr-jones  auditor, reviewer\nb         caller\n"
    assert result.exit_code == 0


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    add("a", file)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    add("b", link)
    assert link.is_symlink()
    assert [entry.name for entry in read_keys(file)] == ["a", "b"]


def test_without_a_file_it_is_the_settings_or_else_the_one_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_MED_KEYS", raising=False)
    monkeypatch.setenv("LLAVA_MED_STATE_DIR", str(tmp_path))
    assert run("add", "a", "--role", "caller").exit_code == 0
    assert run("list").stdout == "a  caller\n"
    assert [entry.name for entry in read_keys(tmp_path / "keys.yaml")] == ["a"]
    monkeypatch.setenv("LLAVA_MED_KEYS", str(tmp_path / "named.yaml"))
    assert run("add", "b", "--role", "caller").exit_code == 0
    assert run("list").stdout == "b  caller\n"
    assert [entry.name for entry in read_keys(tmp_path / "named.yaml")] == ["b"]
    monkeypatch.setenv("LLAVA_MED_PORT", "many")
    result = run("list")
    assert result.exit_code == 2
    assert "port" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "Dr Jones", "--role", "reviewer"), "a name has 1 to 64"),
        (("add", "admin", "--role", "admin"), "are the settings' own keys"),
        (("add", "there", "--role", "caller"), "revoke it first"),
        (("add", "a"), "--role"),
        (("add", "a", "--role", "doctor"), "'doctor'"),
        (("revoke", "a"), "a has no key in"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(
    file: Path, arguments: tuple[str, ...], says: str
) -> None:
    add("there", file)
    before = file.read_bytes(), file.stat().st_ino
    result = run(*arguments, "--file", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert (file.read_bytes(), file.stat().st_ino) == before


@pytest.mark.parametrize("command", ["list", "revoke"])
def test_a_file_that_is_not_there_is_not_made(file: Path, command: str) -> None:
    result = run(command, *(["a"] if command == "revoke" else []), "--file", file)
    assert result.exit_code == 2
    assert f"{file}: No such file or directory" in result.stderr
    assert not file.parent.exists()


@pytest.mark.parametrize("command", ["list", "revoke", "add"])
def test_a_broken_file_is_named_and_left_as_it_is(tmp_path: Path, command: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{name: a, roles: [caller], sha256: none}]\n")
    before = file.read_bytes()
    given = {"list": [], "revoke": ["a"], "add": ["b", "--role", "caller"]}[command]
    result = run(command, *given, "--file", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{file}:1: keys.0.sha256: " in result.stderr
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_where_nothing_can_be_written_no_key_is_shown(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("add", "a", "--role", "caller", "--file", tmp_path / "file" / "keys.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be written: " in result.stderr


def test_a_full_disk_leaves_the_former_file_and_shows_no_key(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    add("a", file)
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    result = run("revoke", "a", "--file", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{file} cannot be written: No space left on device" in result.stderr
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_commands_at_the_same_time_lose_no_change(file: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(add, [(f"p{number}", file) for number in range(24)])
    assert {entry.name for entry in read_keys(file)} == {f"p{number}" for number in range(24)}


def test_help_says_what_each_command_does() -> None:
    assert {"add", "list", "revoke"} <= set(run("--help").stdout.split())
    assert "this once" in run("add", "--help").stdout
