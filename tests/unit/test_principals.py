"""Who owns which key; how a file of keys is read, followed, and refused."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from serve.principals import (
    KeyEntry,
    KeysFileError,
    Principal,
    Principals,
    Role,
    keys_text,
    parse_keys,
    read_keys,
)

API_KEY = SecretStr("unit-test-key-0123456789")
ADMIN_KEY = SecretStr("unit-test-admin-key-0123")
DEFAULT = Principal("default", frozenset({Role.CALLER}))
ADMIN = Principal("admin", frozenset({Role.REVIEWER, Role.AUDITOR, Role.ADMIN}))
JONES = b"the key of dr-jones"
SMITH = b"the key of dr-smith"


def item(name: str, key: bytes, *roles: str) -> dict[str, Any]:
    return {"name": name, "roles": list(roles or ("reviewer",)), "sha256": sha256(key).hexdigest()}


def text(*items: dict[str, Any]) -> str:
    return yaml.safe_dump({"keys": list(items)}, sort_keys=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text(item("dr-jones", JONES)))
    return path


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds go by."""
    now = [1000.0]
    monkeypatch.setattr("serve.principals.monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def of(keys: Path | None = None) -> Principals:
    return Principals.of(api_key=API_KEY, admin_key=ADMIN_KEY, keys=keys)


def name(principals: Principals, key: bytes) -> str | None:
    found = principals.find(key)
    return found.name if found else None


def refusal(written: str) -> str:
    with pytest.raises(KeysFileError) as caught:
        parse_keys(written, source="k.yaml")
    return str(caught.value)


# --- whose key ---------------------------------------------------------------------------------


def test_the_api_key_calls_and_the_admin_key_does_everything_but_call() -> None:
    principals = of()
    assert principals.find(API_KEY.get_secret_value().encode()) == DEFAULT
    assert principals.find(ADMIN_KEY.get_secret_value().encode()) == ADMIN


def test_a_key_of_the_file_has_the_roles_that_stand_there(file: Path) -> None:
    file.write_text(text(item("dr-jones", JONES, "reviewer", "auditor"), item("a", b"a", "caller")))
    principals = of(file)
    assert principals.find(JONES) == Principal("dr-jones", frozenset({Role.REVIEWER, Role.AUDITOR}))
    assert principals.find(b"a") == Principal("a", frozenset({Role.CALLER}))


@given(st.sets(st.binary(min_size=1), min_size=1, max_size=20), st.binary())
@example({b"key"}, b"")
@example({b"key"}, sha256(b"key").digest())
@example({b"key"}, sha256(b"key").hexdigest().encode())
def test_every_key_finds_its_owner_and_no_other_key_finds_anybody(
    keys: set[bytes], other: bytes
) -> None:
    owners = {sha256(key).digest(): Principal(f"p{key.hex()}", frozenset()) for key in keys}
    principals = Principals(owners, None)
    for key in keys:
        assert name(principals, key) == f"p{key.hex()}"
    for wrong in {other, *(key + b"\0" for key in keys), *(key[:-1] for key in keys)} - keys:
        assert principals.find(wrong) is None


@pytest.mark.parametrize("key", [b"k0", b"k7", b"nobody's"])
def test_every_digest_is_compared_whoever_asks(key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {sha256(b"k%d" % n).digest(): Principal(f"p{n}", frozenset()) for n in range(8)}
    compared: list[bytes] = []
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr("hmac.compare_digest", counting)
    Principals(owners, None).find(key)
    assert sorted(compared) == sorted(owners)


def test_nothing_starts_without_any_key(tmp_path: Path) -> None:
    empty = tmp_path / "keys.yaml"
    empty.write_text("keys: []\n")
    for keys in (None, empty):
        with pytest.raises(ValueError, match="no API key: set LLAVA_MED_API_KEY"):
            Principals.of(api_key=None, admin_key=None, keys=keys)


def test_one_kind_of_key_is_enough(file: Path) -> None:
    assert name(Principals.of(api_key=None, admin_key=None, keys=file), JONES) == "dr-jones"
    key = ADMIN_KEY.get_secret_value().encode()
    assert name(Principals.of(api_key=None, admin_key=ADMIN_KEY, keys=None), key) == "admin"


def test_two_principals_have_two_keys(file: Path) -> None:
    with pytest.raises(ValueError, match="the admin key is the API key"):
        Principals.of(api_key=API_KEY, admin_key=API_KEY, keys=None)
    file.write_text(text(item("dr-jones", ADMIN_KEY.get_secret_value().encode())))
    with pytest.raises(ValueError, match=r"keys\.0\.sha256: is the key of `admin`$"):
        of(file)


def test_a_broken_file_starts_nothing(file: Path) -> None:
    for broken in ("", "keys:\n", "keys: [", text(item("default", JONES))):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"keys\.yaml"):
            of(file)
    file.unlink()
    with pytest.raises(ValueError, match=r"keys\.yaml: No such file or directory$"):
        of(file)


# --- the file while the service runs -----------------------------------------------------------


def test_a_revoked_key_is_refused_and_a_new_one_taken_without_a_restart(
    file: Path, later: Callable[[float], None]
) -> None:
    principals = of(file)
    file.write_text(text(item("dr-smith", SMITH)))
    later(1)
    assert name(principals, JONES) is None
    assert name(principals, SMITH) == "dr-smith"
    file.write_text("keys: []\n")
    later(1)
    assert name(principals, SMITH) is None
    assert name(principals, API_KEY.get_secret_value().encode()) == "default"


def test_a_file_of_the_same_size_and_time_is_another_one_too(
    file: Path, later: Callable[[float], None]
) -> None:
    principals = of(file)
    before = file.stat()
    new = file.with_suffix(".new")
    new.write_text(text(item("dr-smith", SMITH)))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    later(1)
    assert name(principals, JONES) is None


def test_a_mounted_secret_is_followed_through_its_swapped_link(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    for version, entry in (("1", item("dr-jones", JONES)), ("2", item("dr-smith", SMITH))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(text(entry))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    principals = of(tmp_path / "keys.yaml")
    assert name(principals, JONES) == "dr-jones"
    (tmp_path / "..new").symlink_to("2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    later(1)
    assert (name(principals, JONES), name(principals, SMITH)) == (None, "dr-smith")


def test_the_file_is_looked_at_once_a_second_and_read_only_when_it_changed(
    file: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    principals = of(file)

    def counting(path: Path) -> tuple[KeyEntry, ...]:
        reads.append(path)
        return read_keys(path)

    monkeypatch.setattr("serve.principals.read_keys", counting)
    later(5)
    principals.find(JONES)
    assert reads == []
    file.write_text(text(item("dr-smith", SMITH)))
    later(0.9)
    assert name(principals, JONES) == "dr-jones"
    later(0.1)
    assert name(principals, JONES) is None
    assert len(reads) == 1


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "keys: [",
        text(item("dr-smith", SMITH), item("dr-smith", JONES)),
        text(item("x", API_KEY.get_secret_value().encode())),
        "keys: 2024-99-99\n",
        "\ufffd",
        None,
    ],
)
def test_a_broken_new_file_changes_nothing_and_is_logged_once_without_its_contents(
    file: Path,
    later: Callable[[float], None],
    broken: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    principals = of(file)
    if broken is None:
        file.unlink()
    else:
        file.write_bytes(broken.encode().replace("\ufffd".encode(), b"\xff"))
    with caplog.at_level(logging.INFO, logger="llava_med"):
        for _ in range(3):
            later(1)
            assert name(principals, JONES) == "dr-jones"
            assert name(principals, SMITH) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(file) in record.message
    for key in (JONES, SMITH, API_KEY.get_secret_value().encode()):
        assert sha256(key).hexdigest() not in record.message
    file.write_text(text(item("dr-smith", SMITH)))
    later(1)
    assert name(principals, SMITH) == "dr-smith", "mended, it is used"


# --- what a file may say -----------------------------------------------------------------------


def test_a_fit_file_is_read_as_it_was_written() -> None:
    entries = parse_keys(text(item("a", JONES, "caller", "admin"), item("b", SMITH)), source="k")
    assert parse_keys(keys_text(entries), source="k") == entries
    assert [entry.digest for entry in entries] == [sha256(JONES).digest(), sha256(SMITH).digest()]
    assert parse_keys(keys_text(()), source="k") == ()


def test_a_digest_may_have_capital_letters() -> None:
    (entry,) = parse_keys(text(item("a", JONES)).upper().replace("KEYS", "keys")
                          .replace("NAME: A", "name: a").replace("ROLES", "roles")
                          .replace("REVIEWER", "reviewer").replace("SHA256", "sha256"),
                          source="k")  # fmt: skip
    assert entry.digest == sha256(JONES).digest()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "Dr Jones"}, "k.yaml:2: keys.0.name: Value error, a name has"),
        ({"name": "-"}, "k.yaml:2: keys.0.name: Value error, a name has"),
        ({"name": "a\n"}, "keys.0.name: Value error, a name has"),
        ({"name": "ä"}, "k.yaml:2: keys.0.name: Value error, a name has"),
        ({"name": "a" * 65}, "k.yaml:2: keys.0.name: Value error, a name has"),
        ({"name": ""}, "k.yaml:2: keys.0.name: Value error, a name has"),
        ({"name": "default"}, "k.yaml:2: keys.0.name: Value error, `default` and `admin` are"),
        ({"name": "admin"}, "k.yaml:2: keys.0.name: Value error, `default` and `admin` are"),
        ({"roles": ["doctor"]}, "k.yaml:4: keys.0.roles.0: Input should be 'caller', 'reviewer'"),
        ({"roles": []}, "k.yaml:3: keys.0.roles: Frozenset should have at least 1 item"),
        ({"roles": None}, "k.yaml:3: keys.0.roles: Input should be"),
        ({"sha256": sha256(JONES).hexdigest()[1:]}, "k.yaml:5: keys.0.sha256: String should match"),
        ({"sha256": sha256(JONES).hexdigest() + "\n"}, "keys.0.sha256: String should match"),
        ({"sha256": sha256(b"").hexdigest()}, "k.yaml:5: keys.0.sha256: is the digest of nothing"),
        ({"sha256": 12}, "k.yaml:5: keys.0.sha256: Input should be a valid string"),
    ],
)
def test_a_wrong_value_is_named_by_file_line_and_field(wrong: dict[str, Any], says: str) -> None:
    assert says in refusal(text(item("dr-jones", JONES) | wrong))


def test_every_problem_has_a_line_of_its_own() -> None:
    message = refusal(text({"name": "B"}, item("c", JONES, "boss")))
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "keys.0.name",
        "keys.0.roles",
        "keys.0.sha256",
        "keys.1.roles.0",
    ]


def test_a_name_and_a_key_are_there_once() -> None:
    message = refusal(text(item("a", JONES), item("a", SMITH), item("b", JONES)))
    assert message == (
        "k.yaml:6: keys.1.name: is an earlier entry's name\n"
        "k.yaml:13: keys.2.sha256: is an earlier entry's key"
    )


SECRET = sha256(JONES).hexdigest()


@pytest.mark.parametrize(
    "written",
    [
        f"keys: {SECRET}\n",
        f"{SECRET}: 1\n",
        f"keys: []\n{SECRET}: 1\n",
        f"keys: [{{{SECRET}: x}}]\n",
        f"keys: [{{name: {SECRET}x, roles: [{SECRET}], sha256: x{SECRET}}}]\n",
        f"keys: [*{SECRET}]\n",
        f"keys: [!{SECRET} x]\n",
        f"keys: [&{SECRET} a, *{SECRET}]\n",
        f"{SECRET}: 1\n{SECRET}: 2\n",
        f"keys: []\n0x{SECRET}: 1\n",
        f"- {SECRET}\n",
        f"keys: [\n  {SECRET}\n",
        f"%{SECRET}\n",
        text(item("a", JONES), item("b", JONES)),
        text(item("a", JONES) | {"key": SECRET}),
    ],
)
def test_a_refusal_quotes_nothing_that_may_be_a_key(written: str) -> None:
    message = refusal(written)
    assert SECRET not in message
    assert message.startswith("k.yaml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_our_words(written: str) -> None:
    try:
        parse_keys(written, source="k")
    except KeysFileError as error:
        assert all(line.startswith("k:") for line in str(error).splitlines())


def test_no_digest_shows_in_a_repr() -> None:
    (entry,) = parse_keys(text(item("a", JONES)), source="k")
    assert SECRET not in repr(entry)
    assert SECRET not in repr(of())
