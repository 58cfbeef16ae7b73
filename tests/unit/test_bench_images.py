"""The files of the service's benchmark show one picture, so that their answers are the same."""

from __future__ import annotations

import pytest

from serve.body import whole
from serve.imaging.intake import Prepared, prepare
from serve.imaging.sources import Inline, parse
from tests.bench.images import FILES, _grey
from tests.unit.taking_images import RULES

GREY = _grey(200, seed=1)


def _prepared(name: str, number: int | None = None) -> Prepared:
    source, wanted = parse(FILES[name](GREY).url(number), whole(b""), param="p")
    assert isinstance(source, Inline)
    return prepare(source.data, source.media_type, wanted, RULES)


@pytest.mark.parametrize("name", [name for name in FILES if name != "JPEG"])
def test_every_lossless_file_is_the_same_picture(name: str) -> None:
    assert _prepared(name).pixels == _prepared("PNG").pixels


@pytest.mark.parametrize("name", FILES)
def test_another_file_is_the_same_picture(name: str) -> None:
    assert _prepared(name, 7).pixels == _prepared(name).pixels


def test_the_lossy_one_is_another() -> None:
    assert _prepared("JPEG").pixels != _prepared("PNG").pixels
