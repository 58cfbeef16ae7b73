"""Search finds what has all of the terms, newest first, page by page."""

from __future__ import annotations

from sqlalchemy import event, text

from serve.audit.search import Hit, Page, search
from tests.unit.audit.conftest import Audited, Clock


def found(audited: Audited, *fields: tuple[str, str], **options: object) -> Page:
    with audited.store.reading() as connection:
        terms = [audited.store.term(*field) for field in fields]
        return search(connection, terms, **options)  # type: ignore[arg-type]


def ids(page: Page) -> list[str]:
    return [hit.audit_id for hit in page.hits]


ANSWERS = ("kind", "answer")


def test_the_newest_come_first(audited: Audited) -> None:
    written = [audited.write() for _ in range(5)]
    assert ids(found(audited, ANSWERS)) == written[::-1]


def test_all_terms_must_be_there(audited: Audited) -> None:
    ours = audited.write(principal="dr-a", urgent=True)
    audited.write(principal="dr-a")
    audited.write(principal="dr-b", urgent=True)
    assert ids(found(audited, ANSWERS, ("principal", "dr-a"), ("urgent", "yes"))) == [ours]
    assert ids(found(audited, ANSWERS, ("principal", "dr-c"))) == []


def test_a_value_of_one_field_is_none_of_another(audited: Audited) -> None:
    audited.write(principal="present")
    assert ids(found(audited, ("template", "present"))) == []


def test_pages_go_on_without_gap_or_repetition(audited: Audited) -> None:
    written = [audited.write() for _ in range(7)]
    pages, after = [], None
    while True:
        page = found(audited, ANSWERS, limit=3, after=after)
        pages.append(ids(page))
        after = page.after
        if after is None:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [audit_id for page in pages for audit_id in page] == written[::-1]


def test_what_has_the_same_time_is_on_one_page_or_the_next(audited: Audited) -> None:
    written = {audited.write() for _ in range(6)}
    audited.sql("UPDATE terms SET at = 1")
    first = found(audited, ANSWERS, limit=4)
    second = found(audited, ANSWERS, limit=4, after=first.after)
    assert {*ids(first), *ids(second)} == written
    assert second.after is None


def test_times_are_from_and_before(audited: Audited, clock: Clock) -> None:
    clock.set_back(days=10)
    old = audited.write()
    clock.set_back(days=0)
    new = audited.write()
    with audited.store.reading() as connection:
        at = connection.scalar(
            text("SELECT at FROM records WHERE audit_id = :id AND kind = 'answer'"), {"id": new}
        )
    assert ids(found(audited, ANSWERS, since=at)) == [new]
    assert ids(found(audited, ANSWERS, until=at)) == [old]
    assert ids(found(audited, ANSWERS, since=at, until=at)) == []


def test_terms_of_another_record_of_the_exchange_do_not_count(audited: Audited) -> None:
    """Who reviewed an exchange did not ask."""
    audit_id = audited.write(principal="dr-a")
    for field in (("kind", "review"), ("principal", "dr-reader")):
        audited.sql(
            "INSERT INTO terms (term, at, audit_id) VALUES (:term, 5, :id)",
            term=audited.store.term(*field),
            id=audit_id,
        )
    assert ids(found(audited, ANSWERS, ("principal", "dr-reader"))) == []
    assert ids(found(audited, ("kind", "review"), ("principal", "dr-reader"))) == [audit_id]


def test_only_indexes_are_used(on_sqlite: Audited) -> None:
    """SQLite says how it would go about it: nothing but searches by index."""
    on_sqlite.write()
    statements: list[tuple[str, object]] = []
    event.listen(
        on_sqlite.store.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, values, *_: statements.append((statement, values)),
    )
    found(on_sqlite, ANSWERS, ("principal", "dr-jones"), since=1, until=2, after=Hit(2, "x"))
    plans = []
    with on_sqlite.store.engine.connect() as connection:
        for statement, values in [*statements]:
            if statement.startswith("SELECT"):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
                plans += [row[3] for row in rows]
    tables = [plan for plan in plans if "terms" in plan]
    assert tables
    assert all(plan.startswith("SEARCH") for plan in tables), plans
    assert not any("TEMP B-TREE" in plan for plan in plans), plans
