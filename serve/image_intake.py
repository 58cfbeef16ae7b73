"""ImageIntake: the Ray Serve deployment that decodes images, on CPUs, scaled by itself.

DICOM and large images are decoded here and not in the replica that has the GPU. File bytes come
through Ray's shared memory: sending them by value would pickle megabytes on the replica's event
loop. What goes back, the square and its pictures, comes the same way.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve import loopback
from serve.errors import ApiError, Overloaded, Unavailable
from serve.imaging.intake import Prepared, Rules, prepare, ready
from serve.imaging.sources import Wanted
from serve.imaging.workers import Workers
from serve.settings import Settings

# Of file bytes that one replica has on their way at once: less than Ray's shared memory holds, so
# that nothing is ever spilled to disk.
IN_FLIGHT_BYTES = 128 << 20


class ImageIntake:
    """The deployment: a queue in front of decoding processes."""

    def __init__(self, settings: Settings, rules: Rules) -> None:
        if loopback.is_loopback(settings.host):
            loopback.pin_replica_grpc()
        self._rules = rules
        self._stuck = False
        # At most one other image is in front (max_ongoing_requests): both have timeout_s, and
        # a new process its time to start.
        self._patience_s = 2 * settings.imaging.timeout_s + 5
        self._workers = Workers(
            workers=settings.imaging.workers,
            timeout_s=settings.imaging.timeout_s,
            memory_mib=settings.imaging.worker_memory_mib,
        )
        self._workers.warm_up(partial(ready, rules))

    async def prepare(
        self, encoded: list[ray.ObjectRef[Any]], declared: str | None, wanted: Wanted
    ) -> Prepared | ApiError:
        """Decodes one image. An error is returned, not raised: Ray would wrap it and log it.

        Args:
            encoded: one reference to the file's bytes, in a list so that Ray does not follow it.
            declared: the media type that the client gave, if it gave one.
            wanted: what the client asks of the image.
        """
        data: np.ndarray = await encoded[0]
        try:
            async with asyncio.timeout(self._patience_s):
                # What a process runs is importable without Ray, which takes a second to import.
                file = data.tobytes()
                return await self._workers.run(prepare, file, declared, wanted, self._rules)
        except ApiError as error:
            return error
        except TimeoutError:
            self._stuck = True
            return _unavailable()

    async def check_health(self) -> None:
        """Ray asks now and then, and replaces a replica that raises.

        Raises:
            RuntimeError: images came in and nothing came out.
        """
        if self._stuck:
            raise RuntimeError("the decoding processes do not answer")

    def __del__(self) -> None:
        """Ray calls this when it ends the replica."""
        if hasattr(self, "_workers"):
            self._workers.stop()


def build_image_intake(settings: Settings, rules: Rules) -> Application:
    """The deployment, for ``build_app`` to bind into the replica."""
    imaging = settings.imaging
    return ray_serve.deployment(
        ImageIntake,
        name="ImageIntake",
        ray_actor_options={"num_cpus": imaging.num_cpus},
        autoscaling_config={
            "min_replicas": imaging.replicas,
            "max_replicas": max(imaging.replicas, imaging.max_replicas),
            "target_ongoing_requests": imaging.workers,
        },
        max_ongoing_requests=2 * imaging.workers,
        max_queued_requests=imaging.max_queued,
    ).bind(settings, rules)


class ImageIntakeClient:
    """ImageIntake, as a replica calls it. Bounded: what would wait too long is refused."""

    def __init__(self, handle: DeploymentHandle) -> None:
        # By value, as Ray has it where it is set up for throughput, an answer may have 4 MiB
        # (RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH): a large imaging.review_side exceeds that.
        self._handle = handle.options(_by_reference=True)
        self._in_flight = 0

    async def prepare(self, data: bytes, declared: str | None, wanted: Wanted) -> Prepared:
        """See serve.images.Intake.

        Raises:
            ApiError: the image cannot be used.
            Overloaded: too many wait already.
            Unavailable: the deployment does not answer.
        """
        if self._in_flight + len(data) > IN_FLIGHT_BYTES:
            raise Overloaded("Too many images wait to be decoded. Try again.")
        self._in_flight += len(data)
        try:
            # numpy's buffer is copied outside of Python's lock; bytes would be pickled inside it.
            reference = await asyncio.to_thread(ray.put, np.frombuffer(data, np.uint8))
            answer = await self._handle.prepare.remote([reference], declared, wanted)
        except BackPressureError:
            raise Overloaded("Too many images wait to be decoded. Try again.") from None
        except (RayServeException, ray.exceptions.RayError) as error:
            raise _unavailable() from error
        finally:
            self._in_flight -= len(data)
        if isinstance(answer, ApiError):
            raise answer
        prepared: Prepared = answer
        return prepared


def _unavailable() -> Unavailable:
    return Unavailable("Images cannot be decoded now.", code="intake_unavailable")
