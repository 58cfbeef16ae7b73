"""``llava-med audit``, as somebody runs it."""

from __future__ import annotations

import base64
import json
import os
import uuid
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve.audit import keyring
from serve.audit.command import app
from serve.audit.opening import open_writer
from serve.audit.store import open_store
from serve.settings import load
from tests.unit.audit.conftest import Audited, Clock

ADMIN = "the key of the administrator"
AUDITOR = "the key of an auditor"
REVIEWER = "the key of a reviewer"
QUESTION = "Patient John Marsh, 54M: is there \x1b[31m a pneumothorax?"


class Command:
    """Runs commands on a store that a service has filled."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "audit-key").write_text(keyring.new_key() + "\n")
        (folder / "signing-key").write_text(keyring.new_key() + "\n")
        (folder / "admin-key").write_text(ADMIN)
        keys = [("ann", "auditor", AUDITOR), ("rea", "reviewer", REVIEWER)]
        (folder / "keys.yaml").write_text(
            "keys:\n"
            + "".join(
                f"- {{name: {name}, roles: [{role}], sha256: {sha256(key.encode()).hexdigest()}}}\n"
                for name, role, key in keys
            )
        )
        self.environment = {"LLAVA_MED_STATE_DIR": str(folder), "LLAVA_MED_AUDIT__URL": url}
        self.environment["COLUMNS"] = "200"

    def service(self) -> Audited:
        """What a service does, with the keys that are in the folder."""
        settings = load(
            state_dir=self.folder,
            audit={
                "url": self.environment["LLAVA_MED_AUDIT__URL"],
                "key_file": self.folder / "audit-key",
                "signing_key": (self.folder / "signing-key").read_text().strip(),
            },
        )
        store = open_store(settings)
        return Audited(settings, store, open_writer(store, settings, "replica"))

    def __call__(self, *arguments: str, key: str | None = AUDITOR, **more: str) -> Result:
        environment: dict[str, str | None] = {**self.environment, **more}
        environment["LLAVA_MED_USER_KEY"] = key
        return CliRunner().invoke(app, arguments, env=environment)


def close(service: Audited) -> None:
    service.writer.close()
    service.store.engine.dispose()


@pytest.fixture
def audit(tmp_path: Path, url: str) -> Command:
    return Command(tmp_path, url)


@pytest.fixture
def exchanges(audit: Command) -> list[str]:
    service = audit.service()
    ids = [service.write(urgent=True), service.write(question=QUESTION, principal="dr-b")]
    service.review(ids[0], "claim", "claimed")
    service.review(ids[0], "sign_off", "signed_off", comment="Agreed with Dr Okafor.")
    close(service)
    return ids


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_search_lists_what_was_asked_newest_first(audit: Command, exchanges: list[str]) -> None:
    found = lines(audit("search", "--json"))
    assert [line["audit_id"] for line in found] == exchanges[::-1]
    assert found[1]["review"] == "signed_off"
    assert found[1]["escalation"] == ["pneumothorax"]


def test_search_narrows_down(audit: Command, exchanges: list[str]) -> None:
    def ids(*options: str) -> list[object]:
        return [line["audit_id"] for line in lines(audit("search", "--json", *options))]

    assert ids("--urgent") == [exchanges[0]]
    assert ids("--principal", "dr-b") == [exchanges[1]]
    assert ids("--finding", "pneumothorax", "--status", "absent") == []
    assert ids("--since", "1h") == exchanges[::-1]
    assert ids("--until", "2020-01-01") == []


def test_pages_go_on_behind_what_was_printed(audit: Command, exchanges: list[str]) -> None:
    first = audit("search", "--limit", "1", "--json")
    behind = first.stderr.split("--after ")[1].strip()
    second = lines(audit("search", "--limit", "1", "--json", "--after", behind))
    assert [line["audit_id"] for line in second] == [exchanges[0]]


def test_every_look_is_on_record_with_who_looked(audit: Command, exchanges: list[str]) -> None:
    audit("search", "--principal", "dr-b")
    audit("show", exchanges[0])
    reads = lines(audit("search", "--kind", "read", "--json"))
    assert [(line["principal"], line["what"]) for line in reads] == [
        ("ann", "search"),
        ("ann", "show"),
        ("ann", "search"),
    ]
    assert reads[1]["of"] == exchanges[0]
    assert reads[2]["query"] == {"kind": "answer", "principal": "dr-b"}


def test_show_tells_everything_and_marks_what_was_not_sent(
    audit: Command, exchanges: list[str]
) -> None:
    shown = audit("show", exchanges[1])
    assert shown.exit_code == 0
    assert "NOT SENT" in shown.stdout.split("(raw)")[0].splitlines()[-2]
    assert "dr-b" in shown.stdout


def test_what_strangers_wrote_is_never_obeyed_by_the_terminal(
    audit: Command, exchanges: list[str]
) -> None:
    for command in (("show", exchanges[1]), ("search",)):
        assert "\x1b[31m" not in audit(*command).stdout
        assert "\\x1b[31m" in audit(*command).stdout


@pytest.mark.parametrize("form", ["{}", "{.hex}", "chatcmpl-{.hex}"])
def test_an_exchange_is_shown_by_any_of_its_ids(
    audit: Command, exchanges: list[str], form: str
) -> None:
    shown = audit("show", form.format(uuid.UUID(exchanges[1])), "--json")
    assert json.loads(shown.stdout)["audit_id"] == exchanges[1]
    reads = lines(audit("search", "--kind", "read", "--json"))
    assert reads[1]["of"] == exchanges[1]


def test_what_is_no_id_or_nobodys_is_told_apart(audit: Command, exchanges: list[str]) -> None:
    for given, says in (("chatcmpl-7", "no id"), (str(uuid.uuid4()), "--since")):
        result = audit("show", given)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stdout == ""


def test_show_writes_images(audit: Command, exchanges: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert audit("show", exchanges[0], "--images", str(folder), "--json").exit_code == 0
    (file,) = folder.iterdir()
    assert file.name == f"{exchanges[0]}-0-square.png"
    assert file.stat().st_size == 2000
    assert file.stat().st_mode & 0o077 == 0


def test_export_has_a_row_for_each_choice_without_names(
    audit: Command, exchanges: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "out.parquet"
    assert audit("export", str(file)).exit_code == 0
    rows = {row["audit_id"]: row for row in pq.read_table(file).to_pylist()}
    assert rows.keys() == set(exchanges)
    raw = file.read_bytes()
    asked = rows[exchanges[1]]
    assert "John Marsh" not in asked["question"]
    assert "John Marsh" not in asked["turns"][0]["text"]
    assert asked["question"].startswith("[redacted]")
    assert asked["principal"] != "dr-b"
    reviewed = rows[exchanges[0]]["review"]
    assert (reviewed["state"], reviewed["comment"]) == ("signed_off", "Agreed with [redacted].")
    assert rows[exchanges[0]]["images"][0]["square"] is None
    assert b"dr-reader" not in raw
    assert file.stat().st_mode & 0o077 == 0


def test_export_has_images_and_names_if_asked(
    audit: Command, exchanges: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "out.parquet"
    audit("export", str(file), "--images", "--principals", "--principal", "dr-b")
    (row,) = pq.read_table(file).to_pylist()
    assert row["principal"] == "dr-b"
    assert len(row["images"][0]["square"]) == 2000


def test_export_overwrites_nothing(audit: Command, exchanges: list[str], tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    file.write_text("mine")
    assert audit("export", str(file)).exit_code == 2
    assert file.read_text() == "mine"


def test_verify_says_what_was_verified(audit: Command, exchanges: list[str]) -> None:
    result = audit("verify")
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "sound"
    assert json.loads(audit("verify", "--json").stdout)["sound"] is True


def test_verify_needs_no_key_of_the_store(audit: Command, exchanges: list[str]) -> None:
    public = audit("public-key").stdout.strip()
    for name in ("audit-key", "signing-key", "admin-key", "keys.yaml"):
        (audit.folder / name).unlink()
    result = audit("verify", "--without-key", "--public-key", public, key=None)
    assert result.exit_code == 0, result.stderr
    assert "contents were not opened" in result.stdout


def test_verify_fails_and_says_where(audit: Command, exchanges: list[str]) -> None:
    service = audit.service()
    service.sql("UPDATE records SET payload = digest WHERE audit_id = :id", id=exchanges[1])
    close(service)
    result = audit("verify")
    assert result.exit_code == 1
    assert "ALTERED" in result.stdout
    assert exchanges[1] in result.stdout


def test_verify_knows_how_often_somebody_is_to_be_told(audit: Command) -> None:
    service = audit.service()
    urgent = service.write(urgent=True)
    service.escalate(urgent)
    service.sql("UPDATE escalations SET next_at = NULL")
    close(service)
    assert audit("verify", LLAVA_MED_ESCALATION__MAX_REMINDERS="0").exit_code == 0
    result = audit("verify", LLAVA_MED_ESCALATION__MAX_REMINDERS="1")
    assert result.exit_code == 1
    assert "nobody is told any more" in result.stdout


def test_status_counts(audit: Command, exchanges: list[str]) -> None:
    status = json.loads(audit("status", "--json").stdout)
    assert (status["images"], status["reviews"]) == (2, {"pending": 1, "signed_off": 1})
    assert "@" not in status["database"] or "***" in status["database"]


def test_retain_shreds_what_is_old(audit: Command, clock: Clock) -> None:
    service = audit.service()
    clock.set_back(days=60)
    old = [service.write(), service.write()]
    service.review(old[0], "claim", "claimed")
    service.review(old[0], "reject", "rejected")
    clock.set_back(days=0)
    service.write()
    close(service)
    result = audit("retain", "--before", "30d", key=ADMIN)
    assert result.exit_code == 0, result.stderr
    assert "1 exchanges" in result.stderr
    assert "kept: 1" in result.stderr
    assert "shredded" in audit("show", old[0]).stderr
    assert audit("retain", "--before", "30d", "--open-too", key=ADMIN).exit_code == 0
    assert audit("verify").exit_code == 0


def test_retain_refuses_less_than_a_day_and_needs_a_time(
    audit: Command, exchanges: list[str]
) -> None:
    assert audit("retain", "--before", "12h", key=ADMIN).exit_code == 2
    result = audit("retain", key=ADMIN)
    assert result.exit_code == 2
    assert "--before" in result.stderr


def test_retain_asks_for_yes_where_the_clock_may_be_wrong(audit: Command, clock: Clock) -> None:
    service = audit.service()
    clock.set_back(days=60)
    service.write()
    close(service)
    clock.set_back(days=0)
    result = audit("retain", "--before", "30d", key=ADMIN)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert audit("retain", "--before", "30d", "--yes", key=ADMIN).exit_code == 0


def test_a_key_is_rotated_in_two_steps(audit: Command, exchanges: list[str]) -> None:
    file = audit.folder / "audit-key"
    former = file.read_text().split()
    first = audit("rotate-key", key=ADMIN)
    assert first.exit_code == 0, first.stderr
    assert "restart" in first.stderr
    new, *others = file.read_text().split()
    assert others == former
    assert file.stat().st_mode & 0o077 == 0
    assert audit("rotate-key", "--finish", key=ADMIN).exit_code == 0
    assert file.read_text().split() == [new]
    assert audit("show", exchanges[0]).exit_code == 0
    assert audit("verify").exit_code == 0


def test_a_rotation_that_was_interrupted_goes_on_with_the_same_key(
    audit: Command, exchanges: list[str]
) -> None:
    audit("rotate-key", key=ADMIN)
    keys = (audit.folder / "audit-key").read_text()
    assert audit("rotate-key", key=ADMIN).exit_code == 0
    assert (audit.folder / "audit-key").read_text() == keys


def test_former_keys_stay_while_a_process_still_wraps_by_them(
    audit: Command, exchanges: list[str]
) -> None:
    running = audit.service()  # has the former key
    audit("rotate-key", key=ADMIN)
    running.write()
    result = audit("rotate-key", "--finish", key=ADMIN)
    close(running)
    assert result.exit_code == 1
    assert "restart" in result.stderr
    assert len((audit.folder / "audit-key").read_text().split()) == 2


def test_a_key_in_the_environment_is_told_what_to_set(audit: Command, exchanges: list[str]) -> None:
    former = (audit.folder / "audit-key").read_text().strip()
    result = audit("rotate-key", key=ADMIN, LLAVA_MED_AUDIT__KEY=former)
    assert result.exit_code == 0, result.stderr
    new = result.stdout.strip()
    assert len(base64.b64decode(new)) == 32
    both = f"{new},{former}"
    result = audit("rotate-key", key=ADMIN, LLAVA_MED_AUDIT__KEY=both)
    assert "all are under" in result.stderr
    assert audit("search", LLAVA_MED_AUDIT__KEY=new).exit_code == 0
    assert audit("search", LLAVA_MED_AUDIT__KEY=former).exit_code == 2


@pytest.mark.parametrize(
    ("command", "roles"),
    [
        (("search",), {AUDITOR, ADMIN}),
        (("show", "0" * 32), {AUDITOR, ADMIN}),
        (("export", "nowhere/x.parquet"), {AUDITOR, ADMIN}),
        (("verify",), {AUDITOR, ADMIN}),
        (("status",), {AUDITOR, ADMIN}),
        (("retain", "--before", "900d"), {ADMIN}),
        (("rotate-key",), {ADMIN}),
    ],
)
def test_each_command_needs_its_role(
    on_a_file: Command, command: tuple[str, ...], roles: set[str]
) -> None:
    for key in (AUDITOR, ADMIN, REVIEWER, "a key of nobody at all"):
        result = on_a_file(*command, key=key)
        refused = "role" in result.stderr
        assert refused == (key not in roles), (key, result.stderr)
        if refused:
            assert (result.exit_code, result.stdout) == (2, "")
            assert key not in result.stderr


@pytest.fixture
def on_a_file(tmp_path: Path) -> Command:
    command = Command(tmp_path, f"sqlite:///{tmp_path / 'audit.db'}")
    close(command.service())
    return command


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("LLAVA_MED_AUDIT__KEY", base64.b64encode(os.urandom(32)).decode(), "--without-key"),
        ("LLAVA_MED_AUDIT__KEY", "short", "base64 of 32 bytes"),
        ("LLAVA_MED_AUDIT__KEY_FILE", "/nowhere/key", "/nowhere/key"),
        ("LLAVA_MED_AUDIT__URL", "sqlite:////nowhere/audit.db", "there is no audit store"),
        ("LLAVA_MED_AUDIT__URL", "nonsense", "not a database's URL"),
        (
            "LLAVA_MED_AUDIT__URL",
            "postgresql+psycopg://me:hidden@127.0.0.1:1/audit",
            "does not answer",
        ),
        ("LLAVA_MED_KEYS", "/nowhere/keys.yaml", "/nowhere/keys.yaml"),
        ("LLAVA_MED_AUDIT__SIGNING_KEY", "short", "signing"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(
    on_a_file: Command, setting: str, value: str, says: str
) -> None:
    for command in (("search",), ("verify",)):
        result = on_a_file(*command, **{setting: value})
        assert result.exit_code == 2, result.output
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert "hidden" not in result.stderr
        assert result.stdout == ""


def test_without_any_key_it_is_said_which_to_set(on_a_file: Command) -> None:
    (on_a_file.folder / "admin-key").unlink()
    result = on_a_file("search", key=None)
    assert result.exit_code == 2
    assert "LLAVA_MED_USER_KEY" in result.stderr


def test_the_kept_admin_key_is_used_where_none_is_given(on_a_file: Command) -> None:
    assert on_a_file("search", key=None).exit_code == 0
