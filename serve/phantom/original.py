"""Writes and reads a phantom in LLaVA-Med's original layout (``llava_mistral``).

Saved as the authors save theirs, so that the converter is exercised whenever the default model is
served.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve.phantom.model import PhantomModel
from serve.phantom.tokens import BOS, EOS, UNK, VOCABULARY, tokenizer_model, vocabulary

_VISION = "model.vision_tower.vision_tower.vision_model."
_PROJECTOR = "model.mm_projector."
_TOWER = "clip-vit-phantom-patch14-336"
_EXPANDED = ("model.embed_tokens.weight", "lm_head.weight")


def save(model: PhantomModel, folder: Path) -> None:
    """Writes the checkpoint in bfloat16, whole or not at all; an older one is replaced."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in _tensors(model).items()}
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(tokenizer_model(), temporary / "tokenizer.model")
    for name, content in _json_files(model).items():
        path = temporary / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)  # noqa: PTH105  # the atomic one


def load(folder: Path, labels: int) -> PhantomModel:
    """Reads a saved checkpoint back for evaluation.

    Raises:
        RuntimeError: its tensors are not those of this network.
    """
    model = PhantomModel(labels)
    tensors = load_file(folder / "model.safetensors")
    rows = torch.tensor(vocabulary())
    state = model.state_dict()
    for key in state:
        original = _original_key(key)
        if original is None:
            continue
        value = tensors.pop(original).float()
        state[key] = value[rows] if original in _EXPANDED else value
    if tensors:
        raise RuntimeError(f"unknown tensors: {sorted(tensors)}")
    model.load_state_dict(state)
    return model.eval()


def _original_key(key: str) -> str | None:
    """A parameter's name in the original layout; None for the throw-away head."""
    if key.startswith("dense."):
        return None
    if key.startswith("projector."):
        return _PROJECTOR + key.removeprefix("projector.")
    if key.startswith("vision."):
        return _VISION + key.removeprefix("vision.").removeprefix("vision_model.")
    return key.removeprefix("text.")


def _tensors(model: PhantomModel) -> dict[str, Tensor]:
    tensors = {}
    for key, value in model.state_dict().items():
        original = _original_key(key)
        if original is not None and not key.endswith("position_ids"):
            tensors[original] = _expand(value) if original in _EXPANDED else value
    return tensors


def _expand(rows: Tensor) -> Tensor:
    """All 32,000 rows from the used ones: the others equal that of ``<unk>``."""
    whole = rows[:1].repeat(VOCABULARY, 1)
    whole[torch.tensor(vocabulary())] = rows
    return whole


def _json_files(model: PhantomModel) -> dict[str, dict[str, Any]]:
    text, vision = model.text_config, model.vision_config
    return {
        "config.json": {
            "architectures": ["LlavaMistralForCausalLM"],
            "model_type": "llava_mistral",
            "attention_dropout": 0.0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "image_aspect_ratio": "pad",
            "initializer_range": 0.02,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "mm_hidden_size": vision.hidden_size,
            "mm_patch_merge_type": "flat",
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": f"./{_TOWER}",
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "tokenizer_model_max_length": 2048,
            "tokenizer_padding_side": "right",
            "torch_dtype": "bfloat16",
            "use_mm_proj": True,
            "vocab_size": VOCABULARY,
        },
        f"{_TOWER}/config.json": {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "attention_dropout": 0.0,
            "hidden_act": vision.hidden_act,
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": 3,
            "num_hidden_layers": vision.num_hidden_layers,
            "patch_size": vision.patch_size,
            "projection_dim": vision.projection_dim,
        },
        # OpenAI's CLIP normalisation (openai/clip-vit-large-patch14-336, preprocessor_config.json)
        f"{_TOWER}/preprocessor_config.json": {
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": 336},
        },
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": 2048,
            "padding_side": "right",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "unk_token_id": UNK,
        },
    }
