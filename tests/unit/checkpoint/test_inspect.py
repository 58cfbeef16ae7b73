from __future__ import annotations

from pathlib import Path

import pytest

from serve.checkpoint.convert import convert
from serve.checkpoint.golden import expand_image, parse_turns
from serve.checkpoint.inspect import inspect
from tests.unit.checkpoint.synthetic import Synthetic


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inspect")
    source = Synthetic().write(root)
    convert(source, root / "converted")
    return source, root / "converted"


def test_an_original_will_serve(folders: tuple[Path, Path]) -> None:
    report = inspect(folders[0])
    assert (report.kind, report.will_serve) == ("original", True)
    assert ("vision tower", "inside") in report.facts
    assert report.render().endswith("will serve")


def test_a_converted_one_will_serve(folders: tuple[Path, Path]) -> None:
    report = inspect(folders[1], deep=True)
    assert (report.kind, report.will_serve) == ("converted", True)
    assert ("hashes", "checked") in report.facts


def test_a_truncated_converted_file_is_named(tmp_path: Path) -> None:
    convert(Synthetic().write(tmp_path), tmp_path / "out")
    shard = tmp_path / "out/model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    report = inspect(tmp_path / "out")
    assert not report.will_serve
    assert shard.name in report.render()


def test_a_changed_byte_is_found_by_the_deep_look_only(tmp_path: Path) -> None:
    convert(Synthetic().write(tmp_path), tmp_path / "out")
    shard = tmp_path / "out/model-00001-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert inspect(tmp_path / "out").will_serve
    assert shard.name in inspect(tmp_path / "out", deep=True).problems[0]


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("config.json", '{"model_type": "llava"}', "other llava"),
        ("config.json", '{"model_type": "llama"}', "other"),
        ("config.json", "not json", "unknown"),
        ("adapter_config.json", "{}", "adapter"),
        ("readme.txt", "", "unknown"),
        ("manifest.json", "{}", "converted"),
    ],
)
def test_other_folders_are_told_apart_and_do_not_serve(
    tmp_path: Path, file: str, text: str, kind: str
) -> None:
    (tmp_path / file).write_text(text)
    report = inspect(tmp_path)
    assert report.kind == kind
    assert not report.will_serve
    assert report.problems


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert inspect(tmp_path / "nowhere").kind == "unknown"


def test_recorded_prompts_are_parsed_and_images_expanded() -> None:
    turns = parse_turns("[INST] <image>\nA\nb? [/INST] C. </s>[INST] D? [/INST]")
    assert [(turn.role, turn.text, turn.images) for turn in turns] == [
        ("user", "A\nb?", 1),
        ("assistant", "C.", 0),
        ("user", "D?", 0),
    ]
    assert expand_image((1, -200, 5), 9, 3) == [1, 9, 9, 9, 5]
