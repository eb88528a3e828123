"""The page for eyes and ears: names, contrast, room, at two widths, light and dark."""

import os

import pytest
from browsing import LONG, draw, drawn, opened, png
from playwright.sync_api import expect

SHOTS = os.environ.get("REFSD_SHOTS")  # a folder for screenshots, to be looked at


def roles(tab, *interactive):
    """The nodes of these roles as a screen reader has them: role and name of each."""
    tree = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")["nodes"]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree
            if not node["ignored"] and node["role"]["value"] in interactive]


CONTROLS = ("button", "checkbox", "combobox", "link", "slider", "spinbutton", "textbox", "image",
            "dialog", "progressbar", "list", "table", "DisclosureTriangle", "form", "region")


def stages(tab):
    """The page with each of its parts to be seen, one after another."""
    yield "at first"
    for part in tab.locator("#settings summary").all():
        if not part.evaluate("it => it.parentElement.open || it.parentElement.hidden"):
            part.click()
    tab.locator("#choose").set_input_files({"name": "red.png", "mimeType": "image/png",
                                            "buffer": png(96, 64, "red")})
    expect(tab.locator("#mask")).to_be_visible()
    draw(tab, steps=9999, prompt="a very long prompt without an end " * 8 + "W" * 200)
    expect(tab.get_by_role("alert")).to_be_visible()
    yield "with an error"
    tab.locator("#remove-start").click()
    draw(tab, steps=LONG, width=128, height=128)
    draw(tab, prompt="one that waits " * 9)
    expect(tab.locator("#waiting")).to_be_visible()
    yield "while drawing"
    tab.locator("#queue button").click()
    tab.locator("#cancel").click()
    expect(tab.locator("#status")).to_have_text("Cancelled")
    drawn(tab, prompt="W" * 300)
    drawn(tab)
    for box in tab.get_by_role("checkbox").all()[:2]:
        box.check()
    yield "with pictures chosen"
    tab.get_by_role("button", name="Compare", exact=True).click()
    expect(tab.locator("#differences tbody tr")).to_have_count(2)
    yield "comparing"
    tab.keyboard.press("Escape")
    tab.locator("#pictures button").nth(1).click()
    expect(tab.locator("#values dt")).not_to_have_count(0)
    tab.locator("#viewer summary").click()
    yield "with a picture opened"
    tab.keyboard.press("Escape")
    tab.locator("#show-keys").click()
    yield "with the keys"


WIDER = """() => [...document.querySelectorAll("body *")].filter(it => it.checkVisibility()
    && it.getBoundingClientRect().right > innerWidth + 1
    && !it.closest(".unseen, svg, #right, #ring")).map(it => it.outerHTML.slice(0, 80))"""

# Of every text that is seen, against what is behind it: the least contrast there may be is 4.5.
FAINT = """() => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const over = (colours) => {  // the last one is in front
        pen.clearRect(0, 0, 1, 1);
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = rgb => {
        const [r, g, b] = rgb.map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const it = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || it.closest(".unseen, script, style, svg, option")
            || !it.checkVisibility() || it.matches(":disabled, :disabled *")) continue;
        const grounds = [];
        for (let at = it; at; at = at.parentElement) {
            grounds.unshift(getComputedStyle(at).backgroundColor);
            if (at.localName === "dialog") break;
        }
        const ink = getComputedStyle(it).color;
        const [a, b] = [light(over(grounds)), light(over([...grounds, ink]))].sort((a, b) => b - a);
        const contrast = (a + .05) / (b + .05);
        if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${it.outerHTML.slice(0, 80)}`);
    }
    return found; }"""


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (400, "light"),
                                           (400, "dark")])
def test_all_parts_can_be_read_named_and_reached(browser, served, width, scheme):
    """No control without a name, no faint text, nothing beyond the right edge of the window."""
    with opened(browser, served, viewport={"width": width, "height": 900}, color_scheme=scheme,
                has_touch=width == 400, is_mobile=width == 400) as tab:
        for stage in stages(tab):
            if SHOTS:
                tab.wait_for_timeout(300)
                tab.screenshot(path=f"{SHOTS}/{width}-{scheme}-{stage.replace(' ', '-')}.png",
                               full_page=not tab.locator("dialog[open]").count())
            assert [role for role, name in roles(tab, *CONTROLS) if not name.strip()] == [], stage
            assert tab.evaluate(WIDER) == [], stage
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), stage
            assert tab.evaluate(FAINT) == [], stage
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(245, 244, 240)", "dark": "rgb(20, 21, 20)"}[scheme]
