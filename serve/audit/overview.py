"""How much is in a store, since when, and what is still to be done. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, select

from serve.audit import schema
from serve.audit.checkpoints import Checkpoint
from serve.audit.problems import clock
from serve.audit.store import Store


def store_id(connection: Connection) -> str:
    """The id of a store whose keys are not at hand."""
    name = select(schema.meta.c.value).where(schema.meta.c.name == "store_id")
    return bytes(connection.scalars(name).one()).decode()


def overview(
    store: Store, connection: Connection, checkpoints: Iterable[Checkpoint]
) -> dict[str, Any]:
    """Counts and times, by name."""
    records, keys, blobs, reviews = schema.records, schema.keys, schema.blobs, schema.reviews
    ends = select(func.max(records.c.seq)).group_by(records.c.writer)
    chains = [int(end) for end in connection.scalars(ends)]
    span = connection.execute(select(func.min(records.c.at), func.max(records.c.at))).one()
    oldest = connection.scalar(select(func.min(keys.c.at)).where(keys.c.wrapped.is_not(None)))
    states = select(reviews.c.state, func.count().label("reviews")).group_by(reviews.c.state)
    waiting = (
        select(func.count())
        .select_from(reviews)
        .where(reviews.c.state.in_(("pending", "claimed")), reviews.c.urgent)
    )
    signed = max((one.head.at for one in checkpoints if one.valid), default=None)
    return {
        "store": store.id,
        "keys": ", ".join(store.keyring.ids),
        "chains": len(chains),
        "records": sum(chains),
        "images": connection.scalar(select(func.count()).select_from(blobs)),
        "first_record": _said(span[0]),
        "last_record": _said(span[1]),
        "oldest_content": _said(oldest),
        "last_checkpoint": _said(signed),
        "reviews": {row.state: row.reviews for row in connection.execute(states)},
        "urgent_reviews_open": connection.scalar(waiting),
    }


def _said(at: int | None) -> str | None:
    return None if at is None else clock(at)
