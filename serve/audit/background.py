"""Daily retention, as what the AuditLog deployment runs beside its application."""

from __future__ import annotations

import asyncio
import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from serve.audit.entries import AuditUnavailableError
from serve.audit.retention import DAY_US, RetentionError, shred
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.settings import Settings

_DAY_S = 24 * 3600
_AGAIN_S = 300
logger = logging.getLogger("llava_med")


async def retain(store: Store, writer: Writer, settings: Settings) -> None:
    """Shreds what is older than ``audit.retention_days``, once a day, until it is cancelled."""
    days = settings.audit.retention_days
    while days is not None:
        before = time.time_ns() // 1000 - days * DAY_US
        try:
            await asyncio.to_thread(shred, store, writer, "retention", before)
        except RetentionError as error:  # a clock that jumped: tomorrow is another day
            logger.warning("retention: %s", error)
        except (AuditUnavailableError, SQLAlchemyError) as error:
            logger.error("retention: %s", type(error).__name__)
            await asyncio.sleep(_AGAIN_S)
            continue
        await asyncio.sleep(_DAY_S)
    await asyncio.Event().wait()
