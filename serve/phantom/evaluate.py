"""Accuracy on unseen phantoms: ``python -m serve.phantom.evaluate FOLDER``.

Greedy answers of the checkpoint as saved, in the forms that the service asks for. An answer counts
only when it is right to the letter where a closed form is asked, and to the letter altogether in
reports and impressions.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from guardrails.templates import PREAMBLE, AnswerFormat, parse_finding
from serve.phantom import weights_dir
from serve.phantom.dialogue import (
    IMPRESSION_QUESTIONS,
    LOCATED,
    REPORT_QUESTIONS,
    Turn,
    closed_question,
    impression,
    in_template,
    location,
    location_question,
    reason,
    report,
    status,
)
from serve.phantom.draw import FINDINGS, Phantom
from serve.phantom.model import PhantomModel
from serve.phantom.original import load
from serve.phantom.samples import LABELS, pixels, samples
from serve.phantom.tokens import EOS, branch, compact, decode, image_lead, system_lead, vocabulary

MAX_TOKENS = 64
Accuracy = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Case:
    """A question, the row of the table it counts in, and what it is to be compared by."""

    row: str
    turn: Turn
    form: AnswerFormat | None = None

    def right(self, answer: str) -> bool:
        """Whether the answer counts."""
        if self.form is None:
            return answer == self.turn.answer
        expected = parse_finding(self.turn.answer, self.form).status
        return parse_finding(answer, self.form).status is expected


def cases(phantom: Phantom, rng: random.Random) -> Iterator[Case]:
    """What is asked about one phantom."""
    for finding in FINDINGS:
        for form in AnswerFormat:
            question = closed_question(finding, rng)
            state = status(phantom, finding)
            turn = Turn(*in_template(question, state, reason(phantom, finding), form))
            yield Case(f"{finding}: presence, {form}", turn, form)
    for finding in LOCATED:
        if phantom.has(finding):
            turn = Turn(location_question(finding, rng), location(phantom, finding))
            yield Case(f"{finding}: location", turn)
    yield Case("report", Turn(rng.choice(REPORT_QUESTIONS), report(phantom)))
    yield Case("impression", Turn(rng.choice(IMPRESSION_QUESTIONS), impression(phantom)))


@torch.inference_mode()
def answer(model: PhantomModel, features: Tensor, turns: list[Turn]) -> list[str]:
    """Greedy answers to questions about one image of shape (576, width)."""
    embed = model.text.model.embed_tokens
    lead, system = compact(image_lead()), compact(system_lead(PREAMBLE))
    prompts = [branch(turn, PREAMBLE) for turn in turns]
    questions = [compact(prompt.ids[: prompt.prompt]) for prompt in prompts]
    prefix = torch.cat([embed(torch.tensor(lead)), features, embed(torch.tensor(system))])
    longest = max(map(len, questions))
    # Padded on the left, so that every answer begins at the same place.
    length = len(prefix) + longest
    embeddings = torch.zeros(len(turns), length, prefix.shape[1])
    mask = torch.zeros(len(turns), length, dtype=torch.long)
    for row, question in enumerate(questions):
        whole = torch.cat([prefix, embed(torch.tensor(question))])
        embeddings[row, -len(whole) :] = whole
        mask[row, -len(whole) :] = 1
    end = vocabulary().index(EOS)
    generated = model.text.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    rows = [[vocabulary()[i] for i in ids if i != end] for ids in generated.tolist()]
    return [decode(ids) for ids in rows]


def evaluate(model: PhantomModel, first_seed: int, count: int) -> Accuracy:
    """Share of right answers and number of questions, by row."""
    rng = random.Random(first_seed)
    right: dict[str, list[bool]] = defaultdict(list)
    for sample in tqdm(samples(first_seed, count), "evaluating", count):
        with torch.inference_mode():
            features = model.features(pixels([sample.image]))[0]
        asked = list(cases(sample.phantom, rng))
        for case, said in zip(
            asked, answer(model, features, [case.turn for case in asked]), strict=True
        ):
            right[case.row].append(case.right(said))
    return {
        row: {"accuracy": sum(values) / len(values), "questions": len(values)}
        for row, values in sorted(right.items())
    }


def table(accuracy: Accuracy) -> str:
    """The accuracies as a Markdown table."""
    lines = ["| question | right | of |", "|---|---|---|"]
    lines += [
        f"| {row} | {100 * value['accuracy']:.1f} % | {value['questions']:.0f} |"
        for row, value in accuracy.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Evaluates a checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=weights_dir())
    parser.add_argument("--test", type=int, default=500, help="unseen drawings to ask about")
    parser.add_argument("--first-seed", type=int, default=9_000_000)
    arguments = parser.parse_args()
    model = load(arguments.folder, len(LABELS))
    tqdm.write(table(evaluate(model, arguments.first_seed, arguments.test)))


if __name__ == "__main__":
    main()
