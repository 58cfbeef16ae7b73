"""DICOM through the running service: real files, every source, nothing about the patient."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import APIStatusError
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file

from guardrails.templates import DRAFT_LABEL
from serve.imaging.dicom import opened
from serve.imaging.sources import DICOM, Wanted
from serve.local import run_dir
from serve.phantom.draw import Phantom, draw
from tests.dicoms import PATIENT, PATIENT_ID, ROOT, STUDY_DATE, dicom, radiograph
from tests.e2e.conftest import Stack
from tests.e2e.images import file_part, message

QUESTIONS = [
    "Is there evidence of pneumothorax?",
    "Is there a pleural effusion?",
    "Describe the key findings.",
]
CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _chest(phantom: Phantom, seed: int) -> bytes:
    return radiograph(np.asarray(draw(phantom, seed=seed).convert("L")))


def _ask(stack: Stack, question: str, *parts: dict[str, Any], **options: Any) -> Any:
    return stack.openai().chat.completions.create(
        model="llava-med", messages=message(question, *parts), **options
    )


def _code(stack: Stack, *parts: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(APIStatusError) as caught:
        _ask(stack, "Is there a mass?", *parts)
    body = caught.value.body
    assert isinstance(body, dict)
    return caught.value.status_code, str(body["code"])


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_real_ct_slice_is_answered_streamed_and_not(stack: Stack, question: str) -> None:
    part = file_part(CT, DICOM)
    whole = _ask(stack, question, part)
    content = whole.choices[0].message.content
    assert content.endswith(DRAFT_LABEL)
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in _ask(stack, question, part, stream=True)
        if chunk.choices
    )
    assert streamed == content


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_dicom_file_is_answered_as_its_picture_is(stack: Stack, question: str) -> None:
    rendered = opened(CT, max_pixels=1 << 20, max_frames=1).render(Wanted(window="lung"))
    as_dicom = _ask(stack, question, file_part(CT, DICOM, window="lung"))
    as_png = _ask(stack, question, file_part(_png(rendered.image), "image/png"))
    assert as_dicom.choices[0].message.content == as_png.choices[0].message.content
    assert as_dicom.usage == as_png.usage


@pytest.mark.parametrize("finding", ["pneumothorax", "effusion"])
def test_what_a_radiograph_shows_is_seen(stack: Stack, finding: str) -> None:
    question = {
        "pneumothorax": "Is there a pneumothorax?",
        "effusion": "Is there a pleural effusion?",
    }[finding]
    found = {
        side: _ask(
            stack, question, file_part(_chest(Phantom(**{finding: side}), seed=31), DICOM)
        ).model_extra["guardrails"]["finding"]["status"]
        for side in ("left", None)
    }
    assert found == {"left": "present", None: "absent"}


def test_a_new_window_or_frame_is_another_image(stack: Stack) -> None:
    notes = []
    for wanted in ({}, {"window": "lung"}, {"center": 40, "width": 80}):
        answer = _ask(stack, QUESTIONS[0], file_part(CT, DICOM, **wanted))
        notes.append(answer.model_extra["guardrails"]["images"][0]["window"])
    assert [note["origin"] for note in notes] == ["default", "request", "request"]
    assert (notes[1]["center"], notes[1]["width"]) == (-600, 1500)
    frames = np.stack([np.full((64, 64, 1), 40 * n, np.uint8) for n in range(4)])
    answer = _ask(stack, QUESTIONS[0], file_part(dicom(frames, Modality="DX"), DICOM, frame=3))
    (note,) = answer.model_extra["guardrails"]["images"]
    assert (note["frame"], note["frames"]) == (3, 4)


def test_prior_and_current_are_compared_in_one_request(stack: Stack) -> None:
    prior = _chest(Phantom(), seed=5)
    current = _chest(Phantom(pneumothorax="left"), seed=5)
    question = "Is there a pneumothorax?"
    answer = _ask(
        stack,
        question,
        file_part(prior, DICOM, role="prior"),
        file_part(current, DICOM, role="current"),
    )
    assert answer.usage.prompt_tokens > 2 * 576
    roles = [note["role"] for note in answer.model_extra["guardrails"]["images"]]
    assert roles == ["prior", "current"]
    one = _ask(stack, question, file_part(current, DICOM, role="current"))
    assert answer.usage.prompt_tokens > one.usage.prompt_tokens + 576


@pytest.mark.parametrize(
    "syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless, uid.HTJ2KLossless]
)
def test_a_large_compressed_radiograph_is_taken(stack: Stack, syntax: uid.UID) -> None:
    rows, columns = np.mgrid[0:2048, 0:2048].astype(np.float32)
    grey = (2048 + 2000 * np.sin(rows / 200) * np.cos(columns / 300)).astype(np.uint16)
    data = dicom(grey, syntax, Modality="DX", BitsStored=12, HighBit=11)
    assert _ask(stack, QUESTIONS[0], file_part(data, DICOM)).choices[0].finish_reason == "stop"


# --- the PACS -------------------------------------------------------------------------------------


def _reference(**parameters: object) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    url = f"dicomweb:{ROOT}.1/{ROOT}.2/{ROOT}.3" + (f"?{query}" if query else "")
    return {"type": "image_url", "image_url": {"url": url}}


def test_an_instance_in_the_pacs_is_answered_as_the_file_is(stack: Stack) -> None:
    if stack.pacs is None:
        pytest.skip("Orthanc is not installed")
    data = _chest(Phantom(effusion="right"), seed=9)
    stack.pacs.store(data)
    for question in QUESTIONS:
        fetched = _ask(stack, question, _reference())
        sent = _ask(stack, question, file_part(data, DICOM))
        assert fetched.choices[0].message.content == sent.choices[0].message.content
    assert _code(stack, _reference(frame=2)) == (400, "invalid_image_parameter")


def test_an_instance_that_the_pacs_does_not_have_is_not_found(stack: Stack) -> None:
    if stack.pacs is None:
        pytest.skip("Orthanc is not installed")
    url = f"dicomweb:{ROOT}.1/{ROOT}.2/{ROOT}.99"
    missing = {"type": "image_url", "image_url": {"url": url}}
    assert _code(stack, missing) == (404, "image_not_found")


# --- refused --------------------------------------------------------------------------------------


def test_bad_images_are_clear_errors_and_it_still_answers(stack: Stack) -> None:
    grey = np.zeros((64, 64), np.uint8)
    ultrasound = dicom(grey, Modality="US")
    report = Path(str(get_testdata_file("test-SR.dcm"))).read_bytes()
    bomb = dicom(np.zeros((20_000, 20_000), np.uint8), uid.DeflatedExplicitVRLittleEndian)
    pixels = io.BytesIO()
    Image.new("1", (50_000, 50_000)).save(pixels, "PNG")
    cases = [
        (file_part(CT[:20_000], DICOM), (422, "unusable_image")),
        (file_part(report, DICOM), (422, "not_an_image")),
        (file_part(bomb, DICOM), (413, "request_too_large")),
        (file_part(pixels.getvalue(), "image/png"), (413, "request_too_large")),
        (file_part(ultrasound, DICOM), (422, "burned_in_annotation")),
        (file_part(CT, "image/png"), (422, "media_type_mismatch")),
        (file_part(CT, DICOM, window="belly"), (400, "invalid_image_parameter")),
        (file_part(CT, DICOM, frame=2), (400, "invalid_image_parameter")),
        (file_part(CT, DICOM, role="prior"), (400, "invalid_image_parameter")),
        (file_part(b"GIF89a" + bytes(100), "image/png"), (415, "unsupported_media_type")),
        (file_part(b"", DICOM), (422, "unusable_image")),
    ]
    for part, expected in cases:
        assert _code(stack, part) == expected
    assert _code(stack, *[file_part(CT, DICOM)] * 200) == (413, "request_too_large")
    assert _ask(stack, QUESTIONS[0], file_part(CT, DICOM)).choices[0].message.content


# --- the patient ----------------------------------------------------------------------------------


def test_nothing_about_the_patient_is_in_any_answer_log_or_metric(stack: Stack) -> None:
    good = _chest(Phantom(), seed=3)
    assert PATIENT.encode() in good
    seen: list[str] = []
    with stack.http() as client:
        for part in (
            file_part(good, DICOM),
            file_part(good[: len(good) // 2], DICOM),
            file_part(good, "image/png"),
            file_part(good, DICOM, frame=9),
            _reference(),
            _reference(frame=7),
        ):
            body = {"model": "llava-med", "messages": message(QUESTIONS[0], part)}
            response = client.post("/v1/chat/completions", json=body)
            seen += [response.text, str(response.headers)]
        seen.append(client.get("/metrics").text)
    logs = [path for path in run_dir(stack.port).rglob("*") if path.is_file()]
    seen += [path.read_text(errors="replace") for path in logs if path.stat().st_size < 1 << 26]
    seen.append(stack.log.read_text())
    assert len(logs) > 10
    for secret in (PATIENT, PATIENT.split("^")[0], PATIENT_ID, STUDY_DATE, ROOT):
        for text in seen:
            assert secret not in text
