"""What a reviewer does with the console, by keyboard unless it is about the mouse."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from playwright.async_api import Route, expect

from guardrails.answers import Status, Template
from serve.phantom.draw import Phantom
from tests.browser.conftest import SIDE, Opened
from tests.browser.desk import KEYS, Desk, chest, file
from tests.exchanges import png


async def test_a_whole_review_by_keyboard_alone(console: Opened, desk: Desk) -> None:
    other = desk.draft(age_s=300)
    urgent = desk.draft(
        urgent=["pneumothorax"],
        findings={"pneumothorax": Status.PRESENT},
        images=[file(Phantom(pneumothorax="right"))],
    )
    window = await console()
    await window.sign_in()
    await expect(window.page.locator("#counts")).to_have_text("1 urgent · 2 pending · 0 claimed")
    await expect(window.page.locator("#rows tr").first).to_contain_text("Urgent: pneumothorax")
    await window.press("Enter")
    await window.opened()
    assert desk.state(urgent) == "pending"  # opening does not claim
    await window.press("c")
    await window.says("claim: done.")
    assert desk.state(urgent) == "claimed"
    await window.press("1", "w", "m")
    await window.page.keyboard.type("rib fracture")
    await window.press("Enter", "Tab", "Tab", "Tab")
    await window.page.locator("#comment").focus()
    await window.page.keyboard.type("The marker is on the other side.")
    await window.press("Escape", "s", "Enter")
    await window.says("This is the next one.")
    assert desk.state(urgent) == "signed_off"
    claim, close = desk.reviews(urgent)
    assert (claim.action, close.action, close.principal) == ("claim", "sign_off", "jones")
    given = {found.finding: found.verdict for found in close.findings}
    assert given == {"pneumothorax": "wrong_side", "rib fracture": "missed"}
    assert close.comment == "The marker is on the other side."
    await expect(window.page.locator("#turns")).to_contain_text("Describe the key findings.")
    await window.press("Escape")
    await expect(window.page.locator("#rows tr")).to_have_count(1)
    assert desk.state(other) == "pending"


async def test_the_first_verdict_claims(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.press("a")
    await window.says("claim: done.")
    assert desk.state(draft) == "claimed"
    await expect(window.page.locator("#standing")).to_contain_text("claimed by jones")


async def test_keys_that_come_faster_than_answers_are_all_taken(
    console: Opened, desk: Desk
) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()

    async def late(route: Route) -> None:
        await asyncio.sleep(0.3)
        await route.continue_()

    await window.page.route("**/claim", late)
    await window.press("o", "2", "a", "3", "a", "s", "Enter", "Enter")
    await window.says("Nothing else is pending.")
    assert len([url for url in window.requests if url.endswith("/claim")]) == 1
    assert [done.action for done in desk.reviews(draft)] == ["claim", "sign_off"]
    given = {found.finding: found.verdict for found in desk.reviews(draft)[-1].findings}
    assert given == {"cardiomegaly": "overcall", "effusion": "agree", "pneumothorax": "agree"}


async def test_y_twice_agrees_with_all_and_signs_off(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.press("y")
    await window.says("Press y again within 3 seconds")
    assert desk.state(draft) == "pending"
    await window.press("y")
    await window.says("Nothing else is pending.")
    assert desk.state(draft) == "signed_off"
    assert {found.verdict for found in desk.reviews(draft)[-1].findings} == {"agree"}


async def test_y_that_is_held_or_comes_late_signs_nothing(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    window = await console(clock=True)
    await window.open_first()
    for _ in range(3):
        await window.page.keyboard.down("y")
    await window.page.keyboard.up("y")
    await window.page.clock.run_for(3_100)
    await window.press("y")
    await window.says("Press y again")
    assert desk.state(draft) == "pending"


async def test_y_does_not_agree_over_another_verdict(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.press("o")
    await window.says("claim: done.")
    await window.press("y", "y")
    await window.says("You gave other verdicts than agree")
    assert desk.state(draft) == "claimed"


@pytest.mark.parametrize("word", ["assess", "process", "excess"])
async def test_a_word_typed_outside_of_a_field_closes_nothing(
    word: str, console: Opened, desk: Desk
) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.page.keyboard.type(word)
    await window.drawn()
    assert desk.state(draft) in ("pending", "claimed")


async def test_a_draft_is_amended(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.press("e", "Control+Enter")
    await window.says("The text is empty or as it was")
    await window.press("Control+A")
    await window.page.keyboard.type("Impression: Normal heart.")
    await window.press("Control+Enter")
    await window.says("Nothing else is pending.")
    assert desk.state(draft) == "amended"
    assert desk.reviews(draft)[-1].amended == "Impression: Normal heart."


async def test_a_draft_is_rejected_and_another_released(console: Opened, desk: Desk) -> None:
    rejected, released = desk.draft(age_s=120), desk.draft()
    window = await console()
    await window.open_first()
    await window.press("x")
    await window.says("Press Enter to reject.")
    await window.press("Enter")
    await window.says("This is the next one.")
    await window.press("c")
    await window.says("claim: done.")
    await window.press("r")
    await window.says("release: done.")
    assert (desk.state(rejected), desk.state(released)) == ("rejected", "pending")


async def test_an_urgent_draft_is_acknowledged_without_a_claim(console: Opened, desk: Desk) -> None:
    draft = desk.draft(urgent=["pneumothorax"])
    window = await console()
    await window.open_first()
    await window.press("n")
    await window.says("acknowledge: done.")
    assert desk.state(draft) == "pending"
    assert [done.action for done in desk.reviews(draft)] == ["acknowledge"]


async def test_verdicts_that_cannot_be_true_are_not_offered(console: Opened, desk: Desk) -> None:
    desk.draft()
    window = await console()
    await window.open_first()
    offered = [
        [await radio.get_attribute("value") for radio in await row.locator("input").all()]
        for row in await window.page.locator("#findings fieldset").all()
    ]
    assert offered == [
        ["agree", "overcall", "wrong_side"],
        ["agree", "overcall", "wrong_side", "missed"],
        ["agree", "missed"],
    ]
    await window.press("3", "o")  # an absent finding is no over-call
    assert await window.page.locator("input:checked[type=radio]").count() == 0


async def test_findings_are_marked_where_they_stand_behind_characters_of_two_units(
    console: Opened, desk: Desk
) -> None:
    desk.draft(answers=["\U0001fac1\U0001fac1 There is a pneumothorax."], template=Template.FREE)
    window = await console()
    await window.open_first()
    mark = window.page.locator("#drafts mark")
    await expect(mark).to_have_text("pneumothorax (present)")
    await expect(mark).to_have_class("present")
    style = "mark => getComputedStyle(mark).textDecorationStyle"
    assert await mark.evaluate(style) == "solid"
    assert await window.page.locator("#legend .absent").evaluate(style) == "dotted"


async def test_the_list_follows_the_queue_and_its_filter(console: Opened, desk: Desk) -> None:
    desk.draft(age_s=540)
    window = await console(clock=True)
    await window.sign_in()
    await expect(window.page.locator("#rows tr")).to_have_count(1)
    desk.draft(urgent=["pneumothorax"])
    await window.page.clock.run_for(6_000)
    await expect(window.page.locator("#rows tr")).to_have_count(2)
    await expect(window.page.locator("#rows tr").first).to_contain_text("Urgent")
    # What had the focus has it still.
    await expect(window.page.locator("#rows tr").nth(1).locator("button")).to_be_focused()
    await window.press("k")
    await expect(window.page.locator("#rows tr").first.locator("button")).to_be_focused()
    await window.press("/", "s")  # the select goes to "Signed off"
    await expect(window.page.locator("#state")).to_have_value("signed_off")
    await expect(window.page.locator("#empty")).to_be_visible()


async def test_more_than_a_page_is_shown_on_demand(console: Opened, desk: Desk) -> None:
    for _ in range(53):
        desk.draft()
    window = await console()
    await window.sign_in()
    await expect(window.page.locator("#rows tr")).to_have_count(50)
    await window.page.locator("#more").click()
    await expect(window.page.locator("#rows tr")).to_have_count(53)
    await expect(window.page.locator("#more")).to_be_hidden()


async def test_who_closes_second_is_told_and_loses_nothing(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    first, second = await console(), await console()
    await first.open_first()
    await second.sign_in("smith")
    await second.press("Enter")
    await second.opened()
    await second.page.locator("#comment").fill("Seen with Dr. Who.")
    await first.press("c")
    await first.says("claim: done.")
    await second.press("Escape", "s", "Enter")
    await second.says("jones holds this item.")
    await second.says("What you entered is kept.")
    await expect(second.page.locator("#standing")).to_contain_text("claimed by jones")
    await first.press("s", "Enter")
    await first.says("Nothing else is pending.")
    await second.page.locator("#sign-off").click()
    await second.says("signed off by jones")
    assert await second.page.locator("#comment").input_value() == "Seen with Dr. Who."
    assert [done.principal for done in desk.reviews(draft)] == ["jones", "jones"]


async def test_a_store_that_does_not_answer_is_told_and_nothing_is_lost(
    console: Opened, desk: Desk
) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.press("c")
    await window.says("claim: done.")
    await window.page.locator("#comment").fill("Keep me.")
    with desk.stuck():
        await window.press("Escape", "s", "Enter")
        await window.says("What you entered is kept.")
        assert desk.state(draft) == "claimed"
    await window.press("Enter")
    await window.says("Nothing else is pending.")
    assert desk.reviews(draft)[-1].comment == "Keep me."


async def test_a_wrong_key_and_one_without_the_role_are_told(console: Opened, desk: Desk) -> None:
    window = await console()
    await window.page.keyboard.type("key-of-nobody")
    await window.press("Enter")
    await window.says("This key is not known.")
    await window.page.locator("#key").fill(KEYS["caller"])
    await window.press("Enter")
    await window.says("This needs a key with the role reviewer.")
    await expect(window.page.locator("#list")).to_be_hidden()


async def test_the_key_is_kept_nowhere_and_a_reload_asks_again(console: Opened, desk: Desk) -> None:
    desk.draft()
    window = await console()
    await window.open_first()
    state = await window.page.context.storage_state()
    assert state["cookies"] == []
    assert state["origins"] == []
    kept = await window.page.evaluate(
        "[document.documentElement.outerHTML, document.cookie, location.href,"
        " JSON.stringify(localStorage), JSON.stringify(sessionStorage),"
        " JSON.stringify(history.state), document.querySelector('#key').value].join()"
    )
    assert KEYS["jones"] not in kept
    await window.page.reload()
    await expect(window.page.locator("#sign-in")).to_be_visible()
    await expect(window.page.locator("#list")).to_be_hidden()


async def test_it_locks_after_15_minutes_without_input(console: Opened, desk: Desk) -> None:
    desk.draft()
    window = await console(clock=True)
    await window.open_first()
    await window.page.locator("#comment").fill("Not yet sent.")
    await window.page.clock.run_for(14 * 60_000 + 5_000)
    await window.says("Locks in a minute")
    await window.page.clock.run_for(60_000)
    await window.says("Locked after 15 minutes without input.")
    await expect(window.page.locator("#sign-in")).to_be_visible()
    assert "cardiomegaly" not in await window.page.content()
    # For somebody else it is not there, and gone from then on.
    await window.sign_in("jones")
    await window.press("Enter")
    await expect(window.page.locator("#comment")).to_have_value("Not yet sent.")
    await window.press("Escape", "L")
    await window.sign_in("smith")
    await window.press("Enter")
    await window.opened()
    await expect(window.page.locator("#comment")).to_have_value("")


async def test_input_after_a_computer_has_slept_does_not_revive_a_session(
    console: Opened, desk: Desk
) -> None:
    desk.draft()
    window = await console(clock=True)
    await window.open_first()
    # Time goes by, timers do not.
    await window.page.clock.set_system_time(await window.page.evaluate("Date.now() + 16 * 60_000"))
    await window.press("c")
    await expect(window.page.locator("#sign-in")).to_be_visible()


async def test_single_keys_can_be_turned_off(console: Opened, desk: Desk) -> None:
    draft = desk.draft()
    window = await console()
    await window.open_first()
    await window.press("?")
    await window.page.locator("#single-keys").uncheck()
    await window.press("Escape", "c")
    await window.drawn()
    assert desk.state(draft) == "pending"
    await window.press("Escape")  # leads back all the same
    await expect(window.page.locator("#list")).to_be_visible()


async def test_at_true_size_the_pixels_are_the_files(console: Opened, desk: Desk) -> None:
    picture = chest(size=SIDE)
    desk.draft(images=[png(picture)])
    window = await console()
    await window.open_first()
    await window.press("t")
    assert np.array_equal(await window.pixels(), np.asarray(picture))


async def test_window_and_level_are_dicoms_and_reset_restores(console: Opened, desk: Desk) -> None:
    picture = chest(size=SIDE)
    desk.draft(images=[png(picture)])
    window = await console()
    await window.open_first()
    await window.press("t")
    await window.page.locator("#width").fill("100")
    await window.page.locator("#level").fill("90")
    # DICOM PS3.3 C.11.2.1.2.1
    wanted = np.clip(((np.asarray(picture).astype(float) - 89.5) / 99 + 0.5) * 255, 0, 255)
    assert np.abs(await window.pixels() - wanted).max() <= 0.5
    await window.press("i")
    assert np.abs(await window.pixels() - (255 - wanted)).max() <= 0.5
    await window.press("0")
    assert np.array_equal(await window.pixels(), np.asarray(picture))
    await window.page.locator("#item-title").focus()
    await window.press("Shift+ArrowLeft", "Shift+ArrowUp")
    await expect(window.page.locator("#width-value")).to_have_text("248")
    await expect(window.page.locator("#level-value")).to_have_text("120")
    assert not np.array_equal(await window.pixels(), np.asarray(picture))


async def test_the_mouse_sets_the_window_zooms_and_moves(console: Opened, desk: Desk) -> None:
    desk.draft(images=[file()])
    window = await console()
    await window.open_first()
    box = await window.page.locator("canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = window.page.mouse
    await mouse.move(x, y)
    await mouse.down()
    await mouse.move(x - 60, y + 20)
    await mouse.up()
    await expect(window.page.locator("#width-value")).to_have_text("196")
    await expect(window.page.locator("#level-value")).to_have_text("148")
    before = await window.page.locator("#zoom-value").text_content()
    await mouse.wheel(0, -300)
    await expect(window.page.locator("#zoom-value")).not_to_have_text(before or "")
    zoomed = await window.pixels()
    await mouse.down(button="right")
    await mouse.move(x - 90, y + 20)
    await mouse.up(button="right")
    moved = await window.pixels()
    assert np.abs(zoomed[:, 30:] - moved[:, :-30]).max() <= 1
    assert not np.array_equal(zoomed, moved)


async def test_keys_zoom_and_move_and_fit_restores(console: Opened, desk: Desk) -> None:
    desk.draft(images=[file()])
    window = await console()
    await window.open_first()
    fitted = await window.pixels()
    for keys in (("+", "+"), ("-",), ("ArrowLeft",), ("ArrowDown",)):
        await window.press(*keys)
        assert not np.array_equal(await window.pixels(), fitted)
        await window.press("f")
        assert np.array_equal(await window.pixels(), fitted)


async def test_several_images_keep_a_window_each(console: Opened, desk: Desk) -> None:
    desk.draft(images=[file(), file(Phantom(pneumothorax="right"))])
    window = await console()
    await window.open_first()
    await expect(window.page.locator("#image-name")).to_have_text(re.compile("^Image 1 of 2"))
    prior = await window.pixels()
    await window.press("i", "]")
    await expect(window.page.locator("#image-name")).to_have_text(re.compile("^Image 2 of 2"))
    await expect(window.page.locator("#invert")).to_have_attribute("aria-pressed", "false")
    assert not np.array_equal(await window.pixels(), prior)
    await window.press("[")
    await expect(window.page.locator("#invert")).to_have_attribute("aria-pressed", "true")
    looks = [url for url in window.requests if "/images/" in url]
    assert len(looks) == 2  # each is fetched once: every look is recorded


async def test_a_redraw_of_1024_by_1024_fits_into_a_frame(console: Opened) -> None:
    window = await console()
    took: list[float] = await window.page.evaluate(
        """async () => {
          const { createViewer } = await import("./viewer.js");
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 1024;
          const viewer = createViewer(canvas, () => {});
          const pixels = new ImageData(1024, 1024);
          pixels.data.forEach((_, at) => (pixels.data[at] = at % 4 === 3 ? 255 : (at >> 2) % 251));
          viewer.show(pixels);
          const took = [];
          for (let round = 0; round < 60; round += 1) {
            const start = performance.now();
            viewer.setWindow({ width: 100 + round });
            viewer.draw();
            canvas.getContext("2d").getImageData(0, 0, 1, 1); // waits until it is drawn
            took.push(performance.now() - start);
          }
          return took;
        }"""
    )
    median = float(np.median(took))
    assert median < 16, f"{median:.1f} ms"


HOSTILE = (
    '<img src=x onerror="alert(1)">',
    "</script><script>alert(2)</script>",
    "javascript:alert(3)",
    "{{constructor.constructor('alert(4)')()}}",
    "no \u202exarohtomuenp\u202c seen",
)


async def test_hostile_text_is_shown_as_text(console: Opened, desk: Desk) -> None:
    for age_s, text in enumerate(reversed(HOSTILE)):
        desk.draft(
            question=text,
            answers=[f"There is {text} here."],
            findings={text: Status.PRESENT},
            template=Template.FREE,
            age_s=age_s,
        )
    window = await console()
    await window.sign_in()
    for number, text in enumerate(HOSTILE):
        shown = text.replace("\u202e", "‹U+202E›").replace("\u202c", "‹U+202C›")
        await expect(window.page.locator("#rows button").nth(number)).to_have_text(shown)
        await window.press("Enter")
        await window.opened()
        for place in ("#turns", "#drafts", "#findings legend"):
            await expect(window.page.locator(place)).to_contain_text(shown)
        await window.press("e", "Escape")
        made = window.page.locator("main").locator("img, script, a, iframe, object")
        assert await made.count() == 0
        await window.press("Escape", "j")
    assert "\u202e" not in await window.page.content()


async def test_markup_cannot_be_made_of_text_in_this_page(console: Opened) -> None:
    window = await console()
    window.expected = ("require-trusted-types-for", "'TrustedHTML' assignment")
    refused = await window.page.evaluate(
        "() => { try { document.body.innerHTML = '<b></b>'; return 'taken'; }"
        " catch (error) { return error.name; } }"
    )
    assert refused == "TypeError"


async def test_an_image_is_named_by_what_it_is(console: Opened) -> None:
    window = await console()
    name = await window.page.evaluate(
        """async () => {
          const { imageName } = await import("./draft.js");
          const note = { frame: 3, frames: 8, window: { center: 40, width: 400 } };
          return imageName({ index: 1, role: "prior", burned_in: "masked", ...note }, 1, [1, 2]);
        }"""
    )
    assert name == (
        "Image 2 of 2, prior, frame 3 of 8, made with level 40, window 400, burned-in text masked"
    )
