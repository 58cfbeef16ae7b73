from __future__ import annotations

import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from serve.checkpoint.errors import VocabularyMismatch
from serve.checkpoint.tokenizer import read_vocabulary, tokenizer_json
from tests.unit.checkpoint.synthetic import TOKENIZER

VOCABULARY = read_vocabulary(TOKENIZER)
OURS = Tokenizer.from_str(json.dumps(tokenizer_json(VOCABULARY)))
REFERENCE = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def reference_ids(segments: list[str]) -> list[int]:
    """As the authors do: every text between images by itself."""
    ids: list[int] = []
    for number, segment in enumerate(segments):
        ids += [VOCABULARY.image] * (number > 0) + REFERENCE.encode(segment)
    return ids


@settings(max_examples=300, deadline=None)
@given(segments=st.lists(TEXT, min_size=1, max_size=4))
def test_ids_are_the_authors_ids_segment_by_segment(segments: list[str]) -> None:
    # sentencepiece takes NUL for the end of what its own trie matches, and "<s>" for text.
    segments = [segment.replace("\0", "").replace("<", "") for segment in segments]
    ids = OURS.encode("<image>".join(segments), add_special_tokens=False).ids
    assert ids == reference_ids(segments)


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_decoding_gives_the_text_back(text: str) -> None:
    text = text.replace("<", "").replace("\u2581", "")
    ids = OURS.encode(text, add_special_tokens=False).ids
    assert OURS.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_decoding_token_by_token_gives_the_same_text(text: str) -> None:
    text = "start" + text.replace("<", "").replace("\u2581", "")
    ids = OURS.encode(text, add_special_tokens=False).ids
    stream = DecodeStream(skip_special_tokens=True)
    assert "".join(stream.step(OURS, token) or "" for token in ids) == text


def test_plain_text_gets_a_bos_and_specials_are_one_token() -> None:
    assert OURS.encode("The").ids == [1, 415]
    assert OURS.encode("<s></s><unk><image>", add_special_tokens=False).ids == [1, 2, 0, 32000]


def test_a_vocabulary_of_another_size_is_refused() -> None:
    with pytest.raises(VocabularyMismatch, match="32000 pieces"):
        VOCABULARY.require_size(32064)
