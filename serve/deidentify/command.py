"""``llava-med deidentify``: options, progress, summary. The work is in run.py and one.py."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from serve.deidentify.files import Ledger
    from serve.deidentify.one import Job
    from serve.deidentify.run import Finished
    from serve.settings import Settings

SIDE = 336  # of the square, as LLaVA-Med's vision tower has it
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

console = Console()
errors = Console(stderr=True)


def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder, or one file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make. Empty or absent.")],
    crosswalk: Annotated[
        Path | None,
        typer.Option(
            help="Also write a CSV of input path and output name, readable by you only. It names "
            "patients where paths do, so it may not lie in OUT. Without it there is no way back."
        ),
    ] = None,
    frames: Annotated[
        Literal["representative", "first", "all"],
        typer.Option(
            help="Of multi-frame DICOM: the frame that the file calls representative (else the "
            "first), the first, or one PNG each (000001-0003.png)."
        ),
    ] = "representative",
    window: Annotated[
        str | None,
        typer.Option(
            help="CT window by name (lung, mediastinum, bone, ...), or the file's own by number. "
            "Images of other kinds are not affected by a name."
        ),
    ] = None,
    center: Annotated[float | None, typer.Option(help="WindowCenter, with --width.")] = None,
    width: Annotated[float | None, typer.Option(help="WindowWidth, with --center.")] = None,
    burned_in: Annotated[
        Literal["refuse", "mask", "flag"] | None,
        typer.Option(
            help="Images that may have text burned in: refuse them; mask, and refuse where nobody "
            "knows where the text is; or write them untouched, with `flagged` in the report. "
            "Default: the setting imaging.burned_in, mask."
        ),
    ] = None,
    ocr: Annotated[
        bool | None,
        typer.Option(
            "--ocr/--no-ocr",
            help="Look for text in every image with tesseract. Default: the setting imaging.ocr.",
        ),
    ] = None,
    square: Annotated[
        bool, typer.Option("--square", help="Write just what the model sees: padded, 336 x 336.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes. Default: one for each CPU.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what an earlier run left in OUT, all of it."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML settings file: limits, your devices' known regions."),
    ] = None,
) -> None:
    """Turn DICOM, PNG and JPEG into PNGs with nothing about the patient left.

    IN is searched with all its subfolders. Each image becomes an 8-bit PNG of
    pixels alone, at its own size, numbered in the order of input paths:
    000001.png. Names of files and folders may be those of patients, so they
    appear nowhere but in the crosswalk. OUT/report.csv has a line for each:
    size, frame, window, what was done about burned-in text, outcome, SHA-256.

    Files that are no images (reports, other formats) are counted as skipped,
    and never copied; symbolic links are not followed. Ctrl-C ends the run and
    leaves whole files and the report of them.

    Exit code: 0 if every image was written, 1 if some were not (the report has
    each one's code), 2 if the command cannot run as given, 130 after Ctrl-C.
    """
    from serve.deidentify import files
    from serve.deidentify import run as work

    try:
        settings = _settings(config)
        job = _job(settings, frames, square, burned_in, ocr, (window, center, width))
        files.check_places(source, out, crosswalk, overwrite=overwrite)
        entries = work.find(source)
        count = min(workers or len(os.sched_getaffinity(0)), len(entries))
        with (
            _signals() as seen,
            work.processes(job, settings.imaging, workers=count) as pool,
            files.opened(out, overwrite=overwrite),
            files.Ledger(entries, out, crosswalk) as ledger,
        ):
            rows = work.run(entries, out, job, pool, window=4 * count, stopped=lambda: bool(seen))
            tally = _followed(rows, len(entries), ledger)
    except work.CannotRunError as error:
        _fail(str(error))
    except OSError:
        _fail("OUT or the crosswalk can no longer be written to", code=1)
    _summarise(tally, len(entries), has_crosswalk=crosswalk is not None)
    if seen:
        raise typer.Exit(128 + seen[0])
    raise typer.Exit(1 if tally.failed else 0)


def _job(
    settings: Settings,
    frames: Literal["representative", "first", "all"],
    square: bool,
    burned_in: Literal["refuse", "mask", "flag"] | None,
    ocr: bool | None,
    window: tuple[str | None, float | None, float | None],
) -> Job:
    from serve.deidentify.one import Job
    from serve.deidentify.run import CannotRunError
    from serve.imaging.intake import Rules
    from serve.imaging.sources import Wanted
    from serve.imaging.windows import PRESETS

    imaging = settings.imaging
    try:
        wanted = Wanted(window=window[0], center=window[1], width=window[2])
    except ValidationError:
        raise CannotRunError(
            f"--window is {', '.join(PRESETS)}, or a number from 1; or --center and --width "
            "together, the width above 0"
        ) from None
    return Job(
        rules=replace(
            Rules.of(settings, side=SIDE),
            burned_in=burned_in or imaging.burned_in,
            ocr=imaging.ocr if ocr is None else ocr,
            uid_key=b"",  # nothing is recorded about instances
        ),
        wanted=wanted,
        frames=frames,
        square=square,
        # Reading takes the file's size twice, and the rest is for decoding. Fetched files have a
        # smaller limit, but those are strangers'.
        max_bytes=(imaging.worker_memory_mib << 20) // 4,
    )


def _settings(config: Path | None) -> Settings:
    from serve.deidentify.run import CannotRunError
    from serve.settings import load, problems

    try:
        return load(config)
    except FileNotFoundError:
        raise CannotRunError("--config does not exist") from None
    except ValidationError as error:
        raise CannotRunError(problems(error)) from None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came and would have ended the process; empty as long as none did."""
    seen: list[int] = []
    former = {number: signal.signal(number, lambda it, _: seen.append(it)) for number in _SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class _Tally:
    rows: Counter[tuple[str, str]]
    files: int
    seconds: float

    @property
    def failed(self) -> int:
        return self._of("failed")

    @property
    def written(self) -> int:
        return self._of("written")

    def _of(self, wanted: str) -> int:
        return sum(count for (outcome, _), count in self.rows.items() if outcome == wanted)


def _followed(rows: Iterable[Finished], total: int, ledger: Ledger) -> _Tally:
    """Takes the rows in, with a progress bar where there is a terminal."""
    tally, started = _Tally(Counter(), 0, 0.0), time.monotonic()
    columns = (
        TextColumn("de-identifying"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f}/s"), TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )  # fmt: skip
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=total, rate=0.0, failed=0)
        for finished in rows:
            tally.rows[finished.row.outcome, finished.row.code] += 1
            tally.files += ledger.add(finished)
            tally.seconds = time.monotonic() - started
            rate = tally.files / max(tally.seconds, 1e-3)
            bar.update(task, completed=tally.files, rate=rate, failed=tally.failed)
    return tally


def _summarise(tally: _Tally, total: int, *, has_crosswalk: bool) -> None:
    table = Table("outcome", "code", "images")
    for (outcome, code), count in sorted(tally.rows.items(), reverse=True):
        table.add_row(outcome, code, str(count))
    console.print(table)
    unfinished = f" of {total}" if tally.files < total else ""
    console.print(
        f"{tally.files}{unfinished} files in {tally.seconds:.1f} s "
        f"({tally.files / max(tally.seconds, 1e-3):.0f}/s): {tally.written} images written, "
        f"{tally.failed} failed. The report is OUT/report.csv.",
        highlight=False,
        soft_wrap=True,
    )
    if tally.failed and not has_crosswalk:
        console.print("--crosswalk FILE tells which they are.", highlight=False)


def _fail(message: str, *, code: int = 2) -> NoReturn:
    errors.print(
        f"llava-med: {message}", style="red", highlight=False, markup=False, soft_wrap=True
    )
    raise typer.Exit(code)
