from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.checkpoint.cache import ensure_converted
from serve.checkpoint.convert import convert
from serve.checkpoint.errors import CheckpointError, DestinationInUse, NotACheckpoint
from serve.checkpoint.heads import HeadWidth
from serve.checkpoint.keys import VISION, target_key
from serve.checkpoint.manifest import read_manifest
from serve.checkpoint.source import is_original
from tests.unit.checkpoint.synthetic import LANGUAGE, Synthetic

WIDE = LANGUAGE | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def load(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, torch.Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        found |= load_file(folder / file)
    assert set(found) == set(index["weight_map"])
    return found


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("vision", ["inside", "outside"])
def test_every_weight_arrives_unchanged_under_its_new_name(
    tmp_path: Path,
    kind: Literal["safetensors", "bin"],
    shards: int,
    vision: Literal["inside", "outside"],
) -> None:
    synthetic = Synthetic(vision=vision, config=dict(WIDE))
    manifest = convert(synthetic.write(tmp_path, kind, shards), tmp_path / "out")
    converted = load(tmp_path / "out")
    originals = synthetic.tensors | synthetic.tower
    assert set(converted) == {target_key(name) for name in originals}
    for name, value in originals.items():
        assert torch.equal(converted[target_key(name)][: value.shape[0]], value), name
    assert manifest.parameters == sum(value.numel() for value in originals.values())
    assert manifest.vision.used == ("checkpoint" if vision == "inside" else "external")


def test_added_vocabulary_rows_are_copies_of_unk(tmp_path: Path) -> None:
    synthetic = Synthetic()
    convert(synthetic.write(tmp_path), tmp_path / "out")
    converted = load(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = converted[target_key(name)]
        assert rows.shape[0] == 32001
        assert torch.equal(rows[32000:], synthetic.tensors[name][0].expand(1, -1))


def test_narrow_heads_are_widened(tmp_path: Path) -> None:
    synthetic = Synthetic()
    convert(synthetic.write(tmp_path), tmp_path / "out")
    name = "model.layers.1.self_attn.k_proj.weight"
    expected = HeadWidth(4, 32).widen("k_proj", synthetic.tensors[name])
    assert torch.equal(load(tmp_path / "out")[target_key(name)], expected)
    text = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert text["head_dim"] == 32
    assert text["rope_parameters"]["rope_theta"] == pytest.approx(1e4**8)


def test_weights_are_cast_on_request(tmp_path: Path) -> None:
    synthetic = Synthetic(config=dict(WIDE))
    manifest = convert(synthetic.write(tmp_path), tmp_path / "out", dtype="bfloat16")
    converted = load(tmp_path / "out")
    assert manifest.dtype == "bfloat16"
    for name, value in synthetic.tensors.items():
        assert torch.equal(converted[target_key(name)][: value.shape[0]], value.bfloat16())


def test_the_external_tower_is_taken_on_request_and_the_difference_recorded(
    tmp_path: Path,
) -> None:
    synthetic = Synthetic()
    synthetic.tower = {name: value + 1 for name, value in synthetic.tower.items()}
    source = synthetic.write(tmp_path)
    own = convert(source, tmp_path / "own")
    assert own.vision.comparison == "different"
    assert own.vision.max_abs_difference == pytest.approx(1, abs=0.01)
    external = convert(source, tmp_path / "external", vision_tower="external")
    assert external.vision.used == "external"
    converted = load(tmp_path / "external")
    for name, value in synthetic.tower.items():
        assert torch.equal(converted[target_key(name)], value)


def test_a_tower_in_full_precision_equals_its_16_bit_copy(tmp_path: Path) -> None:
    synthetic = Synthetic(dtype=torch.float32)
    synthetic.tensors = {name: value.half() for name, value in synthetic.tensors.items()}
    manifest = convert(synthetic.write(tmp_path), tmp_path / "out")
    assert manifest.vision.comparison == "equal"


def test_saved_buffers_are_left_behind(tmp_path: Path) -> None:
    synthetic = Synthetic()
    name = f"{VISION}vision_model.embeddings.position_ids"
    synthetic.tensors[name] = torch.arange(577)
    synthetic.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    convert(synthetic.write(tmp_path), tmp_path / "out")
    assert target_key(name) not in load(tmp_path / "out")


def test_manifest_holds_the_hash_of_every_file(tmp_path: Path) -> None:
    source = Synthetic(vision="outside").write(tmp_path)
    manifest = convert(source, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert set(manifest.files) == written
    for name, record in manifest.files.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == record.sha256
    for path in source.iterdir():
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest.source_files[path.name].sha256 == expected
    tower = (tmp_path / "clip/model.safetensors").read_bytes()
    assert manifest.source_files["model.safetensors"].sha256 == hashlib.sha256(tower).hexdigest()
    assert read_manifest(tmp_path / "out") == manifest


def test_the_same_conversion_again_does_nothing_and_another_is_refused(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path)
    first = convert(source, tmp_path / "out")
    before = (tmp_path / "out/config.json").stat().st_mtime_ns
    assert convert(source, tmp_path / "out") == first
    assert (tmp_path / "out/config.json").stat().st_mtime_ns == before
    with pytest.raises(DestinationInUse):
        convert(source, tmp_path / "out", dtype="float32")


def test_a_destination_with_other_things_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path)
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(DestinationInUse):
        convert(source, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".out.converting-{dead.pid}").mkdir()
    convert(source, tmp_path / "out")
    assert not list(tmp_path.glob(".out.*"))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    convert(
        Synthetic().write(tmp_path),
        tmp_path / "out",
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    weights = seen[2:]
    assert weights == sorted(weights, key=lambda step: step[0])
    assert weights[-1][0] == weights[-1][1] > 0


def test_a_hub_cache_folder_is_read_through_its_newest_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic = Synthetic(vision="outside", config=LANGUAGE | {"mm_vision_tower": "org/clip"})
    source = synthetic.write(tmp_path)
    hub = tmp_path / "home/hub"
    for name, folder in (("models--org--llava", source), ("models--org--clip", tmp_path / "clip")):
        (hub / name / "snapshots").mkdir(parents=True)
        (hub / name / "refs").mkdir()
        (hub / name / "refs/main").write_text("abc")
        folder.rename(hub / name / "snapshots/abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert is_original(hub / "models--org--llava")
    manifest = convert(hub / "models--org--llava", tmp_path / "out")
    assert manifest.vision.used == "external"


def test_ensure_converted_converts_once_and_passes_converted_folders_on(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path)
    first = ensure_converted(source, tmp_path / "cache")
    assert ensure_converted(source, tmp_path / "cache") == first
    assert ensure_converted(first, tmp_path / "cache") == first
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]
    (source / "config.json").write_text(json.dumps(LANGUAGE | {"rope_theta": 5e5}))
    assert ensure_converted(source, tmp_path / "cache") != first
    with pytest.raises(NotACheckpoint):
        ensure_converted(tmp_path / "clip", tmp_path / "cache")


def test_memory_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    """Tiny shards, then one of 80 MB, in a process of its own, measured by the kernel."""
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small = Synthetic(config=dict(WIDE)).write(tmp_path / "small")
    large = Synthetic(config=WIDE | {"intermediate_size": 200_000}).write(
        tmp_path / "large", shards=1
    )
    largest = max(path.stat().st_size for path in large.glob("*.safetensors"))
    assert largest > 75e6
    # VmHWM and not getrusage, whose maximum a process inherits from the one that started it.
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from serve.checkpoint.convert import convert\n"
        "for folder in sys.argv[1:]:\n"
        "    convert(Path(folder), Path(folder + '-out'))\n"
        "    print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small), str(large)], capture_output=True, check=True
    )
    before, after = (int(line) * 1024 for line in done.stdout.split())
    assert after - before < largest, f"{(after - before) / 1e6:.0f} MB more"


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    source = Synthetic().write(tmp_path)

    def fail(done: int, _total: int, _what: str) -> None:
        if done > 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", progress=fail)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "clip"}


def test_a_nan_names_its_tensor_and_leaves_nothing(tmp_path: Path) -> None:
    synthetic = Synthetic()
    synthetic.tensors["model.norm.weight"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds values"):
        convert(synthetic.write(tmp_path), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "clip"}


def test_the_published_towers_configuration_is_known(tmp_path: Path) -> None:
    """The published checkpoint names a Hub id and carries its weights: no CLIP folder is needed."""
    config = LANGUAGE | {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    source = Synthetic(config=config).write(tmp_path)
    # The weights are tiny, so the shapes give the known configuration away.
    with pytest.raises(CheckpointError, match="hidden_size is 1024"):
        convert(source, tmp_path / "out")


def test_a_clip_with_its_text_half_is_a_tower_too(tmp_path: Path) -> None:
    synthetic = Synthetic(vision="outside")
    source = synthetic.write(tmp_path)
    clip = tmp_path / "clip"
    nested = json.loads((clip / "config.json").read_text()) | {"model_type": "clip_vision_model"}
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": nested}))
    weights = load_file(clip / "model.safetensors")
    save_file(weights | {"text_model.final.weight": torch.ones(2)}, clip / "model.safetensors")
    assert convert(source, tmp_path / "out").vision.used == "external"
