"""What stops `llava-med up` before anything has started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve.local import StartError, _check_imaging
from serve.settings import load


def test_the_defaults_are_fit() -> None:
    _check_imaging(load())


@pytest.mark.parametrize(
    "imaging",
    [
        {"dicomweb": {"url": "https://pacs", "username": "u"}},
        {"dicomweb": {"url": "https://pacs", "username": "u", "password": "p", "token": "t"}},
        {"fetch": {"allowed_hosts": ["https://host/path"]}},
        {"fetch": {"allowed_hosts": ["*.host"]}},
        {"fetch": {"ca_file": "/nowhere/ca.pem"}},
    ],
)
def test_settings_of_images_that_contradict_themselves_stop_the_start(
    imaging: dict[str, Any],
) -> None:
    with pytest.raises(StartError, match="imaging"):
        _check_imaging(load(imaging=imaging))


def test_ocr_without_its_language_data_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    monkeypatch.setattr("serve.imaging.ocr.TESSDATA", ())
    with pytest.raises(StartError, match="imaging"):
        _check_imaging(load(imaging={"ocr": True}))
