"""The phantom's network, as it is trained: CLIP tower, two-layer projector, Mistral decoder.

Two things make it trainable on two cores, and neither changes what is computed:

- **Small vocabulary.** Pieces that never occur share the row of ``<unk>``, in the embedding and in
  the head. The softmax over 32,000 rows then equals one over the used rows with ln(copies) added to
  the logit of ``<unk>``.
- **One image, many questions.** The image is the common prefix of all questions about it; each
  question is a branch that sees the prefix and itself, at the positions it would have alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, MistralConfig, MistralForCausalLM

from serve.phantom.tokens import VOCABULARY, Branch, compact, image_lead, vocabulary

IMAGE_SIZE = 336
GRID = 24  # patches of 14 pixels a side
PATCHES = GRID * GRID
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and depths. Heads are 32 wide: the least that vLLM's attention takes."""

    vision_width: int = 96
    vision_layers: int = 4  # features come from the last but one: three of them work
    width: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2


class PhantomModel(nn.Module):
    """The network, and a throw-away head that teaches the tower where findings are."""

    def __init__(self, labels: int, shape: Shape = Shape()) -> None:  # frozen
        super().__init__()
        self.vision_config = CLIPVisionConfig(
            hidden_size=shape.vision_width,
            intermediate_size=2 * shape.vision_width,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_width // 32,
            image_size=IMAGE_SIZE,
            patch_size=IMAGE_SIZE // GRID,
            projection_dim=shape.vision_width,
        )
        self.text_config = MistralConfig(
            hidden_size=shape.width,
            intermediate_size=2 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.width // shape.heads,
            vocab_size=len(vocabulary()),
            max_position_embeddings=32_768,
            rope_theta=1e6,
            sliding_window=None,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
        self.vision = CLIPVisionModel(self.vision_config)
        self.projector = nn.Sequential(
            nn.Linear(shape.vision_width, shape.width),
            nn.GELU(),
            nn.Linear(shape.width, shape.width),
        )
        self.text = MistralForCausalLM(self.text_config)
        self.dense = nn.Linear(shape.width, labels)

    def features(self, pixels: Tensor) -> Tensor:
        """Projected features of CLIP layer -2 without the class token.

        Args:
            pixels: normalised images, shape (batch, 3, 336, 336).

        Returns:
            Shape (batch, 576, width).
        """
        tower = getattr(self.vision, "vision_model", self.vision)
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers[:-1]:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        projected: Tensor = self.projector(hidden[:, 1:])
        return projected

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states, shape (batch, length, width)."""
        states: Tensor = self.text.model(
            inputs_embeds=packed.embeddings,
            attention_mask=packed.mask,
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits whose softmax is that over all 32,000 pieces, shape (..., used pieces)."""
        logits = self.text.lm_head(hidden)
        copies = VOCABULARY - len(vocabulary()) + 1
        return torch.cat([logits[..., :1] + math.log(copies), logits[..., 1:]], dim=-1)


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of images with the branches of their questions behind them."""

    embeddings: Tensor  # (batch, length, width)
    mask: Tensor  # (batch, 1, length, length), 0 or the least number
    positions: Tensor  # (batch, length)
    targets: Tensor  # (batch, length), IGNORED where nothing is learned


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything asked about one image."""

    system: list[int]
    branches: list[Branch]


# What a position belongs to: nothing, the image's prefix, or <s>, which every branch sees. A branch
# with an image has a positive number, one without an image a number from BLIND on.
_PADDING, _PREFIX, _BOS, _BLIND = -1, 0, -2, 1_000


def pack(
    model: PhantomModel, features: Tensor, conversations: list[Conversation], noise: np.ndarray
) -> Packed:
    """Lays out conversations behind their images.

    Args:
        model: for its embeddings.
        features: shape (batch, 576, width).
        conversations: one an image.
        noise: 0 where a question's piece is to be replaced by <unk>, so that unknown words are
            survived; any shape, used in order.
    """
    lead = compact(image_lead())
    systems = [compact(conversation.system) for conversation in conversations]
    lengths = [
        len(lead) + PATCHES + len(system) + sum(len(branch.ids) for branch in conversation.branches)
        for system, conversation in zip(systems, conversations, strict=True)
    ]
    size = (len(conversations), max(lengths))
    ids, positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
    targets, group = np.full(size, IGNORED), np.full(size, _PADDING)
    kept = iter(noise.ravel())
    for row, (system, conversation) in enumerate(zip(systems, conversations, strict=True)):
        start = len(lead) + PATCHES + len(system)
        ids[row, : len(lead)] = lead
        ids[row, len(lead) + PATCHES : start] = system
        positions[row, :start] = np.arange(start)
        group[row, 0], group[row, 1:start] = _BOS, _PREFIX
        at = start
        for number, branch in enumerate(conversation.branches, 1):
            tokens = np.array(compact(branch.ids))
            end = at + len(tokens)
            targets[row, at + branch.prompt - 1 : end - 1] = tokens[branch.prompt :]
            tokens[: branch.prompt] *= [next(kept) for _ in range(branch.prompt)]
            ids[row, at:end] = tokens
            group[row, at:end] = number if branch.image else _BLIND + number
            positions[row, at:end] = np.arange(len(tokens)) + (start if branch.image else 1)
            at = end
    embeddings = model.text.model.embed_tokens(torch.from_numpy(ids))
    image = slice(len(lead), len(lead) + PATCHES)
    embeddings = torch.cat(
        [embeddings[:, : image.start], features, embeddings[:, image.stop :]], dim=1
    )
    return Packed(embeddings, _mask(group), torch.from_numpy(positions), torch.from_numpy(targets))


def _mask(group: np.ndarray) -> Tensor:
    query, key = group[:, :, None], group[:, None, :]
    order = np.tri(group.shape[1], dtype=bool)
    sees = (query == key) | (key == _BOS) | ((key == _PREFIX) & (query > 0) & (query < _BLIND))
    allowed = (sees & order & (key != _PADDING)) | np.eye(group.shape[1], dtype=bool)
    mask = torch.zeros(allowed.shape).masked_fill_(
        torch.from_numpy(~allowed), torch.finfo(torch.float32).min
    )
    return mask[:, None]
