"""Opens an original LLaVA-Med checkpoint: finds its files, and describes them without reading on.

A checkpoint is a folder, or a Hub cache folder (``models--org--name``) that holds it under
``snapshots``. The vision tower's weights are in the checkpoint, or in the CLIP that
``mm_vision_tower`` names: a folder, or a Hub id that is in the local Hub cache. Nothing here
touches the network.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from serve.checkpoint.config import (
    CLIP_L_336,
    ImageNormalisation,
    Json,
    SourceConfig,
    VisionConfig,
    read_json,
    read_normalisation,
    read_source_config,
    read_vision_config,
)
from serve.checkpoint.errors import (
    CorruptFile,
    MissingFile,
    MissingTensors,
    NotACheckpoint,
    UnexpectedTensors,
)
from serve.checkpoint.keys import VISION
from serve.checkpoint.tensors import Shard, read_shard

# Indexes before single files, safetensors before PyTorch: the order in which transformers looks.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_CLIP_L_336_NAME = "clip-vit-large-patch14-336"


@dataclass(frozen=True)
class Tower:
    """A CLIP folder: its configuration, and the shards that hold its vision half."""

    folder: Path
    config: VisionConfig
    normalisation: ImageNormalisation
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Source:
    """An original checkpoint. ``tower`` is the CLIP that ``mm_vision_tower`` names, if at hand."""

    folder: Path
    config: SourceConfig
    generation: Json
    shards: tuple[Shard, ...]
    tower: Tower | None

    @property
    def tokenizer_model(self) -> Path:
        """The sentencepiece model."""
        return self.folder / "tokenizer.model"

    @property
    def has_vision(self) -> bool:
        """Whether the checkpoint carries a vision tower itself."""
        return any(tensor.name.startswith(VISION) for s in self.shards for tensor in s.tensors)

    @property
    def vision_config(self) -> VisionConfig:
        """The vision tower's configuration: of the CLIP at hand, or the published model's.

        Raises:
            MissingFile: no CLIP is at hand, and it is not the published one.
        """
        if self.tower is not None:
            return self.tower.config
        name = self.config.mm_vision_tower
        if self.has_vision and Path(name).name == _CLIP_L_336_NAME:
            return CLIP_L_336
        raise MissingFile(
            f"{self.folder / 'config.json'}: mm_vision_tower is {name!r}, which is neither a "
            "folder (relative to the checkpoint, or absolute) nor a model in the local Hub cache "
            "(HF_HOME); put a copy of it there"
        )

    @property
    def normalisation(self) -> ImageNormalisation:
        """The image's colour statistics."""
        return self.tower.normalisation if self.tower else ImageNormalisation()

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the files without reading the weights: names, sizes, times, configurations."""
        digest = hashlib.sha256()
        tower = self.tower.shards if self.tower else ()
        paths = [shard.path for shard in (*self.shards, *tower)] + [self.tokenizer_model]
        for path in paths:
            # A Hub cache links to blobs; the link's target is what was downloaded.
            state = path.stat() if path.exists() else None
            size, time = (state.st_size, state.st_mtime_ns) if state else (0, 0)
            digest.update(f"{path.name}\0{size}\0{time}\n".encode())
        digest.update(self.config.model_dump_json().encode())
        digest.update(repr(sorted(self.generation.items())).encode())
        return digest.hexdigest()


def open_source(path: Path) -> Source:
    """Describes the checkpoint at ``path``; reads configurations and heads of files only.

    Raises:
        CheckpointError: see the tree. Names and shapes of tensors are ``match``'s to check.
    """
    folder = resolve_folder(path)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise NotACheckpoint(f"{folder} has no config.json: it is no checkpoint")
    config = read_source_config(config_path)
    generation_path = folder / "generation_config.json"
    tower_folder = find_tower(folder, config.mm_vision_tower)
    if not (folder / "tokenizer.model").is_file():
        raise MissingFile(
            f"{folder / 'tokenizer.model'} is missing; it is part of the original checkpoint"
        )
    return Source(
        folder=folder,
        config=config,
        generation=read_json(generation_path) if generation_path.is_file() else {},
        shards=read_shards(folder),
        tower=_read_tower(tower_folder) if tower_folder else None,
    )


def is_original(path: Path) -> bool:
    """Whether ``path`` is (or caches) an original LLaVA-Med checkpoint, whole or not."""
    try:
        raw = read_json(resolve_folder(path) / "config.json")
    except (NotACheckpoint, MissingFile, CorruptFile):
        return False
    return raw.get("model_type") == "llava_mistral"


def resolve_folder(path: Path) -> Path:
    """The folder with ``config.json``: ``path``, or the newest snapshot of a Hub cache folder.

    Raises:
        NotACheckpoint: no such folder.
    """
    if not path.is_dir():
        raise NotACheckpoint(f"{path} is no folder")
    snapshots = path / "snapshots"
    if (path / "config.json").exists() or not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    revisions = [entry for entry in snapshots.iterdir() if (entry / "config.json").exists()]
    if not revisions:
        raise NotACheckpoint(f"{path} is a Hub cache folder without a snapshot")
    return max(revisions, key=lambda entry: entry.stat().st_mtime_ns)


def find_tower(folder: Path, name: str) -> Path | None:
    """The CLIP folder that ``mm_vision_tower`` names, or None when it is not on this machine."""
    for candidate in (folder / name, folder.resolve() / name):  # an absolute name wins by itself
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    cached = hub / f"models--{name.replace('/', '--')}"
    if not cached.is_dir():
        return None
    found = resolve_folder(cached)
    return found if (found / "config.json").is_file() else None


def read_shards(folder: Path) -> tuple[Shard, ...]:
    """The weight files of a folder in the order of their names.

    Raises:
        MissingFile: none there, or one that the index lists is not.
        MissingTensors, UnexpectedTensors: index and files disagree.
        CorruptFile: a damaged file.
    """
    for name in _WEIGHTS:
        path = folder / name
        if not path.exists():
            continue
        if not name.endswith(".index.json"):
            return (read_shard(path),)
        return _read_indexed(folder, path)
    raise MissingFile(f"{folder} has no weights: none of {', '.join(_WEIGHTS)}")


def _read_indexed(folder: Path, index: Path) -> tuple[Shard, ...]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CorruptFile(f"{index} has no weight_map")
    files = sorted(set(places.values()))
    for file in files:
        if Path(file).name != file:
            raise CorruptFile(f"{index} names a file outside of its folder: {file}")
    shards = tuple(read_shard(folder / file) for file in files)
    listed = {(key, file) for key, file in places.items()}
    found = {(tensor.name, shard.path.name) for shard in shards for tensor in shard.tensors}
    if listed - found:
        key, file = min(listed - found)
        raise MissingTensors(f"{folder / file}: {key} is missing, though {index.name} lists it")
    if found - listed:
        key, file = min(found - listed)
        raise UnexpectedTensors(f"{folder / file}: {key} is not in {index.name}")
    return shards


def _read_tower(folder: Path) -> Tower:
    try:
        shards = read_shards(folder)
    except MissingFile:  # its configuration alone serves a checkpoint that carries the weights
        shards = ()
    return Tower(
        folder=folder,
        config=read_vision_config(folder / "config.json"),
        normalisation=read_normalisation(folder / "preprocessor_config.json"),
        shards=shards,
    )
