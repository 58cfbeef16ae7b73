"""The first real input: a DICOM file, rendered to PNG, three questions through openai's client."""

from __future__ import annotations

import pydicom
import pytest
from pydicom.data import get_testdata_file

from guardrails.templates import DRAFT_LABEL
from tests.e2e.conftest import Stack
from tests.e2e.images import ask, render_ct

QUESTIONS = [
    "Is there evidence of pneumothorax?",
    "Is there a pleural effusion?",
    "Describe the key findings.",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_real_ct_slice_is_answered_streamed_and_not(stack: Stack, question: str) -> None:
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    image = render_ct(dataset, center=40, width=400)
    client = stack.openai()
    request = {"model": "llava-med", "messages": ask(question, image)}
    whole = client.chat.completions.create(**request)
    content = whole.choices[0].message.content
    assert content.endswith(DRAFT_LABEL)
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**request, stream=True)
        if chunk.choices
    )
    assert streamed == content
