"""One browser for all tests; for each a service of its own, and pages that are watched."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.async_api import Browser, ConsoleMessage, Page, Playwright, async_playwright

from tests.browser.desk import KEYS, Desk, desk_in

SIDE = 256
# No other host is to be had: what would ask one, fails.
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# What Chromium says of answers over 399, which tests are about, and of how tests read canvases.
_KNOWN = ("Failed to load resource", "Canvas2D: Multiple readback")
_WATCH = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`);
});
"""


@dataclass
class Console:
    """A page with the console, and everything that it did."""

    page: Page
    desk: Desk
    faults: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()  # faults that the test is about
    requests: list[str] = field(default_factory=list)

    async def sign_in(self, name: str = "jones") -> None:
        await self.page.keyboard.type(KEYS[name])
        await self.press("Enter")
        await self.page.locator("#list:not([hidden])").wait_for()

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.page.keyboard.press(key)

    async def open_first(self) -> None:
        """Signs in and opens what is at the top of the queue."""
        await self.sign_in()
        await self.press("Enter")
        await self.opened()

    async def opened(self) -> None:
        """Waits until an item is there, with its image."""
        await self.page.locator("#item-title:focus").wait_for()
        await self.page.locator("canvas:not([aria-busy=true])").wait_for()

    async def says(self, text: str) -> None:
        """Waits until a live region does."""
        await self.page.locator("#said, #warned").filter(has_text=text).wait_for()

    async def drawn(self) -> None:
        """Waits until what was asked for is on the canvas."""
        await self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    async def pixels(self) -> NDArray[np.int64]:
        """Red values in the middle of the canvas: SIDE x SIDE of them."""
        await self.drawn()
        found = await self.page.evaluate(
            """(side) => {
              const canvas = document.querySelector("canvas");
              const [x, y] = [canvas.width, canvas.height].map((of) => Math.round((of - side) / 2));
              const { data } = canvas.getContext("2d").getImageData(x, y, side, side);
              return Array.from({ length: side * side }, (_, at) => data[at * 4]);
            }""",
            SIDE,
        )
        return np.reshape(found, (SIDE, SIDE))


Opened = Callable[..., Awaitable[Console]]


def chromium() -> str:
    """The browser, or the test is skipped; in CI, where it has to be there, it fails."""
    found = shutil.which("chromium")
    if found is None:
        missing = "Debian's chromium is not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


async def launch(playwright: Playwright) -> Browser:
    """Starts Chromium, which reaches no host but this one."""
    return await playwright.chromium.launch(executable_path=chromium(), args=list(_ARGUMENTS))


@pytest.fixture(scope="package")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        yield browser
        await browser.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with desk_in(tmp_path) as running:
        yield running


@pytest.fixture
async def console(browser: Browser, desk: Desk) -> AsyncIterator[Opened]:
    """Opens the console in a profile of its own. Whatever a page must not do fails the test."""
    opened: list[Console] = []
    async with AsyncExitStack() as contexts:

        async def open_console(*, clock: bool = False, **options: Any) -> Console:
            options = {"viewport": {"width": 1400, "height": 900}, "color_scheme": "dark"} | options
            context = await browser.new_context(**options)
            contexts.push_async_callback(context.close)
            page = await context.new_page()
            new = Console(page, desk)
            opened.append(new)
            await _watch(new)
            if clock:
                await page.clock.install()
            await page.goto(desk.url)
            await page.locator("#key:focus").wait_for()
            return new

        yield open_console
    for one in opened:
        assert [
            fault for fault in one.faults if not any(known in fault for known in one.expected)
        ] == []
        assert {urlsplit(url).netloc for url in one.requests} == {urlsplit(desk.url).netloc}
        assert not [url for url in one.requests if any(key in url for key in KEYS.values())]


async def _watch(console: Console) -> None:
    page = console.page
    await page.add_init_script(_WATCH)
    page.on("request", lambda request: console.requests.append(request.url))
    page.on("pageerror", lambda error: console.faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: console.faults.append(f"dialog: {dialog.message}"))

    def on_console(said: ConsoleMessage) -> None:
        if not any(known in said.text for known in _KNOWN):
            console.faults.append(f"console: {said.text}")

    page.on("console", on_console)
