"""Says in seconds what a folder is and whether it will serve: reads heads of files, not weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from serve.checkpoint.config import Json, read_json
from serve.checkpoint.errors import CheckpointError, NotACheckpoint
from serve.checkpoint.manifest import NAME, read_manifest
from serve.checkpoint.match import check_tensors
from serve.checkpoint.recast import torch_name
from serve.checkpoint.source import Source, open_source, read_shards, resolve_folder
from serve.checkpoint.tensors import CHUNK, DType
from serve.checkpoint.tokenizer import read_vocabulary, tokenizer_json
from serve.checkpoint.vision import choose_tower

Kind: TypeAlias = Literal["original", "converted", "other llava", "adapter", "other", "unknown"]

_TITLES: dict[Kind, str] = {
    "original": "an original LLaVA-Med checkpoint (converted on first use)",
    "converted": "a converted LLaVA-Med checkpoint",
    "other llava": "a LLaVA in the Hub's layout that this tool did not convert",
    "adapter": "a LoRA adapter, not a checkpoint",
    "other": "a model of another kind",
    "unknown": "not a checkpoint",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a folder is. ``facts`` are (name, value) pairs for people, in order."""

    path: Path
    kind: Kind
    problems: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def will_serve(self) -> bool:
        """Whether the service can serve it as it is, or after converting it by itself."""
        return self.kind in ("original", "converted") and not self.problems

    def render(self) -> str:
        """The report as text."""
        lines = [f"{self.path} is {_TITLES[self.kind]}"]
        lines += [f"  {name}: {value}" for name, value in self.facts]
        lines += [f"  problem: {problem}" for problem in self.problems]
        lines.append("will serve" if self.will_serve else "will NOT serve")
        return "\n".join(lines)


def inspect(path: Path, *, deep: bool = False) -> Report:
    """Inspects ``path``; never raises for what it finds there.

    Args:
        path: a folder, or a Hub cache folder.
        deep: also read and hash every file of a converted checkpoint.
    """
    try:
        folder = resolve_folder(path)
        if (folder / NAME).is_file():
            return _inspect_converted(folder, deep=deep)
        if (folder / "adapter_config.json").is_file():
            return Report(path, "adapter", ("an adapter needs its base model",), ())
        if not (folder / "config.json").is_file():
            raise NotACheckpoint(f"{folder} has no config.json")
        config = read_json(folder / "config.json")
    except CheckpointError as error:
        return Report(path, "unknown", (str(error),), ())
    model_type = config.get("model_type")
    if model_type == "llava_mistral":
        return _inspect_original(path)
    if model_type == "llava":
        problem = "its prompt, padding and vocabulary are unknown here; convert the original"
        return Report(path, "other llava", (problem,), ())
    return Report(path, "other", (f"model_type is {model_type!r}",), ())


def _inspect_original(path: Path) -> Report:
    try:
        source = open_source(path)
    except CheckpointError as error:
        return Report(path, "original", (str(error),), ())
    problems: list[str] = []
    with _collect(problems):
        check_tensors(source)
    with _collect(problems):
        vocabulary = read_vocabulary(source.tokenizer_model)
        vocabulary.require_size(source.config.vocab_size)
        tokenizer_json(vocabulary)
    with _collect(problems):
        choose_tower(source, "auto")
    return Report(path, "original", tuple(problems), _original_facts(source))


def _original_facts(source: Source) -> tuple[tuple[str, str], ...]:
    tensors = [tensor for shard in source.shards for tensor in shard.tensors]
    return (
        ("parameters", f"{sum(tensor.elements for tensor in tensors):,}"),
        ("size", _size(sum(shard.size for shard in source.shards))),
        ("weights", _types({tensor.dtype for tensor in tensors})),
        ("vision tower", "inside" if source.has_vision else source.config.mm_vision_tower),
        ("trained context", f"{source.config.tokenizer_model_max_length} tokens"),
    )


def _inspect_converted(folder: Path, *, deep: bool) -> Report:
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return Report(folder, "converted", (str(error),), ())
    problems = [
        f"{folder / name} is missing or has another size than {NAME} says"
        for name in manifest.changed_sizes(folder)
    ]
    with _collect(problems):
        read_shards(folder)
    if deep and not problems:
        problems += [
            f"{folder / name} has other contents than {NAME} says"
            for name, record in manifest.files.items()
            if _sha256(folder / name) != record.sha256
        ]
    context = _text(folder / "tokenizer_config.json").get("model_max_length", "unknown")
    vision = manifest.vision
    facts = (
        ("parameters", f"{manifest.parameters:,}"),
        ("size", _size(sum(record.bytes for record in manifest.files.values()))),
        ("weights", manifest.dtype),
        ("vision tower", f"{vision.used} ({vision.external}: {vision.comparison})"),
        ("trained context", f"{context} tokens"),
        ("converted from", manifest.source_name),
        ("hashes", "checked" if deep else "not checked"),
    )
    return Report(folder, "converted", tuple(problems), facts)


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        problems.append(str(error))


def _text(path: Path) -> Json:
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _types(types: set[DType]) -> str:
    return ", ".join(sorted(torch_name(dtype) for dtype in types))
