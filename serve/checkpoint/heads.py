"""Attention heads of a width that vLLM's kernels do not have, widened without changing the result.

vLLM's CPU attention knows a fixed list of head widths (``CPUAttentionBackend`` of vLLM 0.32), its
GPU kernels multiples of 8; a tiny test checkpoint may have others. The published model's 128 is
left alone. Widening a head from d to D:

- rows (q, k, v) and columns (o) of zeros are added, so that dot products and sums stay as they are;
- rotary embedding pairs dimension i with i + d/2, so each half is widened by itself, and the i-th
  frequency theta^(-2i/d) is kept by the base theta^(D/d);
- vLLM divides by sqrt(D) where the authors' code divides by sqrt(d), so q is multiplied by
  sqrt(D/d), and stored in float32, where this rounds nothing that a 16-bit weight can hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

# Widths that vLLM's CPU kernel and its GPU kernels both have.
KERNEL_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)

Projection: TypeAlias = Literal["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True, slots=True)
class HeadWidth:
    """A head's width in the source and in the target. Equal for every published checkpoint."""

    source: int
    target: int

    @staticmethod
    def of(width: int) -> HeadWidth:
        """The narrowest kernel width that holds ``width``; ``width`` itself if none does."""
        return HeadWidth(width, next((known for known in KERNEL_WIDTHS if known >= width), width))

    @property
    def is_widened(self) -> bool:
        """Whether anything has to change."""
        return self.source != self.target

    def rope_theta(self, theta: float) -> float:
        """The rotary base that keeps every frequency."""
        return theta ** (self.target / self.source) if self.is_widened else theta

    def shape(self, projection: Projection, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a widened projection: (heads*D, hidden), for o_proj (hidden, heads*D)."""
        rows, columns = shape
        if projection == "o_proj":
            return (rows, columns // self.source * self.target)
        return (rows // self.source * self.target, columns)

    def widen(self, projection: Projection, weight: torch.Tensor) -> torch.Tensor:
        """The widened weight; float32 for q_proj, else of the dtype given."""
        if projection == "o_proj":
            return self._rows(weight.T).T.contiguous()
        if projection == "q_proj":
            return self._rows(weight.float()) * math.sqrt(self.target / self.source)
        return self._rows(weight)

    def _rows(self, weight: torch.Tensor) -> torch.Tensor:
        """(heads*d, n) to (heads*D, n), each half of a head padded with zeros by itself."""
        columns = weight.shape[1]
        halves = weight.reshape(-1, 2, self.source // 2, columns)
        wide = weight.new_zeros(halves.shape[0], 2, self.target // 2, columns)
        wide[:, :, : self.source // 2] = halves
        return wide.reshape(-1, columns)


def projection_of(target_key: str) -> Projection | None:
    """Which projection of the language model's attention a target tensor is, if any."""
    if not target_key.startswith("language_model.") or ".self_attn." not in target_key:
        return None
    name = target_key.split(".")[-2]
    known: tuple[Projection, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    return next((projection for projection in known if projection == name), None)
