"""python -m benchmarks.page: seconds from a click on Draw to the first preview and to the picture.

In a browser, on this machine, with the model in refsd at its own size: twenty steps. Needs what
make test-web installs.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile

from playwright.sync_api import sync_playwright

# Times are taken by the page itself, when the picture on the stage is another one and is decoded.
WATCHED = """async (steps) => {
    const seen = {}, image = document.querySelector("#current");
    const set = (id, value) => { document.querySelector(id).value = value; };
    set("#prompt", "a glossy red sphere left of a small blue cube"), set("#steps", steps);
    const over = new Promise(resolve => new MutationObserver(async () => {
        const alt = image.alt;
        await image.decode().catch(() => null);
        if (alt.startsWith("After")) seen.preview ??= performance.now() - begun;
        if (alt.startsWith("Picture") && (seen.picture ??= performance.now() - begun)) resolve();
    }).observe(image, { attributes: true, attributeFilter: ["alt"] }));
    const begun = performance.now();
    document.querySelector("#draw").click();
    await over;
    return seen;
}"""


def main(arguments=None):
    """Print the first, the median and the largest times of several pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pictures after the first (9)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([sys.executable, "-m", "refsd", "serve", "--port", "0", "-o",
                                   folder], stdout=subprocess.PIPE, text=True)
        try:
            url = re.search(r"http://\S+", server.stdout.readline())[0]
            times = measured(url, asked)
        finally:
            server.terminate()
            server.wait()
    for name in ("preview", "picture"):
        first, *others = (time[name] / 1000 for time in times)
        print(f"{name}: the first {first:.2f} s, then a median of "
              f"{statistics.median(others):.2f} s, at most {max(others):.2f} s")


def measured(url, asked):
    """Milliseconds of each picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=asked.browser, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.locator("#model option").first.wait_for(state="attached")
        found = []
        for _ in range(asked.rounds + 1):
            found.append(page.evaluate(WATCHED, asked.steps))
            page.wait_for_timeout(300)
        browser.close()
    return found


if __name__ == "__main__":
    main()
