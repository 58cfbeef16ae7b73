"""The benchmark of the guardrails: its text passes, its rules fire, its figures are there."""

from __future__ import annotations

import pytest

from guardrails.folding import fold
from tests.bench.guardrails import (
    ENGINES,
    SENTENCES,
    SIZES,
    Effort,
    _check,
    answer,
    generated,
    measure_engine,
    measure_growth,
    measure_held,
    measure_ours,
    tokens_of,
)

TEXT = " ".join(SENTENCES)
EFFORT = Effort(1, 1, 0.01, (1000, 2000), 1000, 20, slice(None))


@pytest.fixture(scope="module")
def sample():
    return generated(20)


def test_an_answer_has_the_size_asked_for_and_is_the_same_every_time():
    assert len(answer(SIZES[0])) == SIZES[0]
    assert answer(SIZES[0]) == answer(SIZES[0])
    assert "".join(tokens_of(TEXT)) == TEXT


def test_no_rule_fires_on_the_text_and_one_on_the_planted_match(sample):
    _check(sample, TEXT)
    _check(sample, answer(SIZES[0]))


def test_figures(sample):
    tokens = tokens_of(TEXT)[:50]
    ours = measure_ours(sample, tokens, EFFORT)
    assert 0 < ours["us_per_token_p50"] <= ours["us_per_token_p99"]
    held = measure_held(sample.compiled, tokens)
    assert held["held_p50"] <= held["held_worst"] < sample.compiled.width
    assert set(measure_growth(sample.compiled, EFFORT)["us_per_token"]) == {1000, 2000}


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_engines_find_what_is_planted(sample, engine):
    row = measure_engine(engine, sample, fold(TEXT), EFFORT)
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert row["finds_planted_match"]
