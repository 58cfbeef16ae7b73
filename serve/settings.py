"""One typed settings tree: YAML file, environment, command line, in that order of weight.

Read once, at the edge, frozen after. Environment names are ``LLAVA_MED_`` plus the path, levels
joined by two underscores: ``LLAVA_MED_LIMITS__MAX_IMAGES=4``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from serve.escalation.rules import Escalation
from serve.imaging.regions import KnownRegion

MODEL_ID = "llava-med"

# Environment of every process: no phoning home, nothing fetched (the checkpoint is a folder).
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Limits(BaseModel):
    """What one request may cost. Checked before the engine sees anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(
        default=32 << 20, gt=0, description="Size of a request body, in bytes."
    )
    max_images: int = Field(default=4, ge=0, description="Images in one request.")
    max_image_pixels: int = Field(
        default=50_000_000, gt=0, description="Pixels of one image, before it is decoded."
    )
    max_messages: int = Field(default=64, gt=0, description="Messages in one request.")
    max_text_chars: int = Field(
        default=32_768, gt=0, description="Characters of text in one request."
    )
    max_choices: int = Field(default=8, gt=0, description="Largest n.")
    default_max_tokens: int = Field(
        default=512, gt=0, description="Answer length where the client names none, in tokens."
    )


class Fetch(BaseModel):
    """Images by ``https:`` URL. Off until a host is named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts that image URLs may name: `host` (port 443) or `host:port`, no "
        "wildcards, no IP addresses. None: remote URLs are refused.",
    )
    private_addresses: bool = Field(
        default=False,
        description="Whether an allowed host may resolve to a private, loopback or link-local "
        "address.",
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file of the CAs to trust. Default: the system's."
    )
    max_bytes: int = Field(
        default=64 << 20, gt=0, description="Size of a fetched file, in bytes; DICOMweb's too."
    )
    timeout_s: float = Field(
        default=10.0, gt=0, description="For a whole fetch, in seconds; DICOMweb's too."
    )


class Dicomweb(BaseModel):
    """The one PACS that ``dicomweb:`` references are read from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$",
        description="DICOMweb root, for example `https://pacs.internal/dicom-web`; http sends "
        "credentials in clear. Default: none, and references are refused.",
    )
    username: str | None = Field(default=None, description="For Basic authentication.")
    password: SecretStr | None = Field(default=None, description="For Basic authentication.")
    token: SecretStr | None = Field(default=None, description="For Bearer authentication.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the CAs to trust. Default: the system's."
    )


class Imaging(BaseModel):
    """Image intake: what comes in, where it is decoded, what happens to burned-in text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    burned_in: Literal["refuse", "mask", "flag"] = Field(
        default="mask",
        description="What happens to an image that may have text burned in: refused; masked, and "
        "refused where nobody knows where the text is; or passed and flagged.",
    )
    ocr: bool = Field(
        default=False,
        description="Look for text in every image, with tesseract (the extra `ocr` and its English "
        "language data). docs/imaging.md has what it costs.",
    )
    known_regions: tuple[KnownRegion, ...] = Field(
        default=(),
        description="Where your devices burn text in: boxes to black out, by modality, "
        "manufacturer, model, rows or columns (docs/imaging.md).",
    )
    light_pixels: int = Field(
        default=4_000_000,
        ge=0,
        description="PNG and JPEG up to this many pixels are decoded in the replica; larger ones, "
        "and all DICOM, in ImageIntake.",
    )
    recent_images: int = Field(
        default=64,
        ge=0,
        description="Images that a replica keeps as the model sees them, with their pictures (0.4 "
        "to 2 MB each), so that several questions about one decode it once; 0: none.",
    )
    review_side: int = Field(
        default=1024,
        ge=0,
        description="Longer side of the picture that reviewers see, in pixels; larger images are "
        "reduced. 0: reviewers see the model's square.",
    )
    max_frames: int = Field(default=10_000, gt=0, description="Frames of one DICOM instance.")
    replicas: int = Field(default=1, gt=0, description="ImageIntake replicas, at least.")
    max_replicas: int = Field(
        default=1, gt=0, description="ImageIntake replicas, at most; Ray scales between the two."
    )
    workers: int = Field(
        default=2, gt=0, description="Decoding processes of one ImageIntake replica."
    )
    num_cpus: float = Field(
        default=0,
        ge=0,
        description="CPUs that Ray sets aside for an ImageIntake replica. On a cluster, as many as "
        "workers.",
    )
    max_queued: int = Field(
        default=64,
        gt=0,
        description="Images that wait for a decoding process before more are refused (429).",
    )
    timeout_s: float = Field(
        default=20.0, gt=0, description="For decoding one image, in seconds; its process is ended."
    )
    worker_memory_mib: int = Field(
        default=2048, ge=512, description="Address space of one decoding process, in MiB."
    )
    uid_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key of the hash by which records know an instance. Default: generated once "
        "into state_dir.",
    )
    fetch: Fetch = Fetch()
    dicomweb: Dicomweb = Dicomweb()


class Audit(BaseModel):
    """The audit store: every request and answer, encrypted, chained, durable before delivery."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = Field(
        default=None,
        description="Database: `postgresql+psycopg://user:password@host/name`, or "
        "`sqlite:////path/audit.db`. Default: audit.db in state_dir.",
    )
    key: SecretStr | None = Field(
        default=None,
        description="Key-encryption keys, base64 of 32 bytes each, the current one first, with "
        "commas or new lines between. Default: those of key_file.",
    )
    key_file: Path | None = Field(
        default=None,
        description="File with such keys, one a line. Default: generated once into state_dir.",
    )
    signing_key: SecretStr | None = Field(
        default=None,
        description="Ed25519 key that checkpoints are signed with, base64 of 32 bytes. Default: "
        "generated once into state_dir.",
    )
    checkpoints: Path | None = Field(
        default=None,
        description="Folder of the signed checkpoints, best on other storage than the database. "
        "Default: audit-checkpoints in state_dir.",
    )
    checkpoint_s: float = Field(
        default=10.0, gt=0, description="How often a chain's head is signed, in seconds."
    )
    timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="For one write, in seconds; then the request is refused (503).",
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="Days after which content is shredded, once a day. Default: kept.",
    )


class Engine(BaseModel):
    """How vLLM runs the model. Names are vLLM's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where torch finds a GPU."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Precision; auto follows the checkpoint."
    )
    max_model_len: int | None = Field(
        default=None,
        gt=0,
        description="Prompt and answer, in tokens. Default: the smaller of 4096 and the "
        "checkpoint's own; LLaVA-Med was trained at 2048.",
    )
    max_num_seqs: int = Field(default=64, gt=0, description="Sequences decoded together.")
    gpu_memory_utilization: float = Field(
        default=0.90, gt=0, le=1, description="Share of GPU memory for weights and KV cache."
    )
    cpu_kvcache_gib: int = Field(default=1, gt=0, description="KV cache on CPU, in GiB.")
    tensor_parallel_size: int = Field(default=1, gt=0, description="GPUs that share one model.")


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix="LLAVA_MED_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # an error must not print a key
    )

    model: Path | None = Field(
        default=None,
        description="Checkpoint folder, original or converted. Default: the embedded phantom "
        "model, which knows drawings only.",
    )
    policy: Path | None = Field(
        default=None,
        description="Policy file: rules, findings, texts (docs/guardrails.md). Default: the one "
        "that ships.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, gt=0, lt=65536, description="Port of the API.")
    replicas: int = Field(default=1, gt=0, description="Model replicas, one GPU each.")
    state_dir: Path = Field(
        default=Path.home() / ".llava-med",
        description="Converted checkpoints, generated keys, and the audit store.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key of the principal `default`, a caller. Default: generated once into "
        "state_dir, readable by you only.",
    )
    admin_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key of the principal `admin`: reviewer, auditor and admin. Default: generated "
        "once into state_dir, readable by you only.",
    )
    keys: Path | None = Field(
        default=None,
        description="File of further principals, their roles and the SHA-256 of their keys "
        "(`llava-med keys`). Default: keys.yaml in state_dir, if there is one.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="Level of Ray's and vLLM's own logs."
    )
    limits: Limits = Limits()
    imaging: Imaging = Imaging()
    audit: Audit = Audit()
    escalation: Escalation = Escalation()
    engine: Engine = Engine()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load(config: Path | None = None, **command_line: Any) -> Settings:
    """Reads the settings.

    Args:
        config: a YAML file, or None for environment and command line alone.
        command_line: values that win over the file and the environment; None means not given.

    Raises:
        FileNotFoundError: ``config`` does not exist.
        pydantic.ValidationError: a value is wrong or a name unknown; the message names it.
    """
    given = {name: value for name, value in command_line.items() if value is not None}
    if config is None:
        return Settings(**given)
    if not config.is_file():
        raise FileNotFoundError(f"no settings file at {config}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=config)

    return FromFile(**given)


def problems(error: ValidationError) -> str:
    """What is wrong with settings, a line for each; without their values, which may be secret."""
    lines = [
        f"  {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    ]
    return "settings:\n" + "\n".join(lines)
