"""``llava-med audit``: search, show, export, verify, shred, rotate keys.

Whoever runs it is known by a key, as with the API, and every look is recorded before it is shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serve.audit import (
    checkpoints,
    key_file,
    keyring,
    overview,
    printing,
    retention,
    rotate,
    schema,
)
from serve.audit.access import (
    Session,
    database,
    errors,
    fail,
    require_store,
    session,
    settings_of,
    told,
)
from serve.audit.contents import Contents
from serve.audit.dossier import Dossier, audit_id_of, dossier
from serve.audit.opening import checkpoint_folder
from serve.audit.problems import Progress as Updating
from serve.audit.records import RequestRecord
from serve.audit.search import Hit, search
from serve.audit.store import ShreddedError, keyring_of, url_of
from serve.audit.verify import verify
from serve.principals import Role
from serve.settings import Settings

app = typer.Typer(
    help="The audit store: who asked what, what was answered, and who looked. Needs the key of "
    "somebody with the role auditor (retain and rotate-key: admin) in LLAVA_MED_USER_KEY, or the "
    "admin key that a local service keeps in state_dir. Every look is recorded.",
    no_args_is_help=True,
)
console = Console()

_UNITS_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_PAGE = 200
# A process that was not restarted after a rotation has wrapped by a former key within this time.
_SETTLED_US = 120 * 1_000_000

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML settings file; environment and options win over it."),
]
ExchangeId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Of an exchange: its audit_id or review_id, the id of the response (chatcmpl-...), or "
        "of its header llava-med-request-id.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
PrincipalOption = Annotated[str | None, typer.Option("--principal", help="Who asked.")]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="finding, report, impression, summary or free.")
]
FindingOption = Annotated[
    str | None, typer.Option("--finding", help="A finding that the answer speaks of.")
]
StatusOption = Annotated[
    str | None,
    typer.Option("--status", help="Of a finding answer: present, absent or indeterminate."),
]
RuleOption = Annotated[str | None, typer.Option("--rule", help="A rule that fired.")]
ActionOption = Annotated[
    str | None, typer.Option("--action", help="What it did: block, redact, flag or escalate.")
]
UrgentOption = Annotated[bool, typer.Option("--urgent", help="Only what was escalated.")]
OutcomeOption = Annotated[
    str | None, typer.Option("--outcome", help="complete, failed or abandoned.")
]
SinceOption = Annotated[
    str | None,
    typer.Option(help="A date (2026-05-31), a time (2026-05-31T08:00, UTC), or ago: 12h, 7d, 2w."),
]
UntilOption = Annotated[str | None, typer.Option(help="The same; older than this.")]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is searched for."""

    fields: dict[str, str]
    since: int | None
    until: int | None

    def said(self) -> dict[str, str]:
        """As the look is recorded."""
        times = {"since": self.since, "until": self.until}
        return {**self.fields, **{name: str(at) for name, at in times.items() if at is not None}}


@app.command("search")
def find(
    principal: PrincipalOption = None,
    template: TemplateOption = None,
    finding: FindingOption = None,
    status: StatusOption = None,
    rule: RuleOption = None,
    action: ActionOption = None,
    urgent: UrgentOption = False,
    outcome: OutcomeOption = None,
    kind: Annotated[
        str, typer.Option(help="answer; read: who looked; refusal: what was turned down.")
    ] = "answer",
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    after: Annotated[
        str | None, typer.Option(help="Go on behind this: what an earlier search printed last.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
    config: ConfigOption = None,
) -> None:
    """List exchanges that have all that is asked for, newest first."""
    fields = {
        "kind": kind,
        "principal": principal,
        "template": template,
        "finding": finding,
        "status": status,
        "rule": rule,
        "action": action,
        "urgent": "yes" if urgent else None,
        "outcome": outcome,
    }
    wanted = _wanted(fields, since, until)
    behind = _hit(after)
    with session(config, Role.AUDITOR) as at:
        at.note("search", **wanted.said())
        with at.store.reading() as connection:
            terms = [at.store.term(*field) for field in wanted.fields.items()]
            page = search(
                connection,
                terms,
                since=wanted.since,
                until=wanted.until,
                after=behind,
                limit=limit,
            )
            lines = [printing.summary(hit, _opened(at, hit.audit_id)) for hit in page.hits]
    if as_json:
        for line in lines:
            typer.echo(json.dumps(line))
    else:
        console.print(printing.table(lines))
    if page.after is not None:
        _say(f"there are more: --after {page.after.at}/{page.after.audit_id}")


@app.command()
def show(
    exchange: ExchangeId,
    images: Annotated[
        Path | None, typer.Option(help="Folder to write its images to, as PNG.")
    ] = None,
    as_json: Json = False,
    config: ConfigOption = None,
) -> None:
    """Print everything of one exchange: also what the model said and what was not sent of it."""
    audit_id = _audit_id(exchange)
    with session(config, Role.AUDITOR) as at:
        at.note("show", of=audit_id)
        with at.store.reading() as connection:
            found = dossier(at.store, connection, audit_id)
            files = _files(at, found) if images is not None else {}
    if images is not None:
        try:
            images.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, content in files.items():
                _write(images / name, content)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}")
    if as_json:
        typer.echo(printing.as_json(found))
    else:
        for text in printing.pages(found):
            typer.echo(text)
    for name in files:
        _say(f"written: {name}")


@app.command("export")
def export_file(
    file: Annotated[Path, typer.Argument(help="Parquet file to write; there must be none yet.")],
    principal: PrincipalOption = None,
    template: TemplateOption = None,
    finding: FindingOption = None,
    status: StatusOption = None,
    rule: RuleOption = None,
    action: ActionOption = None,
    urgent: UrgentOption = False,
    outcome: OutcomeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    images: Annotated[
        bool, typer.Option("--images", help="With the images that the model saw, as PNG.")
    ] = False,
    principals: Annotated[
        bool, typer.Option("--principals", help="With names; otherwise keyed hashes of them.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Write exchanges to a Parquet file, a row for each choice, for the analysis of errors.

    Texts go through the policy's rules on patients (phi...) first; what they do not
    know stays in the file, so treat it as you treat the store.
    """
    from guardrails import policy
    from serve.audit.export import export, redactor

    if file.exists():
        fail(f"{file} is there already")
    fields = {
        "kind": "answer",
        "principal": principal,
        "template": template,
        "finding": finding,
        "status": status,
        "rule": rule,
        "action": action,
        "urgent": "yes" if urgent else None,
        "outcome": outcome,
    }
    wanted = _wanted(fields, since, until)
    with session(config, Role.AUDITOR) as at, _progress() as bar:
        redact = redactor(policy.load(at.settings.policy))
        options = {"images": str(images), "principals": str(principals)}
        at.note("export", **wanted.said(), **options)
        task = bar.add_task("exchanges", total=None)
        done = export(
            at.store,
            _all(at, wanted),
            file,
            redact,
            images=images,
            principals=principals,
            progress=lambda count: bar.update(task, completed=count),
        )
    _say(f"{file}: {done.rows} rows of {done.exchanges} exchanges")


@app.command("verify")
def verify_store(
    without_key: Annotated[
        bool,
        typer.Option(
            "--without-key",
            help="Chains and checkpoints alone, without the store's keys; opens nothing, so it "
            "needs no role.",
        ),
    ] = False,
    public_key: Annotated[
        str | None,
        typer.Option(
            help="Key that checkpoints are verified with (`llava-med audit public-key`). Default: "
            "that of the settings' signing key, which whoever changed the store may have, too."
        ),
    ] = None,
    as_json: Json = False,
    config: ConfigOption = None,
) -> None:
    """Prove that nothing was altered, taken out or cut off; exit code 0 if so, else 1."""
    settings = settings_of(config)
    public = _public_key(settings, public_key)

    if without_key:
        with told(settings):
            require_store(settings)
            engine = schema.engine_for(url_of(settings), timeout_s=settings.audit.timeout_s)
            with engine.connect() as connection:
                store_id = overview.store_id(connection)
            lines = checkpoints.read(checkpoint_folder(settings), store_id, public)
            with _progress() as bar:
                report = verify(engine, lines, None, _updating(bar))
            engine.dispose()
    else:
        with session(config, Role.AUDITOR) as at:
            at.note("verify")
            lines = checkpoints.read(checkpoint_folder(settings), at.store.id, public)
            with _progress() as bar:
                contents = Contents(at.store, at.settings.escalation.max_reminders)
                report = verify(at.store.engine, lines, contents, _updating(bar))
    if as_json:
        typer.echo(json.dumps({**asdict(report), "sound": report.sound}))
    else:
        for line in printing.outcome(report):
            typer.echo(line)
    raise typer.Exit(0 if report.sound else 1)


@app.command("public-key")
def show_public_key(config: ConfigOption = None) -> None:
    """Print the key that checkpoints are verified with. Keep it where the store's owner cannot."""
    public = _public_key(settings_of(config), None)
    typer.echo(base64.b64encode(public.public_bytes_raw()).decode())


@app.command()
def status(as_json: Json = False, config: ConfigOption = None) -> None:
    """Print how much is in the store, since when, and what is still to be done."""
    with session(config, Role.AUDITOR) as at:
        at.note("status")
        public = _public_key(at.settings, None)
        lines = checkpoints.read(checkpoint_folder(at.settings), at.store.id, public)
        with at.store.reading() as connection:
            found = overview.overview(at.store, connection, lines)
    found = {"database": database(at.settings), **found}
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


@app.command()
def retain(
    before: Annotated[
        str | None,
        typer.Option(
            help="Shred what began before: a date, a time (UTC), or ago: 90d, 52w. Default: the "
            "setting audit.retention_days."
        ),
    ] = None,
    open_too: Annotated[
        bool, typer.Option("--open-too", help="Also what a clinician has not reviewed yet.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Even if nothing was recorded in the last two days.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Shred what is old: destroy its keys and contents. The chains still verify afterwards.

    This cannot be undone. PostgreSQL: old row versions go with VACUUM, and backups
    are yours; rotating the key afterwards makes the wrapped keys in them useless.
    """
    now = time.time_ns() // 1000
    with session(config, Role.ADMIN) as at, _progress() as bar:
        days = at.settings.audit.retention_days
        if before is None and days is None:
            fail("name a time with --before, or set audit.retention_days")
        limit = now - (days or 0) * retention.DAY_US if before is None else _time(before, now)
        task = bar.add_task("exchanges shredded", total=None)
        try:
            done = retention.shred(
                at.store,
                at.writer,
                at.principal,
                limit,
                open_too=open_too,
                sure=yes,
                progress=lambda count: bar.update(task, completed=count),
            )
        except retention.ClockError as error:
            bar.stop()
            fail(f"nothing is shredded: {error}; if it is right, give --yes")
    _say(f"shredded: {done.exchanges} exchanges, {done.images} images")
    if done.kept:
        _say(f"kept: {done.kept} whose review is open (--open-too shreds them as well)")
    if not done.log_emptied:
        fail(
            "others read at the same time, so former content is still in the write-ahead log; "
            "run this again",
            code=1,
        )


@app.command("rotate-key")
def rotate_key(
    finish: Annotated[
        bool,
        typer.Option("--finish", help="After the restart: remove the former keys from the file."),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Put a new key-encryption key in force, while the service runs; then --finish.

    First run: adds a new key to the key file and wraps everything anew. Then restart the
    service, so that it uses the new key, too, and run this again with --finish.
    """
    with session(config, Role.ADMIN) as at, _progress() as bar:
        audit = at.settings.audit
        path = audit.key_file.expanduser() if audit.key_file and audit.key is None else None
        if not finish and len(at.store.keyring.ids) == 1:
            if path is None:
                bar.stop()
                _say(
                    "the key is in audit.key: put this new one before it, separated by a comma, "
                    "restart the service, and run this again. Shown this once:"
                )
                typer.echo(keyring.new_key())
                return
            key_file.change(path, lambda keys: (keyring.new_key(), *keys))
        ring = keyring_of(audit)  # of the file as it is now
        task = bar.add_task("keys", total=None)
        done = rotate.rotate(
            at.store,
            at.writer,
            ring,
            at.principal,
            lambda count, total: bar.update(task, completed=count, total=total),
        )
        remaining = rotate.left(at.store, ring)
    _say(f"{done.rewrapped} keys wrapped anew; all are under {done.current}")
    if not finish:
        _say("now restart the service, and then run: llava-med audit rotate-key --finish")
        return
    if remaining or done.newest > time.time_ns() // 1000 - _SETTLED_US:
        fail(
            "a process still wraps by a former key, which therefore stays: restart every process "
            "of the service, wait two minutes, and run this again",
            code=1,
        )
    if path is None:
        _say("every former key can be taken out of audit.key now")
    else:
        key_file.change(path, lambda keys: keys[:1])
        _say(f"the former keys are gone from {path}")


# --- what the commands share -------------------------------------------------------------------


def _wanted(fields: dict[str, str | None], since: str | None, until: str | None) -> _Wanted:
    now = time.time_ns() // 1000
    return _Wanted(
        {name: value for name, value in fields.items() if value is not None},
        None if since is None else _time(since, now),
        None if until is None else _time(until, now),
    )


def _time(text: str, now: int) -> int:
    if ago := re.fullmatch(r"(\d{1,6})([hdw])", text):
        return now - int(ago[1]) * _UNITS_S[ago[2]] * 1_000_000
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(f"not a time: {text!r}; a date (2026-05-31), 2026-05-31T08:00, or ago: 12h, 7d, 2w")
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return int(at.timestamp() * 1_000_000)


def _audit_id(given: str) -> str:
    try:
        return audit_id_of(given)
    except ValueError:
        fail("that is no id: give an audit_id, a review_id, a request's or a response's id")


def _hit(after: str | None) -> Hit | None:
    if after is None:
        return None
    found = re.fullmatch(r"(\d{1,18})/([0-9a-f-]{36})", after)
    if found is None:
        fail("--after takes what an earlier search printed last")
    return Hit(int(found[1]), found[2])


def _all(at: Session, wanted: _Wanted) -> Iterator[Hit]:
    terms = [at.store.term(*field) for field in wanted.fields.items()]
    after = None
    while True:
        with at.store.reading() as connection:
            page = search(
                connection,
                terms,
                since=wanted.since,
                until=wanted.until,
                after=after,
                limit=_PAGE,
            )
        yield from page.hits
        after = page.after
        if after is None:
            return


def _opened(at: Session, audit_id: str) -> Dossier | None:
    with at.store.reading() as connection:
        try:
            return dossier(at.store, connection, audit_id)
        except ShreddedError:
            return None


def _files(at: Session, found: Dossier) -> dict[str, bytes]:
    """The images of an exchange, by the names that they are written under."""
    files = {}
    request = found.one(RequestRecord)
    with at.store.reading() as connection:
        for number, image in enumerate(request.images if request else ()):
            for what, name in (("square", image.square), ("picture", image.picture)):
                if name is not None:
                    content = at.store.blob(connection, bytes.fromhex(name))
                    files[f"{found.audit_id}-{number}-{what}.png"] = content
    return files


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _public_key(settings: Settings, given: str | None) -> Ed25519PublicKey:
    if given is not None:
        try:
            return Ed25519PublicKey.from_public_bytes(base64.b64decode(given, validate=True))
        except (binascii.Error, ValueError):
            fail("--public-key takes what `llava-med audit public-key` prints")
    if settings.audit.signing_key is None:
        fail("no key to verify checkpoints with: give --public-key, or set audit.signing_key")
    try:
        key = checkpoints.signing_key(settings.audit.signing_key.get_secret_value())
    except ValueError:
        fail("audit.signing_key is not base64 of 32 bytes")
    return key.public_key()


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def _updating(bar: Progress) -> Updating:
    task = bar.add_task("records", total=None)
    return lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def _say(message: str) -> None:
    errors.print(message, highlight=False, markup=False, soft_wrap=True)
