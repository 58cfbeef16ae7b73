"""The console for everybody: axe-core finds nothing, and zoomed to 200 % all of it can be reached.

axe-core: WCAG 2.2 A and AA and its own best practices, contrast among them.
"""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

from guardrails.answers import Status
from serve.phantom.draw import Phantom
from tests.browser.conftest import Opened
from tests.browser.desk import Desk, file


async def faults(page: Page) -> list[Any]:
    found = await Axe().run(page)
    return [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in found.response["violations"]
    ]


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("zoom", [1, 2])
async def test_no_view_has_a_fault(scheme: str, zoom: int, console: Opened, desk: Desk) -> None:
    desk.draft(urgent=["pneumothorax"], images=[file(Phantom(pneumothorax="right"))])
    desk.draft(findings={"effusion": Status.ABSENT})
    # What zooming does to a page: fewer of its pixels.
    size = {"width": 1400 // zoom, "height": 900 // zoom}
    window = await console(color_scheme=scheme, viewport=size)
    assert await faults(window.page) == []
    await window.sign_in()
    assert await faults(window.page) == []
    await window.press("Enter")
    await window.opened()
    await window.press("m")
    await window.page.keyboard.type("mass")
    await window.press("Enter", "e")
    await window.page.locator("details summary").click()
    assert await faults(window.page) == []
    await window.press("Escape", "?")
    assert await faults(window.page) == []


async def test_at_200_percent_nothing_is_cut_off_and_the_banner_stays(
    console: Opened, desk: Desk
) -> None:
    desk.draft(urgent=["pneumothorax"], images=[file()])
    window = await console(viewport={"width": 700, "height": 450})
    await window.open_first()
    wide = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not await window.page.evaluate(wide)
    await window.page.locator("#reject").scroll_into_view_if_needed()
    box = await window.page.locator(".research").bounding_box()
    assert box is not None
    assert box["y"] == 0


async def test_tab_goes_through_an_item_in_the_order_of_the_page(
    console: Opened, desk: Desk
) -> None:
    desk.draft(images=[file()])
    window = await console()
    await window.open_first()
    reached = []
    for _ in range(9):
        await window.press("Tab")
        reached.append(
            await window.page.evaluate("document.activeElement.id || document.activeElement.value")
        )
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await window.page.evaluate(outline) == "solid"
    assert reached == [
        "claim",
        "agree",
        "agree",
        "agree",
        "missed",
        "",
        "comment",
        "agree-all",
        "sign-off",
    ]
