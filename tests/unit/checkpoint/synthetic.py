"""Tiny LLaVA-Med checkpoints in the original layout, made on the spot."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from serve.checkpoint.config import SourceConfig, VisionConfig
from serve.checkpoint.keys import VISION, language_shapes, vision_shapes

TOKENIZER = Path(__file__).parents[2] / "data/golden/with-vision-tower/checkpoint/tokenizer.model"

LANGUAGE: dict[str, object] = {
    "model_type": "llava_mistral",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "mm_vision_tower": "../clip",
    "mm_hidden_size": 8,
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
    "image_aspect_ratio": "pad",
    # Leftovers of training that change nothing.
    "img_size": 640,
    "vision_backbone": "convnextlarge",
    "feature_outs": "encoder+decoder",
}
CLIP: dict[str, object] = {
    "model_type": "clip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 4,
}


@dataclass
class Synthetic:
    """A checkpoint to write. Change ``config``, ``clip`` or ``tensors``, then ``write``."""

    vision: Literal["inside", "outside"] = "inside"
    config: dict[str, object] = field(default_factory=lambda: dict(LANGUAGE))
    clip: dict[str, object] = field(default_factory=lambda: dict(CLIP))
    dtype: torch.dtype = torch.float16
    tensors: dict[str, torch.Tensor] = field(init=False)
    tower: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(0)

        def make(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
            return {
                name: torch.randn(shape, generator=random).to(self.dtype)
                for name, shape in shapes.items()
            }

        self.tensors = make(language_shapes(SourceConfig.model_validate(self.config)))
        self.tower = make(vision_shapes(VisionConfig.model_validate(self.clip)))
        if self.vision == "inside":
            self.tensors |= self.tower

    def write(
        self, root: Path, kind: Literal["safetensors", "bin"] = "safetensors", shards: int = 3
    ) -> Path:
        """Writes the checkpoint to ``root/checkpoint`` and its CLIP to ``root/clip``."""
        folder, clip = root / "checkpoint", root / "clip"
        folder.mkdir()
        clip.mkdir()
        shutil.copy(TOKENIZER, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(self.config))
        (clip / "config.json").write_text(json.dumps(self.clip))
        save_file(
            {name.removeprefix(VISION): value for name, value in self.tower.items()}
            | {"logit_scale": torch.ones(1)},
            clip / "model.safetensors",
        )
        stem = "model" if kind == "safetensors" else "pytorch_model"
        if shards == 1:
            _save(self.tensors, folder / f"{stem}.{kind}")
            return folder
        places: dict[str, str] = {}
        names = list(self.tensors)
        for number in range(shards):
            file = f"{stem}-{number + 1:05}-of-{shards:05}.{kind}"
            part = {name: self.tensors[name] for name in names[number::shards]}
            _save(part, folder / file)
            places |= dict.fromkeys(part, file)
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": places}))
        return folder


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
