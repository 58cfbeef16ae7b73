"""Where a scanner writes beside its picture: from the header, or from a table of the operator's.

Plain geometry: knows rectangles and header values, no pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import pydicom

_CORNERS = (
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
)


class Box(NamedTuple):
    """A rectangle in pixels of the image; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    def grown(self, margin: int) -> Box:
        """The box with ``margin`` more pixels on every side."""
        return Box(self.left - margin, self.top - margin, self.right + margin, self.bottom + margin)

    def within(self, size: tuple[int, int]) -> Box | None:
        """The part inside an image of ``size`` (width, height); None where there is none."""
        width, height = size
        left, right = max(0, self.left), min(width, self.right)
        top, bottom = max(0, self.top), min(height, self.bottom)
        return Box(left, top, right, bottom) if left < right and top < bottom else None


class KnownRegion(BaseModel):
    """Where a kind of device burns text in. Every field that is given has to match."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: str | None = Field(default=None, description="Modality, for example `US`.")
    manufacturer: str | None = Field(
        default=None, min_length=2, description="Part of Manufacturer, in any case."
    )
    model: str | None = Field(
        default=None, min_length=2, description="Part of ManufacturerModelName, in any case."
    )
    rows: int | None = Field(default=None, gt=0, description="Height of the image, in pixels.")
    columns: int | None = Field(default=None, gt=0, description="Width of the image, in pixels.")
    boxes: tuple[Box, ...] = Field(
        min_length=1,
        description="What to black out: left, top, right, bottom in pixels, right and bottom "
        "being the first ones outside.",
    )

    @model_validator(mode="after")
    def _matches_something(self) -> KnownRegion:
        given = self.model_fields_set - {"boxes"}
        if all(getattr(self, name) is None for name in given):
            raise ValueError("a known region names at least one property of the images it is for")
        if any(box.within((2**31, 2**31)) != box for box in self.boxes):
            raise ValueError("a box is left, top, right, bottom: neither negative nor empty")
        return self

    def matches(self, header: pydicom.Dataset | None, size: tuple[int, int]) -> bool:
        """Whether the table's row is about this image. PNG and JPEG have a size only."""
        return (
            self.columns in (None, size[0])
            and self.rows in (None, size[1])
            and (self.modality is None or self.modality.casefold() == _text(header, "Modality"))
            and _part(self.manufacturer, _text(header, "Manufacturer"))
            and _part(self.model, _text(header, "ManufacturerModelName"))
        )


def scan_regions(header: pydicom.Dataset | None, size: tuple[int, int]) -> tuple[Box, ...]:
    """Where the scan itself is, after US Region Calibration (PS3.3 C.8.5.5.1.1).

    Returns:
        Boxes within the image. None at all where the header has no regions, where one is malformed
        or empty, or where one ends beyond the image: then the calibration was written for another
        matrix (the frame was cropped or resized since), and says nothing about this one. One pixel
        beyond is forgiven, because vendors write the size for the last index.
    """
    width, height = size
    boxes = []
    try:
        for item in header.get("SequenceOfUltrasoundRegions") or () if header is not None else ():
            x0, y0, x1, y1 = (int(item[name].value) for name in _CORNERS)
            box = Box(x0, y0, x1 + 1, y1 + 1).within(size)
            if box is None or x0 < 0 or y0 < 0 or x1 > width or y1 > height:
                return ()
            boxes.append(box)
    except Exception:  # a hostile header fails in many ways; none of them is a region
        return ()
    return tuple(boxes)


def _text(header: pydicom.Dataset | None, keyword: str) -> str:
    try:
        return str(header.get(keyword) or "").strip().casefold() if header is not None else ""
    except Exception:  # unreadable: matches nothing
        return ""


def _part(wanted: str | None, found: str) -> bool:
    return wanted is None or wanted.casefold() in found
