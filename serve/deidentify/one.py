"""One frame of one file as a bare PNG: what a decoding process does.

The process reads the file by path and writes the PNG by itself; only paths and facts cross
processes.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from PIL import Image
from pydicom import dcmread

from serve.errors import ApiError, BadRequest, TooLarge, UnusableImage
from serve.imaging import dicom
from serve.imaging.intake import Decoded, Rules, decode, decode_dicom, sniff
from serve.imaging.sources import DICOM, Wanted
from serve.imaging.square import to_square

Frames = Literal["representative", "first", "all"]
Outcome = Literal["written", "skipped", "failed"]

_COMPRESSION = 3  # of zlib: 6 takes 40 % longer for 8 % fewer bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """Something found in IN."""

    number: int  # from 1, in the order of sorted paths
    path: str
    problem: Literal["", "symbolic_link", "special_file", "unreadable_folder"] = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What holds for every file of a run."""

    rules: Rules
    wanted: Wanted  # its frame is not used
    frames: Frames
    square: bool
    max_bytes: int  # of one file


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report; the fields are its columns. Nothing in it names a patient."""

    number: int
    output: str = ""
    kind: str = ""
    frame: int | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    window_center: float | None = None
    window_width: float | None = None
    window_origin: str = ""
    burned_in: str = ""
    evidence: str = ""
    boxes: int | None = None
    outcome: Outcome = "failed"
    code: str = ""
    seconds: float | None = None
    sha256: str = ""


def convert(entry: Entry, frame: int | None, job: Job, temporary: str) -> Row:
    """One frame of one file, in a decoding process.

    Args:
        entry: the file.
        frame: of a multi-frame file; None is the representative one.
        job: what is wanted.
        temporary: where to write.

    Returns:
        Its row. ``sha256`` is set if, and only if, ``temporary`` was written.
    """
    started = time.perf_counter()
    row = Row(entry.number)
    try:
        source = _source(entry.path, _stamp(entry.path), job)
    except _NotTakenError as refused:
        row = replace(row, kind=refused.kind)
        return _ended(row, started, refused.outcome, refused.code)
    row = replace(row, kind=source.kind, frame=frame if source.kind == DICOM else None)
    try:
        decoded = _decode(source, row, job)
    except ApiError as error:
        return _ended(row, started, "failed", error.code)
    image = to_square(decoded.image, job.rules.side) if job.square else decoded.image
    png = _png(image)
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123 - a plain string crossed processes
            file.write(png)
    except OSError:
        return _ended(row, started, "failed", "output_not_written")
    row = _described(row, image, decoded)
    row = replace(row, sha256=hashlib.sha256(png).hexdigest())
    return _ended(row, started, "written", "")


def _ended(row: Row, started: float, outcome: Outcome, code: str) -> Row:
    seconds = round(time.perf_counter() - started, 4)
    return replace(row, outcome=outcome, code=code, seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file's bytes, or for DICOM what was read of it."""

    kind: str
    file: bytes | dicom.File


class _NotTakenError(Exception):
    """A file of which nothing is decoded."""

    def __init__(self, outcome: Outcome, code: str, kind: str = "") -> None:
        super().__init__(code)
        self.outcome, self.code, self.kind = outcome, code, kind


def _stamp(path: str) -> tuple[int, ...]:
    """Tells a file from one that took its place."""
    with suppress(OSError):
        status = os.lstat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


@lru_cache(maxsize=1)
def _source(path: str, _stamp: tuple[int, ...], job: Job) -> _Source:
    """Reads a file; the last one is kept, so that a process reads it once for all its frames."""
    try:
        data = _read(path, job.max_bytes)
    except ApiError as error:
        raise _NotTakenError("failed", error.code) from None
    try:
        kind = sniff(data)
    except ApiError as error:
        raise _NotTakenError("skipped", error.code) from None
    if kind != DICOM:
        return _Source(kind, data)
    rules = job.rules
    try:
        opened = dicom.opened(data, max_pixels=rules.max_pixels, max_frames=rules.max_frames)
    except ApiError as error:
        if error.code != "not_an_image":
            raise _NotTakenError("failed", error.code, kind) from None
        if _should_have_pixels(data):
            raise _NotTakenError("failed", UnusableImage.code, kind) from None
        raise _NotTakenError("skipped", error.code, kind) from None
    return _Source(kind, opened)


def _read(path: str, max_bytes: int) -> bytes:
    """A file's bytes. Neither a link nor a pipe that took its place since is followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            size = min(status.st_size, max_bytes) + 1
            data = file.read(size) if stat.S_ISREG(status.st_mode) else None
    except OSError:
        data = None
    if data is None:
        raise UnusableImage("The file cannot be read.", code="unreadable_file")
    if len(data) > max_bytes:
        raise TooLarge(f"A file may have {max_bytes} bytes.")
    return data


def _decode(source: _Source, row: Row, job: Job) -> Decoded:
    """Decodes with the window that is asked for, where the image can have it.

    One run goes through CT, radiographs, ultrasound and PNG. What a window is not for (colours, and
    other modalities than CT where it is a CT window's name) is shown as it is without; the report
    says so. A number that the file has no window for remains an error.
    """
    if isinstance(source.file, bytes):
        return decode(source.file, None, Wanted(), job.rules)
    wanted = job.wanted.model_copy(update={"frame": row.frame})
    try:
        return decode_dicom(source.file, wanted, job.rules)
    except BadRequest:
        decoded = decode_dicom(source.file, Wanted(frame=row.frame), job.rules)
        is_grey = decoded.rendered is not None and decoded.rendered.windowing is not None
        if is_grey and (wanted.window is None or wanted.window.isdigit()):
            raise
        return decoded


def _should_have_pixels(data: bytes) -> bool:
    """Whether a DICOM file without pixels was an image once: a transfer that broke off, mostly.

    pydicom reads such a file up to its end without complaint.
    """
    try:
        header = dcmread(io.BytesIO(data), specific_tags=["Rows"], stop_before_pixels=True)
        sop_class = header.file_meta.MediaStorageSOPClassUID.name
    except Exception:  # unreadable: nobody can say that it is none
        return True
    return "Rows" in header or "Image" in sop_class


def _png(image: Image.Image) -> bytes:
    # A fresh image has pixels alone: no info that Pillow would write into chunks of their own.
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def _described(row: Row, image: Image.Image, decoded: Decoded) -> Row:
    burned_in, rendered = decoded.burned_in, decoded.rendered
    row = replace(
        row,
        width=image.width,
        height=image.height,
        burned_in=burned_in.action,
        evidence=" ".join(burned_in.evidence),
        boxes=burned_in.boxes,
    )
    if rendered is None:
        return row
    row = replace(row, frame=rendered.frame, frames=rendered.frames)
    if rendered.windowing is None:
        return row
    windowing = rendered.windowing
    return replace(
        row,
        window_center=windowing.center,
        window_width=windowing.width,
        window_origin=windowing.origin,
    )
