"""The courier, as what the AuditLog deployment runs beside its application."""

from __future__ import annotations

from serve import metrics
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.escalation.courier import Courier
from serve.settings import Settings


async def escalate(store: Store, writer: Writer, settings: Settings) -> None:
    """Tells of urgent findings until it is cancelled."""
    courier = Courier(
        store,
        writer,
        settings.escalation,
        count=metrics.escalated,
        measure=metrics.urgent_waiting,
    )
    await courier.run()
