"""Settings: file, environment, command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from serve.settings import Settings, load

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def test_the_default_listens_on_this_machine_only() -> None:
    assert load().host == "127.0.0.1"
    assert load().port == 8000


def test_command_line_wins_over_environment_and_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, "port: 1\nhost: file\nlimits: {max_images: 2, max_choices: 3}\n")
    monkeypatch.setenv("LLAVA_MED_PORT", "2")
    monkeypatch.setenv("LLAVA_MED_HOST", "environment")
    monkeypatch.setenv("LLAVA_MED_LIMITS__MAX_IMAGES", "7")
    settings = load(path, port=3)
    assert (settings.port, settings.host) == (3, "environment")
    assert (settings.limits.max_images, settings.limits.max_choices) == (7, 3)


@pytest.mark.parametrize("text", ["prot: 1\n", "limits: {max_image: 1}\n", "port: many\n"])
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValidationError):
        load(_file(tmp_path, text))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


def test_the_key_shows_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MED_API_KEY", "sekrit")
    with pytest.raises(ValidationError) as caught:
        load()
    assert "sekrit" not in str(caught.value)
    monkeypatch.setenv("LLAVA_MED_API_KEY", "sekrit-but-long-enough")
    assert "sekrit" not in repr(load())
    assert "sekrit" not in load().model_dump_json()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().port = 1  # type: ignore[misc]


def _rows(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, f"{path}{name}.")
        else:
            assert field.description, f"{path}{name} does not describe itself"
            variable = f"LLAVA_MED_{path}{name}".replace(".", "__").upper()
            default = "" if field.default is None else f"`{field.default}`"
            default = default.replace(str(Path.home()), "~")
            yield f"| `{path}{name}` | `{variable}` | {default} | {field.description} |"


def test_the_documented_table_is_the_codes() -> None:
    head = "| in the file | in the environment | default | what |"
    table = "\n".join([head, "|---|---|---|---|", *_rows(Settings)])
    assert table in DOCUMENT.read_text(), f"docs/settings.md should have:\n{table}"
