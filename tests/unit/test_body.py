"""Inline images leave the body before JSON is read; what the request means stays the same."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.body import split, whole
from serve.errors import BadRequest
from serve.imaging.sources import Inline, parse
from serve.protocol import ImagePart, TextPart, parse_request

LONG = base64.b64encode(os.urandom(9000)).decode()
OTHER = base64.b64encode(os.urandom(6000)).decode()


def _body(*parts: dict[str, Any], **fields: Any) -> bytes:
    message = {"role": "user", "content": list(parts)}
    return json.dumps({"model": "llava-med", "messages": [message]} | fields).encode()


def _image(data: str, head: str = "image/png;base64") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{head},{data}"}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_the_images_bytes_never_reach_the_json_parser() -> None:
    body = _body(_image(LONG), _text("What is it?"), _image(OTHER, "image/jpeg;role=prior;base64"))
    found = split(body)
    assert len(found.json) < 600
    assert [bytes(payload).decode() for payload in found.payloads] == [LONG, OTHER]
    request, inline = parse_request(body)
    first, text, second = request.messages[0].content
    assert isinstance(text, TextPart)
    assert text.text == "What is it?"
    for part, data in ((first, LONG), (second, OTHER)):
        assert isinstance(part, ImagePart)
        source, _ = parse(part.image_url.url, inline, param="p")
        assert isinstance(source, Inline)
        assert source.data == base64.b64decode(data)


def test_a_text_that_looks_like_an_image_stays_text() -> None:
    look_alike = f"data:image/png;base64,{LONG}"
    request, _ = parse_request(_body(_image(OTHER), _text(look_alike)))
    assert request.messages[0].content[1].text == look_alike
    request, _ = parse_request(_body(_text("x"), metadata={"template": look_alike}))
    assert request.metadata == {"template": look_alike}


def test_a_quoted_data_url_inside_a_text_stays_where_it_is() -> None:
    text = f'see "data:image/png;base64,{LONG}" there'
    assert split(_body(_text(text))).payloads == ()
    assert parse_request(_body(_text(text)))[0].messages[0].content[0].text == text


@pytest.mark.parametrize(
    "url", [f"data:image/png;base64,{LONG[:3000]}", f"data:image/png;base64,{LONG}\\u0041"]
)
def test_short_and_escaped_ones_are_read_as_json(url: str) -> None:
    body = _body(_image("@")).replace(b"data:image/png;base64,@", url.encode())
    assert split(body).payloads == ()
    assert isinstance(parse_request(body)[0].messages[0].content[0], ImagePart)


@pytest.mark.parametrize("reference", ["{mark}:0", "{mark}:7", "0", ":0", "0123456789abcdef:0"])
def test_a_client_cannot_refer_to_anything(reference: str) -> None:
    found = split(_body(_image(LONG)))
    text = reference.format(mark="0" * 16)
    assert found.payload(text) is None


def test_a_body_of_beginnings_is_not_looked_at_for_long() -> None:
    body = b'"data:' * 1_000_000
    begun = time.perf_counter()
    found = split(body)
    assert time.perf_counter() - begun < 0.5  # all of them would take seconds
    assert found.json == body
    images = [_image(LONG) for _ in range(1500)]
    request, inline = parse_request(_body(*images))
    assert len(inline.payloads) == 1000
    for part in request.messages[0].content[990:1010]:
        assert isinstance(part, ImagePart)
        source, _ = parse(part.image_url.url, inline, param="p")
        assert isinstance(source, Inline)
        assert source.data == base64.b64decode(LONG)


_PIECES = st.sampled_from(
    [b'"', b"\\", b"data:", b'"data:image/png;base64,', LONG.encode(), b",", b"{", b"}", b":", b" ",
     b'"a"', b"[", b"]", b"null", b'\\"data:image/png;base64,']
)  # fmt: skip


@given(st.lists(_PIECES, max_size=30))
def test_whatever_the_body_it_means_what_it_meant(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    found = split(body)

    def restored(value: Any) -> Any:
        if isinstance(value, str):
            for number, payload in enumerate(found.payloads):
                value = value.replace(f"{found.mark}:{number}", bytes(payload).decode())
            return value
        if isinstance(value, list):
            return [restored(one) for one in value]
        if isinstance(value, dict):
            return {restored(key): restored(one) for key, one in value.items()}
        return value

    try:
        expected = json.loads(body)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  # as invalid as before
            json.loads(found.json)
    else:
        assert restored(json.loads(found.json)) == expected


def test_no_json_is_as_wrong_without_its_images() -> None:
    for body in (_body(_image(LONG))[:-1], b'"data:image/png;base64,' + LONG.encode()):
        with pytest.raises(BadRequest) as caught:
            parse_request(body)
        assert caught.value.code == "invalid_json"
    assert whole(b"x").payload("x") is None
