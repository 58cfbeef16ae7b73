"""What stops `llava-med up` before anything has started."""

from __future__ import annotations

import os
import subprocess
import sys
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


SCRIPT = """
from serve.imaging import ocr
from serve.local import StartError, _check_imaging
from serve.settings import load

ocr.TESSDATA = ()
try:
    _check_imaging(load(imaging={"ocr": True}))
except StartError as error:
    print(error)
"""


def test_ocr_without_its_language_data_stops_the_start(tmp_path: Path) -> None:
    """In a process of its own: tesseract, once loaded, stays loaded."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"TESSDATA_PREFIX": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "imaging" in done.stdout
