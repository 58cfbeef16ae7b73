"""The phantom model: the embedded default. It knows drawings only and nothing about patients."""

from __future__ import annotations

from pathlib import Path


def weights_dir() -> Path:
    """Folder of the shipped weights, in the original LLaVA-Med layout."""
    return Path(__file__).with_name("weights")
