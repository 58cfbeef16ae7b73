"""docs/imaging.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.imaging.burned_in import rules_table
from serve.imaging.decoders import DECODED_BY
from serve.imaging.windows import PRESETS

DOCUMENT = Path(__file__).parents[3] / "docs" / "imaging.md"
DECODERS = {"": "pydicom", "pylibjpeg": "pylibjpeg-rle", "imagecodecs": "imagecodecs"}


def windows() -> str:
    rows = [f"| `{name}` | {w.center:g} | {w.width:g} |" for name, w in PRESETS.items()]
    return "\n".join(["| window | center, HU | width, HU |", "|---|---|---|", *rows])


def syntaxes() -> str:
    rows = [f"| {s.name} | `{s}` | {DECODERS[plugin]} |" for s, plugin in DECODED_BY.items()]
    return "\n".join(["| transfer syntax | UID | decoder |", "|---|---|---|", *rows])


@pytest.mark.parametrize("table", [windows, syntaxes, rules_table])
def test_the_tables_are_the_codes(table) -> None:  # type: ignore[no-untyped-def]
    assert table() in DOCUMENT.read_text(), f"docs/imaging.md should have:\n{table()}"
