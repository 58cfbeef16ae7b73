"""The Ray Serve applications: one composition root, used by `llava-med up` and by RayService."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.api import RunTarget
from ray.serve.llm import LLMConfig, build_llm_deployment

from serve.audit.background import retain
from serve.escalation.background import escalate
from serve.image_intake import build_image_intake
from serve.imaging.intake import Rules
from serve.replica import LlavaMedServer, NothingToDownload
from serve.review.deployment import build_audit_log
from serve.settings import MODEL_ID, OFFLINE, Settings

APP_NAME = "llava-med"
REVIEWS_NAME = "reviews"
REVIEWS_PREFIX = "/v1/reviews"
DEFAULT_CONTEXT = 4096


def build_app(settings: Settings, policy_text: str) -> Application:
    """The guarded replica as Serve ingress; ``settings.model`` is a converted checkpoint folder.

    The policy travels as ``user_config``: where nothing else has changed, Ray hands a new one to
    the running replicas.

    Raises:
        ValueError: no model folder, or no API key.
    """
    if settings.model is None:
        raise ValueError("settings.model must name a converted checkpoint folder")
    if settings.api_key is None:
        raise ValueError("no API key: set LLAVA_MED_API_KEY")
    rules = image_rules(settings, settings.model)
    application = build_llm_deployment(
        _llm_config(settings, settings.model),
        deployment_cls=ray_serve.ingress()(LlavaMedServer),
        bind_kwargs={
            "settings": settings,
            "rules": rules,
            "intake": build_image_intake(settings, rules),
        },
        override_serve_options={"user_config": {"policy": policy_text}},
        name_prefix="",
    )
    # Ray makes up a version for each `serve.run` and replaces the replicas of any other. With one
    # that says what the replicas are made of, a new policy alone does not restart an engine. (A
    # Serve config file, as RayService has it, gets such a version from Ray.)
    application._bound_deployment._version = _digest(settings)  # noqa: SLF001  # no other way in
    return application


def applications(settings: Settings, policy_text: str) -> list[RunTarget]:
    """Both applications. The reviewers' goes on while a replica's engine is restarted.

    Raises:
        ValueError: see ``build_app``.
    """
    reviews = build_audit_log(settings, policy_text, (escalate, retain))
    reviews._bound_deployment._version = _digest(settings)  # noqa: SLF001  # see build_app
    return [
        RunTarget(build_app(settings, policy_text), name=APP_NAME, route_prefix="/"),
        RunTarget(reviews, name=REVIEWS_NAME, route_prefix=REVIEWS_PREFIX),
    ]


def image_rules(settings: Settings, model: Path) -> Rules:
    """What holds for every image: the settings, and the size that the checkpoint was trained at."""
    processor = json.loads((model / "preprocessor_config.json").read_text())
    return Rules.of(settings, side=int(processor["size"]["shortest_edge"]))


def _digest(settings: Settings) -> str:
    """What the replicas are made of, secrets too, which a dump would hide."""
    parts = settings.model_dump(mode="json", exclude={"policy"}) | _secrets(settings)
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _secrets(model: BaseModel, path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in model:
        if isinstance(value, SecretStr):
            found[f"{path}{name}"] = value.get_secret_value()
        elif isinstance(value, BaseModel):
            found |= _secrets(value, f"{path}{name}.")
    return found


def _llm_config(settings: Settings, model: Path) -> LLMConfig:
    on_cpu = _device(settings) == "cpu"
    engine = settings.engine
    engine_kwargs: dict[str, Any] = {
        "max_model_len": engine.max_model_len or min(DEFAULT_CONTEXT, _model_context(model)),
        "max_num_seqs": engine.max_num_seqs,
        "dtype": engine.dtype,
        "limit_mm_per_prompt": {"image": settings.limits.max_images},
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # sampling defaults are ours, see chat.py
        "disable_log_stats": False,
    }
    if on_cpu:
        # Prefixes are cached in whole blocks: vLLM's CPU default of 128 would lose up to 127 tokens
        # of image and preamble to every new question (16 on GPU).
        engine_kwargs["block_size"] = 32
    else:
        engine_kwargs["gpu_memory_utilization"] = engine.gpu_memory_utilization
    env = {
        **OFFLINE,
        "VLLM_LOGGING_LEVEL": settings.log_level,
        **({"VLLM_CPU_KVCACHE_SPACE": str(engine.cpu_kvcache_gib)} if on_cpu else {}),
    }
    return LLMConfig(
        model_loading_config={"model_id": MODEL_ID, "model_source": str(model)},
        **(
            {
                "accelerator_config": {"kind": "cpu"},
                "placement_group_config": {"bundles": [{"CPU": 0.1}]},
            }
            if on_cpu
            else {}
        ),
        deployment_config={
            "num_replicas": settings.replicas,
            "ray_actor_options": {"num_cpus": 0 if on_cpu else 1},
            # The engine queues; this bounds what one replica holds at all.
            "max_ongoing_requests": 4 * engine.max_num_seqs,
        },
        callback_config={"callback_class": NothingToDownload},
        runtime_env={"env_vars": env},
        engine_kwargs=engine_kwargs,
        log_engine_metrics=False,  # the replica's own /metrics carries vLLM's names unchanged
    )


def _device(settings: Settings) -> str:
    if settings.engine.device != "auto":
        return settings.engine.device
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _model_context(model: Path) -> int:
    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config", config)
    return int(text.get("max_position_embeddings", DEFAULT_CONTEXT))
