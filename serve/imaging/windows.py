"""Grey windows by name, in Hounsfield units: what a CT is looked at with.

Centre and width are those that radiology departments and viewers use by convention; they are not
part of DICOM. Sources agree to within some ten units (Radiopaedia, "Windowing (CT)"; the presets of
OHIF and Weasis).
"""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """WindowCenter and WindowWidth, in output units of the Modality LUT (HU for CT)."""

    center: float
    width: float


PRESETS = {
    "abdomen": Window(60, 400),
    "angio": Window(300, 600),
    "bone": Window(480, 2500),
    "brain": Window(40, 80),
    "liver": Window(90, 150),
    "lung": Window(-600, 1500),
    "mediastinum": Window(40, 400),
    "stroke": Window(40, 40),
    "subdural": Window(80, 200),
}

# What stands in where a file names no window and the request none. Every other modality has no
# scale of its own: its images are shown from their lowest to their highest value.
DEFAULT_CT = "mediastinum"
