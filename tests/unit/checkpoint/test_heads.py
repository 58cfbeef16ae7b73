from __future__ import annotations

import math

import pytest
import torch

from serve.checkpoint.heads import HeadWidth


def attention(
    x: torch.Tensor, weights: dict[str, torch.Tensor], heads: int, width: int, theta: float
) -> torch.Tensor:
    """Causal attention with rotary embedding (rotate-half), written down plainly."""
    length = x.shape[0]
    half = width // 2
    angles = torch.arange(length)[:, None] * theta ** (-torch.arange(half).double() / half)
    cos, sin = angles.cos(), angles.sin()

    def split(name: str) -> torch.Tensor:
        return (x @ weights[name].double().T).reshape(length, heads, width).transpose(0, 1)

    def rotate(value: torch.Tensor) -> torch.Tensor:
        first, second = value[..., :half], value[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    q, k, v = rotate(split("q_proj")), rotate(split("k_proj")), split("v_proj")
    scores = q @ k.transpose(1, 2) / math.sqrt(width)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, heads * width)
    return mixed @ weights["o_proj"].double().T


@pytest.mark.parametrize("width", [4, 12, 48, 100])
def test_widened_heads_attend_exactly_as_before(width: int) -> None:
    torch.manual_seed(width)
    heads, hidden, theta = 3, 20, 1e6
    change = HeadWidth.of(width)
    assert change.is_widened
    weights = {name: torch.randn(heads * width, hidden) for name in ("q_proj", "k_proj", "v_proj")}
    weights["o_proj"] = torch.randn(hidden, heads * width)
    wide = {name: change.widen(name, weight) for name, weight in weights.items()}  # type: ignore[arg-type]
    for name, weight in weights.items():
        assert wide[name].shape == change.shape(name, tuple(weight.shape))  # type: ignore[arg-type]
    x = torch.randn(9, hidden).double()
    before = attention(x, weights, heads, width, theta)
    after = attention(x, wide, heads, change.target, change.rope_theta(theta))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_published_heads_are_left_alone() -> None:
    assert not HeadWidth.of(128).is_widened
    assert HeadWidth.of(128).rope_theta(1e6) == 1e6
