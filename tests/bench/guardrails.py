"""What guarding costs: microseconds a token, characters held back, and how others fare on the same.

    python -m tests.bench.guardrails [--quick] [--packages FOLDER]

Four parts, all on one text of radiology prose in which no rule fires, cut into tokens of four
characters: StreamGuard and all output rails; what is held back; whether the cost of a token grows
with the answer; other matching engines with the same patterns. Engines get text that is folded
already, look for nothing but matches, and know no exceptions (``unless_...``): all in their favour.

With ``--packages`` two guardrail packages run too. They want other versions of what this project
pins, so they live in a folder of their own, searched last:

    pip install --no-deps --target FOLDER nemoguardrails==0.24.1 llm-guard==0.3.16 \
        nest-asyncio==1.6.0 simpleeval==1.0.8 aiohttp-retry==2.9.1 dataclasses-json==0.6.7 \
        marshmallow==4.4.0 typing-inspect==0.9.0 structlog==26.1.0 faker==40.54.0 \
        presidio-analyzer==2.2.358 presidio-anonymizer==2.2.358 bc-detect-secrets==1.5.52 \
        phonenumbers==9.0.43 tldextract==5.4.0 requests-file==3.0.1 spacy==3.8.18 thinc==8.3.14 \
        blis==1.3.4 catalogue==2.0.10 confection==1.3.4 cymem==2.0.16 murmurhash==1.0.16 \
        preshed==3.0.15 srsly==2.5.6 wasabi==1.1.3 weasel==1.0.1

guardrails-ai and openai-guardrails cannot run beside ours: all three are imported as "guardrails".

Quantiles are wall-clock time; means, rates and compile times are CPU time of this process, which
other work on the machine disturbs less. Prints tables; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import re2
from rich.console import Console
from rich.table import Table

from guardrails import policy
from guardrails.folding import fold
from guardrails.patterns import expand
from guardrails.policy import Policy, rules_of
from guardrails.rails import OutputRails
from guardrails.rules import Action, Rule, RuleSet
from guardrails.stream import StreamGuard
from guardrails.templates import AnswerFormat, Template

SEED = 20
TOKEN = 4  # characters
RULES = 500  # of the large rule set
NAIVE_AT = 300  # tokens in the buffer of a scanner that looks at all of it at every token
QUESTION = "Describe the key findings."
SIZES = (10_000, 100_000, 1_000_000)
console = Console()

# No rule fires here. "start", "recommend", "tube", "continue" and the like begin matches that come
# to nothing, so that the work of holding text back and letting it go is part of what is measured.
SENTENCES = (
    "The frontal radiograph was obtained in full inspiration with slight rotation to the left.",
    "The heart is mildly enlarged, with a cardiothoracic ratio just above one half.",
    "Aortic knuckle calcification is noted, and the descending aorta is somewhat tortuous.",
    "Hazy opacities start at the left base and fade gradually towards the hilum.",
    "There is blunting of both costophrenic angles, more marked on the left than on the right.",
    "A rounded density of about nine millimetres projects over the anterior end of the fourth rib.",
    "Nothing in its margins would recommend one interpretation over another.",
    "The tip of the endotracheal tube lies roughly four centimetres above the carina.",
    "A second tube follows the midline and passes below the diaphragm out of view.",
    "The right hemidiaphragm is elevated, and a band of linear atelectasis runs above it.",
    "Vascular markings continue to the periphery in all zones, so no pleural line is traced.",
    "Kerley lines are faintly seen at the lateral margins of the lower zones.",
    "The mediastinal contour is not widened, and the trachea is central.",
    "Bones show degenerative spurs along the thoracic spine without a displaced fracture.",
    "Axial slices through the liver show a hypodense focus in segment seven with a sharp border.",
    "After contrast the focus does not enhance, which fits with a simple cyst.",
    "Both kidneys excrete symmetrically; a tiny calculus sits in the lower pole on the right.",
    "Small bowel loops are of normal calibre, and stool is spread through the colon.",
    "The appendix can be followed from the caecum and is not thickened.",
    "On the sagittal images, disc height is reduced between the fourth and fifth lumbar vertebrae.",
    "Signal from the spinal cord is even, although movement blurs the upper thoracic part.",
    "The ventricles are symmetrical, and grey and white matter can be told apart throughout.",
    "A wedge of low attenuation takes up part of the territory of the left middle cerebral artery.",
    "Soft tissue swelling overlies the lateral malleolus; the joint space is even.",
    "Order and spacing of the carpal rows are preserved, and the scaphoid is intact.",
    "Compared with the earlier study, the changes at the left base take up a smaller area.",
    "Motion and the shallow breath limit what can be said about the retrocardiac region.",
    "Should the density persist, its shape gives no clue to its age.",
    "The picture could be that of fluid overload, with infection as a less likely alternative.",
    "Nothing else stands out in the part of the abdomen that the image takes in.",
)
# The large rule set: what its rules begin with stands in the text, what they go on to does not.
_HEADS = (
    "start starting begin continue continued give gives recommend recommended advise consider "
    "order place placed insert follow follows show shows repeat obtain add limit change keep "
    "increase reduce reduced stop perform schedule use used need needed try"
)
_STEMS = (
    "nephro hepato gastro pneumo arthro osteo angio neuro myo dermo entero cysto laryngo rhino "
    "otico spleno adeno lympho chondro vaso"
)
_ENDINGS = (
    "mycin cillin plasty ectomy scopy stomy statin olol pril sartan azole dipine tidine parin "
    "desis lysis centesis"
)
_TAILS = (" therapy", " today", " twice daily", r" \d{1,4} ?(?:mg|ml|units?)", "")


@dataclass(frozen=True)
class Effort:
    """How much is measured: a full run takes about a minute, a quick one seconds."""

    repeats: int
    passes: int  # of one answer through our own guard: short, so that many fit between disturbances
    budget_s: float  # for one engine and rule set
    sizes: tuple[int, ...]
    whole: int  # characters pushed at once
    rules: int
    engines_on: slice  # of the rule sets: engines need many seconds to compile the shipped one

    @classmethod
    def of(cls, *, quick: bool) -> Effort:
        if quick:
            return cls(1, 3, 0.15, SIZES[:2], 100_000, 50, slice(1, None))
        return cls(5, 41, 1.0, SIZES, 250_000, RULES, slice(None))


@dataclass(frozen=True)
class Sample:
    """A rule set, the rules behind it, a text that fires one, and phrases without any pattern."""

    name: str
    rules: tuple[Rule, ...]
    compiled: RuleSet
    compile_s: float
    planted: str
    phrases: tuple[str, ...]

    @property
    def patterns(self) -> list[str]:
        """Every pattern as other engines take it: whole words, its own case rule."""
        return [
            rf"\b(?{'' if rule.case_sensitive else 'i'}:{pattern})\b"
            for rule in self.rules
            for pattern in rule.patterns
        ]


# --- texts and rules ---------------------------------------------------------------------------


def tokens_of(text: str) -> list[str]:
    """The text in tokens of four characters."""
    return [text[start : start + TOKEN] for start in range(0, len(text), TOKEN)]


def answer(size: int) -> str:
    """An answer of that many characters: paragraphs of sentences, never twice in the same order."""
    shuffled, parts, length = random.Random(SEED), [], 0
    while length < size:
        sentences = shuffled.sample(SENTENCES, 6)
        parts.append(" ".join(sentences) + "\n\n")
        length += len(parts[-1])
    return "".join(parts)[:size]


def shipped(loaded: Policy, compile_s: float) -> Sample:
    """The output rules of the policy that ships."""
    entries = zip(loaded.file.rules, rules_of(loaded.file), strict=True)
    literal = re.compile(r"[a-z][a-z -]{3,}")
    return Sample(
        name="shipped",
        rules=tuple(
            rule for entry, rule in entries if entry.output and Template.FREE in entry.templates
        ),
        compiled=loaded.output_rules[Template.FREE],
        compile_s=compile_s,
        planted="We would start amoxicillin 500 mg for this. ",
        phrases=tuple(
            phrase
            for phrases in loaded.file.lexicons.values()
            for phrase in phrases
            if literal.fullmatch(phrase)
        ),
    )


def generated(count: int) -> Sample:
    """Many bounded rules, made of medical words by a seeded generator."""
    draw = random.Random(SEED)
    nouns = [stem + ending for stem in _STEMS.split() for ending in _ENDINGS.split()]
    rules, firsts = [], []
    for number in range(count):
        heads, ends = draw.sample(_HEADS.split(), 3), draw.sample(nouns, 4)
        gap = draw.choice(("{gap}", "{gap1}", "{gap2}", "{gap3}"))
        pattern = f"(?:{'|'.join(heads)}) {gap}(?:{'|'.join(ends)}){draw.choice(_TAILS)}"
        action = draw.choice((Action.BLOCK, Action.REDACT))
        rules.append(Rule(f"generated_{number}", action, (expand(pattern, {}),)))
        firsts.append(f"{heads[0]} the usual {ends[0]} therapy today twice daily. ")
    begun = time.process_time()
    compiled = RuleSet(rules)
    compile_s = time.process_time() - begun
    fires = next(text for text in firsts if _fires(compiled, text))
    return Sample(f"{count} rules", tuple(rules), compiled, compile_s, fires, tuple(nouns))


def _fires(rules: RuleSet, text: str) -> bool:
    guard = StreamGuard(rules)
    guard.push(text)
    guard.finish()
    return bool(guard.hits)


def _check(sample: Sample, text: str) -> None:
    """Refuses to measure what would not be the work of an answer that passes."""
    if _fires(sample.compiled, text):
        raise SystemExit(f"{sample.name}: a rule fires on the text of the benchmark")
    if not _fires(sample.compiled, sample.planted):
        raise SystemExit(f"{sample.name}: no rule fires on {sample.planted!r}")


# --- measuring ---------------------------------------------------------------------------------


class Pass(NamedTuple):
    """One text, fed token by token: each token by the wall clock, all by this process's CPU time.

    CPU time leaves out what else the machine does, but is too coarse for a single token.
    """

    wall_us: list[float]
    cpu_us: float

    @property
    def mean_us(self) -> float:
        """CPU time of a token."""
        return self.cpu_us / len(self.wall_us)


def _pass(feed: Callable[[str], object], tokens: Iterable[str]) -> Pass:
    clock, out = time.perf_counter_ns, []
    cpu = time.process_time_ns()
    for token in tokens:
        begun = clock()
        feed(token)
        out.append((clock() - begun) / 1000)
    return Pass(out, (time.process_time_ns() - cpu) / 1000)


def _quantile(values: Sequence[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def _per_token(passes: Sequence[Pass]) -> dict[str, float]:
    """The medians, over all passes, of each pass's own figures."""
    return {
        "us_per_token_p50": statistics.median(statistics.median(one.wall_us) for one in passes),
        "us_per_token_p99": statistics.median(_quantile(one.wall_us, 0.99) for one in passes),
        "us_per_token_mean": statistics.median(one.mean_us for one in passes),
    }


def _pushes(start: Callable[[], Any], tokens: list[str], repeats: int) -> dict[str, float]:
    """Figures for pushes into fresh guards, caches filled."""
    return _per_token([_pass(start().push, tokens) for _ in range(repeats + 1)][1:])


def _seconds(action: Callable[[], object]) -> float:
    """CPU time."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def measure_ours(sample: Sample, tokens: list[str], effort: Effort) -> dict[str, float]:
    """StreamGuard with one rule set. Its first answer, which fills caches, stands apart."""
    first = _pass(StreamGuard(sample.compiled).push, tokens).mean_us
    whole = answer(effort.whole)
    seconds = [
        _seconds(lambda: StreamGuard(sample.compiled).push(whole)) for _ in range(effort.repeats)
    ]
    return {
        "rules": len(sample.rules),
        "patterns": len(sample.patterns),
        "width": sample.compiled.width,
        "compile_s": sample.compile_s,
        "first_answer_us_per_token": first,
        **_pushes(lambda: StreamGuard(sample.compiled), tokens, effort.passes),
        "whole_mb_per_s": len(whole) / statistics.median(seconds) / 1e6,
    }


def measure_rails(loaded: Policy, tokens: list[str], effort: Effort) -> dict[str, float]:
    """All output rails: the rules, and the findings of each sentence once it is whole."""

    def start() -> OutputRails:
        return OutputRails(loaded, Template.FREE, AnswerFormat.TEXT, question=QUESTION)

    return _pushes(start, tokens, effort.passes)


def measure_held(rules: RuleSet, tokens: list[str]) -> dict[str, float]:
    """Characters that are held back after each push."""
    guard, held, pushed, first = StreamGuard(rules), [], 0, 0
    for token in tokens:
        pushed += len(token)
        released = guard.push(token)
        first = first or (pushed if released else 0)
        held.append(guard.held)
    return _held(held, first)


def _held(held: Sequence[int], first: int) -> dict[str, float]:
    return {
        "held_p50": statistics.median(held),
        "held_mean": statistics.fmean(held),
        "held_worst": max(held),
        "until_first_release": first,
    }


def measure_growth(rules: RuleSet, effort: Effort) -> dict[str, Any]:
    """Microseconds a token for answers of several sizes, and the ratio of largest to smallest."""
    figures = {}
    for size in effort.sizes:
        tokens = tokens_of(answer(size))
        repeats = 2 if size == SIZES[-1] else effort.repeats
        seconds = [_seconds(lambda: _whole(rules, tokens)) for _ in range(repeats)]  # noqa: B023
        figures[size] = 1e6 * statistics.median(seconds) / len(tokens)
    ratio = figures[effort.sizes[-1]] / figures[effort.sizes[0]]
    return {"us_per_token": figures, "largest_to_smallest": ratio}


def _whole(rules: RuleSet, tokens: list[str]) -> None:
    guard = StreamGuard(rules)
    for token in tokens:
        guard.push(token)
    guard.finish()


# --- other engines -----------------------------------------------------------------------------

Feed = Callable[[str], bool]  # takes a token; tells whether something matches
Start = Callable[[], Feed]  # begins a text


class Skipped(Exception):
    """An engine that cannot run here, or with these rules."""


class Built(NamedTuple):
    """An engine that is ready, and what there is to know about it."""

    start: Start
    note: str = ""


class Engine(NamedTuple):
    """A way of matching. ``holds``: the characters that must wait before any may leave safely."""

    name: str
    build: Callable[[Sample], Built]
    holds: str


def _windowed(search: Callable[[str], bool], width: int) -> Start:
    """Searches the last characters at every token."""

    def start() -> Feed:
        window = ""

        def feed(token: str) -> bool:
            nonlocal window
            window = (window + token)[-width:]
            return search(window)

        return feed

    return start


def _width(sample: Sample) -> int:
    """Characters in which a match is whole, with one more on each side and a token."""
    return sample.compiled.width + 2 + TOKEN


def _build_naive(sample: Sample) -> Built:
    searches = [re.compile(pattern).search for pattern in sample.patterns]

    def search(text: str) -> bool:
        return any(one(text) is not None for one in searches)

    return Built(_windowed(search, NAIVE_AT * TOKEN), f"at token {NAIVE_AT}; grows with the text")


def _build_alternation(sample: Sample) -> Built:
    search = re.compile("|".join(sample.patterns)).search
    return Built(_windowed(lambda text: search(text) is not None, _width(sample)))


def _build_partial(sample: Sample) -> Built:
    search = _module("regex").compile("|".join(sample.patterns)).search

    def matches(text: str) -> bool:
        match = search(text, partial=True)
        return match is not None and not match.partial

    return Built(_windowed(matches, _width(sample)))


def _build_set(sample: Sample) -> Built:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    options.max_mem = 1 << 30
    patterns = re2.Set.SearchSet(options)
    for pattern in sample.patterns:
        patterns.Add(pattern)
    patterns.Compile()
    return Built(_windowed(lambda text: bool(patterns.Match(text)), _width(sample)))


_LONG = 2000  # Hyperscan takes shorter patterns as they are; longer ones are tried one by one


def _build_hyperscan(sample: Sample) -> Built:
    hyperscan = _module("hyperscan")

    def compiled(patterns: Sequence[str]) -> Any:
        database = hyperscan.Database(mode=hyperscan.HS_MODE_STREAM)
        database.compile(
            expressions=[pattern.encode() for pattern in patterns],
            ids=list(range(len(patterns))),
            elements=len(patterns),
        )
        return database

    def fits(pattern: str) -> bool:
        try:
            return len(pattern) < _LONG or compiled([pattern]) is not None
        except hyperscan.error:
            return False

    patterns = [pattern for pattern in sample.patterns if fits(pattern)]
    try:
        database = compiled(patterns)
    except hyperscan.error as error:
        raise Skipped(str(error)) from None
    refused = len(sample.patterns) - len(patterns)
    note = f"without the {refused} patterns it calls too large" if refused else ""
    return Built(lambda: _hyperscan_feed(database), note)


def _hyperscan_feed(database: Any) -> Feed:
    found: list[int] = []

    def note(pattern: int, *_: object) -> None:
        found.append(pattern)

    stream = database.stream(match_event_handler=note)
    stream.__enter__()  # closed with the object; what matches at the end is not of interest here

    def feed(token: str) -> bool:
        # The stream keeps no reference to its handler; this one does.
        stream.scan(token.encode(), match_event_handler=note)
        return bool(found)

    return feed


def _build_phrases(sample: Sample) -> Built:
    automaton = _module("ahocorasick").Automaton()
    for phrase in sample.phrases:
        automaton.add_word(phrase, phrase)
    automaton.make_automaton()

    def start() -> Feed:
        iterator = automaton.iter("")

        def feed(token: str) -> bool:
            iterator.set(token.lower(), False)
            return sum(1 for _ in iterator) > 0

        return feed

    return Built(start, f"{len(sample.phrases)} literal phrases: no patterns, gaps or whole words")


_WINDOW = "{width} characters"  # a match shows at its end, and may have begun that far back
ENGINES = (
    Engine("re, each rule, whole buffer", _build_naive, _WINDOW),
    Engine("re, one alternation, window", _build_alternation, _WINDOW),
    Engine("regex, partial, window", _build_partial, "from its partial match"),
    Engine("re2.Set, window", _build_set, _WINDOW),
    Engine("hyperscan, stream", _build_hyperscan, _WINDOW),
    Engine("pyahocorasick, phrases", _build_phrases, "longest phrase"),
)


def _module(name: str) -> Any:
    if find_spec(name) is None:
        raise Skipped("not installed")
    return importlib.import_module(name)


def measure_engine(engine: Engine, sample: Sample, text: str, effort: Effort) -> dict[str, Any]:
    """One engine with the same patterns and tokens, from a full window on, within its budget."""
    begun = time.process_time()
    try:
        built = engine.build(sample)
    except Skipped as reason:
        return {"skipped": str(reason)}
    compile_s = time.process_time() - begun
    head = NAIVE_AT * TOKEN if engine.build is _build_naive else _width(sample)
    passes: list[Pass] = []
    until = time.perf_counter() + effort.budget_s
    while not passes or (len(passes) < effort.repeats and time.perf_counter() < until):
        feed = built.start()
        feed(text[:head])
        passes.append(_pass(feed, _until(tokens_of(text[head:]), until)))
    return {
        "compile_s": compile_s,
        **_per_token(passes),
        "tokens_measured": sum(len(one.wall_us) for one in passes),
        "finds_planted_match": any(list(map(built.start(), tokens_of(sample.planted)))),
        "holds": engine.holds.format(width=sample.compiled.width),
        "note": built.note,
    }


def _until(tokens: list[str], deadline: float) -> Iterator[str]:
    """Tokens as long as there is time; ten in any case."""
    for number, token in enumerate(tokens):
        if number >= 10 and time.perf_counter() > deadline:
            return
        yield token


# --- guardrail packages ------------------------------------------------------------------------


def measure_packages(sample: Sample, text: str, effort: Effort) -> dict[str, Any]:
    """Two guardrail packages that take regular expressions, with the same patterns."""
    figures = {}
    packages = {
        "nemoguardrails, stream of checked blocks": measure_nemo,
        "llm-guard, whole answer once": measure_llm_guard,
        "llm-guard, whole buffer at every token": measure_llm_guard_streamed,
    }
    for name, measure in packages.items():
        try:
            figures[name] = measure(sample, text, effort)
        except Skipped as reason:
            figures[name] = {"skipped": str(reason)}
    return figures


def measure_nemo(sample: Sample, text: str, effort: Effort) -> dict[str, Any]:
    """Its regex rail on its streaming buffer, sizes as shipped, blocks checked before they leave.

    The real package from end to end (``LLMRails.stream_async``), with our tokens for the model's.
    """
    os.environ["DO_NOT_TRACK"] = "1"  # it reports its use over the network otherwise
    nemo = _module("nemoguardrails")
    output = {
        "flows": ["regex check output"],
        "streaming": {"enabled": True, "stream_first": False},
    }
    detection = {"regex_detection": {"output": {"patterns": sample.patterns}}}
    config = {"models": [], "rails": {"config": detection, "output": output}}
    rails = nemo.LLMRails(nemo.RailsConfig.from_content(config=config))
    tokens = tokens_of(text)
    runs = [asyncio.run(_nemo_run(rails, tokens)) for _ in range(effort.repeats + 1)]
    streaming = rails.config.rails.output.streaming
    planted = asyncio.run(_nemo_run(rails, tokens_of(sample.planted)))
    across, begins = _across(sample, text, streaming.chunk_size * TOKEN)
    leak = asyncio.run(_nemo_run(rails, tokens_of(across)))
    return {
        "us_per_token_mean": statistics.median(run.us_per_token for run in runs[1:]),
        **_held(runs[-1].held, runs[-1].first),
        "finds_planted_match": planted.blocked,
        "leaked": max(0, leak.released - begins),
        "note": f"blocks of {streaming.chunk_size} tokens with {streaming.context_size} of context;"
        " leaked: characters of a match across two blocks that left before it was seen",
    }


class _NemoRun(NamedTuple):
    us_per_token: float
    held: list[int]
    first: int
    released: int
    blocked: bool


def _across(sample: Sample, text: str, place: int) -> tuple[str, int]:
    """The text with a match across ``place``, and where the match begins."""
    guard = StreamGuard(sample.compiled)
    guard.push(sample.planted)
    guard.finish()
    hit = guard.hits[0]  # the planted text is its own shadow
    start = place - (hit.start + hit.end) // 2
    return f"{text[:start]}{sample.planted}{text[start:]}", start + hit.start


async def _nemo_run(rails: Any, tokens: list[str]) -> _NemoRun:
    pushed = released = first = 0
    held: list[int] = []

    async def model() -> AsyncIterator[str]:
        nonlocal pushed
        for token in tokens:
            pushed += len(token)
            yield token
            held.append(pushed - released)

    begun = time.process_time()
    blocked = False
    question = [{"role": "user", "content": QUESTION}]
    async for chunk in rails.stream_async(messages=question, generator=model()):
        if blocked := chunk.startswith('{"error"'):
            break
        released += len(chunk)
        first = first or pushed
    us_per_token = 1e6 * (time.process_time() - begun) / len(tokens)
    return _NemoRun(us_per_token, held, first, released, blocked)


def _llm_guard(sample: Sample) -> Any:
    if find_spec("llm_guard") is None:
        raise Skipped("not installed")
    logging.disable(logging.WARNING)
    importlib.import_module("llm_guard.util").configure_logger("ERROR")
    scanners = importlib.import_module("llm_guard.output_scanners.regex")
    return scanners.Regex(sample.patterns)


def measure_llm_guard(sample: Sample, text: str, effort: Effort) -> dict[str, Any]:
    """Its regex scanner, which knows no streams: the answer waits until it is whole."""
    scan = _llm_guard(sample).scan
    seconds = [_seconds(lambda: scan("", text)) for _ in range(effort.repeats + 1)][1:]
    every = list(range(TOKEN, len(text) + 1, TOKEN))
    return {
        "us_per_token_mean": 1e6 * statistics.median(seconds) / len(tokens_of(text)),
        **_held(every, len(text)),
        "finds_planted_match": not scan("", sample.planted)[1],
        "note": "no streaming: everything is held until the answer ends",
    }


def measure_llm_guard_streamed(sample: Sample, text: str, effort: Effort) -> dict[str, Any]:
    """The same scanner as a stream would have to use it: all that is there, at every token."""
    scan = _llm_guard(sample).scan
    lengths = [TOKEN * (NAIVE_AT + number) for number in range(effort.repeats + 1)]
    seconds = [_seconds(lambda: scan("", text[:length])) for length in lengths][1:]  # noqa: B023
    return {
        "us_per_token_mean": 1e6 * statistics.median(seconds),
        "finds_planted_match": not scan("", sample.planted)[1],
        "note": f"at token {NAIVE_AT}; grows with the text; what has left cannot be taken back",
    }


# --- report ------------------------------------------------------------------------------------


def measure(effort: Effort) -> dict[str, Any]:
    """Everything, packages last: they change logging and the event loop."""
    begun = time.process_time()
    loaded = policy.load()
    samples = [shipped(loaded, time.process_time() - begun), generated(effort.rules)]
    text = " ".join(SENTENCES)
    tokens, folded = tokens_of(text), fold(text)
    ours = {sample.name: measure_ours(sample, tokens, effort) for sample in samples}
    for sample in samples:
        _check(sample, text)
    rules = samples[0].compiled
    return {
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "policy": loaded.id,
        "versions": _versions(),
        "text": {"characters": len(text), "tokens": len(tokens)},
        "ours": ours,
        "output_rails": measure_rails(loaded, tokens, effort),
        "held": {sample.name: measure_held(sample.compiled, tokens) for sample in samples},
        "growth": measure_growth(rules, effort),
        "engines": {
            sample.name: {
                engine.name: measure_engine(engine, sample, folded, effort) for engine in ENGINES
            }
            for sample in samples[effort.engines_on]
        },
        "packages": measure_packages(samples[0], text, effort),
    }


def _versions() -> dict[str, str]:
    names = (
        "google-re2", "regex", "hyperscan", "pyahocorasick", "nemoguardrails", "llm-guard",
    )  # fmt: skip
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(row: dict[str, Any], *names: str) -> Iterator[str]:
    return (_number(row.get(name)) for name in names)


_PER_TOKEN = ("us_per_token_p50", "us_per_token_p99", "us_per_token_mean")
_HELD = ("held_p50", "held_mean", "held_worst", "until_first_release")


def _print(report: dict[str, Any]) -> None:
    head = ("µs/token p50", "p99", "CPU mean")
    ours = Table("ours", *head, "first answer", "MB/s whole", "compile s", title="Guarding")
    names = (*_PER_TOKEN, "first_answer_us_per_token", "whole_mb_per_s", "compile_s")
    for name, row in [*report["ours"].items(), ("all rails", report["output_rails"])]:
        ours.add_row(name, *_cells(row, *names))
    held = Table("ours", "p50", "mean", "worst", "until first release", title="Characters held")
    for name, row in report["held"].items():
        held.add_row(name, *_cells(row, *_HELD))
    growth = Table("answer, characters", "µs/token", title="Growth")
    for size, value in report["growth"]["us_per_token"].items():
        growth.add_row(f"{size:,}", _number(value))
    growth.add_row("largest to smallest", _number(report["growth"]["largest_to_smallest"]))
    engines = Table("engine", "rules", *head, "compile s", "must hold", "finds", "note")
    for sample, rows in report["engines"].items():
        for name, row in rows.items():
            cells = _cells(row, *_PER_TOKEN, "compile_s")
            engines.add_row(name, sample, *cells, row.get("holds", ""), *_told(row))
    packages = Table(
        "package", "µs/token CPU mean", "held p50", "worst", "first", "leaked", "finds", "note"
    )
    for name, row in report["packages"].items():
        figures = ("us_per_token_mean", "held_p50", "held_worst", "until_first_release", "leaked")
        packages.add_row(name, *_cells(row, *figures), *_told(row))
    for table in (ours, held, growth, engines, packages):
        console.print(table)
    print(json.dumps(_rounded(report)))  # noqa: T201  # the last line, for programs


def _told(row: dict[str, Any]) -> tuple[str, str]:
    if "skipped" in row:
        return "", f"skipped: {row['skipped']}"
    return "yes" if row["finds_planted_match"] else "no", row["note"]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, rough figures")
    parser.add_argument("--packages", metavar="FOLDER", help="where the other packages are")
    arguments = parser.parse_args()
    if arguments.packages:
        sys.path.append(arguments.packages)
    _print(measure(Effort.of(quick=arguments.quick)))


if __name__ == "__main__":
    main()
