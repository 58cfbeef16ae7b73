"""AuditLog without a cluster: what Ray does with it, done here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from guardrails import policy
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.review import deployment
from serve.review.deployment import AuditLog, build_audit_log
from serve.settings import Settings
from tests.exchanges import write_exchange
from tests.unit.recording import settings_in
from tests.unit.reviewing import key_of, write_keys


def settings_with_keys(folder: Path) -> Settings:
    given = {"keys": write_keys(folder / "keys.yaml"), "api_key": SecretStr("k" * 16)}
    return settings_in(folder).model_copy(update=given)


async def started(settings: Settings, *background: deployment.Background) -> AuditLog:
    log = AuditLog.__new__(AuditLog)
    await log.__init__(settings, background)  # type: ignore[misc]  # as Ray does
    return log


async def highlights(log: AuditLog, review_id: str) -> list[str]:
    app = await log.__serve_build_asgi_app__()
    headers = {"authorization": f"Bearer {key_of('dr-jones')}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get(f"/v1/reviews/{review_id}", headers=headers)
    assert response.status_code == 200
    return [one["finding"] for one in response.json()["draft"][0]["highlights"]]


async def test_a_policy_that_is_unfit_costs_nobody_their_queue(tmp_path: Path) -> None:
    log = await started(settings_with_keys(tmp_path))
    try:
        written = await asyncio.to_thread(write_exchange, log._store, log._writer)
        await log.reconfigure({"policy": "rules: 3"})
        assert await highlights(log, written.review_id) == []
        await log.reconfigure({"policy": policy.read()})
        await log.reconfigure({"policy": "rules: 3"})
        assert await highlights(log, written.review_id) == ["pneumothorax", "pleural_effusion"]
    finally:
        log.__del__()


async def test_what_runs_beside_it_is_started_again_and_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "RESTART_S", 0.01)
    runs: list[Store] = []
    enough = asyncio.Event()

    async def fails(store: Store, _writer: Writer, _settings: Settings) -> None:
        runs.append(store)
        if len(runs) == 3:
            enough.set()
        raise ValueError("with somebody's name in it")

    log = await started(settings_with_keys(tmp_path), fails)
    await asyncio.wait_for(enough.wait(), 5)
    log.__del__()
    assert runs[0] is log._store
    assert all(task.cancelled() or task.cancelling() for task in log._tasks)
    assert not log._writer._thread.is_alive()


def test_it_can_be_sent_to_another_process(tmp_path: Path) -> None:
    import cloudpickle

    application = build_audit_log(settings_with_keys(tmp_path), policy.read())
    assert cloudpickle.loads(cloudpickle.dumps(application)) is not None
