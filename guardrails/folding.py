"""Text as rules see it: plain ASCII in which look-alikes, accents and hidden characters are gone.

Matching runs on this *shadow*, so that full-width, accented or split-up letters read as plain ones;
what leaves is always the original text, found through the offsets kept here. Knows no rules.

Folding looks at one character at a time, but for the collapse of white space, which looks at the
one before: the shadow of a text is the same however it is cut into chunks.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import lru_cache

# Letters that look like Latin ones (Unicode Technical Standard 39, confusables.txt; the part of
# Cyrillic, Greek, Armenian and Latin-extended letters whose prototype is one ASCII letter).
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏвкмнтгпАВЕКМНОРСТУХІЈЅԌԚԜҮӀ"
    "αοιυνκρτχγωβεηΑΒΕΖΗΙΚΜΝΟΡΤΥΧϲϳ"
    "ոսօցհյԼՏՕıȷɑɡɩʋᴄᴏᴠᴡᴢøłđħŧØŁĐ",
    "aeopcyxijsdqwhlbkmhtrnABEKMHOPCTYXIJSGQWYI"
    "aoiuvkptxywbenABEZHIKMNOPTYXcj"
    "nuoghjLSOijagivcovwzoldhtOLD",
)
# Marks that a model writes around words; they part no word and mean nothing to a rule.
_MARKUP = "*_`~"
_DROPPED_CATEGORIES = frozenset({"Mn", "Me", "Cf", "Cc", "Cs", "Co", "Cn"})
_QUOTES = dict.fromkeys("‘’‚‛′ʼ´ˈ", "'") | dict.fromkeys("“”„‟″«»", '"')
_OTHER = "\x7f"  # a visible character without an ASCII form; no pattern can name it

_BLANK = re.compile(r"\s")
# What keeps an ASCII chunk from being its own shadow.
_UNEVEN = re.compile(r"[*_`~\x00-\x08\x0e-\x1f\x7f]|\s\s")
_SPACES = bytes.maketrans(b"\t\n\x0b\x0c\r", b"     ")


@lru_cache(maxsize=4096)
def fold_character(character: str) -> str:
    """The shadow of one character: none, one or several ASCII characters; case is kept."""
    if _BLANK.match(character):
        return " "
    if character in _MARKUP:
        return ""
    if character.isascii() and character.isprintable():
        return character
    if character in _QUOTES:
        return _QUOTES[character]
    folded = ""
    for part in unicodedata.normalize("NFKD", character).translate(_LOOKALIKES):
        category = unicodedata.category(part)
        if part.isascii() and part.isprintable():
            folded += "" if part in _MARKUP else part
        elif category in _DROPPED_CATEGORIES:
            continue
        elif category == "Pd" or part == "\u2212":  # minus sign
            folded += "-"
        elif part == "\u2044":  # fraction slash
            folded += "/"
        elif part == "ß":
            folded += "ss"
        elif category.startswith("Z"):
            folded += " "
        else:
            folded += _OTHER
    return folded


class Folder:
    """Folds a text chunk by chunk, and leads from a place in the shadow back to the text."""

    __slots__ = ("_blank", "_length", "_shadow_length", "_starts", "_texts")

    def __init__(self) -> None:
        self._blank = False
        self._length = self._shadow_length = 0
        # Where shadow and text run in step: breakpoints, each (place in shadow, place in text).
        self._starts, self._texts = [0], [0]

    def push(self, text: str) -> bytes:
        """The shadow of the next chunk, in ASCII bytes."""
        if text.isascii() and not _UNEVEN.search(text) and not (self._blank and text[:1].isspace()):
            shadow = text.encode("ascii").translate(_SPACES)
            if shadow:
                self._blank = shadow[-1] == 0x20
            self._step(len(text))
            return shadow
        return "".join(map(self._fold, text)).encode("ascii")

    def _fold(self, character: str) -> str:
        folded = fold_character(character)
        if folded == " " and self._blank:
            folded = ""
        if folded:
            self._blank = folded[-1] == " "
        self._step(1, len(folded))
        return folded

    def _step(self, length: int, shadow_length: int | None = None) -> None:
        """Notes that ``length`` characters of text became ``shadow_length`` of shadow."""
        shadow_length = length if shadow_length is None else shadow_length
        if (
            self._length - self._texts[-1] != self._shadow_length - self._starts[-1]
            and shadow_length
        ):
            self._starts.append(self._shadow_length)
            self._texts.append(self._length)
        self._length += length
        self._shadow_length += shadow_length
        if shadow_length > 1 and length == 1:  # the several stand for the one
            self._starts += range(self._shadow_length - shadow_length + 1, self._shadow_length)
            self._texts += [self._length - 1] * (shadow_length - 1)

    def origin(self, place: int) -> int:
        """Where in the text the character at ``place`` of the shadow stands."""
        if place >= self._shadow_length:
            return self._length
        at = bisect_right(self._starts, place) - 1
        return self._texts[at] + place - self._starts[at]

    def forget(self, place: int) -> None:
        """Drops what leads back to places before ``place``."""
        at = bisect_right(self._starts, place) - 1
        if at > 64:  # seldom, so that it costs nothing
            del self._starts[:at], self._texts[:at]


def fold(text: str) -> str:
    """The shadow of a whole text."""
    return Folder().push(text).decode("ascii")
