"""Tensors in files, without loading the files: what is there, and its bytes in small pieces.

Reads safetensors (https://github.com/huggingface/safetensors, "Format") and PyTorch's zip files
(``.bin``). Knows nothing of LLaVA. Bytes of a safetensors file are read in the order of the file
and can be hashed on the way, so that a conversion reads each byte once; a ``.bin`` file is mapped
into memory, never unpickled beyond tensors.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

from serve.checkpoint.errors import CorruptFile, MissingFile

if TYPE_CHECKING:
    import torch

DType: TypeAlias = Literal["F64", "F32", "F16", "BF16", "I64", "I32"]

# Bytes of an element. Integers are index buffers of old checkpoints, which no one converts.
WIDTH: dict[DType, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}
CHUNK = 16 * 2**20  # bytes held at a time

Bytes: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's description. ``offset`` counts from the start of the file (0 in a ``.bin``)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * WIDTH[self.dtype]


class Hash(Protocol):
    """What hashlib's objects do."""

    def update(self, data: Bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of tensors, in the order of the file."""

    path: Path
    tensors: tuple[Tensor, ...]
    size: int

    @property
    def is_safetensors(self) -> bool:
        """Whether it is a safetensors file (else PyTorch's)."""
        return self.path.suffix == ".safetensors"


def read_shard(path: Path) -> Shard:
    """The description of every tensor in ``path``; of a safetensors file, only the head is read.

    Raises:
        MissingFile: there is no such file.
        CorruptFile: truncated, or not the format that its name says.
    """
    if not path.is_file():
        raise MissingFile(f"{path} is missing; fetch the checkpoint again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    tensors = tuple(
        Tensor(name, _dtype_name(value.dtype, path, name), tuple(value.shape), 0)
        for name, value in load_bin(path).items()
    )
    return Shard(path, tensors, path.stat().st_size)


def read_chunks(shard: Shard, sink: Hash) -> Iterator[tuple[Tensor, Iterator[memoryview]]]:
    """Each tensor with its bytes in chunks of whole rows, while ``sink`` gets the whole file.

    The chunks of a tensor must be used before the next tensor is asked for; what is left of them
    is read (for the hash) and dropped.

    Raises:
        CorruptFile: the file ends early.
    """
    if not shard.is_safetensors:
        yield from _bin_chunks(shard, sink)
        return
    with shard.path.open("rb") as file:

        def take(length: int) -> memoryview:
            data = bytearray(length)  # writable, as torch wants it
            if file.readinto(data) != length:
                raise CorruptFile(f"{shard.path} is truncated")
            sink.update(data)
            return memoryview(data)

        def rows(tensor: Tensor) -> Iterator[memoryview]:
            step = chunk_bytes(tensor)
            for start in range(0, tensor.nbytes, step):
                yield take(min(step, tensor.nbytes - start))

        first = shard.tensors[0].offset if shard.tensors else shard.size
        take(first)
        for tensor in shard.tensors:
            chunks = rows(tensor)
            yield tensor, chunks
            for _ in chunks:
                pass


def chunk_bytes(tensor: Tensor) -> int:
    """Bytes of a chunk: as many whole rows as fit into ``CHUNK``, one at least."""
    row = math.prod(tensor.shape[1:]) * WIDTH[tensor.dtype]
    return max(1, CHUNK // max(1, row)) * max(1, row)


def load_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, mapped into memory. Nothing but tensors is unpickled.

    Raises:
        CorruptFile: not a file of tensors.
    """
    import torch

    try:
        loaded: object = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptFile(f"{path} is no readable file of tensors: {reason}") from None
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise CorruptFile(f"{path} holds something other than tensors by name")
    return cast("dict[str, torch.Tensor]", loaded)


def _read_safetensors(path: Path) -> Shard:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise CorruptFile(f"{path} is truncated or no safetensors file")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = sorted(
                (_header_entry(path, 8 + length, name, entry) for name, entry in header.items()),
                key=lambda tensor: tensor.offset,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptFile(f"{path} has a damaged safetensors header") from None
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise CorruptFile(f"{path} has a damaged safetensors header: at {tensor.name}")
        end += tensor.nbytes
    if end != size:
        state = "truncated" if end > size else "longer than its header says"
        raise CorruptFile(f"{path} is {state}: {size} bytes, expected {end}; fetch it again")
    return Shard(path, tuple(tensors), size)


def _header_entry(path: Path, start: int, name: str, entry: dict[str, object]) -> Tensor:
    dtype = entry["dtype"]
    if dtype not in WIDTH:
        raise CorruptFile(f"{path}: {name} has dtype {dtype}, which cannot be converted")
    begin, stop = cast("list[int]", entry["data_offsets"])
    tensor = Tensor(
        name,
        dtype,
        tuple(int(size) for size in cast("list[int]", entry["shape"])),
        start + begin,
    )
    if tensor.nbytes != stop - begin:
        raise CorruptFile(f"{path} has a damaged safetensors header: at {name}")
    return tensor


def _bin_chunks(shard: Shard, sink: Hash) -> Iterator[tuple[Tensor, Iterator[memoryview]]]:
    """As ``read_chunks``, of a PyTorch file: hashed and checked against its CRCs first."""
    import torch

    with shard.path.open("rb") as file:
        while data := file.read(CHUNK):
            sink.update(data)
    if zipfile.is_zipfile(shard.path):
        with zipfile.ZipFile(shard.path) as archive:
            if damaged := archive.testzip():
                raise CorruptFile(f"{shard.path} is damaged at {damaged}; fetch it again")
    loaded = load_bin(shard.path)

    def rows(tensor: Tensor) -> Iterator[memoryview]:
        flat = loaded[tensor.name].detach().contiguous().reshape(-1).view(torch.uint8)
        step = chunk_bytes(tensor)
        for start in range(0, tensor.nbytes, step):
            yield flat[start : start + step].numpy().data

    for tensor in shard.tensors:
        yield tensor, rows(tensor)


def _dtype_name(dtype: torch.dtype, path: Path, name: str) -> DType:
    import torch

    names: dict[torch.dtype, DType] = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
    }
    if dtype not in names:
        raise CorruptFile(f"{path}: {name} has dtype {dtype}, which cannot be converted")
    return names[dtype]
