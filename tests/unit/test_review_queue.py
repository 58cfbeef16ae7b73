"""The queue of a large hospital, and its order under any mixture of items."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, text

from serve.audit import schema
from serve.audit.store import Store
from serve.review import queue, states
from serve.review.queue import Cursor, CursorError
from tests.unit.recording import opened, settings_in

MANY = 300_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with opened(settings_in(tmp_path_factory.mktemp("queue"))) as (store, _):
        yield store


def rows(items: list[tuple[str, bool, int]]) -> list[dict[str, object]]:
    return [
        {
            "review_id": str(uuid.UUID(int=number)),
            "audit_id": str(uuid.UUID(int=number)),
            "at": at,
            "state": state,
            "urgent": urgent,
            "held": False,
            "owner": 1,
            "version": 1,
        }
        for number, (state, urgent, at) in enumerate(items)
    ]


ITEM = st.tuples(st.sampled_from(states.STATES), st.booleans(), st.integers(1, 5))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(ITEM, max_size=25),
    st.sampled_from(["pending", "claimed", "signed_off", "amended", "rejected", "open", "all"]),
    st.sampled_from([None, True, False]),
    st.integers(1, 6),
)
def test_pages_together_are_the_whole_selection_in_order(
    store: Store,
    items: list[tuple[str, bool, int]],
    selection: queue.Selection,
    urgent: bool | None,
    limit: int,
) -> None:
    made = rows(items)
    with store.engine.begin() as connection:
        connection.execute(delete(schema.reviews))
        if made:
            connection.execute(insert(schema.reviews), made)
    wanted = [
        row
        for row in made
        if row["state"] in queue.selected(selection) and urgent in (None, row["urgent"])
    ]
    wanted.sort(key=lambda row: (not row["urgent"], row["at"], row["review_id"]))
    found: list[str] = []
    after: Cursor | None = None
    with store.reading() as connection:
        while True:
            page, after = queue.list_items(
                connection, selection, limit=limit, urgent=urgent, after=after
            )
            assert len(page) <= limit
            found += [item.review_id for item in page]
            if after is None:
                break
            assert len(page) == limit
            assert Cursor.parse(str(after)) == after
    assert found == [row["review_id"] for row in wanted]


@given(st.text())
def test_what_is_no_cursor_is_refused(words: str) -> None:
    with pytest.raises(CursorError):
        Cursor.parse(words)


def test_a_long_queue_is_as_quick_as_a_short_one(store: Store) -> None:
    made = rows([(states.STATES[n % 5], n % 50 < 5, n + 1) for n in range(MANY)])
    with store.engine.begin() as connection:
        connection.execute(delete(schema.reviews))
        connection.execute(insert(schema.reviews), made)
    deep = Cursor(False, MANY // 2, str(uuid.UUID(int=MANY // 2)))
    selections: tuple[queue.Selection, ...] = ("pending", "open", "all")
    with store.reading() as connection:
        started = time.process_time()
        for selection in selections:
            for after in (None, deep):
                page, _ = queue.list_items(connection, selection, limit=50, after=after)
                assert len(page) == 50
        listed = (time.process_time() - started) / 6
        started = time.process_time()
        counted = queue.counts(connection)
        assert (counted.pending, counted.claimed) == (MANY // 5, MANY // 5)
        both = listed + time.process_time() - started
        plan = connection.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT * FROM reviews WHERE state = 'pending' AND urgent = 1 "
                "AND at >= 5 ORDER BY at, review_id LIMIT 51"
            )
        ).all()
    assert both < 0.1
    assert "reviews_in_order (state=? AND urgent=? AND at>?)" in str(plan)
