"""The guarded replica: vLLM's engine in a Ray Serve deployment whose only HTTP app is our edge.

One of two places that know vLLM (the other converts checkpoints). Clients never reach vLLM's own
request parsing: a typed prompt goes in, typed steps come out.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import REGISTRY, generate_latest
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from starlette.types import ASGIApp
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from guardrails import policy
from guardrails.policy import Policy
from serve import loop_lag, loopback, metrics
from serve.audit.opening import model_of
from serve.audit.process import WriterProcess
from serve.audit.store import open_store
from serve.edge import build_edge
from serve.engine import Output, Prompt, Sampling, Step
from serve.errors import ApiError, BadRequest, ContextTooLong, Overloaded, Unavailable
from serve.image_intake import ImageIntakeClient
from serve.images import Images
from serve.imaging.intake import Rules
from serve.principals import Principals
from serve.readiness import generate_one_token
from serve.recorder import Recorder
from serve.settings import Settings

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


SWITCH_INTERVAL_S = 0.0005
logger = logging.getLogger("llava_med")


class VllmEngine:
    """serve.engine.Engine over vLLM's AsyncLLM in this process."""

    def __init__(self, client: AsyncLLM) -> None:
        self._client = client
        self._max_model_len: int = client.model_config.max_model_len
        # The checkpoint's own chat template; "openai" keeps images as parts of their message.
        self._chat_params = ChatParams(chat_template_content_format="openai")

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str, allowed: Awaitable[None]
    ) -> AsyncGenerator[Step, None]:
        """See serve.engine.Engine.generate."""
        try:
            engine_input = await self._render(prompt)
            await allowed
            room = self._room(len(engine_input["prompt_token_ids"]))
            params = _params(sampling, max_tokens=min(sampling.max_tokens, room))
            async with aclosing(self._client.generate(engine_input, params, request_id)) as outputs:
                async for output in outputs:
                    yield _step(output)
        except GracefulHTTPError:
            raise Overloaded("The engine's queue is full. Try again.") from None
        except VLLMClientError as error:
            if "longer than" in str(error) or "maximum" in str(error):
                raise self._too_long() from None
            raise BadRequest("The engine cannot serve this request.") from None
        except (asyncio.CancelledError, GeneratorExit, ApiError):
            raise
        except Exception as error:  # the engine's own failures, of whatever kind
            raise Unavailable("The engine failed.") from error

    async def _render(self, prompt: Prompt) -> Any:
        """Chat template, tokenizer and image processor, off the event loop (vLLM's renderer)."""
        messages = [
            {
                "role": turn.role,
                "content": [
                    *(
                        {"type": "image_pil", "image_pil": image.pixels, "uuid": image.digest}
                        for image in turn.images
                    ),
                    {"type": "text", "text": turn.text},
                ],
            }
            for turn in prompt.turns
        ]
        _, (engine_input,) = await self._client.renderer.render_chat_async(
            [cast("Any", messages)],
            self._chat_params,
            prompt_extras={"cache_salt": prompt.cache_salt},
        )
        return engine_input

    def _room(self, prompt_tokens: int) -> int:
        if prompt_tokens >= self._max_model_len:
            raise self._too_long()
        return self._max_model_len - prompt_tokens

    def _too_long(self) -> ContextTooLong:
        return ContextTooLong(
            f"The prompt leaves no room for an answer in the model's context of "
            f"{self._max_model_len} tokens. An image takes 576.",
            param="messages",
        )

    async def check_health(self) -> None:
        """See serve.engine.Engine.check_health."""
        try:
            await self._client.check_health()
        except Exception as error:
            raise Unavailable("The engine is dead; it is being restarted.") from error

    def metrics(self) -> bytes:
        """See serve.engine.Engine.metrics."""
        return generate_latest(REGISTRY)


def _params(sampling: Sampling, *, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        seed=sampling.seed,
        # An empty stop string ends every answer at once (LLaVA-Med's own issue 86): never sent.
        stop=[text for text in sampling.stop if text],
        max_tokens=max_tokens,
        structured_outputs=(
            StructuredOutputsParams(regex=sampling.grammar) if sampling.grammar else None
        ),
        output_kind=RequestOutputKind.DELTA if sampling.stream else RequestOutputKind.FINAL_ONLY,
    )


def _step(output: RequestOutput) -> Step:
    return Step(
        outputs=tuple(
            Output(
                index=choice.index,
                text=choice.text,
                tokens=len(choice.token_ids),
                finish_reason=_finish_reason(choice.finish_reason),
            )
            for choice in output.outputs
        ),
        prompt_tokens=len(output.prompt_token_ids or ()),
    )


def _finish_reason(reason: str | None) -> Any:
    match reason:
        case None | "stop" | "length":
            return reason
        case _:  # abort, error: the answer is not whole and must not look so
            raise Unavailable("The engine ended the answer early.")


class NothingToDownload(CallbackBase):  # type: ignore[misc]  # Ray has no types
    """The checkpoint is a local folder: skips Ray's download tasks, each a process with vLLM."""

    async def on_before_node_init(self) -> None:
        """Called by Ray before it would start them."""
        self.ctx.run_init_node = False


class LlavaMedServer(LLMServer):  # type: ignore[misc]
    """The deployment. Serve takes its HTTP app from ``__serve_build_asgi_app__``."""

    async def __init__(  # type: ignore[misc]  # Ray awaits a deployment's constructor
        self,
        llm_config: LLMConfig,
        *,
        settings: Settings,
        rules: Rules,
        intake: DeploymentHandle,
    ) -> None:
        self._settings = settings
        self._principals = Principals.of(
            api_key=settings.api_key, admin_key=settings.admin_key, keys=settings.keys
        )
        self._recorder = await _recorder(settings)
        self._images = Images(settings.imaging, rules, ImageIntakeClient(intake))
        if loopback.is_loopback(settings.host):
            loopback.pin_replica_grpc()
        self._policy: Policy | None = None
        # While the engine starts in its own process: most policies share most of their patterns
        # with the one that ships, and what is compiled once is kept.
        warm_up = asyncio.create_task(asyncio.to_thread(policy.load))
        await super().__init__(llm_config)
        await warm_up

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Ray calls this at the start and whenever ``user_config`` changes: a new policy.

        All or nothing: a policy that is not fit for use changes nothing. Only the first one may
        raise, since Ray would replace a replica that raises later, engine and all.

        Raises:
            PolicyError: there is no former policy to keep.
        """
        try:
            self._policy = await asyncio.to_thread(policy.parse, user_config["policy"])
        except Exception as error:
            metrics.policy_refused()
            if self._policy is None:
                raise
            logger.error("policy refused, %s stays in force:\n%s", self._policy.id, error)
        else:
            metrics.policy_used(self._policy.id)

    def _policy_in_force(self) -> Policy:
        if self._policy is None:
            raise Unavailable("No policy is in force; without one nothing is answered.")
        return self._policy

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Our edge in place of vLLM's app; only after the engine has generated a token."""
        # A thread that has Python's lock keeps it for 5 ms by default, and streams wait so long.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._loop_watch = asyncio.create_task(loop_lag.watch())
        engine = VllmEngine(self.engine._engine_client)  # noqa: SLF001  # Ray offers no other way to it
        await generate_one_token(engine)
        return build_edge(
            engine,
            self._settings,
            self._policy_in_force,
            self._images,
            self._principals,
            self._recorder,
        )


async def _recorder(settings: Settings) -> Recorder:
    if settings.model is None:
        raise ValueError("settings.model must name a converted checkpoint folder")
    store = await asyncio.to_thread(open_store, settings)
    model = model_of(settings.model)
    writer = WriterProcess(settings, "replica", model)
    await writer.start()
    return Recorder(store, writer, model)
