"""What is old is shredded: nobody can read it any more, and every chain still verifies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from serve.audit import schema
from serve.audit.retention import DAY_US, RetentionError, shred
from serve.audit.store import ShreddedError, UnknownError
from serve.audit.writer import Writer
from tests.unit.audit.conftest import Audited, Clock

WEEK = 7


def weeks_ago(weeks: float) -> int:
    return time.time_ns() // 1000 - int(weeks * WEEK * DAY_US)


def wrapped_keys(audited: Audited) -> dict[str, bytes]:
    with audited.store.reading() as connection:
        rows = connection.execute(
            schema.keys.select().where(schema.keys.c.wrapped.is_not(None))
        ).all()
    return {row.audit_id: bytes(row.wrapped) for row in rows}


def close_review(audited: Audited, audit_id: str) -> None:
    audited.review(audit_id, "claim", "claimed")
    audited.review(audit_id, "sign_off", "signed_off", comment="agreed")


def old_and_new(audited: Audited, clock: Clock) -> tuple[list[str], str]:
    clock.set_back(days=3 * WEEK)
    old = [audited.write(urgent=number == 0) for number in range(3)]
    for audit_id in old:
        close_review(audited, audit_id)
    audited.look()
    clock.set_back(days=0)
    return old, audited.write()


def test_what_is_older_is_gone_and_the_rest_is_left(audited: Audited, clock: Clock) -> None:
    old, new = old_and_new(audited, clock)
    done = shred(audited.store, audited.writer, "admin", weeks_ago(2))
    assert (done.exchanges, done.images, done.kept, done.log_emptied) == (4, 3, 0, True)
    with audited.store.reading() as connection:
        for audit_id in old:
            with pytest.raises(ShreddedError):
                audited.store.data_key(connection, audit_id)
            name = audited.store.blob_name(audited.pictures[audit_id])
            with pytest.raises(UnknownError):
                audited.store.blob(connection, name)
        audited.store.data_key(connection, new)
        name = audited.store.blob_name(audited.pictures[new])
        assert audited.store.blob(connection, name) == audited.pictures[new]
        of_old = connection.execute(
            schema.terms.select().where(schema.terms.c.audit_id.in_(old))
        ).all()
        details = connection.scalars(text("SELECT detail FROM reviews")).all()
    assert of_old == []
    assert details == [None] * 4


def test_the_store_verifies_afterwards(audited: Audited, clock: Clock) -> None:
    old_and_new(audited, clock)
    shred(audited.store, audited.writer, "admin", weeks_ago(2))
    report = audited.signed()
    assert report.sound, report.problems
    assert report.shredded == 4
    assert audited.verify(with_key=False).sound


def test_a_second_run_finds_nothing(audited: Audited, clock: Clock) -> None:
    old_and_new(audited, clock)
    shred(audited.store, audited.writer, "admin", weeks_ago(2))
    again = shred(audited.store, audited.writer, "admin", weeks_ago(2))
    assert (again.exchanges, again.images) == (0, 0)


def test_an_open_review_keeps_its_exchange_and_its_image(audited: Audited, clock: Clock) -> None:
    clock.set_back(days=3 * WEEK)
    closed, pending, claimed = (audited.write() for _ in range(3))
    close_review(audited, closed)
    audited.review(claimed, "claim", "claimed")
    clock.set_back(days=0)
    audited.look()
    done = shred(audited.store, audited.writer, "admin", weeks_ago(2))
    assert (done.exchanges, done.images, done.kept) == (1, 1, 2)
    with audited.store.reading() as connection:
        for audit_id in (pending, claimed):
            picture = audited.pictures[audit_id]
            name = audited.store.blob_name(picture)
            assert audited.store.blob(connection, name) == picture
    done = shred(audited.store, audited.writer, "admin", weeks_ago(2), open_too=True)
    assert (done.exchanges, done.images, done.kept) == (2, 2, 0)
    assert audited.signed().sound


def test_an_image_that_is_used_again_stays(audited: Audited, clock: Clock) -> None:
    picture = b"the same picture" * 100
    clock.set_back(days=3 * WEEK)
    close_review(audited, audited.write(picture=picture))
    clock.set_back(days=0)
    audited.write(picture=picture)
    done = shred(audited.store, audited.writer, "admin", weeks_ago(2))
    assert (done.exchanges, done.images) == (1, 0)
    assert audited.signed().sound


def test_an_image_whose_last_use_was_not_noted_stays(audited: Audited, clock: Clock) -> None:
    """Uses within an hour are noted once: a cutoff between them must not take the image."""
    picture = b"the same picture" * 100
    clock.set_back(days=3 * WEEK)
    close_review(audited, audited.write(picture=picture))
    clock.set_back(days=3 * WEEK, seconds=-1200)
    later = audited.write(picture=picture)
    clock.set_back(days=0)
    audited.look()
    cutoff = weeks_ago(3) + 600 * 1_000_000
    assert shred(audited.store, audited.writer, "admin", cutoff).images == 0
    with audited.store.reading() as connection:
        audited.store.data_key(connection, later)
    assert audited.signed().sound


def test_less_than_a_day_is_refused(audited: Audited) -> None:
    audited.write()
    with pytest.raises(RetentionError, match="less than a day"):
        shred(audited.store, audited.writer, "admin", weeks_ago(0) - DAY_US // 2)


def test_a_clock_that_jumped_forward_shreds_nothing(audited: Audited, clock: Clock) -> None:
    clock.set_back(days=3 * WEEK)
    close_review(audited, audited.write())
    clock.set_back(days=0)
    with pytest.raises(RetentionError, match="clock"):
        shred(audited.store, audited.writer, "admin", weeks_ago(2))
    assert shred(audited.store, audited.writer, "admin", weeks_ago(2), sure=True).exchanges == 1


class Dies(Exception):
    """The process ends here."""


def test_a_run_that_dies_in_the_middle_is_accounted_for_and_goes_on(
    audited: Audited, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.audit.retention._EXCHANGES", 2)
    clock.set_back(days=3 * WEEK)
    for _ in range(5):
        close_review(audited, audited.write())
    clock.set_back(days=0)
    audited.look()

    def die(_done: int) -> None:
        raise Dies

    with pytest.raises(Dies):
        shred(audited.store, audited.writer, "admin", weeks_ago(2), progress=die)
    report = audited.verify()
    assert report.sound, report.problems
    assert report.shredded == 2
    assert shred(audited.store, audited.writer, "admin", weeks_ago(2)).exchanges == 3
    assert audited.signed().sound


def test_content_that_is_gone_without_a_record_is_told(audited: Audited, clock: Clock) -> None:
    _, new = old_and_new(audited, clock)
    shred(audited.store, audited.writer, "admin", weeks_ago(2))
    for table, column in (("keys", "wrapped"), ("records", "payload")):
        audited.sql(f"UPDATE {table} SET {column} = NULL WHERE audit_id = :id", id=new)
    report = audited.signed()
    assert [problem.kind for problem in report.problems] == ["missing"]
    assert not audited.verify(with_key=False).sound


def test_more_gone_than_records_speak_of_is_told(audited: Audited, clock: Clock) -> None:
    """Somebody destroys an old exchange and leaves the records of shredding as they are."""
    clock.set_back(days=3 * WEEK)
    closed, kept = audited.write(), audited.write()
    close_review(audited, closed)
    clock.set_back(days=0)
    audited.look()
    shred(audited.store, audited.writer, "admin", weeks_ago(2))
    for table, column in (("keys", "wrapped"), ("records", "payload")):
        audited.sql(f"UPDATE {table} SET {column} = NULL WHERE audit_id = :id", id=kept)
    (problem,) = audited.signed().problems
    assert (problem.kind, problem.chain) == ("missing", "keys")


def test_no_wrapped_key_is_left_in_the_file(
    on_sqlite: Audited, clock: Clock, tmp_path: Path
) -> None:
    """Enough keys for pages to be split: a split may leave copies of what it moved."""
    clock.set_back(days=3 * WEEK)
    for number in range(800):
        audit_id = on_sqlite.write(picture=b"one picture", answered=number % 2 == 0)
        if number % 20 == 0:
            close_review(on_sqlite, audit_id)
    wrapped = wrapped_keys(on_sqlite)
    clock.set_back(days=0)
    on_sqlite.look()
    bytes_of = {path.name: path.read_bytes() for path in tmp_path.glob("audit.db*")}
    assert all(any(key in content for content in bytes_of.values()) for key in wrapped.values())
    done = shred(on_sqlite.store, on_sqlite.writer, "admin", weeks_ago(2), open_too=True)
    assert done.exchanges == 800
    for path in tmp_path.glob("audit.db*"):
        content = path.read_bytes()
        left = [audit_id for audit_id, key in wrapped.items() if key in content]
        assert not left, f"{len(left)} of {len(wrapped)} in {path.name}"


def test_two_runs_at_once_shred_each_exchange_once(audited: Audited, clock: Clock) -> None:
    clock.set_back(days=3 * WEEK)
    for _ in range(30):
        close_review(audited, audited.write())
    clock.set_back(days=0)
    audited.look()
    second = audited.second_writer()

    def run(writer: Writer) -> int:
        return shred(audited.store, writer, "admin", weeks_ago(2)).exchanges

    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(run, (audited.writer, second)))
    second.close()
    assert sum(counts) == 30
    report = audited.signed()
    assert report.sound, report.problems
