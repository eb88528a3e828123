"""The page in a real browser, against the server as a user starts it."""

import base64
import io
import re
from pathlib import Path

import pytest
from browsing import LONG, draw, drawn, drop, fill, jobs, of_others, png, sent
from PIL import Image
from playwright.sync_api import expect


def test_a_picture_is_drawn_watched_and_found_again(tab, served):
    previews = []
    tab.expose_function("noted", lambda text: previews.append(text))
    tab.evaluate("""new MutationObserver(() => noted(document.querySelector("#current").alt))
        .observe(document.querySelector("#current"), { attributes: true })""")
    draw(tab, steps=20, seed=2**64 - 1)
    expect(tab.locator("#status")).to_contain_text(re.compile("Step [0-9]+ of 20"))
    expect(tab.locator("#progress")).to_be_visible()
    expect(tab.locator("#status")).to_have_text(re.compile(rf"Done in .* s · seed {2**64 - 1}"))
    assert {"After step 1", f"Picture with seed {2**64 - 1}"} <= set(previews)
    expect(tab.locator("#progress")).to_be_hidden()
    expect(tab.locator("#spoken")).to_contain_text("Done in")
    tile = tab.locator("#pictures button").first
    expect(tile.locator("img")).to_have_attribute("alt", f"a red sphere, seed {2**64 - 1}")
    tile.click()
    expect(tab.locator("#viewer")).to_be_visible()
    expect(tab.locator("#values")).to_contain_text(f"seed{2**64 - 1}")
    expect(tab.locator("#shown-prompt")).to_have_text("a red sphere")
    assert tab.locator("#large").evaluate("it => it.decode().then(() => it.naturalWidth)") == 64
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download").click()
    name = download.value.suggested_filename
    assert Path(download.value.path()).read_bytes() == (served.folder / name).read_bytes()
    tab.keyboard.press("Escape")
    expect(tab.locator("#viewer")).to_be_hidden()


def test_drawing_is_cancelled(tab, served):
    draw(tab, steps=LONG, width=128, height=128)
    expect(tab.locator("#status")).to_contain_text("Step")
    tab.locator("#cancel").click()
    expect(tab.locator("#status")).to_have_text("Cancelled")
    expect(tab.locator("#cancel")).to_be_hidden()
    assert jobs(served)[-1]["state"] == "cancelled" and jobs(served)[-1]["pictures"] == []


def test_a_reload_in_the_middle_loses_nothing(tab, served):
    draw(tab, steps=LONG, width=128, height=128, negative_prompt="blue", seed=7)
    expect(tab.locator("#status")).to_contain_text("Step")
    tab.reload()
    expect(tab.locator("#status")).to_contain_text(f"of {LONG}")
    expect(tab.locator("#drawn-prompt")).to_have_text("a red sphere")
    expect(tab.locator("#current")).to_have_attribute("alt", re.compile("After step"))
    for name, value in {"negative_prompt": "blue", "seed": "7", "steps": str(LONG)}.items():
        expect(tab.locator(f"#{name}")).to_have_value(value)
    tab.locator("#cancel").click()
    expect(tab.locator("#status")).to_have_text("Cancelled")


def test_what_changes_nothing_is_said(tab):
    drawn(tab, negative_prompt="blue", cfg_scale=1)
    expect(tab.get_by_role("list", name="Warnings")).to_contain_text(
        "negative_prompt changes nothing")
    drawn(tab, negative_prompt="", cfg_scale=1)
    expect(tab.locator("#warnings")).to_be_hidden()


def test_jobs_that_wait_are_listed_and_can_be_cancelled(tab, served):
    draw(tab, steps=LONG, width=128, height=128)
    for prompt in ("first", "second"):
        draw(tab, prompt=prompt)
    expect(tab.locator("#queue li")).to_have_count(2)
    tab.get_by_role("button", name="Cancel: first").click()
    expect(tab.locator("#queue li")).to_have_text(["second"])
    tab.locator("#cancel").click()
    expect(tab.locator("#status")).to_contain_text("Done in")
    expect(tab.locator("#drawn-prompt")).to_have_text("second")
    expect(tab.locator("#waiting")).to_be_hidden()


@pytest.mark.parametrize("values, field, words", [
    ({"steps": 9999}, "steps", "steps is 9999; give an integer from 1 to 150"),
    ({"width": 100}, "width", "width is 100; give a multiple of 8"),
    ({"seed": "abc"}, "seed", "seed is 'abc'"), ({"count": 9}, "count", "count is 9"),
])
def test_an_error_is_said_at_its_field(tab, values, field, words):
    draw(tab, **values)
    box = tab.get_by_role("alert").filter(has_text=words)
    expect(box).to_be_visible()
    control = tab.locator(f"#{field}")
    expect(control).to_be_focused()
    expect(control).to_have_attribute("aria-invalid", "true")
    expect(control).to_have_accessible_error_message(re.compile(re.escape(words)))
    control.fill("64")
    expect(box).to_be_hidden()


def test_an_error_while_drawing_is_said_beside_the_picture(tab):
    """What only the model knows; a restored setting without a field is a chip."""
    drop(tab, of_others(clip_skip=12))
    expect(tab.locator("#extras")).to_contain_text("clip skip: 11")
    draw(tab)
    expect(tab.locator(".beside .trouble")).to_contain_text("clip_skip")
    expect(tab.locator("#status")).to_have_text("It could not be drawn")
    tab.get_by_role("button", name="Dismiss").click()
    expect(tab.locator(".trouble")).to_have_count(0)
    tab.get_by_role("button", name="Leave out clip skip").click()
    drawn(tab)


def test_a_dropped_picture_restores_its_settings(tab):
    fill(tab, seed=1)
    drop(tab, of_others())
    wanted = {"prompt": "a green cube", "negative_prompt": "fog", "steps": "3", "cfg_scale": "4.5",
              "seed": str(2**64 - 1), "width": "64", "height": "72", "sampler": "dpm++2m",
              "schedule": "karras"}
    for name, value in wanted.items():
        expect(tab.locator(f"#{name}")).to_have_value(value)
    expect(tab.locator("#extras .chip")).to_have_count(2)  # compat a1111, and its RNG
    expect(tab.get_by_role("alert")).to_contain_text("Not taken over: the model elsewhere")
    expect(tab.locator("#drop")).to_be_hidden()


@pytest.mark.parametrize("data, name, words", [
    (png(8, 8), "plain.png", "plain.png: the picture does not say how it was made"),
    (b"no picture", "it.png", "it.png: the picture: not a PNG, JPEG or WebP picture"),
])
def test_what_cannot_be_restored_is_said(tab, data, name, words):
    drop(tab, data, name)
    expect(tab.get_by_role("alert")).to_contain_text(words)


def test_a_picture_without_settings_may_become_the_start_image(tab):
    drop(tab, png(96, 48), "plain.png")
    tab.get_by_role("button", name="As start image").click()
    expect(tab.locator("#start")).to_be_visible()
    assert (tab.locator("#width").input_value(), tab.locator("#height").input_value()) \
        == ("184", "88")


def test_a_picture_of_the_gallery_gives_its_settings_back(tab):
    drawn(tab, seed=41, prompt="a blue cube", negative_prompt="fog")
    fill(tab, seed=1, prompt="other", negative_prompt="")
    tab.locator("#pictures button").first.click()
    tab.get_by_role("button", name="Use these settings").click()
    expect(tab.locator("#viewer")).to_be_hidden()
    for name, value in {"prompt": "a blue cube", "negative_prompt": "fog", "seed": "41"}.items():
        expect(tab.locator(f"#{name}")).to_have_value(value)
    expect(tab.get_by_role("alert")).to_have_count(0)
    tab.locator("#roll").click()
    expect(tab.locator("#seed")).to_have_value("")
    tab.locator("#reuse").click()
    expect(tab.locator("#seed")).to_have_value("41")


def test_a_mask_is_painted_and_what_is_not_painted_stays(tab, served):
    tab.locator("summary", has_text="Start image").click()
    tab.locator("#choose").set_input_files({"name": "red.png", "mimeType": "image/png",
                                            "buffer": png(64, 64, "red")})
    expect(tab.locator("#mask")).to_be_visible()
    tab.locator("#brush").scroll_into_view_if_needed()
    box = tab.locator("#mask").bounding_box()
    tab.mouse.move(box["x"] + 40, box["y"] + 40)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 60, box["y"] + 40, steps=5)
    tab.mouse.up()
    with sent(tab) as request:
        name = drawn(tab, strength=1, steps=2)
    mask = Image.open(io.BytesIO(base64.b64decode(
        request.value.post_data_json["mask"].partition(",")[2]))).convert("L")
    scale = 64 / box["width"]
    assert mask.size == (64, 64) and mask.getpixel((int(50 * scale), int(40 * scale))) == 255
    assert mask.getpixel((60, 60)) == 0
    with Image.open(served.folder / name) as picture:
        below = picture.convert("RGB").crop((0, 32, 64, 64)).resize((1, 1), Image.Resampling.BOX)
    red, green, blue = below.getpixel((0, 0))
    assert red > green + 80 and red > blue + 80, (red, green, blue)
    tab.locator("#clear-mask").click()
    with sent(tab) as request:
        drawn(tab)
    assert "mask" not in request.value.post_data_json
    tab.locator("#remove-start").click()
    with sent(tab) as request:
        drawn(tab)
    assert not {"init_image", "strength"} & request.value.post_data_json.keys()


def test_a_model_that_edits_is_asked_without_a_strength(tab):
    def changed(route):
        answer = route.fetch()
        about = answer.json()
        about["models"][0]["edits"] = True
        route.fulfill(response=answer, json=about)

    tab.route("**/api/v1/about", changed)
    tab.reload()
    drop(tab, png(64, 64, "red"), over="#start-zone")
    expect(tab.locator("#mask")).to_be_visible()
    expect(tab.locator("#strength")).to_be_hidden()
    with sent(tab) as request:
        drawn(tab)
    assert "init_image" in request.value.post_data_json
    assert "strength" not in request.value.post_data_json
    tab.locator("#model").select_option("tiny")
    expect(tab.locator("#strength")).to_be_visible()


def test_a_mask_is_painted_with_keys(tab):
    tab.locator("summary", has_text="Start image").click()
    tab.locator("#choose").set_input_files({"name": "red.png", "mimeType": "image/png",
                                            "buffer": png(64, 64, "red")})
    tab.locator("#mask").focus()
    for key in ("ArrowRight", "ArrowDown", "Space"):
        tab.keyboard.press(key)
    painted = """it => new Uint32Array(it.getContext("2d").getImageData(0, 0, 64, 64).data.buffer)
        .some(Boolean)"""
    assert tab.locator("#mask").evaluate(painted)
    tab.locator("#erase").click()
    expect(tab.locator("#erase")).to_have_attribute("aria-pressed", "true")
    tab.locator("#brush").fill("60")
    tab.locator("#mask").focus()
    tab.keyboard.press("Space")
    assert not tab.locator("#mask").evaluate(painted)


def test_two_pictures_are_compared(tab):
    for seed in (1, 2):
        drawn(tab, seed=seed)
    for box in tab.get_by_role("checkbox").all()[:2]:
        box.check()
    tab.get_by_role("button", name="Compare", exact=True).click()
    expect(tab.locator("#differences tbody tr")).to_have_text(["seed21"])
    slider = tab.get_by_role("slider", name="Where the pictures meet")
    expect(slider).to_be_focused()
    tab.keyboard.press("ArrowLeft")
    expect(slider).to_have_value("49.5")
    box = tab.locator("#pair").bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 4, box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + 30)
    tab.mouse.up()
    expect(slider).to_have_value("25")
    clip = tab.locator("#right").evaluate("it => getComputedStyle(it).clipPath")
    assert "25" in clip
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="Clear").click()
    expect(tab.locator("#compare")).to_be_hidden()


def test_keys_are_enough(tab):
    """To draw, to look at one picture after another, and to go back."""
    for seed in (51, 52):
        drawn(tab, seed=seed)
    tab.locator("#prompt").focus()
    tab.locator("#seed").fill("53")
    tab.keyboard.press("Control+Enter")
    expect(tab.locator("#status")).to_have_text(re.compile("seed 53$"))
    expect(tab.locator("#pictures img").first).to_have_attribute("alt", re.compile("seed 53$"))
    tab.locator("#pictures button").first.focus()
    tab.keyboard.press("Enter")
    for key, seed in (("ArrowRight", 52), ("ArrowRight", 51), ("ArrowLeft", 52)):
        tab.keyboard.press(key)
        expect(tab.locator("#large")).to_have_attribute("alt", f"a red sphere, seed {seed}")
    expect(tab.locator("#values")).to_contain_text("seed52")
    tab.keyboard.press("Escape")
    expect(tab.locator("#pictures button").first).to_be_focused()
    tab.locator("#show-keys").press("Enter")
    expect(tab.locator("#keys")).to_be_visible()
    tab.keyboard.press("Control+Enter")  # not through a dialog
    tab.keyboard.press("Escape")
    expect(tab.locator("#pictures img").first).to_have_attribute("alt", re.compile("seed 53$"))


def test_another_model_brings_its_own_size_and_guidance(tab):
    for name, value in (("width", "128"), ("height", "128"), ("cfg_scale", "3")):
        expect(tab.locator(f"#{name}")).to_have_value(value)
    tab.locator("#height").fill("96")
    tab.locator("#model").select_option("tiny")
    for name, value in (("width", "32"), ("height", "96"), ("cfg_scale", "7")):
        expect(tab.locator(f"#{name}")).to_have_value(value)
    tab.locator("#swap-sides").click()
    expect(tab.locator("#width")).to_have_value("96")
    tab.reload()
    expect(tab.locator("#model")).to_have_value("tiny")
    expect(tab.locator("#width")).to_have_value("96")


def test_what_is_said_by_prompts_is_never_html(tab):
    drawn(tab, prompt="<img src=x onerror=alert(1)><b>bold</b>", seed=61)
    expect(tab.locator("#drawn-prompt")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
    tab.locator("#pictures button").first.click()
    expect(tab.locator("#infotext")).to_contain_text("<b>bold</b>")
    expect(tab.locator("#viewer b, #viewer [onerror], #gallery b")).to_have_count(0)


def test_more_pictures_come_when_they_are_scrolled_to(tab, served):
    name = drawn(tab, seed=71)
    data = (served.folder / name).read_bytes()
    for number in range(30):
        (served.folder / f"copy-{number}.png").write_bytes(data)
    try:
        drawn(tab, seed=72)
        tab.reload()
        expect(tab.locator("#pictures li")).not_to_have_count(0)
        tab.locator("footer").scroll_into_view_if_needed()
        expect(tab.locator("#pictures img[src*='/copy-']")).to_have_count(30)
        expect(tab.locator("#more")).to_be_hidden()
        names = tab.locator("#pictures img").evaluate_all("all => all.map(one => one.src)")
        assert len(names) == len(set(names)) == len(list(served.folder.iterdir()))
    finally:
        for file in served.folder.glob("copy-*.png"):
            file.unlink()


def test_a_picture_that_is_pasted_becomes_the_start_image(tab):
    tab.evaluate("""data => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        const given = new DataTransfer();
        given.items.add(new File([bytes], "it.png", { type: "image/png" }));
        dispatchEvent(new ClipboardEvent("paste", { clipboardData: given, bubbles: true,
                                                    cancelable: true })); }""",
                 base64.b64encode(png(64, 64, "red")).decode())
    expect(tab.locator("#start")).to_be_visible()
    expect(tab.locator("#start-size")).to_contain_text("64 × 64, scaled to 128 × 128")


@pytest.mark.parametrize("data, kind, words", [
    (b"GIF89a", "image/gif", "it.png: choose a PNG, JPEG or WebP"),
    (b"no picture", "image/png", "it.png: it cannot be read as a picture"),
])
def test_what_is_no_picture_is_no_start_image(tab, data, kind, words):
    tab.locator("summary", has_text="Start image").click()
    drop(tab, data, kind=kind, over="#start-zone")
    expect(tab.get_by_role("alert")).to_have_text(words)
    expect(tab.locator("#start-tools")).to_be_hidden()
