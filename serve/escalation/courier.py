"""Tells whoever is on call of urgent findings, until somebody acknowledges them.

At least once: what was delivered and could not be recorded is sent again, under the same id. Two
couriers on one store do not harm each other, nor does one that dies; its lease runs out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import Literal

from pydantic import ValidationError
from sqlalchemy import Connection

from serve.audit.entries import Entry
from serve.audit.keyring import AlteredError, DataKey, WrongKeyError
from serve.audit.reading import exchange
from serve.audit.records import EscalationRecord
from serve.audit.schema import WRITE
from serve.audit.store import ShreddedError, Store, UnknownError
from serve.audit.writer import Writer
from serve.escalation import messages, outbox
from serve.escalation.messages import Notice
from serve.escalation.outbox import Due
from serve.escalation.rules import RETRY_MOST_S, Escalation, retry_s
from serve.escalation.webhook import Webhook

# broken: the store did not answer, or did not take the record of a delivery.
Outcome = Literal["sent", "failed", "resolved", "unanswered", "broken"]
logger = logging.getLogger("llava_med")

_LOOK_S = 1.0
_TOGETHER = 16  # messages under way at once
# Beside the delivery itself: for reading what it is about, and for the record to be on disk.
_LEASE_S = 10.0
_UNREADABLE = (UnknownError, ShreddedError, AlteredError, WrongKeyError, ValidationError)


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A message, the lease to send it, and the key of its record; None: it cannot be had."""

    row: Due
    lease: int
    notice: Notice
    key: DataKey | None


class Courier:
    """Looks each second for what is due, and sends it."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        rules: Escalation,
        *,
        count: Callable[[Outcome], None],
        measure: Callable[[int, float], None],
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """Starts nothing yet.

        Args:
            store: where the outbox is.
            writer: writes the records of attempts.
            rules: whom to tell, and when. Without a URL it only measures; what waits is sent once
                there is one.
            count: takes what became of a message.
            measure: takes how many urgent findings wait, and the oldest one's age in seconds.
            clock: microseconds since 1970.

        Raises:
            OSError: the hook's ``ca_file`` cannot be read, or holds no certificate (ssl.SSLError).
        """
        self._store = store
        self._writer = writer
        self._rules = rules
        self._hook = None if rules.url is None else Webhook(rules)
        self._count = count
        self._measure = measure
        self._clock = clock
        self._jitter = SystemRandom()
        self._lease_us = _us(rules.timeout_s + _LEASE_S)
        self._furthest_us = max(self._lease_us, _us(rules.remind_s), _us(RETRY_MOST_S))

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                more = False
                try:
                    more = await self.look()
                except Exception as error:  # whatever it is: a courier that ends tells nobody
                    self._broken(error)
                if not more:
                    await asyncio.sleep(_LOOK_S)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Closes the hook's connections; the next look opens new ones."""
        if self._hook is not None:
            await self._hook.aclose()

    async def look(self) -> bool:
        """Sends what is due now; True if there may be more.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        number, oldest = await asyncio.to_thread(self._waiting)
        age_us = 0 if oldest is None else max(0, self._clock() - oldest)
        self._measure(number, age_us / 1e6)
        if self._hook is None:
            return False
        parcels = await asyncio.to_thread(self._take)
        results = await asyncio.gather(
            *(self._deliver(self._hook, parcel) for parcel in parcels), return_exceptions=True
        )
        for result in results:
            if isinstance(result, Exception):  # its lease runs out, and it is sent again
                self._broken(result)
        return len(parcels) == _TOGETHER

    def _broken(self, error: Exception) -> None:
        logger.error("escalation: %s", type(error).__name__)
        self._count("broken")

    def _waiting(self) -> tuple[int, int | None]:
        with self._store.reading() as connection:
            return outbox.waiting(connection)

    def _take(self) -> list[_Parcel]:
        """Takes what is due, and settles what nothing is to be said of."""
        now = self._clock()
        with self._store.reading() as connection:
            rows = outbox.due(connection, now, furthest=self._furthest_us, limit=_TOGETHER)
        if not rows:
            return []
        lease = now + self._lease_us
        taken = []
        with self._store.engine.connect().execution_options(**{WRITE: True}) as connection:
            settled = []
            for row in sorted(rows, key=lambda row: row.review_id):  # one order: no deadlock
                if self._is_settled(row):
                    if outbox.settle(connection, row):
                        settled.append(row)
                elif outbox.claim(connection, row, lease):
                    taken.append(row)
            connection.commit()
        self._count_unanswered(settled)
        with self._store.reading() as connection:
            return [self._parcel(connection, row, lease) for row in taken]

    def _is_settled(self, row: Due) -> bool:
        if row.open:
            return row.sent > self._rules.max_reminders
        # Only Alertmanager is told that it is over, and only of what it may have heard.
        return self._rules.format != "alertmanager" or row.untouched

    def _count_unanswered(self, settled: Iterable[Due]) -> None:
        for row in settled:
            if row.open:
                logger.error("escalation: an urgent finding is unanswered after all reminders")
                self._count("unanswered")

    def _parcel(self, connection: Connection, row: Due, lease: int) -> _Parcel:
        """A message. What cannot be read any more keeps nobody from being told that it is there."""
        key = None
        reasons: tuple[str, ...] = ()
        with suppress(*_UNREADABLE):
            key = self._store.data_key(connection, row.audit_id)
            answer = exchange(self._store, connection, row.audit_id).answer
            reasons = () if answer is None else answer.escalation
        notice = Notice(row.review_id, row.audit_id, row.at, row.sent, not row.open, reasons)
        return _Parcel(row, lease, notice, key)

    async def _deliver(self, hook: Webhook, parcel: _Parcel) -> None:
        now = self._clock()
        notice = parcel.notice
        body = messages.body(notice, self._rules.format, self._rules.console_url, now)
        status = await hook.post(notice.id, now // 1_000_000, body)
        taken = status is not None and 200 <= status < 300
        record = EscalationRecord(
            review_id=notice.review_id,
            outcome="sent" if taken else "failed",
            attempt=parcel.row.failed + 1,
            status=status,
        )
        entry = Entry(
            "escalation",
            notice.audit_id,
            record.model_dump_json().encode(),
            parcel.key,
            within=self._taken(parcel) if taken else self._not_taken(parcel),
        )
        await asyncio.wrap_future(self._writer.write(entry))
        self._count(("resolved" if notice.over else "sent") if taken else "failed")

    def _taken(self, parcel: _Parcel) -> Callable[[Connection], None]:
        row, over = parcel.row, parcel.notice.over
        sent = row.sent if over else row.sent + 1
        next_at = None if over else self._clock() + _us(self._rules.remind_s)
        return partial(outbox.delivered, row=row, lease=parcel.lease, sent=sent, next_at=next_at)

    def _not_taken(self, parcel: _Parcel) -> Callable[[Connection], None]:
        wait_s = retry_s(parcel.row.failed + 1, self._jitter.random())
        next_at = self._clock() + _us(wait_s)
        return partial(outbox.not_delivered, row=parcel.row, lease=parcel.lease, next_at=next_at)


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
