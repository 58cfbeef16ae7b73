"""Converts an original LLaVA-Med checkpoint to the layout that vLLM loads, shard by shard.

One source file becomes one target file, tensors in the same order; bytes pass through in chunks of
``tensors.CHUNK``, hashed on both sides, so that memory stays far below one shard and each byte is
read once. Nothing appears at the destination before all of it is on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from serve.checkpoint.errors import CheckpointError, DestinationInUse
from serve.checkpoint.heads import HeadWidth
from serve.checkpoint.keys import VISION, external_key, is_buffer
from serve.checkpoint.layout import (
    extended_vocabulary,
    generation_config,
    image_processor,
    model_config,
    processor_config,
)
from serve.checkpoint.manifest import (
    CONVERTER,
    NAME,
    FileRecord,
    Manifest,
    Options,
    VisionVerdict,
    read_manifest,
)
from serve.checkpoint.match import check_tensors
from serve.checkpoint.recast import Recast, Rows, TargetType, torch_name
from serve.checkpoint.source import Source, open_source, resolve_folder
from serve.checkpoint.template import CHAT_TEMPLATE
from serve.checkpoint.tensors import DType, Shard, Tensor, read_chunks
from serve.checkpoint.tokenizer import read_vocabulary, tokenizer_config, tokenizer_json
from serve.checkpoint.vision import judge_towers
from serve.checkpoint.writer import Folder, require_space, safetensors_head, whole_or_nothing

Progress: TypeAlias = Callable[[int, int, str], None]

_ROOM = 4 * 2**20  # bytes of all files but the weights


@dataclass(frozen=True, slots=True)
class _File:
    """A source file, and the target tensors that come of it: source tensor name to target."""

    shard: Shard
    targets: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the target's tensors."""
        return sum(target.nbytes for target in self.targets.values())


def silent(_done: int, _total: int, _what: str) -> None:
    """Reports progress to no one."""


def convert(
    source: Path,
    destination: Path,
    *,
    vision_tower: Literal["auto", "checkpoint", "external"] = "auto",
    dtype: TargetType = "source",
    progress: Progress | None = None,
) -> Manifest:
    """Converts ``source`` (a folder or a Hub cache folder) into the new folder ``destination``.

    Args:
        source: the original checkpoint; only read.
        destination: a folder that does not exist, is empty, or is this very conversion already.
        vision_tower: which vision tower to take; ``auto`` takes the checkpoint's own if it has one.
        dtype: type of the weights written; ``source`` keeps every tensor's own.
        progress: called with (bytes done, bytes in all, what is being done).

    Raises:
        CheckpointError: the source cannot be converted, or the destination not be written.
    """
    report = progress or silent
    options = Options(vision_tower=vision_tower, dtype=dtype)
    report(0, 1, "reading headers")
    opened = open_source(source)
    if (existing := _existing(destination, opened, options)) is not None:
        report(1, 1, "already converted")
        return existing
    check_tensors(opened)
    vocabulary = read_vocabulary(opened.tokenizer_model)
    vocabulary.require_size(opened.config.vocab_size)
    tokenizer = tokenizer_json(vocabulary)
    report(0, 1, "comparing vision towers")
    verdict = judge_towers(opened, vision_tower)
    recast = Recast(
        dtype,
        Rows(vocabulary.image, extended_vocabulary(vocabulary), vocabulary.unk),
        HeadWidth.of(opened.config.head_size),
    )
    files = _plan(opened, verdict, recast)
    require_space(destination, sum(file.nbytes for file in files) + _ROOM)
    with whole_or_nothing(destination) as folder:
        read = _write_weights(folder, files, recast, report)
        folder.write_json("tokenizer.json", tokenizer)
        folder.write_json(
            "tokenizer_config.json",
            tokenizer_config(vocabulary, opened.config.tokenizer_model_max_length),
        )
        folder.write_text("chat_template.jinja", CHAT_TEMPLATE)
        kind = torch_name(_main_type(files))
        vision = opened.vision_config
        folder.write_json("config.json", model_config(opened, vocabulary, kind))
        folder.write_json("generation_config.json", generation_config(opened, vocabulary))
        folder.write_json("preprocessor_config.json", image_processor(vision, opened.normalisation))
        folder.write_json("processor_config.json", processor_config(vision))
        manifest = Manifest(
            converter=CONVERTER,
            options=options,
            fingerprint=opened.fingerprint,
            parameters=_parameters(files),
            dtype=kind,
            head_width=recast.heads.target,
            vision=verdict,
            source_name=resolve_folder(source).name,
            source_files=read | _small_files(opened),
            files=dict(folder.files),
        )
        folder.write_text(NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _existing(destination: Path, source: Source, options: Options) -> Manifest | None:
    """The manifest at the destination if it is this conversion; None if nothing is there.

    Raises:
        DestinationInUse: something else is there.
    """
    if not destination.exists():
        return None
    if destination.is_dir() and not any(destination.iterdir()):
        return None
    try:
        manifest = read_manifest(destination)
    except CheckpointError:
        manifest = None
    if manifest is None or not manifest.is_of(source.fingerprint, options):
        raise DestinationInUse(
            f"{destination} exists and is not this conversion; remove it or name another folder"
        )
    if damage := manifest.changed_sizes(destination):
        raise DestinationInUse(f"{destination / damage[0]} has changed; remove the folder")
    return manifest


def _plan(source: Source, verdict: VisionVerdict, recast: Recast) -> list[_File]:
    files: list[_File] = []
    for shard in source.shards:
        targets = {
            tensor.name: recast.describe(tensor, tensor.name)
            for tensor in shard.tensors
            if not is_buffer(tensor.name)
            and (verdict.used == "checkpoint" or not tensor.name.startswith(VISION))
        }
        files.append(_File(shard, targets))
    if verdict.used == "external" and source.tower is not None:
        for shard in source.tower.shards:
            targets = {
                tensor.name: recast.describe(tensor, name)
                for tensor in shard.tensors
                if not is_buffer(tensor.name) and (name := external_key(tensor.name)) is not None
            }
            files.append(_File(shard, targets))
    return [file for file in files if file.targets]


def _write_weights(
    folder: Folder, files: list[_File], recast: Recast, report: Progress
) -> dict[str, FileRecord]:
    """Writes shards and their index; returns the records of the source files read on the way."""
    done, total = 0, sum(file.shard.size for file in files)
    places: dict[str, str] = {}
    read: dict[str, FileRecord] = {}
    for number, plan in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        sink = hashlib.sha256()
        with folder.open(name) as out:
            out.write(safetensors_head(tuple(plan.targets.values())))
            for tensor, chunks in read_chunks(plan.shard, sink):
                report(done, total, plan.shard.path.name)
                if (target := plan.targets.get(tensor.name)) is not None:
                    places[target.name] = name
                    for data in recast.apply(tensor, target, chunks, plan.shard.path):
                        out.write(data)
                done += tensor.nbytes
        read[_source_label(plan.shard.path, read)] = FileRecord(
            bytes=plan.shard.size, sha256=sink.hexdigest()
        )
    size = sum(plan.nbytes for plan in files)
    folder.write_json(
        "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))},
    )
    report(total, total, "done")
    return read


def _source_label(path: Path, taken: dict[str, FileRecord]) -> str:
    """The file's name; that of a vision tower's file with its folder's, where both are the same."""
    return path.name if path.name not in taken else f"{path.parent.name}/{path.name}"


def _small_files(source: Source) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    paths = [*source.folder.glob("*.json"), source.tokenizer_model]
    if source.tower is not None:
        paths += [*source.tower.folder.glob("*.json")]
    for path in paths:
        data = path.read_bytes()
        records[_source_label(path, records)] = FileRecord(
            bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
    return records


def _main_type(files: list[_File]) -> DType:
    """The type that most of the weights have."""
    sizes: dict[DType, int] = {}
    for file in files:
        for target in file.targets.values():
            sizes[target.dtype] = sizes.get(target.dtype, 0) + target.elements
    return max(sizes, key=lambda dtype: sizes[dtype])


def _parameters(files: list[_File]) -> int:
    return sum(
        tensor.elements
        for file in files
        for tensor in file.shard.tensors
        if tensor.name in file.targets
    )
