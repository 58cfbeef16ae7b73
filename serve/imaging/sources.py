"""What the ``url`` of an image part can be, parsed: bytes that came along, or where to get them.

    data:application/dicom;window=lung;frame=3;base64,...      data:image/png;role=prior;base64,...
    dicomweb:STUDY/SERIES/INSTANCE[/frames/N][?window=lung]    https://host/path (hosts on the list)

Parameters follow RFC 2397 (``;name=value`` before the comma of a data URL); a ``dicomweb:``
reference has them as a query. An ``https:`` URL takes none: its query is the host's.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Final, Literal

from pybase64 import b64decode
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve.body import Body
from serve.errors import BadRequest, UnsupportedMedia
from serve.imaging.windows import PRESETS

DICOM: Final = "application/dicom"
# Decoded at a time: the decoder holds Python's lock, and with it every stream of this replica.
_BASE64_PIECE = 1 << 20  # characters, a multiple of four
MEDIA_TYPES = ("image/png", "image/jpeg", DICOM)

_PARAMETER = r"[a-z]{1,16}=[\w.+-]{1,32}"  # a value needs no escapes and no white space
_DATA_URL = re.compile(
    rf"data:([a-z0-9.+/-]{{0,64}})((?:;{_PARAMETER}){{0,5}});base64,", re.I | re.A
)
_UID = r"([0-9.]{1,64})"  # DICOM PS3.5 9.1
_DICOMWEB = re.compile(
    rf"dicomweb:{_UID}/{_UID}/{_UID}(?:/frames/([0-9]{{1,9}}))?"
    rf"(?:\?({_PARAMETER}(?:&{_PARAMETER}){{0,4}}))?",
    re.I | re.A,
)
_HTTPS = re.compile(r"https://[!-~]{1,2048}", re.I)


class Wanted(BaseModel):
    """What a client asks of one image. All of it is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    window: str | None = Field(
        default=None, description="A window by name, or the file's own by number, from 1."
    )
    center: float | None = Field(
        default=None, allow_inf_nan=False, description="WindowCenter, in the file's units."
    )
    width: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="WindowWidth, in the file's units."
    )
    frame: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Frame number, from 1. Default: RepresentativeFrameNumber, else 1.",
    )
    role: Literal["prior", "current"] | None = Field(
        default=None, description="Which study the image is of, where two are compared."
    )

    @field_validator("window")
    @classmethod
    def _known_window(cls, window: str | None) -> str | None:
        if window is None or window in PRESETS or re.fullmatch(r"[1-9][0-9]{0,2}", window):
            return window
        raise ValueError("no such window")

    @model_validator(mode="after")
    def _one_window(self) -> Wanted:
        if (self.center is None) != (self.width is None):
            raise ValueError("center and width go together")
        if self.window is not None and self.center is not None:
            raise ValueError("a window is named, or given by center and width")
        return self


@dataclass(frozen=True, slots=True)
class Inline:
    """An image that came with the request, and what the client says it is."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Remote:
    """An image on a host; which hosts are allowed is for serve.imaging.fetch to know."""

    url: str


@dataclass(frozen=True, slots=True)
class Instance:
    """A DICOM instance in the PACS. The UIDs go to the PACS and nowhere else."""

    study: str
    series: str
    instance: str


Source = Inline | Remote | Instance


def parse(url: str, inline: Body, *, param: str) -> tuple[Source, Wanted]:
    """Reads the URL of an image part. Fetches nothing.

    Args:
        url: as the client sent it, or with a reference in the place of its base64.
        inline: what a reference stands for.
        param: the request's part that an error names.

    Raises:
        BadRequest: no URL of these kinds, a parameter that is unknown or wrong, not base64.
        UnsupportedMedia: a data URL of a media type other than MEDIA_TYPES.
    """
    scheme = url[:9].lower()
    if scheme.startswith("data:"):
        return _data_url(url, inline, param)
    if scheme.startswith("dicomweb:") and (match := _DICOMWEB.fullmatch(url)):
        study, series, instance, frame, query = match.groups()
        pairs = query.split("&") if query else []
        return Instance(study, series, instance), _wanted(
            [*pairs, f"frame={frame}"] if frame else pairs, param
        )
    if scheme.startswith("https:") and _HTTPS.fullmatch(url):
        return Remote(url), Wanted()
    raise BadRequest(
        "An image is a base64 data URL (data:image/png;base64,...), a reference into the PACS "
        "(dicomweb:STUDY/SERIES/INSTANCE), or an https URL of an allowed host.",
        param=param,
        code="invalid_image_url",
    )


def _data_url(url: str, inline: Body, param: str) -> tuple[Inline, Wanted]:
    match = _DATA_URL.match(url)
    if match is None:
        raise BadRequest(
            "A data URL is data:TYPE;base64,... with parameters, if any, before base64: "
            "data:application/dicom;window=lung;base64,...",
            param=param,
            code="invalid_image_url",
        )
    media_type = match[1].lower()
    if media_type not in MEDIA_TYPES:
        raise UnsupportedMedia(
            f"This service takes images as {', '.join(MEDIA_TYPES)}. A data URL names its type.",
            param=param,
        )
    wanted = _wanted(match[2].split(";")[1:], param)
    try:
        data = _base64(url[match.end() :], inline)
    except (binascii.Error, ValueError):
        raise BadRequest(
            "The image's data URL is not valid base64.", param=param, code="invalid_base64"
        ) from None
    return Inline(media_type, data), wanted


def _base64(text: str, inline: Body) -> bytes:
    """Decodes strictly: no white space, nothing missing, nothing after the padding (RFC 4648 3)."""
    payload = inline.payload(text)
    if payload is None:
        payload = memoryview(text.encode("ascii"))
    pieces = []
    for start in range(0, len(payload), _BASE64_PIECE):
        piece = payload[start : start + _BASE64_PIECE]
        if bytes(piece[-1:]) == b"=" and start + len(piece) < len(payload):
            raise ValueError("padding in the middle")
        pieces.append(b64decode(piece, validate=True))
    return b"".join(pieces)


def _wanted(pairs: list[str], param: str) -> Wanted:
    split = [pair.partition("=") for pair in pairs]
    given = {name.lower(): value for name, _, value in split}
    try:
        wanted = Wanted.model_validate(given)
    except ValidationError:
        wanted = None
    if wanted is None or len(given) < len(split):
        raise BadRequest(
            f"Image parameters are window ({', '.join(PRESETS)}, or a number), center and width "
            "(numbers), frame (a number from 1), and role (prior, current); each once.",
            param=param,
            code="invalid_image_parameter",
        )
    return wanted
