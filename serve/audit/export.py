"""Exchanges as a Parquet file, a row for each choice, for the analysis of errors.

Texts go through the policy's rules on patients first (those whose id begins with ``phi``), with
whatever action, as redactions. What no rule knows stays: treat the file as you treat the store.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from guardrails.policy import Policy, rules_of
from guardrails.rules import Action, RuleSet
from guardrails.stream import StreamGuard
from serve.audit.dossier import Dossier, dossier
from serve.audit.records import (
    AnswerRecord,
    RecordedChoice,
    RecordedImage,
    RecordedVerdict,
    RequestRecord,
    ReviewRecord,
)
from serve.audit.search import Hit
from serve.audit.store import ShreddedError, Store

Redact = Callable[[str], str]
_GROUP = 500  # rows in memory at once
_IMAGES_GROUP = 50  # with the images in them
_CLOSING = frozenset({"sign_off", "amend", "reject"})
_TEXT = pa.string()


def _struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct(list(fields.items()))


_VERDICTS = pa.list_(_struct(rule=_TEXT, action=_TEXT, stage=_TEXT, finding=_TEXT))
_IMAGE = _struct(
    digest=_TEXT,
    media_type=_TEXT,
    role=_TEXT,
    frame=pa.int64(),
    burned_in=_TEXT,
    square=pa.binary(),
)
_REVIEW = _struct(
    state=_TEXT,
    reviewer=_TEXT,
    findings=pa.list_(_struct(finding=_TEXT, verdict=_TEXT)),
    comment=_TEXT,
    amended=_TEXT,
    seconds=pa.float64(),
)
SCHEMA = pa.schema(
    [
        ("audit_id", _TEXT),
        ("choice", pa.int64()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("request_id", _TEXT),
        ("review_id", _TEXT),
        ("principal", _TEXT),
        ("model", _struct(id=_TEXT, digest=_TEXT, adapter=_TEXT, adapter_digest=_TEXT)),
        ("policy", _TEXT),
        ("template", _TEXT),
        ("format", _TEXT),
        ("held", pa.bool_()),
        ("question", _TEXT),
        ("turns", pa.list_(_struct(role=_TEXT, text=_TEXT))),
        ("images", pa.list_(_IMAGE)),
        ("temperature", pa.float64()),
        ("seed", pa.int64()),
        ("input_verdicts", _VERDICTS),
        ("raw", _TEXT),
        ("sent", _TEXT),
        ("finish_reason", _TEXT),
        ("tokens", pa.int64()),
        ("verdicts", _VERDICTS),
        ("findings", pa.list_(_struct(finding=_TEXT, status=_TEXT))),
        ("outcome", _TEXT),
        ("error", _TEXT),
        ("escalation", pa.list_(_TEXT)),
        ("prompt_tokens", pa.int64()),
        ("planned_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("total_s", pa.float64()),
        ("review", _REVIEW),
    ]
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    rows: int
    exchanges: int
    shredded: int  # exchanges that were shredded meanwhile


def redactor(policy: Policy) -> Redact:
    """Redacts what a policy's rules on patients match.

    Raises:
        ValueError: the policy has no such rules.
    """
    chosen = [
        replace(rule, action=Action.REDACT)
        for rule in rules_of(policy.file)
        if rule.id == "phi" or rule.id.startswith("phi_")
    ]
    if not chosen:
        raise ValueError(f"the policy {policy.id} has no rules on patients (phi...)")
    rules = RuleSet(chosen)

    def redact(text: str) -> str:
        guard = StreamGuard(rules, mark=policy.file.mark)
        return guard.push(text) + guard.finish()

    return redact


def export(
    store: Store,
    hits: Iterable[Hit],
    file: Path,
    redact: Redact,
    *,
    images: bool,
    principals: bool,
    progress: Callable[[int], None] = lambda _exchanges: None,
) -> Exported:
    """Writes a file, whole or not at all, readable by its owner only.

    Args:
        store: where from.
        hits: which exchanges; each is written once.
        file: there must be none.
        redact: what texts go through.
        images: whether the squares that the model saw are in it, as PNG.
        principals: whether names are in it; otherwise keyed hashes of them.
        progress: called with the exchanges so far.

    Raises:
        FileExistsError, OSError: it cannot be written.
        AlteredError, WrongKeyError: an exchange does not open.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".export-")  # mode 0600
    os.close(descriptor)
    rows = shredded = exchanges = 0
    group: list[dict[str, Any]] = []
    seen: set[str] = set()
    try:
        with pq.ParquetWriter(name, SCHEMA, compression="zstd") as writer:
            for hit in hits:
                if hit.audit_id in seen:
                    continue
                seen.add(hit.audit_id)
                try:
                    made = list(_rows(store, hit, redact, images=images, principals=principals))
                except ShreddedError:
                    shredded += 1
                    continue
                group += made
                rows, exchanges = rows + len(made), exchanges + 1
                progress(exchanges)
                if len(group) >= (_IMAGES_GROUP if images else _GROUP):
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        with open(name, "rb") as written:  # noqa: PTH123 - a descriptor is what fsync takes
            os.fsync(written.fileno())
        os.link(name, file)  # unlike a rename, it replaces nothing
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
    return Exported(rows, exchanges, shredded)


def _rows(
    store: Store, hit: Hit, redact: Redact, *, images: bool, principals: bool
) -> Iterator[dict[str, Any]]:
    def name(principal: str) -> str:
        return principal if principals else f"{store.term('principal', principal) % 2**64:016x}"

    with store.reading() as connection:
        found = dossier(store, connection, hit.audit_id)
        request, answer = found.one(RequestRecord), found.one(AnswerRecord)
        if request is None or answer is None:
            return
        seen = [_image(image) for image in request.images]
        if images:
            for image, recorded in zip(seen, request.images, strict=True):
                image["square"] = store.blob(connection, bytes.fromhex(recorded.square))
    common = {
        **_asked(request, redact),
        "audit_id": hit.audit_id,
        "at": found.records[0][0].at,
        "principal": name(request.principal),
        "images": seen,
        **answer.model_dump(include={"outcome", "error", "prompt_tokens", "escalation"}),
        **answer.model_dump(include={"planned_s", "first_token_s", "total_s"}),
        "review": _review(found, redact, name),
    }
    for number, choice in enumerate(answer.choices):
        yield {**common, "choice": number, **_choice(choice, redact)}


def _asked(request: RequestRecord, redact: Redact) -> dict[str, Any]:
    return {
        **request.model_dump(include={"request_id", "review_id", "model", "policy", "held"}),
        "template": request.template.value,
        "format": request.format.value,
        "question": redact(request.question),
        "turns": [{"role": turn.role, "text": redact(turn.text)} for turn in request.turns],
        "temperature": request.sampling.temperature,
        "seed": request.sampling.seed,
        "input_verdicts": _verdicts(request.verdicts),
    }


def _image(image: RecordedImage) -> dict[str, Any]:
    note = image.note.model_dump(include={"media_type", "role", "frame", "burned_in"})
    return {"digest": image.digest, **note, "square": None}


def _choice(choice: RecordedChoice, redact: Redact) -> dict[str, Any]:
    return {
        "raw": redact(choice.raw),
        "sent": redact(choice.sent),
        "finish_reason": choice.finish_reason,
        "tokens": choice.tokens,
        "verdicts": _verdicts(choice.verdicts),
        "findings": [
            {"finding": one.finding, "status": one.status.value} for one in choice.findings
        ],
    }


def _verdicts(verdicts: Iterable[RecordedVerdict]) -> list[dict[str, Any]]:
    return [verdict.model_dump(mode="json") for verdict in verdicts]


def _review(found: Dossier, redact: Redact, name: Callable[[str], str]) -> dict[str, Any] | None:
    if found.review is None:
        return None
    closed = [act for act in found.all(ReviewRecord) if act.action in _CLOSING]
    if not closed:
        return {"state": found.review}
    act = closed[-1]
    return {
        "state": found.review,
        "reviewer": name(act.principal),
        # A finding that the draft missed has a name of the reviewer's own.
        "findings": [
            {"finding": redact(one.finding), "verdict": one.verdict} for one in act.findings
        ],
        "comment": redact(act.comment),
        "amended": None if act.amended is None else redact(act.amended),
        "seconds": act.seconds,
    }
