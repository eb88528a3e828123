"""The page and servers of other kinds: with LoRAs, with a token, and one that goes and comes back.
"""

import adapter_samples as samples
import pytest
from browsing import draw, opened, sent
from playwright.sync_api import expect
from safetensors.numpy import save_file
from served import serving

TOKEN = "abcdefgh_-.~0123"


def tensors(module, shape):
    low, high = samples.lora(shape, 2, 0)
    return {f"unet.{module}.lora_A.weight": low, f"unet.{module}.lora_B.weight": high}


@pytest.fixture(scope="module")
def guarded(tiny_model, tmp_path_factory):
    """A server with a LoRA that wants a token."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "loras").mkdir()
    save_file(tensors(samples.ATTENTION, (8, 8)), folder / "loras" / "style.safetensors")
    with serving("-m", tiny_model, "--backend", "numpy", "-o", folder / "pictures", "--lora-dir",
                 folder / "loras", "--token", TOKEN) as found:
        found.folder = folder
        yield found


def test_a_token_is_given_once_and_not_kept_in_the_address(browser, guarded):
    context = browser.new_context()
    assert context.request.get(guarded.url).status == 401
    page = context.new_page()
    page.goto(f"{guarded.url}?token={TOKEN}")
    expect(page.locator("#version")).not_to_be_empty()
    assert page.url == guarded.url
    page.reload()
    expect(page.locator("#version")).not_to_be_empty()
    assert TOKEN not in page.evaluate("document.cookie + JSON.stringify({ ...localStorage })")
    context.close()


def test_a_token_is_the_password_that_a_browser_asks_for(browser, guarded):
    context = browser.new_context(http_credentials={"username": "any", "password": TOKEN})
    page = context.new_page()
    page.goto(guarded.url)
    expect(page.locator("#version")).not_to_be_empty()
    context.close()


def test_pictures_are_drawn_with_loras_and_their_recipes_have_them(browser, guarded):
    guarded.path = f"?token={TOKEN}"
    with opened(browser, guarded) as tab:
        tab.locator("summary", has_text="LoRA").click()
        tab.get_by_role("button", name="Add a LoRA").click()
        tab.get_by_label("Weight of the LoRA").fill("0.5")
        with sent(tab) as request:
            draw(tab, seed=3)
        assert request.value.post_data_json["loras"] == [{"name": "style", "weight": 0.5}]
        expect(tab.locator("#status")).to_contain_text("Done in")
        tab.get_by_role("button", name="Leave out this LoRA").click()
        expect(tab.locator("#loras select")).to_have_count(0)
        tab.locator("#pictures button").first.click()
        expect(tab.locator("#values")).to_contain_text('loras[{"name":"style","weight":0.5}]')
        tab.get_by_role("button", name="Use these settings").click()
        expect(tab.get_by_label("LoRA", exact=True)).to_have_value("style")
        expect(tab.get_by_label("Weight of the LoRA")).to_have_value("0.5")


def test_a_server_that_is_gone_is_said_and_looked_for(browser, tiny_model, tmp_path):
    args = ("-m", tiny_model, "--backend", "numpy", "-o", tmp_path / "pictures")
    with serving(*args) as first, opened(browser, first) as tab:
        tab.locator("#prompt").fill("kept")
        first.end()
        expect(tab.locator("#lost")).to_have_text("No connection to refsd. Trying again…")
        tab.get_by_role("button", name="Draw").click()
        expect(tab.locator("#go .trouble")).to_contain_text("refsd cannot be reached")
        with serving(*args, "--port", str(first.port)):
            expect(tab.locator("#lost")).to_be_hidden()
            expect(tab.locator("#prompt")).to_have_value("kept")
            draw(tab)
            expect(tab.locator("#status")).to_contain_text("Done in")


def test_a_start_image_that_is_too_large_is_not_sent(browser, guarded):
    guarded.path = f"?token={TOKEN}"
    with opened(browser, guarded) as tab:
        tab.locator("summary", has_text="Start image").click()
        tab.evaluate("""() => {
            const given = new DataTransfer(), large = new Uint8Array(24 << 20);
            given.items.add(new File([large], "large.png", { type: "image/png" }));
            document.querySelector("#start-zone").dispatchEvent(
                new DragEvent("drop", { dataTransfer: given, bubbles: true })); }""")
        expect(tab.get_by_role("alert")).to_have_text("large.png: it has more than 22 MiB")
