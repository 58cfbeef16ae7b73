"""``llava-med review``: the queue, and how drafts fare with reviewers, on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from serve.audit.access import Session, fail, session
from serve.audit.printing import plain
from serve.principals import Role
from serve.review import chart, desk, stats, views
from serve.review.items import MICROSECONDS
from serve.review.queue import Selection
from serve.review.stats import Group, Rate, Report
from serve.review.views import Summary

app = typer.Typer(
    help="Reviews: what waits for a clinician, and how drafts fare with them. Takes a reviewer's "
    "key (list) or an auditor's (stats) in LLAVA_MED_USER_KEY, else the admin key that a local "
    "service keeps in state_dir. Every look is recorded.",
    no_args_is_help=True,
)
console = Console()
errors = Console(stderr=True)

_SELECTIONS: tuple[Selection, ...] = get_args(Selection)
_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M"]
_MOST = 200
_STATS_HELP = """Agreement, over-calls and misses of reviewed drafts, with Wilson's 95 % intervals.

Only findings that a clinician gave a verdict on count; who signs off agrees with the rest.

Agreement: agree / all verdicts. Over-call rate: overcall / findings judged that the draft calls
present or indeterminate. Wrong-side rate: wrong_side / the same. Miss rate: missed / (missed +
agree where the draft calls the finding present)."""

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML settings file; environment and options win over it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
SinceOption = Annotated[
    datetime | None, typer.Option(formats=_FORMATS, help="Closed then or later; UTC.")
]
UntilOption = Annotated[
    datetime | None, typer.Option(formats=_FORMATS, help="Closed earlier than that; UTC.")
]


@app.command("list")
def list_queue(
    state: Annotated[str, typer.Option(help=f"One of {', '.join(_SELECTIONS)}.")] = "open",
    urgent: Annotated[bool, typer.Option("--urgent", help="Only urgent ones.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=_MOST)] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the queue: urgent items first, then the oldest."""
    if state not in _SELECTIONS:
        fail(f"--state is one of {', '.join(_SELECTIONS)}")
    with session(config, Role.REVIEWER) as at:
        page = _page(at, state, urgent=urgent or None, limit=limit)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    console.print(_queue(page.data))
    counts = page.counts
    console.print(
        f"{counts.pending} pending, {counts.claimed} claimed; {counts.urgent} of them urgent",
        highlight=False,
    )


@app.command("stats", help=_STATS_HELP)
def print_stats(
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the rates into this file, .png or .svg.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print the rates."""
    if picture is not None and picture.suffix not in chart.FORMATS:
        fail(f"--picture takes a file named {' or '.join(chart.FORMATS)}")
    with session(config, Role.AUDITOR) as at:
        report = _report(at, since, until)
        if picture is not None:
            if not report.groups:
                fail("there is nothing to draw: no review was closed in that time", code=1)
            chart.draw(report, picture)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    console.print(_rates(report))
    console.print(
        f"{report.signed_off} signed off, {report.amended} amended, {report.rejected} rejected; "
        f"{report.unreadable} shredded or unreadable",
        highlight=False,
    )


def _page(at: Session, state: Selection, *, urgent: bool | None, limit: int) -> views.Page:
    at.note("reviews", state=state, limit=str(limit), urgent=json.dumps(urgent))
    with at.store.reading() as connection:
        return desk.page(at.store, connection, state, urgent=urgent, limit=limit)


def _report(at: Session, since: datetime | None, until: datetime | None) -> Report:
    at.note("review stats", since=str(since), until=str(until))
    columns = (SpinnerColumn(), TextColumn("{task.completed} reviews"))
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("reviews", total=None)
        found = stats.tally(
            at.store,
            since=_microseconds(since),
            until=_microseconds(until),
            progress=lambda read: bar.advance(task, read),
        )
    return stats.report(found)


def _microseconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=UTC).timestamp()) * MICROSECONDS


def _queue(summaries: tuple[Summary, ...]) -> Table:
    table = Table("id", "state", "age", "template", "status", "question", "urgent", "claimed by")
    for one in summaries:
        cells = (
            one.id,
            one.state.replace("_", " "),
            _age(one.age_s),
            one.template or "",
            one.status or "",
            (one.question or "")[:60] if one.readable else "(not readable)",
            ", ".join(one.reasons) or ("yes" if one.urgent else ""),
            one.claimed_by or "",
        )
        table.add_row(*map(_cell, cells))
    return table


def _rates(report: Report) -> Table:
    table = Table(
        "by", "name", "verdicts", "agreement", "over-call", "miss", "wrong side", "median"
    )
    for group in report.groups:
        table.add_row(*map(_cell, _row(group)))
    return table


def _row(group: Group) -> tuple[str, ...]:
    seconds = group.median_seconds
    return (
        group.by,
        group.name,
        str(group.verdicts),
        *map(_share, (group.agreement, group.overcall, group.miss, group.wrong_side)),
        "" if seconds is None else f"{seconds:.0f} s",
    )


def _share(rate: Rate) -> str:
    if rate.rate is None or rate.low is None or rate.high is None:
        return ""
    return f"{rate.rate:.0%} ({rate.low:.0%} to {rate.high:.0%}) of {rate.of}"


def _age(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _cell(text: str) -> Text:
    """What strangers wrote, without what a terminal or rich's markup would obey."""
    return Text(plain(text))
