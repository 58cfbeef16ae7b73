"""What the store says, for a terminal. Texts of strangers never reach it as control characters."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from serve.audit import records
from serve.audit.chain import Link
from serve.audit.dossier import Dossier
from serve.audit.problems import clock
from serve.audit.search import Hit
from serve.audit.verify import Report

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT = 60


def plain(text: str) -> str:
    """The text with everything that a terminal would obey, or hide, written out."""
    return "".join(
        char
        if char == "\n" or unicodedata.category(char) not in _HIDDEN
        else char.encode("unicode_escape").decode()
        for char in text
    )


def summary(hit: Hit, found: Dossier | None) -> dict[str, Any]:
    """A line of a search; None: it was shredded."""
    line: dict[str, Any] = {"at": clock(hit.at), "audit_id": hit.audit_id}
    if found is None:
        return {**line, "kind": "shredded"}
    first = found.records[0][1]
    line |= {"kind": found.records[0][0].kind, "principal": getattr(first, "principal", None)}
    if isinstance(first, records.RequestRecord):
        answer = found.one(records.AnswerRecord)
        named = [one for choice in answer.choices for one in choice.findings] if answer else []
        line |= {
            "template": first.template.value,
            "question": first.question,
            "outcome": answer.outcome if answer else None,
            "findings": {one.finding: one.status.value for one in named},
            "escalation": list(answer.escalation) if answer else [],
            "review": found.review,
        }
    elif isinstance(first, records.ReadRecord):
        line |= {"what": first.what, "of": first.of, "query": first.query}
    elif isinstance(first, records.RefusalRecord):
        line |= {"status": first.status, "code": first.code, "param": first.param}
    return line


def table(lines: list[dict[str, Any]]) -> Table:
    """Lines of a search, side by side."""
    columns = Table("at, audit_id", "who", "about", "answer", "review", show_lines=True)
    columns.columns[0].no_wrap = True
    for line in lines:
        about = line.get("question") or line.get("what") or line.get("code") or line["kind"]
        said = [f"{name} {status}" for name, status in line.get("findings", {}).items()]
        urgent = ["URGENT"] if line.get("escalation") else []
        answer = ", ".join([*urgent, line.get("outcome") or "", *said])
        cells = (line.get("principal"), _cut(about), answer.strip(", "), line.get("review"))
        columns.add_row(
            f"{line['at']}\n{line['audit_id']}", *(escape(plain(cell or "")) for cell in cells)
        )
    return columns


def pages(found: Dossier) -> Iterator[str]:
    """Everything under one audit_id, to be read."""
    for link, body in found.records:
        yield f"--- {link.kind}, {clock(link.at)}, record {link.seq} of chain {link.writer}"
        yield from map(plain, _body(body))
    if found.review is not None:
        yield f"--- review: {found.review}"


def as_json(found: Dossier) -> str:
    """The same as JSON."""
    return json.dumps(
        {
            "audit_id": found.audit_id,
            "review": found.review,
            "records": [
                {**_place(link), "body": body.model_dump(mode="json")}
                for link, body in found.records
            ],
        },
        indent=2,
    )


def outcome(report: Report) -> Iterator[str]:
    """What verification found, to be read."""
    yield (
        f"{report.records} records in {report.chains} chains, "
        f"{report.checkpoints} signed checkpoints"
        + (f" (the last of {clock(report.last_checkpoint)})" if report.last_checkpoint else "")
    )
    if report.images is None:
        yield "contents were not opened"
    else:
        yield f"all contents were opened, {report.images} images among them"
    yield f"{report.shredded} exchanges are shredded, {report.unfinished} requests have no answer"
    if report.damaged_lines:
        yield f"{report.damaged_lines} lines of the checkpoints' file are damaged"
    if not report.checkpoints:
        yield "no checkpoint: nobody can tell whether the end of a chain was cut off"
    for problem in report.problems:
        where = f"{problem.chain}" + (f", record {problem.seq}" if problem.seq else "")
        about = f" (audit_id {problem.audit_id})" if problem.audit_id else ""
        yield f"{problem.kind.upper()}: {where}: {plain(problem.text)}{about}"
    yield "sound" if report.sound else f"NOT SOUND: {len(report.problems)} problems"


def _place(link: Link) -> dict[str, Any]:
    return {"kind": link.kind, "at": link.at, "writer": link.writer, "seq": link.seq}


def _body(body: BaseModel) -> Iterator[str]:
    if isinstance(body, records.RequestRecord):
        yield from _fields(body, leave_out={"turns"})
        for turn in body.turns:
            images = f" (images {', '.join(map(str, turn.images))})" if turn.images else ""
            yield f"turn of {turn.role}{images}:\n{_quoted(turn.text)}"
    elif isinstance(body, records.AnswerRecord):
        yield from _fields(body, leave_out={"choices"})
        for number, choice in enumerate(body.choices):
            yield f"choice {number}, as it left:\n{_quoted(choice.sent)}"
            yield f"choice {number}, NOT SENT, the model's own words:\n{_quoted(choice.raw)}"
            yield from _fields(choice, leave_out={"raw", "sent"})
    else:
        yield from _fields(body, leave_out=set())


def _fields(body: BaseModel, *, leave_out: set[str]) -> Iterator[str]:
    for name, value in body.model_dump(mode="json", exclude=leave_out).items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{name}:\n{_quoted(text)}" if "\n" in text else f"{name}: {text}"


def _quoted(text: str) -> str:
    """With a bar before each line: a text cannot pass for one of ours."""
    return "\n".join(f"  | {line}" for line in text.split("\n"))


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."
