"""The checkpoint's own vision tower against the CLIP that ``mm_vision_tower`` names.

The authors' loader takes the external CLIP even where the checkpoint has a tower (their issue 105);
whether the two differ is a fact about a checkpoint that a user should be told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from serve.checkpoint.errors import MissingFile
from serve.checkpoint.keys import VISION, is_buffer
from serve.checkpoint.manifest import VisionVerdict
from serve.checkpoint.match import check_tower
from serve.checkpoint.source import Source
from serve.checkpoint.tensors import Shard, load_bin

if TYPE_CHECKING:
    import torch


Choice: TypeAlias = Literal["auto", "checkpoint", "external"]


def choose_tower(source: Source, choice: Choice) -> Literal["checkpoint", "external"]:
    """The tower to convert. ``auto`` takes the checkpoint's own: it is what training left.

    Raises:
        MissingFile: the chosen tower is not there.
        TensorMismatch: the external tower is not what its configuration says.
    """
    used = choice if choice != "auto" else "checkpoint" if source.has_vision else "external"
    if used == "checkpoint" and not source.has_vision:
        raise MissingFile(
            f"{source.folder} carries no vision tower; use the external one "
            f"({source.config.mm_vision_tower})"
        )
    if used == "external":
        if source.tower is None or not source.tower.shards:
            raise MissingFile(
                f"the vision tower {source.config.mm_vision_tower!r} that "
                f"{source.folder / 'config.json'} names is not on this machine: neither a folder "
                "with its weights nor in the local Hub cache (HF_HOME)"
            )
        check_tower(source.tower)
    return used


def judge_towers(source: Source, choice: Choice) -> VisionVerdict:
    """Chooses the tower to convert, and compares the two when both are at hand.

    Raises:
        MissingFile, TensorMismatch: as ``choose_tower``.
    """
    used, name = choose_tower(source, choice), source.config.mm_vision_tower
    if source.tower is None or not source.tower.shards or not source.has_vision:
        return VisionVerdict(used=used, external=name, comparison="not compared")
    check_tower(source.tower)
    difference = _max_abs_difference(source.shards, source.tower.shards)
    return VisionVerdict(
        used=used,
        external=name,
        comparison="different" if difference else "equal",
        max_abs_difference=difference,
    )


def _max_abs_difference(own: tuple[Shard, ...], external: tuple[Shard, ...]) -> float:
    ours, theirs = _loader(own), _loader(external)
    names = [
        tensor.name
        for shard in own
        for tensor in shard.tensors
        if tensor.name.startswith(VISION) and not is_buffer(tensor.name)
    ]

    def difference(name: str) -> float:
        mine, other = ours(name), theirs(name.removeprefix(VISION))
        # Rounded to the checkpoint's type, as the authors' loader does: a CLIP in float32 equals
        # its own copy in 16 bits.
        return float((mine.float() - other.to(mine.dtype).float()).abs().max())

    return max(difference(name) for name in names)


def _loader(shards: tuple[Shard, ...]) -> Callable[[str], torch.Tensor]:
    """Loads single tensors by name."""
    from safetensors import safe_open

    places = {tensor.name: shard for shard in shards for tensor in shard.tensors}
    mapped = {shard.path: load_bin(shard.path) for shard in shards if not shard.is_safetensors}

    def load(name: str) -> torch.Tensor:
        shard = places[name]
        if not shard.is_safetensors:
            return mapped[shard.path][name]
        with safe_open(shard.path, "pt") as file:
            return cast("torch.Tensor", file.get_tensor(name))

    return load
