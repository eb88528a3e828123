"""The page of a comparison: an overview, a section a cause, maps of errors, and nothing loaded."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from golden_compare_samples import NETWORK, W, X, changed_at, compared, right

from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.causes import causes
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.error_maps import colours, error_maps
from refsd.golden.comparing.html import STYLE, page
from refsd.golden.comparing.junit import junit
from refsd.golden.comparing.markdown import markdown
from refsd.golden.comparing.report import sentence, sheet, text
from refsd.golden.comparing.strip import MEANINGS
from refsd.golden.comparing.verdicts import Status, Verdict


class Page(HTMLParser):
    """What a browser would load or run, and whether every element is closed."""

    def __init__(self, source):
        super().__init__()
        self.open, self.loads, self.text, self.ids, self.bars = [], [], "", [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                self.loads.append(value)
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.bars += [attributes] if attributes.get("class", "").startswith("bar ") else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def failing(pack, tmp_path):
    return compared(pack, tmp_path, maps=True, **{
        "unet/000/proj": X @ W.T, "unet/000/mid_block": changed_at(NETWORK, (0, 0, 0, 0), np.nan),
        "unet/001/conv_out": np.zeros_like(NETWORK)})


def test_a_page_loads_nothing_and_its_links_lead_somewhere(failing):
    found = Page(page(sheet(failing)))
    assert found.open == [] and sentence(failing) in found.text
    pictures = [one for one in found.loads if not one.startswith("#")]
    assert len(pictures) == 2 and all(
        one.startswith("data:image/png;base64,") for one in pictures)
    links = [one[1:] for one in found.loads if one.startswith("#")]
    assert links and set(links) == set(found.ids)


def test_the_strip_has_a_bar_a_tensor_as_high_as_its_error(failing):
    """By powers of ten around the middle; what a port was given has none."""
    bars = {bar["title"].partition(":")[0]: bar for bar in Page(page(sheet(failing))).bars
            if "title" in bar}
    assert list(bars) == [v.name for v in failing.verdicts if v.status != Status.EXTERNAL]
    height = {name: float(re.search(r"[\d.]+", bar["style"])[0]) for name, bar in bars.items()}
    proj = failing.verdicts[4]
    assert height["unet/000/proj"] == pytest.approx(
        min(50 + 50 / 3 * np.log10(proj.times), 100), abs=0.5)
    assert proj.times > 1 and height["unet/000/mid_block"] == 100
    assert height["tokens/000/ids"] == height["unet/000/conv_out"] == 5
    assert bars["unet/000/conv_out"]["class"] == "bar missing"


def test_every_word_is_explained(failing):
    text = page(sheet(failing))
    words = re.findall(r"<dt>(?:<span.*?</span>)?(.*?)</dt>", text)
    assert {*sheet(failing).counts, "times", "needed", "max ulp", "spread", "beyond"} <= set(words)
    assert MEANINGS.keys() == set(Status)


def test_the_page_begins_with_names_and_folds_what_is_of_no_use(failing):
    """What is missing is one line, and what only follows from a mistake another."""
    text = page(sheet(failing))
    head, *rows = re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    assert re.findall(r"<th[^>]*>(.*?)</th>", head)[:4] == ["tensor", "verdict", "times", "beyond"]
    assert all(row.partition("<td ")[2].startswith('class="name">') for row in rows)
    assert len(rows) == failing.compared and "cosine" not in text
    assert "<summary>1 missing</summary>" in text and "<summary>3 given</summary>" in text
    assert text.count("<section ") == 2
    assert "<summary>1 more fails after it, and may only have inherited it</summary>" in text


def test_three_causes_are_open_and_the_rest_is_folded():
    verdicts = [_verdict(i, f"ops/linear/{i}") for i in range(5)]
    text = page(_sheet(verdicts))
    assert text.count("<section ") == 5 and "What is wrong: 5 causes" in text
    assert text.index('id="t2"') < text.index("<summary>2 more</summary>") < text.index('id="t3"')


def _verdict(index, name, *reads, status=Status.WRONG, op="linear"):
    entry = SimpleNamespace(name=name, index=index, op=op, sources=list(reads), inputs=reads)
    return Verdict(entry, status, times=2.0)


def _sheet(verdicts):
    return SimpleNamespace(
        kind="golden compare", title="", pack="p", candidate="c", format="float32", ok=False,
        sentence="", verdicts=verdicts, failing=verdicts, columns=("verdict", "tensor"), legend={},
        row=lambda verdict: (verdict.status, verdict.name), why=lambda verdict: "", whole=False,
        own=False, given=(), unread=(), remarks=(), extra=(), counts={})


def _causes(*verdicts, own=False):
    failing = [v for v in verdicts if v.status in (Status.WRONG, Status.SUSPECT)]
    return {cause.verdict.name: [v.name for v in cause.followers]
            for cause in causes(verdicts, failing, own=own)}


def test_what_reads_a_wrong_tensor_follows_from_it():
    """Through what is missing too; not through what is right; a block without inputs always."""
    chain = [_verdict(0, "a"), _verdict(1, "b", "a", status=Status.MISSING), _verdict(2, "c", "b"),
             _verdict(3, "d", "a", status=Status.WITHIN), _verdict(4, "e", "d"),
             _verdict(5, "f", op="block"), _verdict(6, "g", "c", "e")]
    assert _causes(*chain) == {"a": ["c", "g"], "e": ["f"]}
    assert _causes(_verdict(0, "f", op="block")) == {"f": []}
    lost = replace(_verdict(2, "c", "a"), metrics=SimpleNamespace(nonfinite=1))
    assert _causes(*chain[:1], lost, _verdict(3, "d", "c")) == {"a": [], "c": ["d"]}


def test_an_op_that_is_wrong_on_its_own_inputs_is_a_cause():
    chain = _verdict(0, "a"), _verdict(1, "b", "a"), _verdict(2, "c", "b", status=Status.SUSPECT)
    assert _causes(*chain, own=True) == {"a": [], "b": ["c"]}


def test_names_from_elsewhere_are_only_text(pack, tmp_path):
    """A candidate's names may be anything; so may its path."""
    evil = "<script>alert(1)</script>\x00\x1b]0;`|\n\ud800"
    odd = tmp_path / "a <i>&'`|"
    odd.mkdir()
    np.savez(odd / "c.npz", **right())
    with Candidate.open(odd / "c.npz") as candidate:
        found = compare(pack, candidate)
    found.extra.append(evil)
    html = page(sheet(found))
    Page(html)
    assert "<script>alert" not in html and "\x00" not in html and "\x1b" not in html
    html.encode("utf-8")
    ElementTree.fromstring(junit(sheet(found)))
    assert "<script>" not in "\n".join(text(found)).replace("extra: <script>", "")
    assert "\x1b" not in "\n".join(text(found))
    assert evil not in markdown(sheet(found))


def test_error_maps():
    golden, got = np.zeros((2, 3, 200, 130)), np.zeros((2, 3, 200, 130))
    got[1, 2, 199, 0], got[0, 0, 0, 129] = -3, np.nan
    found, = error_maps(golden, got)
    assert found.values.shape == (64, 64) and found.axes == (2, 3) and found.largest == 3
    assert found.values[63, 0] == 3 and np.isnan(found.values[0, 63])
    assert np.nansum(found.values) == 3
    row, = error_maps(np.zeros(5), np.ones(5))
    assert row.values.tolist() == [[1] * 5] and row.axes == (-1, 0)
    assert error_maps(np.zeros((7, 2, 5)), np.ones((7, 2, 5)))[0].axes == (0, 2)
    assert error_maps(np.array(1.0), np.array(2.0)) == ()
    assert error_maps(np.array([np.inf, 1]), np.array([np.inf, 1]))[0].values.tolist() == [[0, 0]]


def test_images_are_seen_over_h_and_w_too():
    """Many channels hide a border: it is in every row of (C, W), and one line of (H, W)."""
    golden, got = np.zeros((2, 32, 8, 10)), np.zeros((2, 32, 8, 10))
    got[:, :, 0] = 1
    channels, image = error_maps(golden, got)
    assert channels.axes == (1, 3) and channels.values.all()
    assert image.axes == (2, 3) and image.values.sum(axis=1).tolist() == [10] + [0] * 7
    assert len(error_maps(np.zeros((1, 32, 1, 1)), np.ones((1, 32, 1, 1)))) == 1


def test_colours_cover_six_powers_of_ten():
    pixels = colours(np.array([[1.0, 1e-3, 0.0, np.nan]]))
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 4, 3)
    assert pixels[0, 0].tolist() == [252, 255, 164] and pixels[0, 3].tolist() == [0, 255, 255]
    assert pixels[0, 1].tolist() == [190, 55, 110] and pixels[0, 2].tolist() == [13, 8, 60]


def test_verdicts_can_be_read_by_day_and_by_night():
    """Contrast of 4.5 with the ground, as WCAG 2 asks of text; grounds as Chromium has them."""
    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    day, night = STYLE.split("prefers-color-scheme: dark")
    for part, ground in (day, "#ffffff"), (night, "#121212"):
        found = re.findall(r"--(?:bad|good|open): (#\w{6})", part)
        assert len(found) == 3
        for colour in found:
            light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, colour
