from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from serve.checkpoint.golden import Turn, parse_turns, read_golden
from serve.checkpoint.template import CHAT_TEMPLATE
from serve.checkpoint.tokenizer import read_vocabulary, tokenizer_json
from tests.unit.checkpoint.synthetic import TOKENIZER

GOLDEN = Path(__file__).parents[2] / "data/golden"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(read_vocabulary(TOKENIZER))))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )


def mistral_instruct(turns: list[Turn], system: str = "") -> str:
    """The authors' conversation, written down again from its description."""
    prompt = "<s>"
    for turn in turns:
        if turn.role == "assistant":
            prompt += f" {turn.text} </s>"
        else:
            prompt += "[INST] " + "<image>\n" * turn.images
            prompt += (system + "\n\n" if system else "") + f"{turn.text} [/INST]"
            system = ""
    return prompt


def messages(turns: list[Turn], *, parts: bool, system: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        content: Any = turn.text
        if parts or turn.images:
            content = [{"type": "text", "text": turn.text}, *[{"type": "image"}] * turn.images]
        found.append({"role": turn.role, "content": content})
    return found


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    length = draw(st.integers(0, 2)) * 2 + 1
    return [
        Turn("user", draw(TEXT), draw(st.integers(0, 3)))
        if number % 2 == 0
        else Turn("assistant", draw(TEXT))
        for number in range(length)
    ]


@settings(max_examples=150, deadline=None)
@given(turns=conversations(), parts=st.booleans(), system=TEXT)
def test_template_is_mistral_instruct_byte_for_byte(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn], parts: bool, system: str
) -> None:
    turns = [Turn(t.role, t.text.replace("<", ""), t.images) for t in turns]
    system = system.replace("<", "")
    chat = messages(turns, parts=parts, system=system)
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == mistral_instruct(turns, system)


@pytest.mark.parametrize("name", ["with-vision-tower", "without-vision-tower"])
def test_recorded_prompts_come_out_of_the_template(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    golden = read_golden(GOLDEN / name)
    for prompt in [golden.multi_turn_prompt, *(case.prompt for case in golden.cases)]:
        chat = messages(list(parse_turns(prompt)), parts=True)
        assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>" + prompt


def test_system_text_comes_after_the_images_of_the_first_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = messages([Turn("user", "Q", 2)], parts=True, system="Be careful.")
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == "<s>[INST] <image>\n<image>\nBe careful.\n\nQ [/INST]"


def test_a_literal_image_marker_stands_for_no_image(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "what is <im<image>age>?"}]
    assert "<image>" not in tokenizer.apply_chat_template(chat, tokenize=False)


def test_turns_must_alternate(tokenizer: PreTrainedTokenizerFast) -> None:
    for roles in (["assistant"], ["user", "user"], ["user", "tool"]):
        with pytest.raises(jinja2.TemplateError, match="alternate"):
            tokenizer.apply_chat_template([{"role": role, "content": "x"} for role in roles])
