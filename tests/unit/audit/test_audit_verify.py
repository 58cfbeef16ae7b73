"""Verification finds whatever somebody does who can change the database, and says where."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
import uuid
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from serve.audit import checkpoints, reading, schema
from serve.audit.chain import ORIGIN, Link
from serve.audit.contents import Contents
from serve.audit.keyring import Keyring
from serve.audit.opening import checkpoint_folder, open_writer
from serve.audit.problems import Problem
from serve.audit.records import ShredRecord
from serve.audit.retention import shred
from serve.audit.verify import verify
from tests.unit.audit.conftest import Audited, Clock


def filled(audited: Audited) -> list[str]:
    """Exchanges, one of them urgent and reviewed, a look; the writer is closed."""
    ids = [audited.write(urgent=number == 1) for number in range(4)]
    audited.review(ids[1], "claim", "claimed")
    audited.review(ids[1], "sign_off", "signed_off")
    audited.look()
    audited.writer.close()
    return ids


def chain_of(audited: Audited) -> tuple[str, int]:
    with audited.store.reading() as connection:
        row = connection.execute(text("SELECT writer, max(seq) FROM records GROUP BY writer")).one()
    return row[0], row[1]


def only(audited: Audited, *, with_key: bool = True) -> Problem:
    (problem,) = audited.verify(with_key=with_key).problems
    return problem


def test_a_store_that_nobody_changed_is_sound(audited: Audited) -> None:
    filled(audited)
    report = audited.verify()
    assert report.sound, report.problems
    assert (report.chains, report.records, report.images) == (1, 12, 4)
    assert report.checkpoints > 0
    assert report.last_checkpoint is not None
    assert (report.unfinished, report.shredded, report.damaged_lines) == (0, 0, 0)


def test_without_the_keys_chains_are_verified_and_nothing_is_opened(audited: Audited) -> None:
    filled(audited)
    report = audited.verify(with_key=False)
    assert report.sound
    assert report.images is None


def test_a_request_whose_process_died_is_counted(audited: Audited) -> None:
    audited.write(answered=False)
    assert audited.signed().unfinished == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", 1_700_000_000_000_000),
        ("kind", "review"),
        ("audit_id", "00000000-0000-0000-0000-000000000000"),
        ("previous", b"\1" * 32),
        ("digest", b"\1" * 32),
        ("hash", b"\1" * 32),
        ("payload", b"something else"),
    ],
)
def test_an_edited_column_is_told_with_its_record(
    audited: Audited, column: str, value: object
) -> None:
    filled(audited)
    audited.sql(f"UPDATE records SET {column} = :value WHERE seq = 5", value=value)
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.chain, problem.seq) == ("altered", chain_of(audited)[0], 5)
    assert only(audited).seq == 5


def test_a_record_of_which_everything_was_made_anew_does_not_fit(audited: Audited) -> None:
    """Who alters a record and its hash must alter all that follow; then checkpoints tell."""
    filled(audited)
    with audited.store.reading() as connection:
        row = connection.execute(schema.records.select().where(schema.records.c.seq == 5)).one()
    link = Link(row.writer, 5, row.at + 1, row.kind, row.audit_id, bytes(row.previous))
    audited.sql(
        "UPDATE records SET at = :at, hash = :hash WHERE seq = 5",
        at=link.at,
        hash=link.hash(bytes(row.digest)),
    )
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.seq) in {("altered", 5), ("altered", 6)}


def test_a_chain_that_was_written_anew_is_told_by_a_checkpoint(audited: Audited) -> None:
    filled(audited)
    with audited.store.engine.begin() as connection:
        rows = connection.execute(schema.records.select().order_by(schema.records.c.seq)).all()
        hashed = bytes(32)
        for row in rows:
            link = Link(row.writer, row.seq, row.at + 1, row.kind, row.audit_id, hashed)
            hashed = link.hash(bytes(row.digest))
            connection.execute(
                schema.records.update()
                .where(schema.records.c.seq == row.seq)
                .values(at=link.at, previous=link.previous, hash=hashed)
            )
    problem = only(audited, with_key=False)
    assert problem.kind == "altered"
    assert "written anew" in problem.text


def test_two_records_that_changed_places_are_told(audited: Audited) -> None:
    filled(audited)
    for former, new in ((5, -1), (6, 5), (-1, 6)):
        audited.sql("UPDATE records SET seq = :new WHERE seq = :former", new=new, former=former)
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.seq, problem.text) == (
        "reordered",
        5,
        "it was written as record 6",
    )


def test_contents_that_changed_places_are_told(audited: Audited) -> None:
    filled(audited)
    with audited.store.engine.begin() as connection:
        rows = connection.execute(text("SELECT seq, payload FROM records")).all()
        payloads = {row.seq: row.payload for row in rows}
        for seq, payload in ((2, payloads[4]), (4, payloads[2])):
            connection.execute(
                text("UPDATE records SET payload = :payload WHERE seq = :seq"),
                {"payload": payload, "seq": seq},
            )
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.seq) == ("altered", 2)


def test_a_record_that_was_taken_out_is_told(audited: Audited) -> None:
    filled(audited)
    audited.sql("DELETE FROM records WHERE seq BETWEEN 5 AND 6")
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.seq) == ("missing", 5)
    assert problem.text == "records 5 to 6 are not there"


def test_an_end_that_was_cut_off_is_told_by_a_checkpoint(audited: Audited) -> None:
    filled(audited)
    _, end = chain_of(audited)
    audited.sql("DELETE FROM records WHERE seq > 9")
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.seq) == ("cut off", 10)
    assert f"names record {end}; the chain ends at 9" in problem.text


def test_a_whole_chain_that_is_gone_is_told(audited: Audited) -> None:
    filled(audited)
    audited.sql("DELETE FROM records")
    assert only(audited, with_key=False).kind == "cut off"
    audited.sql("DELETE FROM writers")
    assert only(audited, with_key=False).kind == "cut off"


def test_a_cut_off_end_is_told_by_a_later_chain_without_any_checkpoint(audited: Audited) -> None:
    filled(audited)
    writer, end = chain_of(audited)
    later = audited.second_writer()
    reading.note(audited.store, later, "an-auditor", "search").result(10)
    later.close()
    for file in checkpoint_folder(audited.settings).iterdir():
        file.unlink()
    assert audited.verify().sound
    audited.sql("DELETE FROM records WHERE writer = :writer AND seq = :end", writer=writer, end=end)
    problem = only(audited, with_key=False)
    assert (problem.kind, problem.chain) == ("cut off", writer)


def test_a_chain_that_is_not_listed_is_told(audited: Audited) -> None:
    filled(audited)
    audited.sql("DELETE FROM writers")
    assert only(audited, with_key=False).kind == "missing"


def test_a_checkpoint_by_another_key_is_told(audited: Audited) -> None:
    filled(audited)
    other = Ed25519PrivateKey.generate().public_key()
    lines = checkpoints.read(checkpoint_folder(audited.settings), audited.store.id, other)
    (problem,) = verify(audited.store.engine, lines, None).problems
    assert problem.kind == "bad signature"


def test_a_checkpoint_that_was_edited_is_told(audited: Audited) -> None:
    filled(audited)
    (file,) = checkpoint_folder(audited.settings).iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    lines[-1]["seq"] -= 1
    file.write_text("\n".join(map(json.dumps, lines)))
    assert only(audited, with_key=False).kind == "bad signature"


def test_half_a_checkpoint_is_counted_and_costs_nothing_else(audited: Audited) -> None:
    filled(audited)
    (file,) = checkpoint_folder(audited.settings).iterdir()
    whole = file.read_bytes()
    file.write_bytes(b'{"writer": "4f' + whole + b'\n{"seq": Infinity, "writer": "a", "hash": ""}')
    report = audited.verify()
    assert report.sound
    assert report.damaged_lines == 2


def test_a_clock_that_goes_back_breaks_nothing(audited: Audited, clock: Clock) -> None:
    audited.write()
    clock.set_back(days=30)
    audited.write()
    report = audited.signed()
    assert report.sound, report.problems


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM keys WHERE audit_id = :id", "missing"),
        ("UPDATE keys SET wrapped = NULL WHERE audit_id = :id", "missing"),
        ("UPDATE keys SET at = at - 1 WHERE audit_id = :id", "altered"),
        ("UPDATE records SET payload = NULL WHERE audit_id = :id", "missing"),
        ("DELETE FROM reviews WHERE audit_id = :id", "missing"),
        ("UPDATE reviews SET urgent = (1 = 0) WHERE audit_id = :id", "altered"),
        ("UPDATE reviews SET state = 'pending' WHERE audit_id = :id", "altered"),
        ("UPDATE reviews SET version = 2 WHERE audit_id = :id", "altered"),
        ("UPDATE reviews SET detail = digest FROM records WHERE seq = 1 AND reviews.audit_id = :id",
         "altered"),
        ("DELETE FROM escalations WHERE audit_id = :id", "missing"),
    ],
)  # fmt: skip
def test_what_belongs_to_an_exchange_is_verified(
    audited: Audited, statement: str, kind: str
) -> None:
    urgent = filled(audited)[1]
    assert audited.sql(statement, id=urgent) > 0
    problem = audited.verify().problems[0]
    assert problem.kind == kind
    assert problem.audit_id == urgent


def test_a_key_of_another_exchange_opens_nothing(audited: Audited) -> None:
    ids = filled(audited)
    audited.sql(
        "UPDATE keys SET wrapped = (SELECT wrapped FROM keys WHERE audit_id = :other) "
        "WHERE audit_id = :id",
        id=ids[0],
        other=ids[2],
    )
    problem = only(audited)
    assert (problem.kind, problem.audit_id) == ("unopenable", ids[0])


def test_an_image_that_was_altered_or_taken_out_is_told(audited: Audited) -> None:
    ids = filled(audited)
    names = [audited.store.blob_name(audited.pictures[audit_id]) for audit_id in ids]
    audited.sql("UPDATE blobs SET payload = wrapped WHERE name = :name", name=names[0])
    problem = only(audited)
    assert (problem.kind, problem.chain) == ("unopenable", "images")
    audited.sql("DELETE FROM blobs WHERE name = :name", name=names[0])
    problem = only(audited)
    assert (problem.kind, problem.audit_id) == ("missing", ids[0])


def test_the_wrong_keys_open_nothing_and_say_which_they_are(audited: Audited) -> None:
    filled(audited)
    other = dataclasses.replace(audited.store, keyring=Keyring([os.urandom(32)]))
    lines = checkpoints.read(
        checkpoint_folder(audited.settings), audited.store.id, _public(audited)
    )
    problems = verify(audited.store.engine, lines, Contents(other)).problems
    assert {problem.kind for problem in problems} == {"unopenable", "altered"}
    assert audited.store.keyring.ids[0] in problems[0].text


def test_a_file_that_is_half_written_over_ends_in_an_error_and_not_in_soundness(
    on_sqlite: Audited, tmp_path: Path
) -> None:
    filled(on_sqlite)
    on_sqlite.store.engine.dispose()
    connection = sqlite3.connect(tmp_path / "audit.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    file = tmp_path / "audit.db"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)
    with contextlib.suppress(SQLAlchemyError):
        assert not on_sqlite.verify().sound


def test_progress_is_told(audited: Audited) -> None:
    filled(audited)
    seen: list[tuple[int, int, str]] = []
    lines = checkpoints.read(
        checkpoint_folder(audited.settings), audited.store.id, _public(audited)
    )
    verify(
        audited.store.engine,
        lines,
        Contents(audited.store),
        lambda *progress: seen.append(progress),
    )
    assert (12, 12, "records") in seen
    assert (4, 4, "images") in seen


# --- made-up shredding -------------------------------------------------------------------------

DAY_US = 86_400 * 1_000_000


def destroyed(audited: Audited, audit_id: str) -> None:
    """Content and key are gone, as if they had been shredded."""
    for statement in (
        "UPDATE records SET payload = NULL WHERE audit_id = :id",
        "UPDATE keys SET wrapped = NULL WHERE audit_id = :id",
    ):
        assert audited.sql(statement, id=audit_id) > 0


def forged_shredding(audited: Audited, at: int) -> str:
    """A chain that says somebody shredded an exchange, as good as anybody without keys can."""
    writer, previous = uuid.uuid4().hex, ORIGIN
    shred = ShredRecord(principal="retention", before=at, exchanges=1, blobs=0)
    bodies = {"open": b'{"writer":{},"former":"","heads":{}}', "shred": shred.model_dump_json()}
    with audited.store.engine.begin() as connection:
        connection.execute(schema.writers.insert().values(writer=writer, at=at))
        for seq, (kind, body) in enumerate(bodies.items(), 1):
            payload = body if isinstance(body, bytes) else body.encode()
            link = Link(writer, seq, at, kind, str(uuid.uuid4()), previous)
            digest = sha256(payload).digest()
            values = {name: getattr(link, name) for name in ("writer", "seq", "at", "kind")}
            values |= {"audit_id": link.audit_id, "previous": previous, "digest": digest}
            previous = link.hash(digest)
            connection.execute(
                schema.records.insert().values(**values, hash=previous, payload=payload)
            )
    return writer


@pytest.mark.parametrize(("age_us", "young"), [(0, True), (2 * DAY_US, False)])
def test_a_made_up_shredding_is_told_since_nobody_signed_it(
    audited: Audited, clock: Clock, age_us: int, young: bool
) -> None:
    clock.set_back(days=5)
    destroyed(audited, filled(audited)[0])
    writer = forged_shredding(audited, time.time_ns() // 1000 - age_us)
    for with_key in (True, False):
        problem = only(audited, with_key=with_key)
        assert (problem.kind, problem.chain, problem.seq) == ("unsigned", writer, 2)
        assert ("verify again" in problem.text) is young


def test_a_made_up_shredding_in_a_chain_of_ours_is_told(audited: Audited, clock: Clock) -> None:
    """Checkpoints of the chain from before it do not cover it."""
    clock.set_back(days=5)
    destroyed(audited, filled(audited)[0])
    ours, end = chain_of(audited)
    forged_shredding(audited, time.time_ns() // 1000)
    with audited.store.engine.begin() as connection:
        table = schema.records
        last = connection.execute(
            table.select().where(table.c.writer == ours, table.c.seq == end)
        ).one()
        forged = connection.execute(table.select().where(table.c.kind == "shred")).one()
        link = Link(ours, end + 1, forged.at, "shred", forged.audit_id, bytes(last.hash))
        connection.execute(table.delete().where(table.c.writer == forged.writer))
        connection.execute(
            table.insert().values(
                writer=ours,
                seq=link.seq,
                at=link.at,
                kind=link.kind,
                audit_id=link.audit_id,
                previous=link.previous,
                digest=forged.digest,
                hash=link.hash(bytes(forged.digest)),
                payload=forged.payload,
            )
        )
        connection.execute(schema.writers.delete().where(schema.writers.c.writer != ours))
    problem = only(audited)
    assert (problem.kind, problem.chain, problem.seq) == ("unsigned", ours, end + 1)


def test_a_shredding_is_signed_at_once(audited: Audited, clock: Clock) -> None:
    clock.set_back(days=5)
    audited.write()
    audited.writer.close()
    clock.set_back(days=0)
    rarely = audited.settings.audit.model_copy(update={"checkpoint_s": 3600.0})
    writer = open_writer(
        audited.store, audited.settings.model_copy(update={"audit": rarely}), "review"
    )
    try:
        reading.note(audited.store, writer, "an-auditor", "search").result(10)
        before = time.time_ns() // 1000 - 2 * DAY_US
        shred(audited.store, writer, "retention", before, open_too=True)
        report = audited.verify()
    finally:
        writer.close()
    assert report.sound, report.problems
    assert report.shredded == 1


def test_without_its_checkpoints_a_shredding_is_nobodys(audited: Audited, clock: Clock) -> None:
    clock.set_back(days=5)
    audited.write()
    clock.set_back(days=0)
    before = time.time_ns() // 1000 - 2 * DAY_US
    shred(audited.store, audited.writer, "me", before, open_too=True, sure=True)
    assert audited.signed().sound
    for file in checkpoint_folder(audited.settings).iterdir():
        file.unlink()
    assert only(audited).kind == "unsigned"


# --- the queue ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "reviews SET owner = owner + 1",
        "reviews SET held = (1 = 1)",
        "reviews SET acknowledged_at = at",
        "reviews SET claimant = 5",
        "escalations SET next_at = NULL",
        "escalations SET next_at = NULL, sent = 13",
        "escalations SET next_at = -1",
    ],
)
def test_a_queue_that_was_changed_is_told(audited: Audited, change: str) -> None:
    """Else somebody could make a draft theirs, or have nobody told of an urgent one."""
    urgent = audited.write(urgent=True)
    assert audited.signed().sound
    assert audited.sql(f"UPDATE {change} WHERE audit_id = :id", id=urgent) == 1
    problem = only(audited)
    assert (problem.kind, problem.audit_id) == ("altered", urgent)


@pytest.mark.parametrize(
    "change",
    ["acknowledged_at = NULL", "claimant = NULL", "claimant = owner"],
)
def test_what_a_reviewer_did_cannot_be_taken_back_unseen(audited: Audited, change: str) -> None:
    reviewed = filled(audited)[1]
    audited.sql(f"UPDATE reviews SET {change} WHERE audit_id = :id", id=reviewed)
    assert (only(audited).kind, only(audited).audit_id) == ("altered", reviewed)


def test_what_was_released_is_nobodys_and_acknowledged_by_nobody(audited: Audited) -> None:
    released = audited.write(urgent=True)
    audited.review(released, "claim", "claimed")
    audited.review(released, "release", "pending")
    report = audited.signed()
    assert report.sound, report.problems
    audited.sql("UPDATE reviews SET acknowledged_at = at")
    assert only(audited).kind == "altered"


def test_after_all_reminders_nobody_has_to_be_told(audited: Audited) -> None:
    """Two of them, since these stores are verified with one reminder."""
    urgent = audited.write(urgent=True)
    for _ in range(2):
        audited.sql("UPDATE escalations SET next_at = NULL")
        assert only(audited).chain == "escalations"
        audited.escalate(urgent)
    report = audited.signed()
    assert report.sound, report.problems


def _public(audited: Audited) -> checkpoints.Ed25519PublicKey:
    key = audited.settings.audit.signing_key
    assert key is not None
    return checkpoints.signing_key(key.get_secret_value()).public_key()
