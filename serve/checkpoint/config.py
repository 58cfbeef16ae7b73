"""The two configuration files that a conversion reads, as closed types.

``SourceConfig`` is LLaVA-Med's ``config.json`` (``LlavaMistralConfig`` in the authors'
``llava/model/language_model/llava_mistral.py``, defaults of transformers 4.37's ``MistralConfig``);
``VisionConfig`` is a CLIP vision tower's. A value that would change the network in a way that the
target layout cannot express is refused here, by name. Fields that change nothing are ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve.checkpoint.errors import CorruptFile, MissingFile, NotACheckpoint, UnsupportedConfig

Json: TypeAlias = dict[str, object]
_Model = TypeVar("_Model", bound=BaseModel)


class SourceConfig(BaseModel):
    """What decides the network, of an original checkpoint's ``config.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    model_type: Literal["llava_mistral"]
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int | None = None
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096
    tokenizer_model_max_length: int = 2048
    torch_dtype: str | None = None

    mm_vision_tower: str
    mm_hidden_size: int = Field(gt=0)
    mm_vision_select_layer: int

    # One supported value each. The first two have no default: without them the authors' code
    # would build a linear projector and squash the image.
    mm_projector_type: Literal["mlp2x_gelu"]
    image_aspect_ratio: Literal["pad"]
    mm_vision_select_feature: Literal["patch"] = "patch"
    mm_patch_merge_type: Literal["flat"] = "flat"
    mm_use_im_start_end: Literal[False] = False
    mm_use_im_patch_token: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: Literal[False] = False
    attention_bias: Literal[False] = False
    rope_scaling: None = None
    quantization_config: None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) does not divide "
                f"hidden_size ({self.hidden_size})"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) does not divide "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.head_dim is not None and self.head_dim != self.head_size:
            raise ValueError(
                f"head_dim is {self.head_dim}, the authors' code uses {self.head_size}"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


class VisionConfig(BaseModel):
    """A CLIP vision tower (``CLIPVisionConfig``); defaults are transformers'."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    hidden_size: int = Field(default=768, gt=0)
    intermediate_size: int = Field(default=3072, gt=0)
    num_hidden_layers: int = Field(default=12, gt=0)
    num_attention_heads: int = Field(default=12, gt=0)
    num_channels: Literal[3] = 3
    image_size: int = Field(default=224, gt=0)
    patch_size: int = Field(default=32, gt=0)
    projection_dim: int = Field(default=512, gt=0)
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) does not divide "
                f"hidden_size ({self.hidden_size})"
            )
        return self

    @property
    def image_tokens(self) -> int:
        """Tokens that one image takes in the prompt: its patches, without the class token."""
        return (self.image_size // self.patch_size) ** 2


# config.json of openai/clip-vit-large-patch14-336, the tower of every published LLaVA-Med v1.5.
CLIP_L_336 = VisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


class ImageNormalisation(BaseModel):
    """Size and colour statistics of a ``preprocessor_config.json``; defaults are CLIP's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: Literal[3] = 3  # bicubic


def read_json(path: Path) -> Json:
    """The JSON object in ``path``.

    Raises:
        MissingFile: there is no such file.
        CorruptFile: it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise CorruptFile(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} holds no JSON object")
    return value


def read_source_config(path: Path) -> SourceConfig:
    """LLaVA-Med's ``config.json``.

    Raises:
        NotACheckpoint: another kind of model.
        UnsupportedConfig: a value that cannot be converted, or a needed one is missing.
    """
    raw = read_json(path)
    if raw.get("model_type") != "llava_mistral":
        raise NotACheckpoint(
            f"{path} has model_type {raw.get('model_type')!r}; an original LLaVA-Med checkpoint "
            "has 'llava_mistral'"
        )
    return _validate(SourceConfig, raw, path)


def read_vision_config(path: Path) -> VisionConfig:
    """A CLIP folder's ``config.json``: of the vision tower alone, or of a whole CLIP.

    Raises:
        UnsupportedConfig: not CLIP, or a value that cannot be converted.
    """
    raw = read_json(path)
    if raw.get("model_type") == "clip":
        nested = raw.get("vision_config")
        raw = dict(nested) if isinstance(nested, dict) else {}
    elif raw.get("model_type") != "clip_vision_model":
        raise UnsupportedConfig(
            f"{path} has model_type {raw.get('model_type')!r}; the vision tower must be a CLIP"
        )
    return _validate(VisionConfig, raw, path)


def read_normalisation(path: Path) -> ImageNormalisation:
    """A CLIP folder's ``preprocessor_config.json``; CLIP's own values when there is none.

    Raises:
        UnsupportedConfig: resampling other than bicubic.
    """
    if not path.exists():
        return ImageNormalisation()
    return _validate(ImageNormalisation, read_json(path), path)


def _validate(model: type[_Model], raw: Json, path: Path) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UnsupportedConfig(f"{path}: {field} is missing") from None
        if not field:
            raise UnsupportedConfig(
                f"{path}: {first['msg'].removeprefix('Value error, ')}"
            ) from None
        raise UnsupportedConfig(
            f"{path}: {field} is {first['input']!r}, which cannot be converted: {first['msg']}"
        ) from None
