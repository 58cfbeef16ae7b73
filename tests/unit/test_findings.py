"""Findings in clinical sentences, as a specification: what a sentence says is there, and what not.

The rules come from the fragment of the policy that ships; another module loads it in production.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guardrails.findings import (
    Assertion,
    AssertionRules,
    Cue,
    FindingDetector,
    FindingEntry,
    sentences,
)

FRAGMENT = Path(__file__).parents[2] / "guardrails" / "policies" / "default.yaml"
DATA: dict[str, Any] = yaml.safe_load(FRAGMENT.read_text())
FINDINGS = tuple(
    FindingEntry(
        entry["name"],
        tuple(entry["terms"]),
        entry.get("urgent", False),
        tuple(entry.get("implies", ())),
    )
    for entry in DATA["findings"]
)
RULES = AssertionRules(
    cues=tuple(
        Cue(phrase, Assertion(group["status"]), group["direction"])
        for group in DATA["assertion"]["cues"]
        for phrase in group["phrases"]
    ),
    pseudo=tuple(DATA["assertion"]["pseudo"]),
    terminators=tuple(DATA["assertion"]["terminators"]),
    max_scope_words=DATA["assertion"]["max_scope_words"],
)
DETECTOR = FindingDetector(FINDINGS, RULES)
BY_NAME = {entry.name: entry for entry in FINDINGS}


def said(sentence: str) -> dict[str, str]:
    return {mention.finding: mention.assertion.value for mention in DETECTOR.mentions(sentence)}


def escalates(sentence: str) -> bool:
    return any(
        mention.urgent and mention.assertion in (Assertion.PRESENT, Assertion.UNCERTAIN)
        for mention in DETECTOR.mentions(sentence)
    )


def expected(text: str) -> dict[str, str]:
    """``mass + nodule - fracture ? PE`` in words: each finding after its sign."""
    signs = {"+": "present", "-": "absent", "?": "uncertain", "<": "historical", "~": "family"}
    parts = text.split()
    return {name: signs[sign] for sign, name in zip(parts[::2], parts[1::2], strict=True) if sign}


# Signs: + present, - absent, ? uncertain, < historical or only asked for, ~ in the family.
NEGATED = [
    ("No pneumothorax.", "- pneumothorax"),
    ("There is no evidence of pulmonary embolism.", "- pulmonary_embolism"),
    ("No acute intracranial hemorrhage.", "- intracranial_haemorrhage"),
    ("CT is negative for PE.", "- pulmonary_embolism"),
    ("The lungs are clear of consolidation.", "- consolidation"),
    ("The abdomen is free of free air.", "- pneumoperitoneum"),
    ("Lungs are clear without effusion.", "- pleural_effusion"),
    ("Pulmonary embolism has been ruled out.", "- pulmonary_embolism"),
    ("Aortic dissection has been excluded.", "- aortic_dissection"),
    ("The pneumothorax has resolved.", "< pneumothorax"),
    ("A pneumothorax is not seen.", "- pneumothorax"),
    ("Pneumothorax is absent.", "- pneumothorax"),
    ("Pneumothorax: absent", "- pneumothorax"),
    ("Pneumothorax: no", "- pneumothorax"),
    ("The pneumothorax is no longer seen.", "- pneumothorax"),
    ("No definite pneumothorax.", "- pneumothorax"),
    ("PE was excluded.", "- pulmonary_embolism"),
    ("Absence of midline shift.", "- midline_shift"),
    ("No midline shift is identified.", "- midline_shift"),
    ("The study does not show a fracture.", "- fracture"),
    ("The heart is not enlarged.", "- cardiomegaly"),
    ("The heart size is not significantly enlarged.", "- cardiomegaly"),
    ("The ET tube is not in the right main bronchus.", "- malpositioned_tube"),
    ("No free air is seen under the diaphragm.", "- pneumoperitoneum"),
    ("Neither effusion nor pneumothorax is present.", "- pleural_effusion - pneumothorax"),
    ("Pneumonia is unlikely.", "- pneumonia"),
    ("A pleural effusion could not be identified.", "- pleural_effusion"),
    ("Suspected PE has been ruled out.", "- pulmonary_embolism"),
    ("The previously questioned nodule is no longer seen.", "- nodule"),
    ("The previously seen pneumothorax is not seen.", "- pneumothorax"),
    ("The pneumothorax, seen previously, has resolved.", "< pneumothorax"),
    ("No focal opacity concerning for pneumonia.", "- opacity - pneumonia"),
    ("No finding suspicious for malignancy.", "- mass"),
    ("Nothing to suggest acute infarct.", "- acute_infarct"),
    ("Patient denies history of tuberculosis.", "- tuberculosis"),
    ("No residual pneumothorax.", "- pneumothorax"),
    ("No new consolidation.", "- consolidation"),
    ("Fracture is not evident.", "- fracture"),
    ("Findings are not consistent with pulmonary edema.", "- pulmonary_oedema"),
    ("Unremarkable for haemorrhage.", "- haemorrhage"),
    ("Free fluid: none.", "- ascites"),
    ("The chest is without evidence of active tuberculosis.", "- tuberculosis"),
    ("Resolution of the right pneumothorax.", "< pneumothorax"),
    ("No PE (pulmonary embolism).", "- pulmonary_embolism"),
    ("Intracranial haemorrhage can be confidently excluded.", "- intracranial_haemorrhage"),
    ("No CT evidence of bowel ischaemia.", "- bowel_ischaemia"),
    ("There isn't any pneumothorax.", "- pneumothorax"),
    ("Chest: no pneumothorax.", "- pneumothorax"),
    ("CT: no evidence of PE.", "- pulmonary_embolism"),
    ("I cannot see a pneumothorax.", "- pneumothorax"),
    ("No evidence to suggest that there is free air.", "- pneumoperitoneum"),
    ("Likely absent pneumothorax.", "- pneumothorax"),
]

LISTS = [
    (
        "No effusion, pneumothorax or focal consolidation.",
        "- pleural_effusion - pneumothorax - consolidation",
    ),
    (
        "No focal consolidation, large pleural effusion, or pneumothorax.",
        "- consolidation - pleural_effusion - pneumothorax",
    ),
    (
        "No acute infarct, haemorrhage, mass effect, or midline shift is seen.",
        "- acute_infarct - haemorrhage - mass_effect - midline_shift",
    ),
    ("Effusion and pneumothorax are absent.", "- pleural_effusion - pneumothorax"),
    ("Effusion or pneumothorax is not seen.", "- pleural_effusion - pneumothorax"),
    (
        "Effusion, pneumothorax, and consolidation are not seen.",
        "- pleural_effusion - pneumothorax - consolidation",
    ),
    ("Neither a mass nor a nodule is identified.", "- mass - nodule"),
    ("No PE, aortic dissection.", "- pulmonary_embolism - aortic_dissection"),
    ("No pneumothorax/effusion.", "- pneumothorax - pleural_effusion"),
    ("No pneumonia and/or effusion.", "- pneumonia - pleural_effusion"),
    (
        "No fracture, dislocation, joint effusion, or foreign body.",
        "- fracture - dislocation - joint_effusion - foreign_body",
    ),
    ("Possible pneumonia or atelectasis.", "? pneumonia ? atelectasis"),
    ("Atelectasis versus pneumonia.", "? atelectasis ? pneumonia"),
    ("History of PE and DVT.", "< pulmonary_embolism < deep_vein_thrombosis"),
    ("Pneumonia or PE cannot be excluded.", "? pneumonia ? pulmonary_embolism"),
]

SCOPE_ENDS = [
    ("No pneumothorax, but large effusion.", "- pneumothorax + pleural_effusion"),
    ("No pneumothorax; small effusion.", "- pneumothorax + pleural_effusion"),
    ("No pneumothorax, small left effusion.", "- pneumothorax + pleural_effusion"),
    ("No effusion, there is a pneumothorax.", "- pleural_effusion + pneumothorax"),
    ("No effusion and there is a pneumothorax.", "- pleural_effusion + pneumothorax"),
    ("No effusion is seen, however a mass is present.", "- pleural_effusion + mass"),
    ("No effusion although the heart is enlarged.", "- pleural_effusion + cardiomegaly"),
    ("No effusion and the heart is enlarged.", "- pleural_effusion + cardiomegaly"),
    ("No effusion, heart is enlarged.", "- pleural_effusion + cardiomegaly"),
    ("No abnormality except a small pneumothorax.", "+ pneumothorax"),
    ("No abnormality aside from cardiomegaly.", "+ cardiomegaly"),
    ("No acute abnormality apart from a rib fracture.", "+ fracture"),
    ("There is an effusion and pneumothorax is not seen.", "+ pleural_effusion - pneumothorax"),
    ("Effusion, pneumothorax not seen.", "+ pleural_effusion - pneumothorax"),
    ("Large pneumothorax, left costophrenic angle is not seen.", "+ large_pneumothorax"),
    ("Pneumothorax is large and effusion is absent.", "+ large_pneumothorax - pleural_effusion"),
    ("No pneumothorax, unchanged effusion.", "- pneumothorax + pleural_effusion"),
    ("No pneumothorax and effusion is unchanged.", "- pneumothorax + pleural_effusion"),
    ("No effusion, possible pneumonia.", "- pleural_effusion ? pneumonia"),
    ("No effusion and possible pneumonia.", "- pleural_effusion ? pneumonia"),
    (
        "No effusion, PE in the right lower lobe artery.",
        "- pleural_effusion + pulmonary_embolism",
    ),
    (
        "No pneumothorax or effusion, cardiomegaly.",
        "- pneumothorax - pleural_effusion + cardiomegaly",
    ),
    ("The lung is not expanded because of a pneumothorax.", "+ pneumothorax"),
    ("Pneumothorax on the left, none on the right.", "+ pneumothorax"),
    ("Pneumothorax on the left, not seen on the right.", "+ pneumothorax"),
    ("Effusion without pneumothorax.", "+ pleural_effusion - pneumothorax"),
    (
        "Old rib fractures and a pneumothorax.",
        "< fracture + pneumothorax",
    ),
    (
        "Status post fall with subdural haematoma.",
        "+ intracranial_haemorrhage",
    ),
    (
        "History of lung cancer with large pleural effusion.",
        "< mass + pleural_effusion",
    ),
    ("Known DVT, now with acute PE.", "+ deep_vein_thrombosis + pulmonary_embolism"),
    ("Mother had PE; patient has pneumonia.", "~ pulmonary_embolism + pneumonia"),
    ("No haemorrhage, large right MCA infarct.", "- haemorrhage + acute_infarct"),
]

UNCERTAIN = [
    ("Pulmonary embolism cannot be excluded.", "? pulmonary_embolism"),
    ("PE cannot definitely be ruled out.", "? pulmonary_embolism"),
    ("A small pneumothorax is not excluded.", "? pneumothorax"),
    ("Cannot exclude aortic dissection.", "? aortic_dissection"),
    ("This does not exclude PE.", "? pulmonary_embolism"),
    ("Unable to rule out perforation.", "? perforation"),
    ("It is difficult to exclude a subtle pneumothorax.", "? pneumothorax"),
    ("Findings concerning for bowel ischemia.", "? bowel_ischaemia"),
    ("Opacity suspicious for pneumonia.", "+ opacity ? pneumonia"),
    ("Possible pneumothorax.", "? pneumothorax"),
    ("?PE", "? pulmonary_embolism"),
    ("? PE", "? pulmonary_embolism"),
    ("Query tension pneumothorax.", "? tension_pneumothorax"),
    ("This may represent pneumonia.", "? pneumonia"),
    ("Likely pneumoperitoneum.", "? pneumoperitoneum"),
    ("PE is suspected.", "? pulmonary_embolism"),
    ("Dissection should be excluded.", "? aortic_dissection"),
    ("Pneumothorax has not been excluded.", "? pneumothorax"),
    ("No pneumothorax can be excluded.", "- pneumothorax"),
    ("No definite fracture, but one cannot be excluded.", "- fracture"),
    ("Ovarian torsion is a possibility.", "? ovarian_torsion"),
    ("Prior PE cannot be excluded.", "? pulmonary_embolism"),
    ("High suspicion for ruptured ectopic pregnancy.", "? ectopic_pregnancy"),
    ("Opacity, which raises the possibility of a mass.", "+ opacity ? mass"),
    ("Question of free air.", "? pneumoperitoneum"),
    ("Pneumonia not entirely excluded.", "? pneumonia"),
    ("The ET tube may be in the right main bronchus.", "? malpositioned_tube"),
    ("No effusion and PE cannot be excluded.", "- pleural_effusion ? pulmonary_embolism"),
    ("No pneumothorax, PE cannot be excluded.", "- pneumothorax ? pulmonary_embolism"),
    ("Treat as PE until ruled out.", "? pulmonary_embolism"),
    ("Volvulus remains a concern.", "? volvulus"),
]

PERSISTING = [
    ("Unchanged pneumothorax.", "+ pneumothorax"),
    ("No change in the pneumothorax.", "+ pneumothorax"),
    ("No interval change in pleural effusion.", "+ pleural_effusion"),
    ("No increase in the size of the subdural haematoma.", "+ intracranial_haemorrhage"),
    ("No further enlargement of the pneumothorax.", "+ pneumothorax"),
    ("Without change in the midline shift.", "+ midline_shift"),
    ("Not only PE is present.", "+ pulmonary_embolism"),
    ("No longer negative for PE.", "+ pulmonary_embolism"),
    ("Persistent free intraperitoneal air.", "+ pneumoperitoneum"),
    ("Residual pneumothorax is stable.", "+ pneumothorax"),
    ("Pneumothorax is again seen.", "+ pneumothorax"),
    ("Previously seen pneumothorax is unchanged.", "+ pneumothorax"),
    ("The prior pneumothorax has increased.", "+ pneumothorax"),
    ("The pneumothorax has not resolved.", "+ pneumothorax"),
    ("The pneumothorax has nearly completely resolved.", "+ pneumothorax"),
    ("The pneumothorax was not seen on the prior study.", "+ pneumothorax"),
    ("Compared to the prior study, there is a new pneumothorax.", "+ pneumothorax"),
    ("The lung apices are not well seen due to pneumothorax.", "+ pneumothorax"),
    ("Not without a small effusion.", "+ pleural_effusion"),
    ("No resolution of the pneumothorax.", "+ pneumothorax"),
]

HISTORICAL = [
    ("Indication: rule out PE.", "< pulmonary_embolism"),
    ("Indication: 54 year old man with chest pain, concern for PE.", "< pulmonary_embolism"),
    ("Clinical history: question of aortic dissection.", "< aortic_dissection"),
    ("Reason for exam: suspected stroke", "< acute_infarct"),
    ("Evaluate for pneumothorax.", "< pneumothorax"),
    ("CT to rule out dissection.", "< aortic_dissection"),
    ("History of pulmonary embolism.", "< pulmonary_embolism"),
    ("History of possible PE.", "< pulmonary_embolism"),
    ("Prior subarachnoid haemorrhage.", "< intracranial_haemorrhage"),
    ("Previous tuberculosis.", "< tuberculosis"),
    ("Status post repair of ruptured aortic aneurysm.", "< ruptured_aneurysm"),
    ("Healed rib fracture.", "< fracture"),
    ("Known old rib fractures.", "< fracture"),
    ("Resolved pneumothorax.", "< pneumothorax"),
    ("PE in the past.", "< pulmonary_embolism"),
    ("Old infarct.", "+ old_infarct"),
    ("Family history of aortic dissection.", "~ aortic_dissection"),
    ("Her mother died of a pulmonary embolism.", "~ pulmonary_embolism"),
    ("History of aneurysm in his father.", "~ aneurysm"),
    ("INDICATION: cough FINDINGS: large pneumothorax", "+ large_pneumothorax"),
]

NAMES = [
    ("The heart is enlarged.", "+ cardiomegaly"),
    ("Enlarged cardiac silhouette.", "+ cardiomegaly"),
    ("Cardiac enlargement.", "+ cardiomegaly"),
    ("Heart size is mildly enlarged.", "+ cardiomegaly"),
    ("Bilateral effusions.", "+ pleural_effusion"),
    ("Pericardial effusion.", "+ pericardial_effusion"),
    ("Knee joint effusion.", "+ joint_effusion"),
    ("Pulmonary emboli.", "+ pulmonary_embolism"),
    ("bilateral PEs", "+ pulmonary_embolism"),
    ("the rope and the type", ""),
    ("pe", ""),
    ("SAH", "+ intracranial_haemorrhage"),
    ("Free-air below the diaphragm.", "+ pneumoperitoneum"),
    ("Air under the right hemidiaphragm.", "+ pneumoperitoneum"),
    ("Free\n  intraperitoneal\nair.", "+ pneumoperitoneum"),
    ("Masses in the liver.", "+ mass"),
    ("Calcified opacities.", "+ opacity"),
    ("Dissection of the ascending aorta.", "+ aortic_dissection"),
    ("Axillary lymph node dissection.", "+ surgical_dissection"),
    ("Endotracheal tube tip is seen within the right main bronchus.", "+ malpositioned_tube"),
    ("ETT terminates in the right mainstem bronchus.", "+ malpositioned_tube"),
    ("NG tube tip projects over the stomach.", ""),
    ("NG tube is coiled in the oesophagus.", "+ malpositioned_tube"),
    ("The nasogastric tube enters the left lower lobe bronchus.", "+ malpositioned_tube"),
    ("Esophageal intubation.", "+ malpositioned_tube"),
    ("Malpositioned central venous catheter.", "+ malpositioned_tube"),
    ("The PICC line is malpositioned.", "+ malpositioned_tube"),
    ("ET tube 4 cm above the carina, right main bronchus patent.", ""),
    ("Pulmonary oedema.", "+ pulmonary_oedema"),
    ("Large left apical pneumothorax.", "+ large_pneumothorax"),
    ("Subcutaneous emphysema.", "+ subcutaneous_emphysema"),
    ("Centrilobular emphysema.", "+ emphysema"),
    ("Leaking abdominal aortic aneurysm.", "+ ruptured_aneurysm"),
    ("Tonsillar herniation.", "+ brain_herniation"),
    ("Testicular torsion.", "+ testicular_torsion"),
    ("Haemorrhage in the left basal ganglia.", "+ intracranial_haemorrhage"),
    ("Splenic laceration.", "+ organ_laceration"),
    ("Occlusion of the right MCA.", "+ large_vessel_occlusion"),
    ("Necrotizing fasciitis.", "+ necrotising_fasciitis"),
    ("Cauda equina compression.", "+ cord_compression"),
    ("NO PNEUMOTHORAX OR PLEURAL EFFUSION.", "- pneumothorax - pleural_effusion"),
]


@pytest.mark.parametrize(
    ("sentence", "findings"),
    NEGATED + LISTS + SCOPE_ENDS + UNCERTAIN + PERSISTING + HISTORICAL + NAMES,
)
def test_what_a_sentence_says(sentence: str, findings: str) -> None:
    assert said(sentence) == expected(findings)


@pytest.mark.parametrize(
    "sentence",
    [
        "Right tension pneumothorax.",
        "Large pneumothorax.",
        "Type A dissection.",
        "Leaking AAA.",
        "Saddle embolus.",
        "Acute on chronic subdural haematoma.",
        "Midline shift of 8 mm.",
        "Uncal herniation.",
        "Obstructive hydrocephalus.",
        "Free intraperitoneal air.",
        "The NG tube is in the right lower lobe bronchus.",
        "Nasogastric tube seen with its tip in the left main bronchus.",
        "Pericardial tamponade.",
        "Spinal cord compression.",
        "Mesenteric ischaemia.",
        "Perforated duodenal ulcer.",
        "Pneumatosis intestinalis with portal venous gas.",
        "Caecal volvulus.",
        "Ruptured ectopic pregnancy.",
        "Unstable cervical spine fracture.",
        "Basilar artery occlusion.",
        "Acute left MCA infarct.",
        "Central airway obstruction.",
        "Acute epiglottitis.",
        "Necrotising fasciitis cannot be excluded.",
        "Concern for testicular torsion.",
        "Active extravasation of contrast.",
        "Hepatic laceration.",
        "Septic emboli.",
        "Retained surgical sponge.",
        "Pneumomediastinum.",
    ],
)
def test_urgent_findings_escalate_when_present_or_not_excluded(sentence: str) -> None:
    assert escalates(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "No evidence of aortic dissection.",
        "Indication: rule out PE",
        "Family history of subarachnoid haemorrhage.",
        "History of perforated appendicitis.",
        "Small pneumothorax.",
        "Cardiomegaly.",
        "Axillary dissection.",
        "Chest: no large pneumothorax.",
        "CTPA: negative for PE.",
        "No flow limitation and no torsion.",
    ],
)
def test_what_is_denied_asked_old_or_not_urgent_does_not_escalate(sentence: str) -> None:
    assert not escalates(sentence)


REQUIRED = {
    "pneumothorax",
    "pleural_effusion",
    "consolidation",
    "cardiomegaly",
    "pneumonia",
    "pulmonary_oedema",
    "atelectasis",
    "nodule",
    "mass",
    "fracture",
    "pulmonary_embolism",
    "aortic_dissection",
    "intracranial_haemorrhage",
    "pneumoperitoneum",
    "emphysema",
    "fibrosis",
    "hernia",
    "lymphadenopathy",
    "pericardial_effusion",
    "tuberculosis",
    "opacity",
    "tension_pneumothorax",
    "malpositioned_tube",
}


def test_the_names_that_others_rely_on_exist() -> None:
    assert set(BY_NAME) >= REQUIRED
    assert len(FINDINGS) == len(BY_NAME) >= 110


def test_implied_findings_exist_and_are_others() -> None:
    for entry in FINDINGS:
        assert set(entry.implies) <= set(BY_NAME) - {entry.name}


def test_a_mention_points_into_the_sentence_as_given() -> None:
    sentence = "  No  Pleural\n effusions; SAH."
    assert [
        (sentence[mention.start : mention.end], mention.finding, mention.urgent)
        for mention in DETECTOR.mentions(sentence)
    ] == [
        ("Pleural\n effusions", "pleural_effusion", False),
        ("SAH", "intracranial_haemorrhage", True),
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("No PE. No effusion.", ["No PE.", "No effusion."]),
        ("A 3.5 cm mass; stable.", ["A 3.5 cm mass;", "stable."]),
        ("Seen by Dr. Who, approx. 3 cm.", ["Seen by Dr. Who, approx. 3 cm."]),
        ("Oedema vs. pneumonia, e.g. viral.", ["Oedema vs. pneumonia, e.g. viral."]),
        ("Image no. 4 shows it.", ["Image no. 4 shows it."]),
        ("PE: no. Mass: no.", ["PE: no.", "Mass: no."]),
        ("No evidence of\npneumothorax.", ["No evidence of\npneumothorax."]),
        ("FINDINGS\nNo PE", ["FINDINGS", "No PE"]),
        ("effusion\n- mass\n  2 nodules", ["effusion", "- mass", "2 nodules"]),
        ("effusion\n\nmass", ["effusion", "mass"]),
        ("query ? PE today", ["query ? PE today"]),
        ("Really?! (Yes.) Fine", ["Really?!", "(Yes.)", "Fine"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == parts


VOCABULARY = """
    no not without and or with , ; : ? ( ) / but possible PE effusion pneumothorax mass old history
    of cannot be excluded is are seen heart enlarged there rule out mother had unchanged indication
    findings large small tube in the right main bronchus lungs clear 3.5
"""
WORDS = st.sampled_from([*VOCABULARY.split(), "\n"])
SENTENCES = st.lists(WORDS, max_size=40).map(" ".join)


@given(st.one_of(SENTENCES, st.text()))
def test_any_text_is_read(text: str) -> None:
    mentions = DETECTOR.mentions(text)
    ends = [0, *(mention.end for mention in mentions)]
    for mention, previous in zip(mentions, ends, strict=False):
        assert previous <= mention.start < mention.end <= len(text)


@given(st.one_of(SENTENCES, st.text(), st.text(alphabet=".!?;\n\"') -aA3")))
def test_sentences_cover_all_but_the_space_between(text: str) -> None:
    at = 0
    for start, end in sentences(text):
        assert at <= start < end
        assert not text[at:start].strip()
        assert text[start:end] == text[start:end].strip()
        at = end
    assert not text[at:].strip()


@given(SENTENCES)
def test_another_sentence_changes_nothing(text: str) -> None:
    def read(whole: str) -> list[tuple[str, str]]:
        return [
            (mention.finding, mention.assertion.value)
            for start, end in sentences(whole)
            for mention in DETECTOR.mentions(whole[start:end])
        ]

    assert read(f"{text}.\n\nThe spine is normal.") == read(f"{text}.")
    assert read(f"The spine is normal.\n\n{text}.") == read(f"{text}.")


@pytest.mark.parametrize(
    "unit",
    [
        "no PE ",
        "no ",
        "PE, ",
        "possible PE and ",
        "heart is ",
        "tube in tube ",
        "PE cannot be excluded or ",
        "dissection of the ",
        "?",
        ".",
        ". ",
        "\n ",
        "1",
        "a'",
        "(",
    ],
)
def test_time_grows_with_the_length_and_no_faster(unit: str) -> None:
    def seconds(length: int) -> float:
        text = (unit * length)[:length]
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            DETECTOR.mentions(text)
            for _span in sentences(text):
                pass
            best = min(best, time.process_time() - start)
        return best

    # Eight times the text; quadratic would be 64 times the work.
    assert seconds(32_000) < 24 * seconds(4_000) + 0.01
