"""What the API does with the store: records each look, then reads; records each action with it.

Knows no HTTP. Database work runs in threads; whatever it meets becomes an ApiError here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from guardrails.policy import Policy
from serve.audit import reading
from serve.audit.chain import Link
from serve.audit.entries import AuditUnavailableError, Entry
from serve.audit.keyring import AlteredError, WrongKeyError
from serve.audit.records import ReviewAction
from serve.audit.store import ShreddedError, Store, UnknownError
from serve.audit.writer import Writer
from serve.errors import AuditUnavailable, InternalError, NotFound
from serve.principals import Principal, Role
from serve.review import decisions, items, queue, stats, views
from serve.review.decisions import Act
from serve.review.items import Content, Item, Unreadable
from serve.review.queue import Cursor, OutrunError, Selection

Result = TypeVar("Result")


class Desk:
    """Where reviewers work.

    Args:
        store: what they look at.
        writer: what records it.
        policy: in force, for highlights; None where there is none.
        timeout_s: for one record to be on disk.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        policy: Callable[[], Policy | None],
        *,
        timeout_s: float,
    ) -> None:
        self._store, self._writer, self._policy = store, writer, policy
        self._timeout_s = timeout_s
        self._counting = asyncio.Lock()

    async def list(
        self,
        who: Principal,
        selection: Selection,
        *,
        urgent: bool | None,
        limit: int,
        after: Cursor | None,
    ) -> views.Page:
        """A page of the queue.

        Raises:
            AuditUnavailable: the look cannot be recorded, or the store not read.
        """
        query = {"state": selection, "limit": str(limit)}
        if urgent is not None:
            query["urgent"] = str(urgent).lower()
        await self._note(who, "reviews", query=query)

        return await self._read(
            lambda connection: page(
                self._store, connection, selection, urgent=urgent, limit=limit, after=after
            )
        )

    async def item(self, who: Principal, review_id: str) -> views.Full | views.Told:
        """An item: all of it for a reviewer, its answer for its caller.

        Raises:
            NotFound: there is none for this principal, or it was shredded.
            AuditUnavailable: the look cannot be recorded, or the store not read.
        """
        await self._note(who, "review", of=review_id)
        return await self._read(lambda connection: self._item(connection, who, review_id))

    async def state(self, who: Principal, review_id: str) -> views.Event:
        """An item's state, recorded as a look; see ``state_again``."""
        await self._note(who, "review events", of=review_id)
        return await self.state_again(who, review_id)

    async def state_again(self, who: Principal, review_id: str) -> views.Event:
        """The same for somebody who goes on looking: recorded once.

        Raises:
            NotFound: there is none for this principal.
            AuditUnavailable: the store cannot be read.
        """

        def read(connection: Connection) -> views.Event:
            return views.event(self._found(connection, who, review_id))

        return await self._read(read)

    async def image(self, who: Principal, review_id: str, index: int) -> bytes:
        """The PNG file of an item's image.

        Raises:
            NotFound: no such item or image, or it was shredded.
            AuditUnavailable: the look cannot be recorded, or the store not read.
        """
        await self._note(who, "image", of=review_id, query={"index": str(index)})

        def read(connection: Connection) -> bytes:
            item = self._found(connection, who, review_id)
            images = self._opened(connection, item).request.images
            if index >= len(images):
                raise NotFound("This item has no such image.")
            name = images[index].picture or images[index].square
            try:
                return self._store.blob(connection, bytes.fromhex(name))
            except UnknownError:
                raise ShreddedError() from None

        return await self._read(read)

    async def act(
        self, who: Principal, review_id: str, action: ReviewAction, body: Act
    ) -> views.Full | views.Told:
        """Does something to an item; the item afterwards. The action's record is the look's, too.

        Raises:
            Conflict: it is not as the reviewer saw it, or somebody else's.
            BadRequest: the action does not take what came with it.
            NotFound: there is no such item, or it was shredded.
            AuditUnavailable: it was not recorded, hence not done; or nobody knows yet.
        """

        def prepare(connection: Connection) -> Entry:
            item = self._found(connection, who, review_id)
            content = self._opened(connection, item)
            return queue.act(self._store, item, content, action, body, who.name)

        entry = await self._read(prepare)
        try:
            await self._written(lambda: self._writer.write(entry))
        except OutrunError:
            raise decisions.changed() from None
        return await self._read(lambda connection: self._item(connection, who, review_id))

    async def stats(self, who: Principal, since: int | None, until: int | None) -> stats.Report:
        """How drafts fared with reviewers.

        Raises:
            AuditUnavailable: the look cannot be recorded, or the store not read.
        """
        await self._note(who, "review stats", query={"since": str(since), "until": str(until)})
        async with self._counting:  # it opens every exchange: one at a time
            return await self._guarded(
                lambda: stats.report(stats.tally(self._store, since=since, until=until))
            )

    def _item(
        self, connection: Connection, who: Principal, review_id: str
    ) -> views.Full | views.Told:
        item = self._found(connection, who, review_id)
        content = self._opened(connection, item)
        if Role.REVIEWER not in who.roles:
            return views.told(item, content)
        reminders = items.reminders(connection, review_id)
        return views.full(item, content, reminders, self._policy(), now=queue.now())

    def _found(self, connection: Connection, who: Principal, review_id: str) -> Item:
        item = items.find(connection, review_id)
        if Role.REVIEWER in who.roles or item.owner == self._store.term("principal", who.name):
            return item
        raise UnknownError()  # somebody else's is none

    def _opened(self, connection: Connection, item: Item) -> Content:
        inside = items.content(self._store, connection, item)
        if isinstance(inside, Content):
            return inside
        raise ShreddedError() if inside.shredded else AlteredError()

    async def _note(
        self,
        who: Principal,
        what: str,
        *,
        of: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> None:
        await self._written(
            lambda: reading.note(self._store, self._writer, who.name, what, of=of, query=query)
        )

    async def _written(self, write: Callable[[], Future[Link]]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.wrap_future(write())
        except (AuditUnavailableError, TimeoutError):
            raise AuditUnavailable() from None

    async def _read(self, read: Callable[[Connection], Result]) -> Result:
        def run() -> Result:
            with self._store.reading() as connection:
                return read(connection)

        return await self._guarded(run)

    async def _guarded(self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.to_thread(work)
        except SQLAlchemyError:
            raise AuditUnavailable() from None
        except UnknownError:
            raise NotFound("There is no such review.") from None
        except ShreddedError:
            raise NotFound("The content of this review was shredded.", code="shredded") from None
        except (AlteredError, WrongKeyError):
            # Not retried, and not shown as if it were whole; `llava-med audit verify` says more.
            raise InternalError() from None


def page(
    store: Store,
    connection: Connection,
    selection: Selection,
    *,
    urgent: bool | None,
    limit: int,
    after: Cursor | None = None,
) -> views.Page:
    """A page of the queue; whoever is to see it has been recorded."""
    found, behind = queue.list_items(connection, selection, limit=limit, urgent=urgent, after=after)
    inside = items.contents(store, connection, found)
    rows = [(item, _readable(inside[item.review_id])) for item in found]
    return views.page(rows, behind, queue.counts(connection), now=queue.now())


def _readable(inside: Content | Unreadable) -> Content | None:
    return inside if isinstance(inside, Content) else None
