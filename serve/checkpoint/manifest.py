"""``manifest.json``: what a converted checkpoint was made of, and the hash of each of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serve.checkpoint.config import read_json
from serve.checkpoint.errors import CorruptFile

NAME = "manifest.json"
# Raised whenever the same source would be converted to other files: old conversions are redone.
CONVERTER = 1


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Closed):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


class VisionVerdict(_Closed):
    """Which vision tower was taken, and whether the other one, if at hand, is the same.

    The authors' loader takes the external CLIP even where the checkpoint has a tower of its own.
    """

    used: Literal["checkpoint", "external"]
    external: str
    comparison: Literal["equal", "different", "not compared"]
    max_abs_difference: float | None = None


class Options(_Closed):
    """The choices that a conversion was run with."""

    vision_tower: Literal["auto", "checkpoint", "external"] = "auto"
    dtype: Literal["source", "bfloat16", "float16", "float32"] = "source"


class Manifest(_Closed):
    """A conversion. ``parameters`` counts the source's, without added vocabulary rows."""

    converter: int
    options: Options
    fingerprint: str
    parameters: int
    dtype: str
    head_width: int
    vision: VisionVerdict
    source_name: str
    source_files: dict[str, FileRecord]
    files: dict[str, FileRecord]

    def is_of(self, fingerprint: str, options: Options) -> bool:
        """Whether it records the conversion of that source with those options by this converter."""
        mine = (self.converter, self.fingerprint, self.options)
        return mine == (CONVERTER, fingerprint, options)

    def changed_sizes(self, folder: Path) -> list[str]:
        """Names of recorded files that are missing in ``folder`` or have another size."""
        return [
            name
            for name, record in self.files.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != record.bytes
        ]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a converted checkpoint.

    Raises:
        MissingFile: there is none.
        CorruptFile: it is not one of ours.
    """
    path = folder / NAME
    raw = read_json(path)
    try:
        return Manifest.model_validate(raw)
    except ValidationError:
        raise CorruptFile(f"{path} is no manifest of this converter") from None
