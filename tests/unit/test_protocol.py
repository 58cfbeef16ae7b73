"""The closed request schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest
from serve.protocol import ChatCompletionRequest, parse_request

MINIMAL: dict[str, Any] = {
    "model": "llava-med",
    "messages": [{"role": "user", "content": "Is there an effusion?"}],
}
# Fields of vLLM's own request model that would go round the guardrails (SECURITY notes).
FORBIDDEN = [
    "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs",
    "logits_processors", "echo", "prompt_logprobs", "return_token_ids", "kv_transfer_params",
    "vllm_xargs", "structured_outputs", "add_generation_prompt", "continue_final_message",
    "bad_words", "allowed_token_ids", "cache_salt", "priority", "request_id", "tools",
    "tool_choice", "functions", "documents", "top_logprobs", "logit_bias", "best_of",
    "use_beam_search", "ignore_eos", "min_tokens", "stop_token_ids", "truncate_prompt_tokens",
    "include_reasoning", "reasoning_effort", "audio", "modalities", "prediction", "guided_json",
]  # fmt: skip


def _parse(**fields: Any) -> ChatCompletionRequest:
    return parse_request(json.dumps(MINIMAL | fields).encode())[0]


def _refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        _parse(**fields)
    return caught.value


def test_a_minimal_request_is_understood() -> None:
    assert _parse().messages[0].role == "user"


@pytest.mark.parametrize("field", FORBIDDEN)
def test_a_field_outside_the_schema_is_refused_by_name(field: str) -> None:
    error = _refusal(**{field: 1})
    assert error.code == "unsupported_parameter"
    assert error.param == field


def test_every_field_of_vllms_request_is_either_ours_or_refused() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionRequest as VllmRequest,
    )

    theirs = set(VllmRequest.model_fields) - set(ChatCompletionRequest.model_fields)
    assert len(theirs) > 30
    for field in theirs:
        assert _refusal(**{field: None}).code == "unsupported_parameter", field


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0"),
        ({"stream_options": {"include_usage": "maybe"}}, "stream_options.include_usage"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(fields: dict[str, Any], param: str) -> None:
    assert _refusal(**fields).param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}'])
def test_what_is_no_json_object_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(body)


@given(st.text(min_size=1), st.text())
def test_an_error_never_repeats_what_the_client_sent(name: str, value: str) -> None:
    secret = f"Patient {value} 1961-02-03"
    error = _refusal(**{f"{name} {secret}": secret})
    assert secret not in error.body().decode()
    assert error.param is None or secret not in error.param


def test_a_message_that_openai_python_appends_is_understood() -> None:
    answer = {"role": "assistant", "content": "No.", "refusal": None, "annotations": []}
    request = _parse(messages=[*MINIMAL["messages"], answer, *MINIMAL["messages"]])
    assert request.messages[1].role == "assistant"
