"""What becomes of one tensor's bytes: cast to another type, rows added, heads widened.

Most tensors of a conversion pass through untouched. Only a tensor whose heads are widened is held
in memory whole; all others come and go in chunks of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from serve.checkpoint.errors import NotFinite
from serve.checkpoint.heads import HeadWidth, projection_of
from serve.checkpoint.keys import EMBEDDING, HEAD, target_key
from serve.checkpoint.tensors import Bytes, DType, Tensor

if TYPE_CHECKING:
    import torch

TargetType = Literal["source", "bfloat16", "float16", "float32"]

_TYPES: dict[TargetType, DType] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_NAMES: dict[DType, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
}
# The bits of the exponent: all set means infinite or NaN.
_EXPONENT: dict[DType, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the embedding: ``used`` of the source's, then copies of row ``filler``, to ``rows``.

    Copies of ``<unk>``'s row, because the model never says it: random or zero rows would take
    probability from real tokens.
    """

    used: int
    rows: int
    filler: int


@dataclass(frozen=True, slots=True)
class Recast:
    """How the tensors of one conversion change."""

    dtype: TargetType
    rows: Rows
    heads: HeadWidth

    def describe(self, tensor: Tensor, source_key: str) -> Tensor:
        """The target tensor that ``tensor``, called ``source_key`` in LLaVA-Med, becomes."""
        name = target_key(source_key)
        dtype, shape = tensor.dtype, tensor.shape
        if name in (EMBEDDING, HEAD):
            shape = (self.rows.rows, *shape[1:])
        projection = projection_of(name) if self.heads.is_widened else None
        if projection is not None:
            shape = self.heads.shape(projection, shape)
            dtype = "F32" if projection == "q_proj" else dtype
        return Tensor(name, self.target_type(dtype), shape, 0)

    def target_type(self, dtype: DType) -> DType:
        """The type that a tensor of ``dtype`` is written in. Nothing reads float64 weights."""
        if self.dtype != "source":
            return _TYPES[self.dtype]
        return "F32" if dtype == "F64" else dtype

    def apply(
        self, tensor: Tensor, target: Tensor, chunks: Iterator[memoryview], path: Path
    ) -> Iterator[Bytes]:
        """The target's bytes.

        Raises:
            NotFinite: a value is NaN or infinite, or becomes so in the target's type.
        """
        if target.name in (EMBEDDING, HEAD):
            out = self._extend(tensor, target, chunks)
        elif self.heads.is_widened and projection_of(target.name) is not None:
            out = self._widen(tensor, target, chunks)
        else:
            out = (cast(chunk, tensor.dtype, target.dtype) for chunk in chunks)
        for data in out:
            code, mask = _EXPONENT[target.dtype]
            bits = np.frombuffer(data, code)
            if bits.size and np.bitwise_and(bits, mask).max() == mask:
                raise NotFinite(
                    f"{path}: {tensor.name} holds values that are not finite in "
                    f"{_NAMES[target.dtype]}"
                )
            yield data

    def _extend(
        self, tensor: Tensor, target: Tensor, chunks: Iterator[memoryview]
    ) -> Iterator[Bytes]:
        row = tensor.nbytes // tensor.shape[0]
        begin, filler = 0, b""
        for chunk in chunks:
            end = begin + chunk.nbytes // row
            if begin <= self.rows.filler < end:
                start = (self.rows.filler - begin) * row
                filler = bytes(chunk[start : start + row])
            kept = chunk[: max(0, self.rows.used - begin) * row]
            if kept:
                yield cast(kept, tensor.dtype, target.dtype)
            begin = end
        copies = filler * (self.rows.rows - self.rows.used)
        yield cast(memoryview(bytearray(copies)), tensor.dtype, target.dtype)

    def _widen(
        self, tensor: Tensor, target: Tensor, chunks: Iterator[memoryview]
    ) -> Iterator[Bytes]:
        projection = projection_of(target.name)
        assert projection is not None
        whole = bytearray().join(chunks)
        weight = to_torch(whole, tensor.dtype).reshape(tensor.shape)
        wide = self.heads.widen(projection, weight)
        yield to_bytes(wide, target.dtype)


def cast(data: Bytes, source: DType, target: DType) -> Bytes:
    """``data`` in another type; the same object when the types are equal."""
    return data if source == target else to_bytes(to_torch(data, source), target)


def to_torch(data: Bytes, dtype: DType) -> torch.Tensor:
    """A flat tensor over ``data``, which must be writable."""
    import torch

    return torch.frombuffer(data, dtype=getattr(torch, _NAMES[dtype]))


def to_bytes(tensor: torch.Tensor, dtype: DType) -> Bytes:
    """The tensor's bytes in ``dtype``."""
    import torch

    flat = tensor.to(getattr(torch, _NAMES[dtype])).contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def torch_name(dtype: DType) -> str:
    """Torch's name of a type."""
    return _NAMES[dtype]
