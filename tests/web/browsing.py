"""What the page's tests share: a page of the server in a browser, and what is done on it."""

import base64
import io
import itertools
import re
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from refsd.cli.png import encode_png

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
LONG = 150  # steps, which take seconds: time to look at it while it is drawn
FIELDS = {"prompt": "a red sphere", "steps": 2, "width": 64, "height": 64}
SEEDS = itertools.count(1000)
expect.set_options(timeout=20_000)


def chromium():
    """Debian's where there is one; None is Playwright's own."""
    return "/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None


class opened:
    """A page in a browser of its own; what it asks for and complains of is looked at afterwards."""

    def __init__(self, browser, served, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900},
                                              **options})
        self.served, self.asked, self.said = served, [], []

    def __enter__(self):
        page = self.context.new_page()
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("console", lambda message: self.said.append(message.text)
                        if message.type in ("error", "warning") else None)
        self.context.on("weberror", lambda error: self.said.append(str(error.error)))
        page.goto(self.served.url + getattr(self.served, "path", ""))
        expect(page.locator("#version")).not_to_be_empty()
        return page

    def __exit__(self, *error):
        self.context.close()
        if not any(error):
            elsewhere = [url for url in self.asked
                         if not url.startswith((self.served.url, "data:", "blob:"))]
            said = [text for text in self.said if "Failed to load resource" not in text]
            assert (elsewhere, said) == ([], [])


def fill(tab, **values):
    for name, value in {**FIELDS, **values}.items():
        tab.locator(f"#{name}").fill(str(value))


def draw(tab, **values):
    """Press Draw; comes back when that was answered."""
    fill(tab, **values)
    with tab.expect_response(lambda answer: answer.request.method == "POST"):
        tab.get_by_role("button", name="Draw").click()


def drawn(tab, **values):
    """Draw, and wait for the picture; its name."""
    values = {"seed": next(SEEDS), **values}
    draw(tab, **values)
    expect(tab.locator("#status")).to_have_text(re.compile(f"Done in .* seed {values['seed']}$"))
    address = tab.locator("#current").get_attribute("src")
    expect(tab.locator("#pictures img").first).to_have_attribute("src", address)
    return address.split("/")[-1].split("?")[0]


def sent(tab):
    """The request that is sent in the block."""
    return tab.expect_request(lambda request: request.method == "POST")


def jobs(served, *states):
    found = served.client.get("/api/v1/jobs").json()["jobs"]
    return [job for job in found if not states or job["state"] in states]


def png(width, height, colour="white"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def of_others(clip_skip=1):
    """A picture of another program."""
    image = Image.open(io.BytesIO(png(64, 64)))
    return encode_png(image, {"parameters": "a green cube\nNegative prompt: fog\nSteps: 3, "
                              "Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, "
                              f"Seed: {2**64 - 1}, Size: 64x72, RNG: CPU, Model: elsewhere, "
                              f"Clip skip: {clip_skip}"})


def drop(tab, data, name="it.png", kind="image/png", over="#gallery"):
    """A file from outside, dropped onto the page."""
    given = tab.evaluate_handle("""([data, name, type]) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        const given = new DataTransfer();
        given.items.add(new File([bytes], name, { type }));
        return given; }""", [base64.b64encode(data).decode(), name, kind])
    tab.dispatch_event(over, "dragover", {"dataTransfer": given})
    tab.dispatch_event(over, "drop", {"dataTransfer": given})
