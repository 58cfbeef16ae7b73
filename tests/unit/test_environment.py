"""The prepared environment, and whose packages these are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import guardrails
import serve
from serve import environment

ROOT = Path(__file__).parents[2]


def test_patching_twice_changes_the_file_once(tmp_path: Path) -> None:
    extension = tmp_path / "extension.py"
    extension.write_text("import torch\n\n\ndef _has_ops():\n    return False\n")
    assert environment.patch(extension) is True
    once = extension.read_text()
    assert environment.patch(extension) is False
    assert extension.read_text() == once


def test_torchvision_imports_in_a_new_process() -> None:
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True, timeout=120)


def test_these_packages_are_ours() -> None:
    # guardrails-ai has the same import name, Ray's own module is ray.serve
    assert Path(guardrails.__file__).is_relative_to(ROOT)
    assert Path(serve.__file__).is_relative_to(ROOT)
