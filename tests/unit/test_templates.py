"""Words of the templates: instructions, labels, and which questions are closed."""

from __future__ import annotations

import re
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import templates
from guardrails.templates import AnswerFormat, Template, TemplateText

CLOSED = [
    "Is there evidence of pneumothorax?",
    "is there a pleural effusion ?",
    "Are the lungs clear?",
    "Does the image show consolidation?",
    "Do you see nothing else?\nHas the heart enlarged?",
    "In the left lung, is there an opacity?",
    "Frontal radiograph. Is the effusion present or absent?",
    "And is there cardiomegaly?",
    "Do you see a mass?",
    "Can you see a mass?",
    # without a verb
    "Pneumothorax?",
    "Any sign of PE?",
    "Evidence of free air?",
    "No pneumothorax, right?",
    "No mass or nodule?",
    "Signs of tuberculosis?",
    "Left pleural effusion?",
    "Any acute abnormality?",
    "Any change in size?",
    "Fracture of the left clavicle?",
    "65M with cough: pneumonia?",
    "And effusion?",
    # statements that are asked
    "There is an effusion, isn't there?",
    "The heart is enlarged?",
    "The lungs are clear, correct?",
    # either of several, and pairs that offer no choice
    "Any fracture or dislocation?",
    "Is there any acute or chronic infarct?",
    "Is there a mass or nodule?",
    "Is there a mass, nodule or consolidation?",
    "Are there signs of edema or effusion?",
    "Is there an effusion or not?",
    "Is there an effusion, yes or no?",
    "Are there one or more nodules?",
    "Is there edema and/or effusion?",
    "Is the tube in place, or isn't it?",
    # asked of somebody, of what is perceived or judged
    "Could you see a fracture?",
    "Can we exclude a pulmonary embolism?",
    "Are you able to see an effusion?",
    "Is it possible to rule out a fracture?",
    "Do you think this is a tumor?",
    "Would you say that the heart is enlarged?",
    "Have you found any lesion?",
    "Can you tell if there is a fracture?",
    "Can you tell me whether the catheter is in place?",
    "Does anyone see a fracture?",
    "Are you sure there is no fracture?",
    # other verbs and orders of words
    "Could this be pneumonia?",
    "Given the history of trauma, are there rib fractures?",
    "Can pneumothorax be excluded?",
    "Is there evidence of pneumonia, pleural effusion, or pneumothorax?",
    "Are there any nodules larger than 3 mm? Thank you.",
    "Might there be a small pneumothorax?",
    "Isn't there an effusion?",
    "Isn\u2019t there an effusion?",
    "Hasn't the effusion grown?",
    "Has the effusion resolved since yesterday?",
    "When compared to the prior study, is there progression?",
    "On this film, in the left apex, is there a pneumothorax?",
    "Please, is there an effusion?",
    "Is there an effusion? Thanks.",
    "Is there an effusion, please?",
    "Is there a nodule of 3.5 mm?",
    "Is there a nodule where the arrow points?",
    "Is there an effusion, which was not seen before?",
    "IS THERE AN EFFUSION??",
    "Is there\nan effusion?",
    "(Is there an effusion?)",
    "What you see is a radiograph. Is there an effusion?",
    "Where is the tube? And is there a pneumothorax?",
    # no question mark, yet plainly a question
    "is there a pneumothorax",
    "Does this image show an effusion",
    "Is there an effusion.",
    "Tell me whether there is a fracture.",
    "Please check if the tube is in place.",
    "Tell me, is there a fracture?",
    "History. " * 80 + "Is there an effusion?",
]
OPEN = [
    "Describe the key findings.",
    "What is the modality?",
    "Is this CT or MRI?",
    "Can you describe the image?",
    "Is there an effusion? Describe it.",
    "Where is the consolidation?",
    "",
    "?",
    "This is a radiograph.",
    "What is shown?",
    "What's shown?",
    "What does the image show?",
    "How large is it?",
    "How large, if any, is the effusion?",
    "Where, if present, is the mass?",
    "Why is there an effusion?",
    "Which side is it on?",
    "On which side is it?",
    "To what extent is the lung collapsed?",
    "Who is this?",
    "Chest radiograph, what is shown?",
    "So what is it?",
    # choices
    "Is it left or right?",
    "Is the nodule in the left or the right lung?",
    "Is there an effusion on the left or on the right?",
    "Is the mass benign or malignant?",
    "Is this edema versus pneumonia?",
    "Is it on the left, or is it on the right?",
    "Left or right?",
    "Left/right?",
    "Tell me whether it is left or right.",
    # requests
    "Could you describe the image?",
    "Could you please describe the image?",
    "Would you summarize the findings?",
    "Can you identify the structure?",
    "Can you tell me what is shown?",
    "Can you see what is wrong?",
    "Do you see which side is affected?",
    "Do you know what this is?",
    "Does anyone know what this is?",
    "Can I have a report?",
    "May I ask a question?",
    "Is it possible to describe the image?",
    "Would it be possible to get a report?",
    "Are you able to write a report?",
    "Are you a doctor?",
    "Are you sure?",
    "Describe the image, please?",
    "Describe the image, ok?",
    "Tell me more?",
    "Have a look at the image.",
    "Do describe the image.",
    "Should the patient get antibiotics?",
    "Should I see a doctor?",
    "I want to know what this shows.",
    "Is there a fracture? If so, where?",
    "What's the most likely diagnosis: pneumonia?",
    "Is the image axial or sagittal?",
    "Does it affect the left, the right, or both lungs?",
    # more than yes or no
    "Is there a fracture, and if so, where?",
    "Is there a fracture and how old is it?",
    "Is there anything else?",
    "Is there something you would add?",
    # topics
    "Findings?",
    "Diagnosis?",
    "Impression?",
    "Any comments?",
    "Any other thoughts on this image?",
    "Anything else?",
    "Size of the mass?",
    "Modality?",
    "The lungs?",
    "And the heart?",
    "Your opinion?",
    "The diagnosis is what?",
    "Hello?",
    "Yes?",
    "OK?",
    # statements
    "There is an effusion.",
    "No effusion.",
    "Is there an effusion? I think so.",
    "Is there " + "a very " * 100 + "large effusion?",
]


@pytest.mark.parametrize("question", CLOSED)
def test_a_question_for_yes_or_no_is_closed(question: str) -> None:
    assert templates.is_closed_question(question)


@pytest.mark.parametrize("question", OPEN)
def test_any_other_text_is_open(question: str) -> None:
    assert not templates.is_closed_question(question)


@given(st.text() | st.text("is there a?.,or \n'\"", max_size=600))
def test_any_text_is_a_closed_question_or_not(text: str) -> None:
    assert templates.is_closed_question(text) in (True, False)


def test_the_words_a_model_was_trained_on_are_as_they_were() -> None:
    # serve/phantom/weights was trained on these bytes: changing one needs a new training.
    texts = (
        templates.PREAMBLE,
        templates.DRAFT_LABEL,
        templates.FINDING_INSTRUCTION,
        templates.FINDING_JSON_INSTRUCTION,
    )
    digest = sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "bc3447ee110fa83078efd57d76db13c77e7fc526001d8db09588c6193c795650"


def test_the_instruction_follows_the_question_unless_it_is_free() -> None:
    question = "Is there an effusion?"
    assert templates.question_prompt(question, Template.FREE, AnswerFormat.TEXT) == question
    asked = templates.question_prompt(question, Template.FINDING, AnswerFormat.TEXT)
    assert asked == f"{question}\n{templates.FINDING_INSTRUCTION}"
    asked = templates.question_prompt(question, Template.FINDING, AnswerFormat.JSON)
    assert asked == f"{question}\n{templates.FINDING_JSON_INSTRUCTION}"


def test_every_template_but_free_has_one_line_for_each_format() -> None:
    assert set(templates.DEFAULT_INSTRUCTIONS) == set(Template) - {Template.FREE}
    for template, words in templates.DEFAULT_INSTRUCTIONS.items():
        assert all(
            re.fullmatch(r"Answer [^\n]{10,150}\.", line) for line in (words.text, words.json)
        )
        for field in templates.JSON_FIELDS[template]:
            assert f'"{field}"' in words.json


def test_instructions_can_be_others() -> None:
    others = {Template.REPORT: TemplateText("As a report.", "As JSON.")}
    text, form = AnswerFormat.TEXT, AnswerFormat.JSON
    assert templates.question_prompt("Q?", Template.REPORT, text, others) == "Q?\nAs a report."
    assert templates.question_prompt("Q?", Template.REPORT, form, others) == "Q?\nAs JSON."
    assert templates.question_prompt("Q?", Template.SUMMARY, text, others) == "Q?"


def test_a_text_answer_ends_with_the_draft_label_and_json_stays_json() -> None:
    assert templates.label(AnswerFormat.TEXT).endswith(templates.DRAFT_LABEL)
    assert templates.label(AnswerFormat.TEXT, "Mine.") == "\n\nMine."
    assert templates.label(AnswerFormat.JSON) == templates.label(AnswerFormat.JSON, "Mine.") == ""


def test_an_urgent_text_answer_says_so_before_the_label() -> None:
    line, draft = templates.ESCALATION_LINE, templates.DRAFT_LABEL
    assert templates.label(AnswerFormat.TEXT, urgent=True) == f"\n\n{line}\n\n{draft}"
    assert templates.label(AnswerFormat.TEXT, "Mine.", urgent=True) == f"\n\n{line}\n\nMine."
    assert templates.label(AnswerFormat.TEXT, urgent=False) == templates.label(AnswerFormat.TEXT)
    assert templates.label(AnswerFormat.JSON, urgent=True) == ""


@given(
    st.just("") | st.from_regex(r"\A[A-Za-z][A-Za-z .\n]{0,40}[a-z.]\Z"),
    st.sampled_from([templates.DRAFT_LABEL, "Entwurf. ", "[draft] (not a diagnosis)*"]),
    st.sampled_from(AnswerFormat),
    st.booleans(),
)
def test_history_loses_the_label_that_we_added(
    answer: str, text: str, answer_format: AnswerFormat, urgent: bool
) -> None:
    labelled = answer + templates.label(answer_format, text, urgent=urgent)
    assert templates.without_label(labelled, text) == answer
    assert templates.without_label(answer, text) == answer


@pytest.mark.parametrize(
    "kept",
    [
        f"\n\n{templates.ESCALATION_LINE}",
        f"\n\n{templates.DRAFT_LABEL}",
        f"\n{templates.ESCALATION_LINE}\n{templates.DRAFT_LABEL}\n",
        f" {templates.ESCALATION_LINE} {templates.DRAFT_LABEL} ",
        "",
    ],
)
def test_history_loses_what_a_client_kept_of_it(kept: str) -> None:
    assert templates.without_label(f"A mass.{kept}") == "A mass."
