"""Token ids as LLaVA-Med sees them, and the small part of the vocabulary that the phantom uses.

The authors' code tokenizes the text before and after an image separately (``tokenizer_image_token``
in llava/mm_utils.py); each part gets its own leading space piece.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mistral_common
from sentencepiece import SentencePieceProcessor

from guardrails.templates import PREAMBLE
from serve.phantom.dialogue import SYSTEMS, Turn, random_phantom, random_turn

VOCABULARY = 32_000
UNK, BOS, EOS = 0, 1, 2


def tokenizer_model() -> Path:
    """Mistral 7B's own SentencePiece model (32,000 pieces), as mistral-common ships it."""
    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@cache
def _tokenizer() -> SentencePieceProcessor:
    return SentencePieceProcessor(str(tokenizer_model()))


def encode(text: str) -> list[int]:
    """Ids of one part of a prompt, without begin-of-sequence."""
    return list(_tokenizer().encode(text))


def decode(ids: list[int]) -> str:
    """Text of an answer's ids."""
    return str(_tokenizer().decode(ids)).strip()


def image_lead() -> list[int]:
    """What stands before the image: ``<s>[INST] ``."""
    return [BOS, *encode("[INST] ")]


def system_lead(system: str) -> list[int]:
    """What stands between image and question: ``\\n``, and the system text if any."""
    return encode("\n" + (f"{system}\n\n" if system else ""))


@dataclass(frozen=True, slots=True)
class Branch:
    """A turn's ids behind its context; ``ids[prompt:]`` is the answer that is learned.

    With an image the context is image_lead, image and system_lead; without one it is ``<s>``.
    """

    ids: list[int]
    prompt: int
    image: bool


def branch(turn: Turn, system: str) -> Branch:
    """Tokenizes a turn.

    The answer is tokenized together with its prompt, as it would be in a transcript; the pieces of
    the prompt come out the same alone, which generation relies on.
    """
    if turn.image:
        lead = "\n" + (f"{system}\n\n" if system else "")
        context = len(system_lead(system))
    else:
        lead = "[INST] " + (f"{system}\n\n" if system else "")
        context = 0
    before: list[int] = []
    if turn.earlier is not None:
        question, answer = turn.earlier
        before = [*encode(f"{lead}{question} [/INST] {answer} "), EOS]
        lead = "[INST] "
    prompt = before + encode(f"{lead}{turn.question} [/INST]")
    whole = before + encode(f"{lead}{turn.question} [/INST] {turn.answer}")
    if whole[: len(prompt)] != prompt:
        raise ValueError(f"the prompt's pieces change with the answer: {turn}")
    return Branch([*whole[context:], EOS], len(prompt) - context, turn.image)


@cache
def vocabulary() -> tuple[int, ...]:
    """The ids that occur in training, in order; <unk> first. The same on every call."""
    rng = random.Random(1)
    used = {UNK, BOS, EOS, *image_lead()}
    for system in SYSTEMS:
        used.update(system_lead(system))
    for _ in range(12_000):
        phantom = random_phantom(rng)
        used.update(branch(random_turn(phantom, rng), PREAMBLE).ids)
    return tuple(sorted(used))


@cache
def _index() -> dict[int, int]:
    return {token: row for row, token in enumerate(vocabulary())}


def compact(ids: list[int]) -> list[int]:
    """Ids as rows of the small vocabulary; whatever is not in it becomes <unk>."""
    return [_index().get(token, 0) for token in ids]
