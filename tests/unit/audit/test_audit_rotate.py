"""Keys are rotated while the service runs; afterwards the former key opens nothing."""

from __future__ import annotations

import base64
import dataclasses
import threading

import pytest
from sqlalchemy import create_engine, event, text

from serve.audit import keyring, reading
from serve.audit.keyring import Keyring, WrongKeyError
from serve.audit.opening import open_writer
from serve.audit.rotate import left, rotate
from serve.audit.store import Store, open_store
from tests.unit.audit.conftest import Audited


def secret(audited: Audited) -> bytes:
    key = audited.settings.audit.key
    assert key is not None
    return base64.b64decode(key.get_secret_value())


def rings(audited: Audited) -> tuple[Keyring, Keyring]:
    """The new key before the old one, and the new one alone."""
    new = base64.b64decode(keyring.new_key())
    return Keyring([new, secret(audited)]), Keyring([new])


def with_ring(audited: Audited, ring: Keyring) -> Store:
    return dataclasses.replace(audited.store, keyring=ring)


def test_everything_opens_by_the_new_key_alone(audited: Audited) -> None:
    ids = [audited.write(picture=b"p%d" % number) for number in range(7)]
    both, new = rings(audited)
    done = rotate(audited.store, audited.writer, both, "admin")
    assert done.rewrapped == 1 + 7 + 7
    assert left(audited.store, both) == 0
    store = with_ring(audited, new)
    with store.reading() as connection:
        for audit_id in ids:
            assert reading.exchange(store, connection, audit_id).answer is not None
    audited.store = store
    report = audited.signed()
    assert report.sound, report.problems
    assert report.images == 7


def test_the_old_key_opens_nothing_any_more(audited: Audited) -> None:
    audit_id = audited.write()
    both, _ = rings(audited)
    rotate(audited.store, audited.writer, both, "admin")
    with audited.store.reading() as connection, pytest.raises(WrongKeyError):
        audited.store.data_key(connection, audit_id)
    with pytest.raises(WrongKeyError):
        open_store(audited.settings)


def test_what_is_under_the_new_key_is_left_alone(audited: Audited) -> None:
    audited.write()
    both, _ = rings(audited)
    rotate(audited.store, audited.writer, both, "admin")
    again = rotate(audited.store, audited.writer, both, "admin")
    assert (again.rewrapped, again.newest) == (0, 0)


def test_what_a_running_replica_still_wraps_by_the_old_key_is_found(audited: Audited) -> None:
    audited.write()
    both, _ = rings(audited)
    rotate(audited.store, audited.writer, both, "admin")
    audited.write()  # its ring is the old one
    assert left(audited.store, both) == 2
    done = rotate(audited.store, audited.writer, both, "admin")
    assert done.rewrapped == 2
    assert done.newest > 0
    assert left(audited.store, both) == 0


def test_writes_go_on_meanwhile(audited: Audited) -> None:
    for _ in range(5):
        audited.write()
    both, new = rings(audited)
    other = open_writer(with_ring(audited, both), audited.settings, "command")
    stop, written = threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            written.append(audited.write())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(3):
            rotate(audited.store, other, both, "admin")
    finally:
        stop.set()
        thread.join()
    rotate(audited.store, other, both, "admin")
    other.close()
    assert written
    audited.store = with_ring(audited, new)
    report = audited.signed()
    assert report.sound, report.problems


def test_what_was_shredded_stays_shredded(audited: Audited) -> None:
    audit_id = audited.write()
    audited.sql("UPDATE keys SET wrapped = NULL WHERE audit_id = :id", id=audit_id)
    both, _ = rings(audited)
    rotate(audited.store, audited.writer, both, "admin")
    assert audited.sql("DELETE FROM keys WHERE wrapped IS NULL") == 1


def test_what_is_shredded_just_then_stays_shredded(audited: Audited) -> None:
    """Between reading a key and replacing it; SQLite lets nobody in between."""
    if audited.store.engine.dialect.name == "sqlite":
        pytest.skip("its transactions that write exclude each other")
    ids = [audited.write() for _ in range(3)]
    other = create_engine(audited.store.engine.url)

    def shred(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE keys"):
            with other.begin() as connection:
                gone = text("UPDATE keys SET wrapped = NULL WHERE audit_id = :id")
                connection.execute(gone, {"id": ids[1]})

    event.listen(audited.store.engine, "before_cursor_execute", shred)
    both, _ = rings(audited)
    rotate(audited.store, audited.writer, both, "admin")
    other.dispose()
    assert audited.sql("DELETE FROM keys WHERE wrapped IS NULL") == 1


def test_a_ring_without_the_old_key_changes_nothing(audited: Audited) -> None:
    audit_id = audited.write()
    _, new = rings(audited)
    with pytest.raises(WrongKeyError):
        rotate(audited.store, audited.writer, new, "admin")
    with audited.store.reading() as connection:
        audited.store.data_key(connection, audit_id)
