"""The policy file: one YAML document that says what may leave, checked whole before it is used.

A policy is used only when all of it holds: its schema, every pattern, every example that its rules
carry. Otherwise PolicyError lists each problem with file, line and field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from guardrails import phrases
from guardrails.document import Location, PolicyError, Problem, read_document
from guardrails.findings import AssertionRules, Cue, FindingDetector, FindingEntry
from guardrails.patterns import PatternError, analyse, expand
from guardrails.policy_file import AssertionItem, PolicyFile, RuleEntry
from guardrails.rules import Action, Rule, RuleSet, Stage, compile_pattern
from guardrails.stream import StreamGuard
from guardrails.templates import DEFAULT_INSTRUCTIONS, Template, TemplateText

# --- the policy in force -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, compiled: safe to share between all requests."""

    id: str  # name-version@sha256:...
    file: PolicyFile
    instructions: Mapping[Template, TemplateText]
    input_rules: RuleSet
    output_rules: Mapping[Template, RuleSet]
    detector: FindingDetector
    findings: Mapping[str, FindingEntry] = field(repr=False)


def read(path: Path | None = None) -> str:
    """The text of a policy file; without a path, of the one that ships.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    if path is None:
        path = Path(str(resources.files("guardrails").joinpath("policies/default.yaml")))
    return path.read_text("utf-8")


def load(path: Path | None = None) -> Policy:
    """The policy in a file; without a path, the one that ships.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
        PolicyError: it is not fit for use.
    """
    return parse(read(path), source=str(path or "default.yaml"))


def parse(text: str, *, source: str = "policy") -> Policy:
    """A policy from the text of its file.

    Raises:
        PolicyError: it is not fit for use.
    """
    try:
        digest = sha256(text.encode()).hexdigest()
    except UnicodeEncodeError:
        raise PolicyError([Problem(source, 1, "", "not Unicode text")]) from None
    data, lines = read_document(text, source)
    try:
        file = PolicyFile.model_validate(data)
    except ValidationError as error:
        raise PolicyError(
            [
                _problem(source, lines, detail["loc"], detail["msg"])
                for detail in error.errors(include_url=False, include_input=False)
            ]
        ) from None
    problems = [_problem(source, lines, location, message) for location, message in _problems(file)]
    if problems:
        raise PolicyError(problems)
    entries = [
        FindingEntry(item.name, item.terms, item.urgent, item.implies) for item in file.findings
    ]
    return Policy(
        id=f"{file.name}-{file.version}@sha256:{digest}",
        file=file,
        instructions={
            **DEFAULT_INSTRUCTIONS,
            **{name: TemplateText(item.text, item.json_) for name, item in file.templates.items()},
        },
        input_rules=_rules(file, Stage.INPUT),
        output_rules={template: _rules(file, Stage.OUTPUT, template) for template in Template},
        detector=FindingDetector(entries, _assertion_rules(file.assertion)),
        findings={entry.name: entry for entry in entries},
    )


def _rules(file: PolicyFile, stage: Stage, template: Template | None = None) -> RuleSet:
    return RuleSet(
        _rule(entry, file, action)
        for entry in file.rules
        if (action := entry.input if stage is Stage.INPUT else entry.output)
        and (template is None or template in entry.templates)
    )


def rules_of(file: PolicyFile) -> Iterator[Rule]:
    """All rules, whatever their stage, with lexicons expanded."""
    return (_rule(entry, file, entry.output or entry.input or Action.FLAG) for entry in file.rules)


def _rule(entry: RuleEntry, file: PolicyFile, action: Action) -> Rule:
    def expanded(patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(expand(pattern, file.lexicons) for pattern in patterns)

    return Rule(
        id=entry.id,
        action=action,
        patterns=expanded(entry.patterns),
        unless_before=expanded(entry.unless_before),
        unless_after=expanded(entry.unless_after),
        unless_within=expanded(entry.unless_within),
        case_sensitive=entry.case_sensitive,
    )


def _assertion_rules(item: AssertionItem) -> AssertionRules:
    return AssertionRules(
        cues=tuple(
            Cue(phrase, cue.status, cue.direction) for cue in item.cues for phrase in cue.phrases
        ),
        pseudo=item.pseudo,
        terminators=item.terminators,
        max_scope_words=item.max_scope_words,
    )


# --- problems ----------------------------------------------------------------------------------


def _problems(file: PolicyFile) -> Iterator[tuple[Location, str]]:
    """What the schema cannot see: names that are taken or unknown, patterns, examples."""
    yield from _repeated("rules", [entry.id for entry in file.rules], "id")
    yield from _repeated("findings", [item.name for item in file.findings], "name")
    names = {item.name for item in file.findings}
    for number, item in enumerate(file.findings):
        for at, term in enumerate(item.terms):
            if problem := phrases.fault(term):
                yield ("findings", number, "terms", at), problem
        for name in item.implies:
            if name not in names:
                yield ("findings", number, "implies"), f"there is no finding {name!r}"
    for number, entry in enumerate(file.rules):
        faults = list(_pattern_faults(entry, file))
        yield from ((("rules", number, *where), message) for where, message in faults)
        if not faults:
            for where, message in _failed_examples(entry, file):
                yield ("rules", number, "examples", *where), message


def _repeated(section: str, names: list[str], key: str) -> Iterator[tuple[Location, str]]:
    for number, name in enumerate(names):
        if name in names[:number]:
            yield (section, number, key), f"{name!r} is there already"


def _pattern_faults(entry: RuleEntry, file: PolicyFile) -> Iterator[tuple[Location, str]]:
    """Every pattern by itself, so that the message has the line of the one that is wrong."""
    case = entry.case_sensitive
    contexts: list[tuple[str, ...]] = []
    sound = True
    for key in ("unless_before", "unless_after", "unless_within"):
        expanded = []
        for number, pattern in enumerate(getattr(entry, key)):
            try:
                expanded.append(expand(pattern, file.lexicons))
                analyse(expanded[-1], case_sensitive=case)
            except PatternError as error:
                sound = False
                yield (key, number), str(error)
        contexts.append(tuple(expanded))
    for number, pattern in enumerate(entry.patterns):
        try:
            text = expand(pattern, file.lexicons)
            # As the rule sets will ask for it, so that it is compiled once.
            compile_pattern(text, *(contexts if sound else ()), case_sensitive=case)
        except PatternError as error:
            yield ("patterns", number), str(error)


def _failed_examples(entry: RuleEntry, file: PolicyFile) -> Iterator[tuple[Location, str]]:
    if not (entry.examples.fires or entry.examples.passes):
        return
    rules = RuleSet([_rule(entry, file, Action.FLAG)])
    for key, expected in (("fires", True), ("passes", False)):
        for number, text in enumerate(getattr(entry.examples, key)):
            guard = StreamGuard(rules)
            guard.push(text)
            guard.finish()
            if bool(guard.hits) is not expected:
                yield (key, number), f"the rule {'does not fire' if expected else 'fires'} on this"


def _problem(
    source: str, lines: Mapping[Location, int], location: Location, message: str
) -> Problem:
    known = location
    while known and known not in lines:
        known = known[:-1]
    path = ".".join(str(part) for part in location)
    return Problem(source, lines.get(known, 1), path, message)
