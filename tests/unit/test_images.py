"""The image stage: where images come from, where they are decoded, what the prompt says of them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.body import whole
from serve.errors import ApiError
from serve.images import Images
from serve.imaging.intake import Prepared
from serve.imaging.sources import Wanted
from serve.settings import load
from tests.dicoms import dicom
from tests.unit.taking_images import RULES, InThread, images
from tests.unit.test_edge import ScriptedEngine, _post

CT = dicom(np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64))


class Counting(InThread):
    """Counts what is sent to be decoded elsewhere."""

    calls = 0

    async def prepare(self, data: bytes, declared: str | None, wanted: Wanted) -> Prepared:
        self.calls += 1
        return await super().prepare(data, declared, wanted)


def _picture(width: int, height: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind, **({} if kind == "GIF" else {"compress_level": 1}))
    return buffer.getvalue()


def _url(data: bytes, head: str) -> str:
    return f"data:{head};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("url", "elsewhere"),
    [
        (_url(_picture(2000, 2000), "image/png"), 0),
        (_url(_picture(2001, 2000), "image/png"), 1),
        (_url(_picture(2000, 2000, "JPEG"), "image/jpeg"), 0),
        (_url(_picture(2001, 2000, "JPEG"), "image/jpeg"), 1),
        (_url(CT, "application/dicom"), 1),
    ],
)
async def test_light_images_are_decoded_here_and_heavy_ones_elsewhere(
    url: str, elsewhere: int
) -> None:
    intake = Counting()
    await Images(load().imaging, RULES, intake).take(url, whole(b""), principal="me", param="p")
    assert intake.calls == elsewhere


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://host/a.png", "invalid_image_url"),
        ("https://host/a.png", "invalid_image_url"),
        ("dicomweb:1.2/1.3/1.4", "invalid_image_url"),
        ("data:image/png;base64,AAAA", "unusable_image"),
        (_url(CT[:600], "application/dicom"), "not_an_image"),
        (_url(_picture(5, 5), "image/jpeg"), "media_type_mismatch"),
        (_url(_picture(5, 5, "GIF"), "image/png"), "unsupported_media_type"),
    ],
)
async def test_a_refusal_names_the_part_of_the_request(url: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        await images(load()).take(url, whole(b""), principal="me", param="messages.0.content.3")
    assert (caught.value.code, caught.value.param) == (code, "messages.0.content.3")


def _image(role: str | None = None) -> dict[str, Any]:
    head = "application/dicom" + (f";role={role}" if role else "")
    return {"type": "image_url", "image_url": {"url": _url(CT, head)}}


async def _ask(*parts: dict[str, Any]) -> tuple[ScriptedEngine, Any]:
    engine = ScriptedEngine()
    question = {"type": "text", "text": "Is there a mass?"}
    response = await _post(engine, messages=[{"role": "user", "content": [*parts, question]}])
    return engine, response


async def test_prior_and_current_are_named_before_the_question() -> None:
    engine, response = await _ask(_image("prior"), _image("current"))
    turn = engine.prompts[0].turns[1]
    assert turn.text.startswith(
        "Image 1 is the prior study. Image 2 is the current study.\nIs there a mass?"
    )
    assert len(turn.images) == 2
    notes = response.json()["guardrails"]["images"]
    assert [note["role"] for note in notes] == ["prior", "current"]


async def test_images_without_roles_are_not_named() -> None:
    engine, _ = await _ask(_image(), _image())
    assert engine.prompts[0].turns[1].text.startswith("Is there a mass?")


@pytest.mark.parametrize("roles", [("prior", None), ("prior",), ("prior", "prior")])
async def test_a_prior_alone_or_half_of_the_roles_is_refused(roles: tuple[str | None, ...]) -> None:
    engine, response = await _ask(*map(_image, roles))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_image_parameter"
    assert not engine.prompts


async def test_the_note_says_what_was_done_to_an_image() -> None:
    _, response = await _ask(_image())
    assert response.json()["guardrails"]["images"] == [
        {
            "media_type": "application/dicom",
            "role": None,
            "frame": 1,
            "frames": 1,
            "window": {"origin": "default", "center": None, "width": None},
            "burned_in": "none",
            "burned_in_evidence": [],
        }
    ]


async def test_one_bad_image_among_many_gives_the_request_up() -> None:
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    engine, response = await _ask(_image(), bad, _image())
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "messages.0.content.1"
    assert not engine.prompts


async def test_the_engine_is_given_pixels_that_need_no_more_work() -> None:
    engine, _ = await _ask(_image())
    (image,) = engine.prompts[0].turns[1].images
    assert (image.pixels.mode, image.pixels.size) == ("RGB", (336, 336))
    assert image.pixels.info == {}
