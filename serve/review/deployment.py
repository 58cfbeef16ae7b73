"""AuditLog: the Ray Serve deployment of the reviewers' application, and of what runs beside it.

Apart from the replica that has the GPU: reviews, escalation and retention go on while an engine
starts anew, and nothing that a reviewer does takes a millisecond of a stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from ray import serve as ray_serve
from ray.serve import Application
from starlette.types import ASGIApp

from guardrails import policy
from guardrails.policy import Policy
from serve import loopback
from serve.audit.opening import open_writer
from serve.audit.store import Store, open_store
from serve.audit.writer import Writer
from serve.principals import Principals
from serve.review.api import build_review_app
from serve.settings import Settings

# What runs beside the application until it is cancelled, such as the escalations' courier. A
# function of a module: Ray pickles it.
Background = Callable[[Store, Writer, Settings], Awaitable[None]]

MAX_ONGOING = 100
RESTART_S = 5.0
logger = logging.getLogger("llava_med")


class AuditLog:
    """The deployment. Serve takes its HTTP app from ``__serve_build_asgi_app__``."""

    async def __init__(self, settings: Settings, background: Sequence[Background]) -> None:  # type: ignore[misc]  # Ray awaits a deployment's constructor
        if loopback.is_loopback(settings.host):
            loopback.pin_replica_grpc()
        self._settings = settings
        self._principals = Principals.of(
            api_key=settings.api_key, admin_key=settings.admin_key, keys=settings.keys
        )
        self._policy: Policy | None = None
        self._store = await asyncio.to_thread(open_store, settings)
        self._writer = open_writer(self._store, settings, "review")
        self._tasks = [asyncio.create_task(self._keep(work)) for work in background]

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Ray calls this at the start and whenever ``user_config`` changes: a new policy.

        Only highlights come of it here: without one that is fit for use, reviewers go on.
        """
        try:
            self._policy = await asyncio.to_thread(policy.parse, user_config["policy"])
        except Exception as error:
            logger.error("review: no highlights by the new policy: %s", type(error).__name__)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application."""
        return build_review_app(
            self._store,
            self._writer,
            self._principals,
            lambda: self._policy,
            timeout_s=self._settings.audit.timeout_s,
        )

    async def _keep(self, work: Background) -> None:
        """Runs work, and again should it ever end."""
        while True:
            try:
                await work(self._store, self._writer, self._settings)
            except Exception as error:  # whatever it is: an escalation must not end with it
                logger.error("review: background work failed: %s", type(error).__name__)
            await asyncio.sleep(RESTART_S)

    def __del__(self) -> None:
        """Ray calls this when it ends the replica."""
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        if hasattr(self, "_writer"):
            self._writer.close()


def build_audit_log(
    settings: Settings, policy_text: str, background: Sequence[Background] = ()
) -> Application:
    """The reviewers' application, to be run at the route prefix ``/v1/reviews``.

    The policy travels as ``user_config``, as the replica's does (serve/app.py).
    """
    return ray_serve.deployment(
        ray_serve.ingress()(AuditLog),
        name="AuditLog",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MAX_ONGOING,
        user_config={"policy": policy_text},
    ).bind(settings, tuple(background))
