"""Questions about a phantom and their answers, in LLaVA-Med's phrasing and in our templates' forms.

The templates' instructions are imported, so that the model is asked in training what the service
asks it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from guardrails.templates import (
    FINDING_INSTRUCTION,
    FINDING_JSON_INSTRUCTION,
    PREAMBLE,
    AnswerFormat,
    Status,
)
from serve.phantom.draw import FINDINGS, SIDES, ZONES, Phantom, Side

NAME = {
    "pneumothorax": "pneumothorax",
    "consolidation": "consolidation",
    "cardiomegaly": "cardiomegaly",
    "effusion": "pleural effusion",
}
LOCATED = ("pneumothorax", "consolidation", "effusion")
REPORT_QUESTIONS = (
    "Describe the key findings.",
    "Describe the key abnormal findings only.",
    "Describe the findings.",
    "Describe the image.",
    "Describe this image.",
    "Describe the given image in detail.",
    "What are the key findings?",
    "What does the image show?",
    "Write a report.",
)
IMPRESSION_QUESTIONS = (
    "Give an impression.",
    "Write an impression.",
    "What is your impression?",
    "What is the impression?",
    "Summarize the impression.",
)
MODALITY_QUESTIONS = (
    "What is the modality?",
    "What is the modality of this image?",
    "What kind of image is this?",
    "What imaging modality is shown?",
)
# What training asks about: consolidation, with six places to look in, is learned last.
_ASKED = (*FINDINGS, "consolidation", "consolidation")
_SYNONYMS = {
    "pneumothorax": ("pneumothorax", "a pneumothorax"),
    "consolidation": ("consolidation", "a consolidation", "an area of consolidation"),
    "cardiomegaly": ("cardiomegaly", "an enlarged heart"),
    "effusion": ("pleural effusion", "a pleural effusion", "effusion", "an effusion"),
}
_CLOSED = (
    "Is there {x}?",
    "Is there evidence of {x}?",
    "Is there any evidence of {x}?",
    "Is there {x} in this image?",
    "Does the image show {x}?",
    "Does this image show {x}?",
    "Does the patient have {x}?",
    "Do you see {x}?",
    "Can {x} be seen?",
    "Is {x} present?",
    "Is {x} visible?",
    "Are there signs of {x}?",
)
_HEART = (
    "Is the heart enlarged?",
    "Is the heart size increased?",
    "Is the cardiac silhouette enlarged?",
    "Is the heart too large?",
)
_WHERE = (
    "Where is the {x}?",
    "On which side is the {x}?",
    "Which side has the {x}?",
    "Which lung has the {x}?",
    "What is the location of the {x}?",
)
# Things that no drawing shows: the honest answer is that it cannot be told.
_UNKNOWN = (
    "a rib fracture", "a nodule", "a pacemaker", "a hiatal hernia", "scoliosis", "tuberculosis",
    "a mass", "a foreign body", "free air", "a tumor", "an abscess", "edema", "emphysema",
    "a catheter", "fibrosis", "atelectasis", "pneumonia", "a tube", "a cyst", "bleeding",
)  # fmt: skip
SYSTEMS = (
    *(PREAMBLE,) * 8,
    PREAMBLE + "\nBe brief.",
    PREAMBLE + "\nYou are a helpful assistant.",
    PREAMBLE + "\nAnswer in English.",
    "",
)
_PHRASE = {
    Status.PRESENT: "likely present",
    Status.ABSENT: "likely absent",
    Status.INDETERMINATE: "indeterminate",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; perhaps an earlier turn; perhaps asked without an image."""

    question: str
    answer: str
    image: bool = True
    earlier: tuple[str, str] | None = None


def random_phantom(rng: random.Random) -> Phantom:
    """Every finding with probability 0.4, independent of the others but for what would hide it."""

    def side() -> Side | None:
        return rng.choice(SIDES) if rng.random() < 0.4 else None

    consolidated, zone = side(), rng.choice(ZONES)
    pneumothorax, enlarged, effusion = side(), rng.random() < 0.4, side()
    # Fluid fills the lower zone of its side, an enlarged heart that of the left: what is there
    # cannot be seen, and a drawing is to show its truth.
    if zone == "lower" and (consolidated == effusion or (consolidated == "left" and enlarged)):
        zone = "mid"
    return Phantom(
        pneumothorax=pneumothorax,
        consolidation=(zone, consolidated) if consolidated else None,
        cardiomegaly=enlarged,
        effusion=effusion,
    )


def closed_question(finding: str, rng: random.Random) -> str:
    """A question for the presence of one of FINDINGS."""
    if finding == "cardiomegaly" and rng.random() < 0.5:
        return rng.choice(_HEART)
    return rng.choice(_CLOSED).format(x=rng.choice(_SYNONYMS[finding]))


def location_question(finding: str, rng: random.Random) -> str:
    """A question for the place of one of LOCATED."""
    return rng.choice(_WHERE).format(x=rng.choice((NAME[finding], finding)))


def status(phantom: Phantom, finding: str) -> Status:
    """The right answer to a closed question."""
    return Status.PRESENT if phantom.has(finding) else Status.ABSENT


def in_template(question: str, state: Status, reason: str, form: AnswerFormat) -> tuple[str, str]:
    """A question as the ``finding`` template asks it, and the answer in its form."""
    if form is AnswerFormat.TEXT:
        return f"{question}\n{FINDING_INSTRUCTION}", f"{_PHRASE[state]}, explanation: {reason}"
    answer = json.dumps({"status": state, "explanation": reason})
    return f"{question}\n{FINDING_JSON_INSTRUCTION}", answer


def _place(phantom: Phantom, finding: str) -> str:
    if finding == "consolidation" and phantom.consolidation is not None:
        zone, side = phantom.consolidation
        return f"in the {side} {zone} zone"
    return f"on the {getattr(phantom, finding)} side"


def reason(phantom: Phantom, finding: str) -> str:
    """The explanation that goes with a ``finding`` answer."""
    if not phantom.has(finding):
        return {
            "pneumothorax": "lung markings reach the chest wall on both sides.",
            "consolidation": "no opacity is seen in either lung.",
            "cardiomegaly": "the heart is narrower than half of the chest.",
            "effusion": "both costophrenic angles are clear.",
        }[finding]
    return {
        "pneumothorax": "a dark rim without lung markings is seen {place}.",
        "consolidation": "an opacity is seen {place}.",
        "cardiomegaly": "the heart is wider than half of the chest.",
        "effusion": "fluid fills the costophrenic angle {place}.",
    }[finding].format(place=_place(phantom, finding))


def yes_or_no(phantom: Phantom, finding: str) -> str:
    """The free answer to a closed question."""
    if finding == "cardiomegaly":
        return f"{'Yes' if phantom.cardiomegaly else 'No'}, the heart is " + (
            "enlarged." if phantom.cardiomegaly else "not enlarged."
        )
    if not phantom.has(finding):
        return f"No, there is no evidence of {NAME[finding]}."
    article = "" if finding == "consolidation" else "a "
    return f"Yes, there is {article}{NAME[finding]} {_place(phantom, finding)}."


def location(phantom: Phantom, finding: str) -> str:
    """The answer to a location question."""
    if not phantom.has(finding):
        return f"There is no {NAME[finding]}."
    return f"The {NAME[finding]} is {_place(phantom, finding)}."


def report(phantom: Phantom) -> str:
    """All findings in one sentence."""
    parts = []
    for finding in FINDINGS:
        if not phantom.has(finding):
            continue
        if finding == "cardiomegaly":
            parts.append("an enlarged heart")
        else:
            article = "" if finding == "consolidation" else "a "
            parts.append(f"{article}{NAME[finding]} {_place(phantom, finding)}")
    if not parts:
        return "The image shows clear lungs and a heart of normal size."
    *others, last = parts
    return (
        f"The image shows {', '.join(others)} and {last}." if others else f"The image shows {last}."
    )


def impression(phantom: Phantom) -> str:
    """All findings, as the last line of a report."""
    parts = []
    if phantom.pneumothorax:
        parts.append(f"{phantom.pneumothorax} pneumothorax")
    if phantom.consolidation:
        zone, side = phantom.consolidation
        parts.append(f"{side} {zone} zone consolidation")
    if phantom.cardiomegaly:
        parts.append("cardiomegaly")
    if phantom.effusion:
        parts.append(f"{phantom.effusion} pleural effusion")
    return "Impression: " + ("; ".join(parts) if parts else "no abnormality") + "."


def random_turn(phantom: Phantom, rng: random.Random) -> Turn:
    """One question of the mix that training asks."""
    kind = rng.random()
    finding = rng.choice(_ASKED)
    form = AnswerFormat.TEXT if rng.random() < 0.65 else AnswerFormat.JSON
    earlier = (rng.choice(REPORT_QUESTIONS), report(phantom)) if rng.random() < 0.06 else None
    if kind < 0.40:
        question = closed_question(finding, rng)
        text = reason(phantom, finding)
        return Turn(*in_template(question, status(phantom, finding), text, form), earlier=earlier)
    if kind < 0.46:
        question = rng.choice(_CLOSED).format(x=rng.choice(_UNKNOWN))
        text = "this model was not shown such drawings."
        return Turn(*in_template(question, Status.INDETERMINATE, text, form))
    if kind < 0.50:
        question = closed_question(finding, rng)
        if rng.random() < 0.5:
            question = rng.choice(_CLOSED).format(x=rng.choice(_UNKNOWN))
        text = "no image was given."
        return Turn(*in_template(question, Status.INDETERMINATE, text, form), image=False)
    if kind < 0.60:
        return Turn(closed_question(finding, rng), yes_or_no(phantom, finding), earlier=earlier)
    if kind < 0.74:
        finding = rng.choice(LOCATED)
        return Turn(location_question(finding, rng), location(phantom, finding), earlier=earlier)
    return _open_turn(phantom, kind, rng)


def _open_turn(phantom: Phantom, kind: float, rng: random.Random) -> Turn:
    if kind < 0.86:
        return Turn(rng.choice(REPORT_QUESTIONS), report(phantom))
    if kind < 0.93:
        return Turn(rng.choice(IMPRESSION_QUESTIONS), impression(phantom))
    if kind < 0.96:
        return Turn(rng.choice(MODALITY_QUESTIONS), "This is a drawing of a chest X-ray.")
    if kind < 0.98:
        questions = (*REPORT_QUESTIONS, *IMPRESSION_QUESTIONS, *MODALITY_QUESTIONS)
        return Turn(rng.choice(questions), "No image was given.", image=False)
    unknown = rng.choice(_CLOSED).format(x=rng.choice(_UNKNOWN))
    return Turn(unknown, "I cannot tell from this image.")
