"""Folding as a specification: what rules see of a text, and where in it that stands."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.folding import Folder, fold, fold_character

# As characters come in answers and attacks; each folds in a way of its own.
TRICKS = "aB7 \t\n\r\x00\x1c\x7f*_`~-.\u00a0\u2003\u2028\u200b\u00ad\u0301"
TRICKS += "ｅéаοﬁ½ß㎎…‘”–−\u2044漢😀\ufdfa"
TEXTS = st.one_of(st.text(), st.text(alphabet=TRICKS, max_size=200), st.text(alphabet=" a\n*b"))


@pytest.mark.parametrize(
    ("text", "shadow"),
    [
        ("Start heparin.", "Start heparin."),
        ("", ""),
        pytest.param("Ｓｔａｒｔ　１２", "Start 12", id="full width"),
        pytest.param("𝐬𝓽𝕒𝗿𝚝 ⓐ", "start a", id="letters of mathematics, circled ones"),
        pytest.param("he\u200bpa\u200d\u2060ri\ufeffn", "heparin", id="zero width"),
        pytest.param("he\u0301pa\u0336ri\u20dden", "heparien", id="combining marks"),
        pytest.param("hépärîn", "heparin", id="accents"),
        pytest.param("hepa\u00adrin", "heparin", id="soft hyphen"),
        pytest.param("\u202eheparin\u202c", "heparin", id="direction marks"),
        pytest.param("ѕtаrt һераrіո", "start heparin", id="Cyrillic and Armenian look-alikes"),
        pytest.param("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ οαν", "ABEZHIKMNOPTYX oav", id="Greek look-alikes"),
        pytest.param("Łøđħ ɡıɑ", "Lodh gia", id="Latin look-alikes"),
        pytest.param("start\u00a0heparin", "start heparin", id="no-break space"),
        pytest.param("a\u2003b\u3000c\u202fd\u2028e\u2029f", "a b c d e f", id="other spaces"),
        pytest.param("a‐b‑c‒d–e—f―g−h﹣i－j", "a-b-c-d-e-f-g-h-i-j", id="dashes"),
        pytest.param("‘a’ ‚b‛ c′ dʼ", "'a' 'b' c' d'", id="single quotes"),
        pytest.param("“a” „b‟ c″ «d»", '"a" "b" c" "d"', id="double quotes"),
        pytest.param("ﬁnd ﬂow eﬀect ﬃ", "find flow effect ffi", id="ligatures"),
        pytest.param("½ ¼ 3\u20444", "1/2 1/4 3/4", id="fractions"),
        pytest.param("5㎎ x² ①", "5mg x2 1", id="compatibility forms"),
        pytest.param("maß", "mass", id="sharp s"),
        pytest.param("wait…", "wait...", id="ellipsis"),
        pytest.param("**he**_pa_`r`~in~ ＊＿", "heparin ", id="markdown"),
        pytest.param("he\x00p\x1ba\x7fr\x08in", "heparin", id="control characters"),
        pytest.param("a \t b\n\n c\r\nd\x0b\x0ce\x1cf\x85g", "a b c d e f g", id="white space"),
        pytest.param("a \u200b b* *c", "a b c", id="white space around what is dropped"),
        pytest.param("a漢字😀b", "a\x7f\x7f\x7fb", id="no ASCII form: no pattern can name it"),
        pytest.param("a\ud800\ue000b", "ab", id="surrogates, private use"),
    ],
)
def test_rules_see(text: str, shadow: str) -> None:
    assert fold(text) == shadow


def test_case_is_kept() -> None:
    assert fold_character("Ａ") == "A"
    assert fold_character("а") == "a"


@pytest.mark.parametrize(
    ("text", "found", "original"),
    [
        ("Start heparin now", "heparin", "heparin"),
        ("Ｓｔａｒｔ hе\u200bpa\u00adrі\u0301n now", "heparin", "hе\u200bpa\u00adrі\u0301n"),
        ("**bold** MRN", "MRN", "MRN"),
        ("a \n\t b\u00a0\u00a0c", "b c", "b\u00a0\u00a0c"),
        ("take ½ now", "1/2", "½"),
        ("take ½ now", "/", "½"),
        ("eﬃciency", "fic", "ﬃc"),
        ("5㎎", "mg", "㎎"),
        ("\u200b\u200babc", "abc", "abc"),
    ],
)
def test_a_place_in_the_shadow_leads_back(text: str, found: str, original: str) -> None:
    folder = Folder()
    start = folder.push(text).decode().index(found)
    first, last = folder.origin(start), folder.origin(start + len(found) - 1)
    assert text[first : last + 1] == original


def origins(text: str) -> tuple[str, list[int]]:
    """Shadow and the way back, character by character."""
    shadow, places = "", []
    for place, character in enumerate(text):
        folded = fold_character(character)
        if folded == " " and shadow.endswith(" "):
            continue
        shadow += folded
        places += [place] * len(folded)
    return shadow, [*places, len(text)]


@given(TEXTS)
def test_every_place_leads_back_to_the_character_that_it_stands_for(text: str) -> None:
    folder = Folder()
    shadow = folder.push(text).decode()
    assert (shadow, [folder.origin(place) for place in range(len(shadow) + 1)]) == origins(text)


@given(TEXTS, st.data())
def test_shadow_and_way_back_are_the_same_however_a_text_is_cut(
    text: str, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    edges = [0, *sorted(places), len(text)]
    folder = Folder()
    shadow = b"".join(folder.push(text[start:end]) for start, end in pairwise(edges)).decode()
    assert (shadow, [folder.origin(place) for place in range(len(shadow) + 1)]) == origins(text)


@given(TEXTS)
def test_a_shadow_is_printable_ascii_without_double_spaces_or_markup(text: str) -> None:
    shadow = fold(text)
    assert all(" " <= character <= "\x7f" for character in shadow)
    assert "  " not in shadow
    assert not set("*_`~") & set(shadow)


@given(TEXTS)
def test_the_way_back_is_monotone_and_stays_in_the_text(text: str) -> None:
    folder = Folder()
    places = range(len(folder.push(text)) + 3)
    ways = [folder.origin(place) for place in places]
    assert ways == sorted(ways)
    assert all(0 <= way <= len(text) for way in ways)


@given(st.lists(st.text(alphabet=TRICKS, min_size=40), min_size=5, max_size=12), st.data())
def test_forgetting_changes_nothing_for_later_places(
    chunks: list[str], data: st.DataObject
) -> None:
    kept, forgetful = Folder(), Folder()
    length = forgotten = 0
    for chunk in chunks:
        length += len(forgetful.push(chunk))
        kept.push(chunk)
        forgotten = data.draw(st.integers(forgotten, length))
        forgetful.forget(forgotten)
        later = range(forgotten, length + 1)
        assert [*map(forgetful.origin, later)] == [*map(kept.origin, later)]


def test_what_is_forgotten_takes_no_room() -> None:
    folder, length = Folder(), 0
    for _ in range(1000):
        length += len(folder.push("é ½ *a* "))
        folder.forget(length)
    assert len(folder._starts) == len(folder._texts) < 100
