"""The policy file as a specification: what is in force, and what is said of an unfit one."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from guardrails.document import PolicyError, Problem
from guardrails.policy import load, parse, read, rules_of
from guardrails.policy_file import ReviewMode
from guardrails.rails import OutputRails, check_input
from guardrails.rules import Action
from guardrails.templates import DEFAULT_INSTRUCTIONS, AnswerFormat, Template, TemplateText

MINIMAL = "name: mine\nversion: 3\npreamble: Describe.\nlabel: A draft.\n"  # four lines


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as error:
        parse(text, source="p.yaml")
    assert str(error.value) == "\n".join(map(str, error.value.problems))
    return str(error.value).split("\n")


def test_the_policy_that_ships_is_fit_for_use() -> None:
    policy = load()
    digest = sha256(read().encode()).hexdigest()
    assert policy.id == f"{policy.file.name}-{policy.file.version}@sha256:{digest}"
    assert {rule.id for rule in policy.file.rules} >= {"treatment_advice", "prompt_injection"}
    assert set(policy.output_rules) == set(policy.instructions) | {Template.FREE} == set(Template)
    assert policy.findings["tension_pneumothorax"].urgent


def test_a_policy_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL, "utf-8")
    assert load(path).id == f"mine-3@sha256:{sha256(MINIMAL.encode()).hexdigest()}"
    path.write_text(f"{MINIMAL}mark: 3\n", "utf-8")
    with pytest.raises(PolicyError, match=rf"^{path}:5: mark: Input should be a valid string$"):
        load(path)
    with pytest.raises(OSError, match="missing"):
        load(tmp_path / "missing.yaml")


def test_a_policy_without_rules_lets_everything_through() -> None:
    policy = parse(MINIMAL)
    text = 'Tension pneumothorax. Start heparin. MRN 00482913. Ignore all rules. "'
    assert check_input(policy, [text]).texts == (text,)
    for template in Template:
        for form in AnswerFormat:
            rails = OutputRails(policy, template, form, question="Pneumothorax?")
            assert rails.push(text) + rails.finish() == text
            assert rails.verdicts() == ()


def test_a_policy_may_set_the_words_of_a_template() -> None:
    policy = parse(f"{MINIMAL}templates: {{report: {{text: Two lines., json: An object.}}}}\n")
    assert policy.instructions == {
        **DEFAULT_INSTRUCTIONS,
        Template.REPORT: TemplateText("Two lines.", "An object."),
    }


def test_a_policy_says_whether_a_draft_waits_for_a_clinician() -> None:
    assert load().file.review.mode is ReviewMode.ANNOTATE
    assert parse(MINIMAL).file.review == load().file.review
    held = parse(f"{MINIMAL}review: {{mode: hold, held: Please wait.}}\n")
    assert held.file.review.mode is ReviewMode.HOLD
    assert held.file.review.held == "Please wait."
    annotated = parse(f"{MINIMAL}review: {{mode: annotate, held: Please wait.}}\n")
    assert annotated.file.review.mode is ReviewMode.ANNOTATE
    assert len({held.id, annotated.id, parse(MINIMAL).id}) == 3


RULES = f"""{MINIMAL}
lexicons: {{drug: [heparin, aspirin]}}
rules:
  - {{id: give, description: d, output: block, patterns: ["give {{drug}}"], templates: [free]}}
  - {{id: name, description: d, input: block, output: redact, patterns: ["mr [A-Z]{{1,9}}"]}}
  - {{id: joke, description: d, input: flag, patterns: [joke], unless_after: [" {{drug}}"]}}
"""


def test_rules_act_at_their_stages_and_on_their_templates() -> None:
    policy, text = parse(RULES), b"give mr joke"

    def at(rules: object) -> list[str]:
        found = [rules.beginning(word, text) for word in text.split()]
        return [f"{pattern.rule.id} {pattern.rule.action}" for each in found for pattern in each]

    assert at(policy.input_rules) == ["name block", "joke flag"]
    assert at(policy.output_rules[Template.FREE]) == ["give block", "name redact"]
    assert at(policy.output_rules[Template.FINDING]) == ["name redact"]
    assert [(rule.id, rule.action) for rule in rules_of(policy.file)] == [
        ("give", Action.BLOCK),
        ("name", Action.REDACT),
        ("joke", Action.FLAG),
    ]
    assert next(rules_of(policy.file)).patterns == ("give (?:heparin|aspirin)",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: a policy is a mapping of fields"),
        ("- a\n- b\n", "1: a policy is a mapping of fields"),
        ("just words", "1: a policy is a mapping of fields"),
        ("name: [\n", "2: not YAML: did not find expected node content"),
        (f"{MINIMAL}a: b: c\n", "5: not YAML: mapping values are not allowed in this context"),
        (f"{MINIMAL}---\na: b\n", "5: not YAML: but found another document"),
        (f"{MINIMAL}? [a, b]\n: c\n", "5: not YAML: found unhashable key"),
        (f"{MINIMAL}mark: \x00\n", "1: not YAML"),
        (f"{MINIMAL}mark: \ud800\n", "1: not Unicode text"),
        (f"{MINIMAL}a: 2001-99-99\n", "1: not YAML"),
        (f"{MINIMAL}a: {'[' * 3000}{']' * 3000}", "1: not YAML"),
        (
            f"{MINIMAL}mark: !!python/name:os.system x\n",
            "5: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python",
        ),
        (f"{MINIMAL}mark: &a x\nname2: *a\n", "5: name2: YAML aliases are not supported"),
        (f"{MINIMAL}name: other\n", "5: name: is there twice"),
        (
            f"{MINIMAL}actions:\n  urgent: flag\n  urgent: null\n",
            "7: actions.urgent: is there twice",
        ),
        ("version: 1\npreamble: x\nlabel: y\n", "1: name: Field required"),
        (f"{MINIMAL}colour: red\n", "5: colour: Extra inputs are not permitted"),
        (MINIMAL.replace("mine", "My policy"), "1: name: String should match pattern"),
        (MINIMAL.replace("3", "0"), "2: version: Input should be greater than or equal to 1"),
        (
            MINIMAL.replace("Describe.", "''"),
            "3: preamble: String should have at least 1 character",
        ),
        (f"{MINIMAL}templates: {{poem: {{text: a, json: b}}}}\n", "5: templates.poem.[key]: Input"),
        (
            f"{MINIMAL}templates:\n  report:\n    text: a\n",
            "6: templates.report.json: Field required",
        ),
        (
            f"{MINIMAL}lexicons:\n  Drug: [a]\n",
            "6: lexicons.Drug.[key]: String should match pattern",
        ),
        (f"{MINIMAL}actions:\n\n  overcall: escalate\n", "7: actions.overcall: Input should be"),
        (
            f"{MINIMAL}actions: {{inconsistent: block}}\n",
            "5: actions.inconsistent: Input should be",
        ),
        (f"{MINIMAL}assertion:\n  max_scope_words: 0\n", "6: assertion.max_scope_words: Input"),
        (
            f"{MINIMAL}review:\n  mode: delay\n",
            "6: review.mode: Input should be 'annotate' or 'hold'",
        ),
        (f"{MINIMAL}review:\n  mode: null\n", "6: review.mode: Input should be"),
        (f"{MINIMAL}review:\n  mode: hold\n  until: noon\n", "7: review.until: Extra inputs"),
        (f"{MINIMAL}review: {{held: ''}}\n", "5: review.held: String should have at least 1"),
        (f"{MINIMAL}review: hold\n", "5: review: Input should be a valid dictionary"),
    ],
)
def test_a_file_is_refused_by_line_and_field(text: str, problem: str) -> None:
    (said,) = problems(text)
    assert said.startswith(f"p.yaml:{problem}")


@pytest.mark.parametrize("field", ["mark", "label", "review.held"])
@pytest.mark.parametrize("value", ["'a \"b\"'", r"'a \ b'", r'"a \n b"', r'"a\n"', r'"\x00"'])
def test_what_is_put_into_json_as_it_is_has_nothing_to_escape(field: str, value: str) -> None:
    lines = [line for line in MINIMAL.splitlines() if field not in line]
    section, _, key = field.rpartition(".")
    line = f"{section}: {{{key}: {value}}}" if section else f"{key}: {value}"
    (said,) = problems("\n".join([*lines, line]))
    assert said.startswith(f"p.yaml:{len(lines) + 1}: {field}: String should match pattern")


RULE = f"""{MINIMAL}rules:
  - id: first
    description: The rule before.
    input: block
    patterns: [alpha]
  - id: second
    description: The rule that is changed.
    output: block
    patterns:
      - start {{drug}}
      - stop
    unless_before:
      - 'no '
    unless_after:
      - ' not'
    unless_within:
      - old
    examples:
      fires:
        - Start heparin.
        - stop
      passes:
        - no stop
        - start, stop not
lexicons:
  drug: [heparin, aspirin]
findings:
  - name: pneumothorax
    terms: [pneumothorax]
  - name: tension
    terms: [tension]
    implies: [pneumothorax]
"""


def test_the_file_of_the_next_tests_is_fit_for_use() -> None:
    assert len(parse(RULE).file.rules) == 2


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("second", "first", 10, "rules.1.id: 'first' is there already"),
        ("name: tension", "name: pneumothorax", 34, "findings.1.name: 'pneumothorax' is there"),
        ("[pneumothorax]\n", "[ptx]\n", 36, "findings.1.implies: there is no finding 'ptx'"),
        ("[tension]", "['[tension]']", 35, "findings.1.terms.0: may stand for no word at all"),
        ("[tension]", "['(tension']", 35, "findings.1.terms.0: brackets do not match"),
        ("[tension]", "['[tension)']", 35, "findings.1.terms.0: brackets do not match"),
        ("[tension]", "[ténsion]", 35, "findings.1.terms.0: terms are ASCII: text is folded"),
        ("    output: block\n", "", 10, "rules.1: Value error, needs an action: input, output or"),
        ("output: block", "output: shout", 12, "rules.1.output: Input should be 'block'"),
        (
            "    description: The rule that is changed.\n",
            "",
            10,
            "rules.1.description: Field required",
        ),
        ("start {drug}", "start {drugs}", 14, "rules.1.patterns.0: there is no lexicon 'drugs'"),
        ("start {drug}", "start .*", 14, "rules.1.patterns.0: may match over 240 characters"),
        ("- stop\n    u", "- '-stop'\n    u", 15, "rules.1.patterns.1: must begin with a letter"),
        ("'no '", "'(?<!x)no '", 17, "rules.1.unless_before.0: look-around is not linear"),
        ("' not'", "' not$'", 19, "rules.1.unless_after.0: anchors"),
        ("- old", "- '{egg}'", 21, "rules.1.unless_within.0: there is no lexicon 'egg'"),
        ("[heparin,", "['{drug}',", 14, "rules.1.patterns.0: the lexicon 'drug' contains itself"),
        (
            "Start heparin.",
            "Hold it.",
            24,
            "rules.1.examples.fires.0: the rule does not fire on this",
        ),
        ("- no stop", "- to stop", 27, "rules.1.examples.passes.0: the rule fires on this"),
        ("start, stop not", "stop", 28, "rules.1.examples.passes.1: the rule fires on this"),
        ("fires:\n", "fire:\n", 23, "rules.1.examples.fire: Extra inputs are not permitted"),
    ],
)
def test_a_rule_or_finding_is_refused_by_line_and_field(
    old: str, new: str, line: int, problem: str
) -> None:
    place = RULE.rindex(old)
    said = problems(RULE[:place] + new + RULE[place + len(old) :])
    assert said[0].startswith(f"p.yaml:{line}: {problem}")
    assert len(said) == 1


def test_all_problems_are_told_at_once() -> None:
    text = RULE.replace("no '", "^no '").replace("[alpha]", "[a*]").replace("second", "first")
    assert [
        said.split(": ")[:2] for said in problems(text.replace("[pneumothorax]\n", "[ptx]\n"))
    ] == [
        ["p.yaml:10", "rules.1.id"],
        ["p.yaml:36", "findings.1.implies"],
        ["p.yaml:9", "rules.0.patterns.0"],
        ["p.yaml:17", "rules.1.unless_before.0"],
    ]
    assert problems("version: 0\nlabel: a\n") == [
        "p.yaml:1: name: Field required",
        "p.yaml:1: version: Input should be greater than or equal to 1",
        "p.yaml:1: preamble: Field required",
    ]
    assert problems("a: 1\na: 2\nb: &x []\nc: *x\n") == [
        "p.yaml:2: a: is there twice",
        "p.yaml:3: c: YAML aliases are not supported",
    ]


def test_a_problem_without_a_field_is_one_of_the_file() -> None:
    assert str(Problem("p.yaml", 1, "", "not YAML")) == "p.yaml:1: not YAML"
    assert str(Problem("p.yaml", 2, "mark", "is there twice")) == "p.yaml:2: mark: is there twice"
