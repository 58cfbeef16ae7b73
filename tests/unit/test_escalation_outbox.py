"""The outbox by itself: what is due, and who gets it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, event, insert

from serve.audit import schema
from serve.escalation import outbox
from tests.unit.urgent import Ward, ward_in


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward_in(tmp_path) as made:
        yield made


async def test_two_threads_that_read_the_same_row_do_not_both_get_it(ward: Ward) -> None:
    ward.urgent()
    with ward.store.reading() as connection:
        [row] = outbox.due(connection, ward.clock(), furthest=10**9, limit=1)
    barrier = threading.Barrier(2)
    got: list[bool] = []

    def claim(lease: int) -> None:
        barrier.wait()
        with ward.store.engine.connect().execution_options(**{schema.WRITE: True}) as connection:
            got.append(outbox.claim(connection, row, lease))
            connection.commit()

    threads = [threading.Thread(target=claim, args=(ward.clock() + n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False, True]


@settings(max_examples=200, deadline=None)
@given(
    put_at=st.integers(0, 10**16),
    ahead=st.integers(0, 300_000_000),
    now=st.integers(0, 10**16),
)
def test_whatever_clocks_do_a_row_is_due_within_the_longest_wait(
    put_at: int, ahead: int, now: int
) -> None:
    furthest = 300_000_000
    with memory() as connection:
        put(connection, at=1, next_at=put_at + ahead)
        assert any(
            outbox.due(connection, later, furthest=furthest, limit=1)
            for later in (now, now + furthest)
        )


@pytest.mark.parametrize("next_at", [outbox.NEW, outbox.WOKEN])
@pytest.mark.parametrize("now", [0, 1, 10**16])
def test_what_is_new_or_was_woken_is_due_whatever_the_clock_says(next_at: int, now: int) -> None:
    with memory() as connection:
        put(connection, at=10**15, next_at=next_at)
        [row] = outbox.due(connection, now, furthest=300_000_000, limit=1)
        assert row.untouched is (next_at == outbox.NEW)


def test_what_is_settled_is_due_again_only_when_it_is_woken() -> None:
    with memory() as connection:
        put(connection, at=1, next_at=5)
        [row] = outbox.due(connection, 10, furthest=100, limit=1)
        assert outbox.settle(connection, row)
        assert outbox.due(connection, 10, furthest=100, limit=1) == []
        outbox.wake(connection, "r")
        assert len(outbox.due(connection, 10, furthest=100, limit=1)) == 1


def test_looking_for_what_is_due_passes_settled_rows_by_the_index() -> None:
    asked: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, values: Any, *_rest: object) -> None:
        asked.append((statement, values))

    with memory() as connection:
        event.listen(connection, "before_cursor_execute", note)
        outbox.due(connection, 5, furthest=1, limit=16)
        [(statement, values)] = asked
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    steps = [step.detail for step in plan]
    assert "SEARCH escalations USING INDEX ix_escalations_next_at (next_at>?)" in steps


@contextmanager
def memory() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    schema.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def put(connection: Connection, *, at: int, next_at: int) -> None:
    ids = {"review_id": "r", "audit_id": "a", "at": at}
    connection.execute(
        insert(schema.reviews).values(
            **ids, state="pending", urgent=True, held=False, owner=1, version=1
        )
    )
    connection.execute(insert(schema.escalations).values(**ids, next_at=next_at, sent=0, failed=0))
