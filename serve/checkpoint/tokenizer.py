"""LLaVA-Med's tokenizer as a ``tokenizer.json`` that gives the authors' ids.

The source is a sentencepiece BPE model with byte fallback (Mistral 7B's). The authors tokenize the
text before and after ``<image>`` separately, and sentencepiece puts a space marker in front of each
text; here ``<image>`` is a token of its own and the normaliser prepends the marker to every segment
between such tokens, which comes to the same ids. A bos is added to plain text, as in the source;
chats bring theirs in the template.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve.checkpoint.config import Json
from serve.checkpoint.errors import CorruptFile, VocabularyMismatch

IMAGE = "<image>"
_MARKER = "\u2581"  # sentencepiece's visible space

# Text with every kind of piece: words, several spaces, bytes of unknown characters, line breaks.
_PROBES = (
    "[INST]",
    "\nIs there evidence of pneumothorax?  Answer in one word. [/INST]",
    " The heart is 14,5 cm \u2014 caf\u00e9 \u4e2d\u6587 \U0001f9ea\t\r\n\n x ",
    "\u2581marker\u00a0\u200b\x00end",
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A sentencepiece model's pieces and control ids. ``<image>`` takes the id after the last."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    unk: int
    bos: int
    eos: int
    model: Path

    @property
    def image(self) -> int:
        """Id of ``<image>``."""
        return len(self.pieces)

    def require_size(self, vocab_size: int) -> None:
        """Checks that every row of the embedding has a piece.

        Raises:
            VocabularyMismatch: it does not.
        """
        if len(self.pieces) != vocab_size:
            raise VocabularyMismatch(
                f"{self.model} has {len(self.pieces)} pieces, but config.json's vocab_size is "
                f"{vocab_size}"
            )


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads ``tokenizer.model``.

    Raises:
        CorruptFile: no sentencepiece model.
    """
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise CorruptFile(f"{path} is no readable sentencepiece model") from None
    ids = range(model.vocab_size())
    return Vocabulary(
        pieces=tuple(model.id_to_piece(i) for i in ids),
        scores=tuple(model.get_score(i) for i in ids),
        unk=model.unk_id(),
        bos=model.bos_id(),
        eos=model.eos_id(),
        model=path,
    )


def tokenizer_json(vocabulary: Vocabulary) -> Json:
    """The ``tokenizer.json`` of a vocabulary, in the format of the ``tokenizers`` library.

    Raises:
        VocabularyMismatch: another kind of sentencepiece model, which gives other ids.
    """
    pieces = vocabulary.pieces
    controls = [vocabulary.unk, vocabulary.bos, vocabulary.eos]
    if min(controls) < 0 or IMAGE in pieces:
        raise VocabularyMismatch(
            f"{vocabulary.model} must have unk, bos and eos, and no piece {IMAGE!r}"
        )
    special = [(index, pieces[index]) for index in sorted(controls)] + [(vocabulary.image, IMAGE)]
    bos = pieces[vocabulary.bos]
    document: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, piece in special
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _MARKER},
                {"type": "Replace", "pattern": {"String": " "}, "content": _MARKER},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _MARKER}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[vocabulary.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": _merges(vocabulary),
        },
    }
    _probe(vocabulary, document)
    return document


def tokenizer_config(vocabulary: Vocabulary, max_length: int) -> Json:
    """The ``tokenizer_config.json`` beside it. ``max_length`` is the trained context in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.pieces[vocabulary.bos],
        "eos_token": vocabulary.pieces[vocabulary.eos],
        "unk_token": vocabulary.pieces[vocabulary.unk],
        "pad_token": vocabulary.pieces[vocabulary.unk],
        "image_token": IMAGE,
        "extra_special_tokens": {"image_token": IMAGE},
        "model_max_length": max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "processor_class": "LlavaProcessor",
    }


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Sentencepiece joins the pair whose joint piece scores best: merges in the order of scores."""
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    found: list[tuple[float, int, int]] = []
    for piece, score in zip(vocabulary.pieces, vocabulary.scores, strict=True):
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right))
    found.sort()
    return [[vocabulary.pieces[left], vocabulary.pieces[right]] for _, left, right in found]


def _probe(vocabulary: Vocabulary, document: Json) -> None:
    """Compares with sentencepiece itself, so that an unforeseen kind of model cannot pass."""
    import json

    import sentencepiece
    from tokenizers import Tokenizer

    reference = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.model))
    ours = Tokenizer.from_str(json.dumps(document))
    for text in _PROBES:
        if ours.encode(text, add_special_tokens=False).ids != reference.encode(text):
            raise VocabularyMismatch(
                f"{vocabulary.model} is another kind of sentencepiece model than Mistral's: "
                f"it must be BPE with byte fallback and without text normalisation"
            )
