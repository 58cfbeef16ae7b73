"""The files of ``llava-med deidentify``: the folder OUT, the report in it, the crosswalk outside.

The report says what was done to each file and nothing of where it came from. The crosswalk is the
way back, from a number to a path, which may name a patient: it is for the owner's eyes only.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from serve.deidentify.one import Entry, Row
from serve.deidentify.run import PARTIAL, CannotRunError, Finished

REPORT = "report.csv"
COLUMNS = tuple(field.name for field in fields(Row))
CROSSWALK_COLUMNS = ("number", "input", "output")
_OURS = re.compile(rf"[0-9]{{6,}}(-[0-9]{{4,}})?\.png|{re.escape(REPORT)}|{re.escape(PARTIAL)}")


def check_places(source: Path, out: Path, crosswalk: Path | None, *, overwrite: bool) -> None:
    """Refuses places that would mix what identifies a patient with what does not.

    Raises:
        CannotRunError: IN and OUT lie in each other, or the crosswalk lies in one of them,
            or may not be replaced.
    """
    if not source.exists():
        raise CannotRunError("IN does not exist")
    inside, outside = source.resolve(), out.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise CannotRunError("IN and OUT may not lie in each other")
    if crosswalk is None:
        return
    # What is written through a link is where the link points; the link itself is never followed.
    real = crosswalk.parent.resolve() / crosswalk.name
    if real.is_relative_to(outside):
        raise CannotRunError("--crosswalk names patients: it may not lie in OUT")
    if real.is_relative_to(inside):
        raise CannotRunError("--crosswalk may not lie in IN")
    if os.path.lexists(crosswalk) and not (overwrite and _is_crosswalk(crosswalk)):
        raise CannotRunError(
            "--crosswalk exists; --overwrite replaces it if it is an earlier run's"
        )


@contextmanager
def opened(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Makes OUT, or empties it of an earlier run's files; at the end removes unfinished ones.

    Raises:
        CannotRunError: it cannot be made, or has files that may not be replaced.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = list(out.iterdir())
        _check_replaceable(present, overwrite=overwrite)
        for path in present:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        (out / PARTIAL).mkdir()
    except OSError:
        raise CannotRunError("OUT cannot be written to") from None
    try:
        yield
    finally:
        shutil.rmtree(out / PARTIAL, ignore_errors=True)


def _check_replaceable(present: list[Path], *, overwrite: bool) -> None:
    if present and not overwrite:
        raise CannotRunError("OUT is not empty; --overwrite replaces an earlier run's files")
    for path in present:
        is_folder = path.is_dir() and not path.is_symlink()
        if not _OURS.fullmatch(path.name) or is_folder != (path.name == PARTIAL):
            raise CannotRunError("OUT has files that this command did not write")


class Ledger:
    """The report and the crosswalk, written in the order of files whichever is finished first.

    Lines are written as soon as all before them are known, each at once: what a run leaves when the
    machine fails is short, but true.
    """

    def __init__(self, entries: list[Entry], out: Path, crosswalk: Path | None) -> None:
        self._entries = entries
        self._next = 1
        self._waiting: dict[int, list[Row]] = {}
        self._whole: set[int] = set()  # of the waiting, those that have all their rows
        self._files = ExitStack()
        try:
            self._crosswalk = self._writer(_private(crosswalk)) if crosswalk else None
            self._report = self._writer((out / REPORT).open("x", buffering=1, newline=""))
        except OSError:
            self._files.close()
            raise CannotRunError("the report or the crosswalk cannot be written") from None
        self._report.writerow(COLUMNS)
        if self._crosswalk:
            self._crosswalk.writerow(CROSSWALK_COLUMNS)

    def _writer(self, file: IO[str]) -> Any:
        return csv.writer(self._files.enter_context(file), lineterminator="\n")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Also of an interrupted run: whatever is finished is in the report."""
        with self._files:
            for number in sorted(self._waiting):
                self._write(self._waiting[number])

    def add(self, finished: Finished) -> bool:
        """Takes a row; true if it is the last of its file."""
        rows = self._waiting.setdefault(finished.row.number, [])
        rows.append(finished.row)
        if len(rows) < finished.rows:
            return False
        self._whole.add(finished.row.number)
        while self._next in self._whole:
            self._whole.remove(self._next)
            self._write(self._waiting.pop(self._next))
            self._next += 1
        return True

    def _write(self, rows: list[Row]) -> None:
        for row in sorted(rows, key=lambda row: row.frame or 0):
            self._report.writerow([getattr(row, column) for column in COLUMNS])
            if self._crosswalk:
                path = os.path.abspath(self._entries[row.number - 1].path)  # noqa: PTH100
                self._crosswalk.writerow([row.number, path, row.output])


def _private(path: Path) -> IO[str]:
    """A new file that only its owner may read; ``check_places`` allowed what it replaces."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    # Paths are bytes: those that are not UTF-8 are written as they are.
    return os.fdopen(
        descriptor, "w", buffering=1, newline="", encoding="utf-8", errors="surrogateescape"
    )


def _is_crosswalk(path: Path) -> bool:
    head = ",".join(CROSSWALK_COLUMNS) + "\n"
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(head)) == head.encode()
