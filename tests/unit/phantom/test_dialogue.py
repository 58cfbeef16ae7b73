"""Questions and answers agree with the truth and with the templates."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.templates import (
    PREAMBLE,
    AnswerFormat,
    Status,
    grammar,
    is_closed_question,
    parse_finding,
    question_prompt,
)
from guardrails.templates import Template as Shape
from serve.phantom import dialogue
from serve.phantom.draw import FINDINGS, Phantom
from serve.phantom.tokens import EOS, branch, decode, encode, vocabulary

randoms = st.integers(0, 2**32).map(random.Random)
BOTH = Phantom(pneumothorax="left", consolidation=("lower", "right"), cardiomegaly=True)


@given(randoms, st.sampled_from(FINDINGS), st.sampled_from(AnswerFormat))
def test_a_templated_answer_fits_the_grammar_and_the_truth(
    rng: random.Random, finding: str, form: AnswerFormat
) -> None:
    phantom = dialogue.random_phantom(rng)
    state = dialogue.status(phantom, finding)
    asked, answer = dialogue.in_template("Q?", state, dialogue.reason(phantom, finding), form)
    assert asked == question_prompt("Q?", Shape.FINDING, form)
    assert re.fullmatch(grammar(Shape.FINDING, form) or "", answer)
    assert parse_finding(answer, form).status is state
    assert (state is Status.PRESENT) == phantom.has(finding)


@given(randoms, st.sampled_from(FINDINGS))
def test_closed_questions_are_what_the_service_takes_for_closed(
    rng: random.Random, finding: str
) -> None:
    assert is_closed_question(dialogue.closed_question(finding, rng))


def test_open_questions_are_not() -> None:
    questions = (*dialogue.REPORT_QUESTIONS, *dialogue.IMPRESSION_QUESTIONS)
    assert not any(map(is_closed_question, questions))


@pytest.mark.parametrize(
    ("phantom", "report", "impression"),
    [
        (
            Phantom(),
            "The image shows clear lungs and a heart of normal size.",
            "Impression: no abnormality.",
        ),
        (
            Phantom(effusion="right"),
            "The image shows a pleural effusion on the right side.",
            "Impression: right pleural effusion.",
        ),
        (
            BOTH,
            (
                "The image shows a pneumothorax on the left side, consolidation in the right "
                "lower zone and an enlarged heart."
            ),
            "Impression: left pneumothorax; right lower zone consolidation; cardiomegaly.",
        ),
    ],
)
def test_reports_and_impressions_name_every_finding(
    phantom: Phantom, report: str, impression: str
) -> None:
    assert dialogue.report(phantom) == report
    assert dialogue.impression(phantom) == impression


@given(randoms)
def test_a_turns_prompt_has_the_pieces_it_has_alone_and_ends_with_eos(rng: random.Random) -> None:
    turn = dialogue.random_turn(dialogue.random_phantom(rng), rng)
    tokens = branch(turn, PREAMBLE)
    assert tokens.ids[-1] == EOS
    assert decode(tokens.ids[tokens.prompt : -1]) == turn.answer


@settings(deadline=None)  # the vocabulary is collected on first use
@given(randoms)
def test_every_answer_can_be_said_with_the_small_vocabulary(rng: random.Random) -> None:
    turn = dialogue.random_turn(dialogue.random_phantom(rng), rng)
    assert set(branch(turn, PREAMBLE).ids) <= set(vocabulary())


def test_a_prompt_with_an_image_is_tokenized_as_the_authors_do() -> None:
    # Around the image a lone space piece (28705) stands on both sides: golden data, input_ids.
    assert encode("[INST] ") == [733, 16289, 28793, 28705]
    assert encode("\nWhat")[:2] == [28705, 13]
