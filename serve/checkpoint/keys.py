"""Which tensors an original checkpoint has, and what the same tensors are called in the target.

Pure: names and shapes only. Source names are those of the authors' modules
(``llava/model/llava_arch.py``); target names are the Hub's LLaVA layout as vLLM's
``LlavaForConditionalGeneration`` reads it. The two vocabularies map one to one.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from serve.checkpoint.config import SourceConfig, VisionConfig

Shapes: TypeAlias = dict[str, tuple[int, ...]]

VISION = "model.vision_tower.vision_tower."  # the tower inside a LLaVA-Med checkpoint
EXTERNAL_VISION = "vision_model."  # the same in a CLIP folder, followed by the same names

# (source prefix, target prefix); no source prefix is a prefix of another.
_PREFIXES = (
    (VISION, "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
)

# Buffers that old versions of transformers saved; the network computes them itself.
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


def target_key(source_key: str) -> str:
    """The target's name of a source tensor.

    Raises:
        KeyError: no tensor of LLaVA-Med's is called so.
    """
    for source, target in _PREFIXES:
        if source_key.startswith(source):
            return target + source_key.removeprefix(source)
    raise KeyError(source_key)


def source_key(target_key: str) -> str:
    """The source's name of a target tensor: the inverse of ``target_key``.

    Raises:
        KeyError: no tensor of the target's is called so.
    """
    for source, target in _PREFIXES:
        if target_key.startswith(target):
            return source + target_key.removeprefix(target)
    raise KeyError(target_key)


def is_buffer(key: str) -> bool:
    """Whether a tensor is a saved buffer, which is not converted."""
    return _BUFFER.search(key) is not None


def external_key(key: str) -> str | None:
    """The source name of a tensor in a CLIP folder; None for CLIP's text half."""
    return VISION + key if key.startswith(EXTERNAL_VISION) else None


def language_shapes(config: SourceConfig) -> Shapes:
    """Source names and shapes of the language model and the projector."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys_values = config.num_key_value_heads * config.head_size
    layer: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (keys_values, hidden),
        "self_attn.v_proj.weight": (keys_values, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    return {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
        "model.mm_projector.0.weight": (hidden, config.mm_hidden_size),
        "model.mm_projector.0.bias": (hidden,),
        "model.mm_projector.2.weight": (hidden, hidden),
        "model.mm_projector.2.bias": (hidden,),
    } | {
        f"model.layers.{index}.{name}": shape
        for index in range(config.num_hidden_layers)
        for name, shape in layer.items()
    }


def vision_shapes(config: VisionConfig) -> Shapes:
    """Source names and shapes of the vision tower (``pre_layrnorm`` is CLIP's own spelling)."""
    width, inner = config.hidden_size, config.intermediate_size
    layer: Shapes = {
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }
    for norm in ("layer_norm1", "layer_norm2"):
        layer |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer |= {
            f"self_attn.{projection}.weight": (width, width),
            f"self_attn.{projection}.bias": (width,),
        }
    patch = (width, config.num_channels, config.patch_size, config.patch_size)
    shapes: Shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": patch,
        "embeddings.position_embedding.weight": (config.image_tokens + 1, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {f"{VISION}{EXTERNAL_VISION}{name}": shape for name, shape in shapes.items()}
