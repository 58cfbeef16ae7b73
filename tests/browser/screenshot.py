"""The picture of the console in docs: `python -m tests.browser.screenshot docs/images/console.png`.

Drawings of nobody only (serve/phantom/draw.py).
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import async_playwright

from guardrails.answers import Status, Template
from serve.phantom.draw import Phantom
from tests.browser.conftest import Console, launch
from tests.browser.desk import Desk, desk_in, file

ANSWER = (
    "likely present, explanation: There is a pneumothorax on the right. "
    "A small pleural effusion cannot be excluded. No consolidation."
)


async def take(desk: Desk, target: Path) -> None:
    """An urgent draft with a verdict, beside its image."""
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        context = await browser.new_context(
            viewport={"width": 1400, "height": 900}, color_scheme="dark"
        )
        window = Console(await context.new_page(), desk)
        await window.page.goto(desk.url)
        await window.open_first()
        await window.press("2", "o")
        await window.page.locator("#counts").filter(has_text="1 claimed").wait_for()
        await window.drawn()
        picture = Image.open(io.BytesIO(await window.page.screenshot()))
        few = picture.convert("RGB").quantize(
            256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        few.save(target, optimize=True)
        await browser.close()


def main() -> None:
    """Makes drafts, opens the first, and takes its picture."""
    with tempfile.TemporaryDirectory() as folder, desk_in(Path(folder)) as desk:
        desk.draft(
            question="Is there evidence of pneumothorax?",
            answers=[ANSWER],
            findings={
                "pneumothorax": Status.PRESENT,
                "effusion": Status.INDETERMINATE,
                "consolidation": Status.ABSENT,
            },
            template=Template.FINDING,
            urgent=["pneumothorax"],
            images=[file(Phantom(pneumothorax="right"), 1024)],
            age_s=95,
        )
        for minutes in range(6):
            desk.draft(age_s=60 * minutes)
        asyncio.run(take(desk, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
