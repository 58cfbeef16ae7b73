"""Settings: file, environment, command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve.settings import Settings, load


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


def test_every_setting_describes_itself() -> None:
    def fields(model: type) -> list[str]:
        return [
            name
            for name, field in model.model_fields.items()  # type: ignore[attr-defined]
            if not field.description and not hasattr(field.annotation, "model_fields")
        ]

    for model in (Settings, type(load().limits), type(load().engine)):
        assert fields(model) == []
