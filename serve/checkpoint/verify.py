"""Runs a converted checkpoint in vLLM and compares it with recorded outputs of the authors' code.

The engine runs in this process, in float32 and greedily, and is asked as a client would ask: chat
messages with images as data URLs, through the checkpoint's own template, tokenizer and processor.
"""

from __future__ import annotations

import base64
import gc
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from serve.checkpoint.config import read_json
from serve.checkpoint.convert import Progress, silent
from serve.checkpoint.golden import (
    Case,
    Golden,
    Pixels,
    Turn,
    drawn_square,
    expand_image,
    parse_turns,
    read_golden,
)
from serve.checkpoint.manifest import read_manifest

if TYPE_CHECKING:
    from vllm import RequestOutput

LOGPROB_TOLERANCE = 0.05
PIXEL_TOLERANCE = (
    1e-4  # the right square gives the recorded pixels, the wrong one is off by about 1
)

# Tokens of context, as trained; config.json's 32768 would ask for a cache of several GB.
_CONTEXT = 2048

# No telemetry, no network; the engine in this process, so that it ends with it.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case compared. Errors are the largest absolute differences."""

    name: str
    token_ids_equal: bool
    greedy_equal: bool
    logprob_error: float
    pixel_error: float

    @property
    def passed(self) -> bool:
        """Whether all four agree."""
        return (
            self.token_ids_equal
            and self.greedy_equal
            and self.logprob_error <= LOGPROB_TOLERANCE
            and self.pixel_error <= PIXEL_TOLERANCE
        )


@dataclass(frozen=True, slots=True)
class Verification:
    """A converted checkpoint against a record."""

    cases: tuple[CaseResult, ...]
    multi_turn_equal: bool
    image_effect: float

    @property
    def passed(self) -> bool:
        """Whether the checkpoint does what the authors' code does, images included."""
        return (
            all(case.passed for case in self.cases)
            and self.multi_turn_equal
            and self.image_effect > LOGPROB_TOLERANCE
        )

    def render(self) -> str:
        """The result as text, a line per case."""
        lines = [
            f"{'ok  ' if case.passed else 'FAIL'} {case.name}: "
            f"token ids {_same(case.token_ids_equal)}, greedy tokens {_same(case.greedy_equal)}, "
            f"log-probabilities within {case.logprob_error:.5f}, "
            f"pixels within {case.pixel_error:.1e}"
            for case in self.cases
        ]
        lines.append(
            f"{'ok  ' if self.multi_turn_equal else 'FAIL'} several turns: "
            f"token ids {_same(self.multi_turn_equal)}"
        )
        effective = self.image_effect > LOGPROB_TOLERANCE
        lines.append(
            f"{'ok  ' if effective else 'FAIL'} a blank image moves log-probabilities by "
            f"{self.image_effect:.3f}"
        )
        lines.append("verified" if self.passed else "NOT the same as the authors' code")
        return "\n".join(lines)


def _same(equal: bool) -> str:
    return "equal" if equal else "DIFFER"


def verify(converted: Path, golden: Path, *, progress: Progress | None = None) -> Verification:
    """Compares the checkpoint in ``converted`` with the record in the folder ``golden``.

    Loads vLLM into this process: call it from a process of its own if more is to follow.

    Raises:
        CheckpointError: ``converted`` is no converted checkpoint, or ``golden`` no record.
    """
    report = progress or silent
    read_manifest(converted)
    record = read_golden(golden)
    total = len(record.cases) + 2
    report(0, total, "preparing images")
    squares = _squares(converted, golden, record)
    report(0, total, "starting vLLM")
    chats = [
        *(_messages(parse_turns(case.prompt), squares[case][0]) for case in record.cases),
        _messages(parse_turns(record.multi_turn_prompt), squares[record.cases[0]][0]),
        _messages(parse_turns(record.cases[0].prompt), Image.new("RGB", (336, 336))),
    ]
    asked = [*record.cases, record.cases[0], record.cases[0]]
    outputs = _run(converted, chats, asked)
    report(total, total, "done")
    config = read_json(converted / "config.json")
    image_id, tokens = (
        cast("int", config["image_token_index"]),
        cast("int", config["image_seq_length"]),
    )
    *answers, turns, blank = outputs
    results = tuple(
        CaseResult(
            name=f"{case.image} {case.question.splitlines()[0]}",
            token_ids_equal=output.prompt_token_ids
            == expand_image(case.input_ids, image_id, tokens),
            greedy_equal=_greedy(output) == case.greedy_token_ids,
            logprob_error=_difference(output, case),
            pixel_error=squares[case][1],
        )
        for case, output in zip(record.cases, answers, strict=True)
    )
    return Verification(
        cases=results,
        multi_turn_equal=turns.prompt_token_ids
        == expand_image(record.multi_turn_ids, image_id, tokens),
        image_effect=_difference(blank, record.cases[0]),
    )


def _squares(
    converted: Path, golden: Path, record: Golden
) -> dict[Case, tuple[Image.Image, float]]:
    """Each case's image as the authors' code drew it, and its distance from the record."""
    from transformers import LlavaImageProcessorPil

    processor = LlavaImageProcessorPil.from_pretrained(converted)

    def measure(image: Image.Image) -> Pixels:
        values = processor(image, return_tensors="np")["pixel_values"][0]
        step = values.shape[-1] // 4
        return Pixels(
            mean=float(values.mean(dtype="float64")),
            std=float(values.std(dtype="float64", ddof=1)),  # torch's, which divides by n - 1
            sample=tuple(values[:, ::step, ::step].ravel().tolist()),
        )

    red, green, blue = (int(mean * 255) for mean in processor.image_mean)
    found: dict[Case, tuple[Image.Image, float]] = {}
    for case in record.cases:
        with Image.open(golden / case.image) as file:
            image = file.convert("RGB")
        found[case] = drawn_square(image, (red, green, blue), case.pixels, measure)
    return found


def _run(converted: Path, chats: list[Any], cases: list[Case]) -> list[RequestOutput]:
    """One answer per chat: greedy, with the log-probabilities of its case's listed tokens."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(converted),
        dtype="float32",
        enforce_eager=True,
        max_model_len=_CONTEXT,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 1},
        seed=0,
    )
    parameters = [
        SamplingParams(
            temperature=0,
            max_tokens=len(case.greedy_token_ids),
            logprob_token_ids=list(case.first_token_top20_ids),
        )
        for case in cases
    ]
    outputs: list[RequestOutput] = engine.chat(chats, parameters, use_tqdm=False)
    del engine
    gc.collect()
    return outputs


def _messages(turns: tuple[Turn, ...], image: Image.Image) -> list[dict[str, object]]:
    """Chat messages as an OpenAI client sends them; question first, which must not matter."""
    buffer = BytesIO()
    image.save(buffer, "png")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    return [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": turn.text}, *[part] * turn.images],
        }
        for turn in turns
    ]


def _greedy(output: RequestOutput) -> tuple[int, ...]:
    return tuple(output.outputs[0].token_ids)


def _difference(output: RequestOutput, case: Case) -> float:
    """Largest difference of the first token's log-probabilities from the case's."""
    first = (output.outputs[0].logprobs or [{}])[0]
    return max(
        abs(first[token].logprob - expected) if token in first else float("inf")
        for token, expected in zip(
            case.first_token_top20_ids, case.first_token_top20_logprobs, strict=True
        )
    )
