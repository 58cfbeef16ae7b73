"""The console's files: a fixed list, read once, with headers that let a browser do little.

There is nothing of anybody in them; data comes by the API, with a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONSOLE = Path(__file__).with_name("console")
INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles from here only, nothing in line, no frames, no forms, no strings made markup.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src blob: 'self'",
    "connect-src 'self'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": "; ".join(_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Page:
    """A file, ready to be sent."""

    media_type: str
    content: bytes = field(repr=False)


def read_pages(folder: Path = CONSOLE) -> Mapping[str, Page]:
    """Every file that the console may have, by its name: no other path leads to a file."""
    return {
        path.name: Page(_MEDIA_TYPES[path.suffix], path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.suffix in _MEDIA_TYPES and path.is_file()
    }
