"""Everything that can be wrong with a checkpoint: named, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from serve.checkpoint.convert import convert
from serve.checkpoint.errors import (
    CheckpointError,
    CorruptFile,
    MissingFile,
    MissingTensors,
    NoSpace,
    NotACheckpoint,
    UnexpectedTensors,
    UnsupportedConfig,
    VocabularyMismatch,
    WrongShape,
)
from serve.checkpoint.inspect import inspect
from tests.unit.checkpoint.synthetic import LANGUAGE, Synthetic

SHARD = "model-00002-of-00003"


def refused(source: Path, error: type[CheckpointError], match: str) -> None:
    """Asserts that ``convert`` raises, ``inspect`` agrees, and no folder is left."""
    root = source.parent
    before = {path.name for path in root.iterdir()}
    with pytest.raises(error, match=match) as caught:
        convert(source, root / "out")
    assert caught.type is error
    assert {path.name for path in root.iterdir()} == before
    assert not inspect(source).will_serve


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("mm_projector_type", "mlp3x_gelu", "mm_projector_type"),
        ("mm_projector_type", "linear", "mm_projector_type"),
        ("mm_projector_type", "ldpv2", "mm_projector_type"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end"),
        ("mm_use_im_patch_token", True, "mm_use_im_patch_token"),
        ("mm_vision_select_feature", "cls_patch", "mm_vision_select_feature"),
        ("mm_patch_merge_type", "spatial_unpad", "mm_patch_merge_type"),
        ("image_aspect_ratio", "anyres", "image_aspect_ratio"),
        ("tie_word_embeddings", True, "tie_word_embeddings"),
        ("attention_bias", True, "attention_bias"),
        ("hidden_act", "gelu", "hidden_act"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("num_attention_heads", 5, "num_attention_heads"),
        ("num_key_value_heads", 3, "num_key_value_heads"),
        ("head_dim", 8, "head_dim"),
        ("hidden_size", "16", "hidden_size"),
        ("mm_hidden_size", 12, "mm_hidden_size"),
        ("mm_vision_select_layer", -9, "mm_vision_select_layer"),
    ],
)
def test_a_configuration_that_cannot_be_converted(
    tmp_path: Path, field: str, value: object, match: str
) -> None:
    source = Synthetic().write(tmp_path)
    (source / "config.json").write_text(json.dumps(LANGUAGE | {field: value}))
    refused(source, UnsupportedConfig, match)


@pytest.mark.parametrize("field", ["mm_projector_type", "image_aspect_ratio", "hidden_size"])
def test_a_field_that_must_be_there(tmp_path: Path, field: str) -> None:
    source = Synthetic().write(tmp_path)
    config = {name: value for name, value in LANGUAGE.items() if name != field}
    (source / "config.json").write_text(json.dumps(config))
    refused(source, UnsupportedConfig, f"{field} is missing")


def _drop(name: str) -> Callable[[Synthetic], None]:
    return lambda synthetic: synthetic.tensors.__delitem__(name)


def _add(name: str) -> Callable[[Synthetic], None]:
    return lambda synthetic: synthetic.tensors.update({name: torch.ones(2)})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (_drop("lm_head.weight"), MissingTensors, "lm_head.weight"),
        (_drop("model.mm_projector.2.bias"), MissingTensors, r"mm_projector\.2\.bias"),
        (_drop("model.layers.1.mlp.up_proj.weight"), MissingTensors, "up_proj"),
        (_add("model.image_newline"), UnexpectedTensors, "model.image_newline"),
        (_add("model.layers.2.mlp.up_proj.weight"), UnexpectedTensors, r"layers\.2"),
        (_add("model.layers.0.self_attn.q_proj.bias"), UnexpectedTensors, r"q_proj\.bias"),
        (_add("model.norm.weight"), WrongShape, r"model\.norm\.weight has shape \[2\]"),
    ],
)
def test_tensors_that_are_not_those_of_the_configuration(
    tmp_path: Path,
    change: Callable[[Synthetic], None],
    error: type[CheckpointError],
    match: str,
) -> None:
    synthetic = Synthetic()
    change(synthetic)
    refused(synthetic.write(tmp_path), error, match)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda s: _truncate(s / f"{SHARD}.safetensors"), CorruptFile, f"{SHARD}.*truncated"),
        (lambda s: (s / f"{SHARD}.safetensors").write_bytes(b"{}"), CorruptFile, SHARD),
        (lambda s: (s / f"{SHARD}.safetensors").write_bytes(b""), CorruptFile, SHARD),
        (
            lambda s: (s / f"{SHARD}.safetensors").write_bytes(b"\x02" + bytes(7) + b"no"),
            CorruptFile,
            SHARD,
        ),
        (
            lambda s: (s / f"{SHARD}.safetensors").write_bytes(
                (s / f"{SHARD}.safetensors").read_bytes() + b"more"
            ),
            CorruptFile,
            "longer",
        ),
        (lambda s: (s / f"{SHARD}.safetensors").unlink(), MissingFile, SHARD),
        (lambda s: (s / "tokenizer.model").unlink(), MissingFile, "tokenizer.model"),
        (lambda s: (s / "tokenizer.model").write_bytes(b"x"), CorruptFile, "tokenizer.model"),
        (lambda s: (s / "config.json").write_text("{"), CorruptFile, "config.json"),
        (lambda s: (s / "config.json").write_text("[]"), CorruptFile, "config.json"),
        (lambda s: (s / "config.json").unlink(), NotACheckpoint, "config.json"),
        (
            lambda s: (s / "config.json").write_text('{"model_type": "llama"}'),
            NotACheckpoint,
            "llama",
        ),
        (
            lambda s: (s / "model.safetensors.index.json").write_text("{}"),
            CorruptFile,
            "weight_map",
        ),
        (
            lambda s: (s / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../../secret.safetensors"}}'
            ),
            CorruptFile,
            "outside",
        ),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, damage: Callable[[Path], object], error: type[CheckpointError], match: str
) -> None:
    source = Synthetic().write(tmp_path)
    damage(source)
    refused(source, error, match)


def test_an_index_that_disagrees_with_its_files(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path)
    index = source / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"x": f"{SHARD}.safetensors"}}))
    refused(source, MissingTensors, "x is missing")
    del places["lm_head.weight"]
    index.write_text(json.dumps({"weight_map": places}))
    refused(source, UnexpectedTensors, "lm_head.weight")


def test_no_weights_at_all(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path, shards=1)
    (source / "model.safetensors").unlink()
    refused(source, MissingFile, "no weights")


@pytest.mark.parametrize("keep", [10, 5000])
def test_a_truncated_pytorch_file_is_named(tmp_path: Path, keep: int) -> None:
    source = Synthetic().write(tmp_path, "bin", shards=1)
    file = source / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    refused(source, CorruptFile, "pytorch_model.bin")


def test_a_pytorch_file_with_a_flipped_bit_is_found(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path, "bin", shards=1)
    file = source / "pytorch_model.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptFile, match="damaged"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Synthetic().write(tmp_path, "bin", shards=1)
    torch.save({"lm_head.weight": Harmful()}, source / "pytorch_model.bin")
    refused(source, CorruptFile, "pytorch_model.bin")
    assert not (tmp_path / "harm").exists()


def test_a_vocabulary_of_another_size(tmp_path: Path) -> None:
    refused(
        Synthetic(config=LANGUAGE | {"vocab_size": 31999}).write(tmp_path),
        VocabularyMismatch,
        "31999",
    )


def test_a_vision_tower_that_is_nowhere(tmp_path: Path) -> None:
    source = Synthetic(vision="outside").write(tmp_path)
    shutil.rmtree(tmp_path / "clip")
    refused(source, MissingFile, "mm_vision_tower is '../clip'")


def test_a_vision_tower_folder_without_weights(tmp_path: Path) -> None:
    source = Synthetic(vision="outside").write(tmp_path)
    (tmp_path / "clip/model.safetensors").unlink()
    refused(source, MissingFile, "with its weights")


def test_a_vision_tower_of_another_kind(tmp_path: Path) -> None:
    source = Synthetic(vision="outside").write(tmp_path)
    (tmp_path / "clip/config.json").write_text('{"model_type": "siglip_vision_model"}')
    refused(source, UnsupportedConfig, "siglip")


def test_asking_for_a_tower_that_is_not_inside(tmp_path: Path) -> None:
    source = Synthetic(vision="outside").write(tmp_path)
    with pytest.raises(MissingFile, match="carries no vision tower"):
        convert(source, tmp_path / "out", vision_tower="checkpoint")


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Synthetic().write(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))
    with pytest.raises(NoSpace, match="free"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="no folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
