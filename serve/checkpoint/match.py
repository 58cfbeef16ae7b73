"""The tensors that a checkpoint has against those that its configuration calls for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from serve.checkpoint.errors import (
    MissingFile,
    MissingTensors,
    UnexpectedTensors,
    UnsupportedConfig,
    WrongShape,
)
from serve.checkpoint.keys import (
    Shapes,
    external_key,
    is_buffer,
    language_shapes,
    vision_shapes,
)
from serve.checkpoint.source import Source, Tower


def check_tensors(source: Source) -> None:
    """Names and shapes of the checkpoint's own tensors; reads nothing.

    Raises:
        MissingTensors, UnexpectedTensors, WrongShape: naming the tensor and its file.
        MissingFile: the vision tower is nowhere.
        UnsupportedConfig: the vision tower does not fit.
    """
    vision = source.vision_config
    where = source.folder / "config.json"
    if vision.hidden_size != source.config.mm_hidden_size:
        raise UnsupportedConfig(
            f"{where}: mm_hidden_size is {source.config.mm_hidden_size}, but the vision tower's "
            f"hidden_size is {vision.hidden_size}"
        )
    layer, layers = source.config.mm_vision_select_layer, vision.num_hidden_layers
    if not (-layers <= layer <= -1 or 1 <= layer <= layers):
        raise UnsupportedConfig(
            f"{where}: mm_vision_select_layer is {layer}; the vision tower has {layers} layers"
        )
    expected = language_shapes(source.config)
    if source.has_vision:
        expected |= vision_shapes(vision)
    found = (
        (tensor.name, tensor.shape, shard.path)
        for shard in source.shards
        for tensor in shard.tensors
    )
    _compare(found, expected, source.folder)


def check_tower(tower: Tower) -> None:
    """Names and shapes of the vision half of a CLIP folder; its text half is ignored.

    Raises:
        MissingTensors, UnexpectedTensors, WrongShape: naming the tensor and its file.
        MissingFile: the folder has no weights.
    """
    if not tower.shards:
        raise MissingFile(f"{tower.folder} has no weights of the vision tower")
    found = (
        (name, tensor.shape, shard.path)
        for shard in tower.shards
        for tensor in shard.tensors
        if (name := external_key(tensor.name)) is not None
    )
    _compare(found, vision_shapes(tower.config), tower.folder)


def _compare(
    found: Iterable[tuple[str, tuple[int, ...], Path]], expected: Shapes, folder: Path
) -> None:
    seen: set[str] = set()
    for name, shape, path in found:
        if is_buffer(name):
            continue
        if name not in expected:
            raise UnexpectedTensors(f"{path}: no LLaVA-Med of this configuration has {name}")
        if name in seen:
            raise UnexpectedTensors(f"{path}: {name} is there a second time")
        if shape != expected[name]:
            raise WrongShape(
                f"{path}: {name} has shape {list(shape)}, config.json calls for "
                f"{list(expected[name])}"
            )
        seen.add(name)
    if missing := sorted(expected.keys() - seen):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingTensors(f"{folder} lacks {missing[0]}{others}")
