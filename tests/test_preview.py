"""Pictures so far: latents as colours, x0 as seen from a step, and where --preview shows them."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from refsd.__main__ import main
from refsd.cli import graphics, interrupt, preview, progress, sampler_names, terminal
from refsd.errors import ResourceError, UsageError
from refsd.models.config import VAEConfig
from refsd.pipelines import stages
from refsd.pipelines.preview import colours
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random import TorchGenerator

STEPS = 4


@pytest.fixture(scope="module")
def pipe(model):
    return StableDiffusionPipeline.from_pretrained(model, backend="numpy")


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Run the command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        given = ["-m", model, "--backend", "numpy", "--steps", str(STEPS), "-s", "3"]
        code = main(["a red cat", *given, *args])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def written(monkeypatch):
    """(name, picture) of each preview that is written."""
    found, write = [], preview.atomic.write_file

    def spy(path, parts):
        found.append((os.path.basename(path), np.asarray(Image.open(io.BytesIO(parts[0])))))
        return write(path, parts)

    monkeypatch.setattr(preview.atomic, "write_file", spy)
    return found


def gradient(width=24, height=16):
    """Every pixel another colour."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([10 * x, 15 * y, 255 - 10 * x], 2).astype(np.uint8))


def test_colours_are_a_linear_map():
    """By hand, with the factors that were published."""
    known = colours(VAEConfig(groups=1, scaling_factor=0.18215, shift_factor=0.0, latent_channels=4,
                              downscale=8, sample_size=512, force_upcast=False))
    z = np.zeros((1, 4, 1, 2), np.float32)
    z[0, :, 0, 1] = 1, 0, -1, 0.5
    wanted = [[0.5] * 3, [(1 + 0.298 + 0.158 - 0.092) / 2, (1 + 0.207 - 0.189 - 0.1355) / 2,
                          (1 + 0.208 - 0.264 - 0.2365) / 2]]
    assert np.abs(known(z)[0, 0] - wanted).max() < 1e-6  # sums of four float32 below 2
    assert known(np.full((1, 4, 1, 1), np.nan, np.float32)).tolist() == [[[[0, 0, 0]]]]


def test_a_preview_has_the_pictures_size(pipe):
    z = np.random.default_rng(0).standard_normal((2, 4, 4, 6)).astype(np.float32)
    quick, slow = pipe.preview(z), pipe.preview(z, vae=True)
    assert [image.size for image in (*quick, *slow)] == [(48, 32)] * 4
    assert (np.asarray(slow[0]) == np.asarray(pipe.to_output(z, "pil")[0])).all()
    with pytest.raises(UsageError, match=r"preview: latents has shape \(4, 4, 6\); give"):
        pipe.preview(z[0])


def test_what_the_bundled_model_has_is_fitted_on_it():
    """On pictures that nobody was fitted on; of more pictures it explains 88 %."""
    pytest.importorskip("numba")
    from training.latent_rgb import explained, samples

    whole = StableDiffusionPipeline.from_pretrained()
    known = colours(whole.vae.config)
    assert explained(known.matrix, known.bias, *samples(whole, range(11_000_000, 11_000_003))) > 0.8


@pytest.mark.parametrize("name", sampler_names.SAMPLERS)
def test_x0_as_seen_from_every_step(pipe, name):
    """A model that knows the picture predicts the noise that leads back to it, from anywhere."""
    scheduler = sampler_names.of_model(name, pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x0 = np.random.default_rng(1).standard_normal((1, 4, 4, 4))

    def unet(x, timestep, *_, **__):
        alpha_bar = np.interp(float(timestep), np.arange(1000), scheduler.alphas_cumprod)
        return (x - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar)

    unet.time_cond_dim = None
    start = np.random.default_rng(2).standard_normal(x0.shape) * float(scheduler.init_noise_sigma)
    steps = list(stages.denoise(unet, scheduler, start, np.zeros((1, 2, 3)), guidance_scale=1,
                                generator=TorchGenerator(0)))
    # alpha_bar is float32, and 1 / sqrt(alpha_bar) at most 15; Karras' timesteps are rounded, by
    # half a step of 1000, over which log alpha_bar changes by at most 0.012
    bound = 2e-5 if "karras" not in name else 0.1
    for step in steps:
        assert np.abs(step.denoised() - x0).max() < bound * np.abs(start).max(), step.index


def test_a_scheduler_that_says_nothing_of_x0():
    latents = np.ones((1, 4, 2, 2))
    stepped = types.SimpleNamespace(prev_sample=latents)
    assert stages.x0_of_step(object(), stepped, None, 7, None) is latents


def test_a_callback_may_look_at_x0(pipe):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(pipe.preview(tensors["denoised"])[0].size)
        return tensors

    draw = {"num_inference_steps": 2, "generator": 3, "output_type": "latent"}
    looked = pipe("a", callback_on_step_end=look, **draw,
                  callback_on_step_end_tensor_inputs=["latents", "denoised"]).images
    assert seen == [(32, 32)] * 2
    assert np.array_equal(looked, pipe("a", **draw).images)
    with pytest.raises(UsageError, match="has no tensor 'denoised'; it takes latents"):
        pipe("a", callback_on_step_end=lambda *a: {"denoised": a[3]["latents"]}, **draw)


def test_what_a_callback_takes_is_no_steps_time(pipe):
    found = pipe("a", num_inference_steps=2, generator=3, output_type="latent",
                 callback_on_step_end=lambda *_: time.sleep(0.1))
    assert sum(found.step_seconds) <= found.seconds["denoise"] - 0.2


def test_previews_stand_beside_the_picture_until_it_is_there(draw, written, tmp_path):
    for args in ([], ["-q"], ["--json"]):
        written.clear()
        code, out, err = draw("-b", "2", "-o", "x.png", "--preview", "1", *args)
        assert code == 0 and [name for name, _ in written] == (
            ["x.preview.png"] * 3 + ["x-2.preview.png"] * 3)
        assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x-2.png"}
        assert args or "preview 0." in err
    pictures = [picture for _, picture in written]
    assert pictures[0].shape == (32, 32, 3)
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:]))
    assert "preview" in json.loads(out)["seconds"]


@pytest.mark.parametrize("every, count", [(2, 1), (3, 1), (4, 0)])
def test_every_n_steps_but_the_last(draw, written, every, count):
    _, _, err = draw("--preview", str(every))
    assert [name for name, _ in written] == ["refsd-3.preview.png"] * count
    assert ("warning: --preview 4 changes nothing: there are 4 steps" in err) == (count == 0)


def test_previews_by_the_vae(draw, written, pipe):
    draw("-o", "x.png", "--preview", "3", "--preview-vae", "-t", "1")
    seen = []
    pipe("a red cat", num_inference_steps=STEPS, guidance_scale=7.0, generator=3,
         callback_on_step_end=lambda *a: seen.append(a[3]["denoised"]),
         callback_on_step_end_tensor_inputs=["denoised"])
    [(_, picture)] = written
    apart = picture - np.asarray(pipe.to_output(seen[2], "pil")[0]).astype(int)
    assert np.abs(apart).max() <= 1  # BLAS may take other threads


def test_what_stops_drawing_leaves_the_last_preview_whole(draw, monkeypatch, tmp_path):
    def stop(self, *_):
        self.done += 1
        if self.done == 3:
            raise interrupt.Stopped(2)

    monkeypatch.setattr(progress.Progress, "step", stop)
    assert draw("-o", "x.png", "--preview", "1")[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["x.preview.png"]
    with Image.open(tmp_path / "x.preview.png") as image:
        assert np.asarray(image).shape == (32, 32, 3)


def test_a_preview_that_cannot_be_written_stops_nothing(draw, monkeypatch, tmp_path):
    def full(*_):
        raise ResourceError("x.preview.png: cannot be written: No space left on device")

    monkeypatch.setattr(preview.atomic, "write_file", full)
    code, _, err = draw("-o", "x.png", "--preview", "1")
    assert code == 0 and (tmp_path / "x.png").exists()
    assert err.count("No space left on device. The preview is not written; drawing goes on") == 1


@pytest.mark.parametrize("args, words", [
    (["--preview", "0"], "--preview is 0; give an integer from 1 to 1000"),
    (["--preview-vae"], "give --preview N too"),
    (["--preview", "1", "-o", "-"], "no file can stand beside this output"),
    (["--preview", "1", "-o", "/dev/null"], "name a .png file with -o"),
    (["--preview-interval", "1"], "did you mean --preview?"),
])
def test_what_cannot_be_previewed(draw, args, words):
    code, out, err = draw(*args)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_latents_of_16_channels_have_colours():
    """Stable Diffusion 3's, by hand: those of the last channel are near grey, and dark."""
    known = colours(VAEConfig(groups=1, scaling_factor=1.5305, shift_factor=0.0609,
                              latent_channels=16, downscale=8, sample_size=1024,
                              force_upcast=False))
    z = np.zeros((1, 16, 1, 1), np.float32)
    z[0, 2], z[0, 15] = 2, -1
    wanted = [(1 + 0.3696 + 0.1418) / 2, (1 + 0.1524 + 0.1457) / 2, (1 + 0.072 + 0.1259) / 2]
    assert np.abs(known(z)[0, 0, 0] - wanted).max() < 1e-6  # sums of three float32 below 1


def test_latents_without_known_colours(draw, monkeypatch):
    config = VAEConfig(groups=1, scaling_factor=0.5, shift_factor=0.0, latent_channels=4,
                       downscale=8, sample_size=512, force_upcast=False)
    with pytest.raises(UsageError, match="scaling factor 0.5.*--preview-vae"):
        colours(config)

    def unknown(config):
        raise UsageError("preview: none")

    monkeypatch.setattr("refsd.pipelines.preview.colours", unknown)
    code, _, err = draw("--preview", "1")
    assert code == 2 and err.endswith("refsd: error: preview: none\n")
    assert draw("--preview", "1", "--preview-vae")[0] == 0


class Recorder:
    """A Screen that keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def show(self, image):
        self.shown.append(np.asarray(image))

    def leave(self):
        self.shown.append(None)


def test_a_terminal_shows_previews_and_the_picture(draw, monkeypatch):
    on = Recorder()
    monkeypatch.setattr(preview, "screen", lambda stream: on)
    assert draw("-b", "2", "-o", "x-{index}.png", "--preview", "2")[0] == 0
    with Image.open("x-1.png") as image:
        assert (on.shown[-2] == np.asarray(image)).all()
    assert [one is None for one in on.shown] == [False, False, True] * 2
    assert draw("-o", "/dev/null", "--preview", "2")[0] == 0, "a terminal is place enough"
    on.shown.clear()
    draw("-q", "--preview", "2")
    assert on.shown == []


# Terminals' answers to the questions, and what is to be seen in them.
ANSWERS = [
    (b"\x1b_Gi=31;OK\x1b\\\x1bP>|kitty(0.36.1)\x1b\\\x1b[?62;c", {}, graphics.kitty),
    (b"\x1b_Gi=31;ENOTSUPPORTED:x\x1b\\\x1b[?62;c", {}, None),
    (b"\x1bP>|iTerm2 3.5.0\x1b\\\x1b[?62;4c", {}, graphics.iterm2),
    (b"\x1bP>|WezTerm 20240203\x1b\\\x1b[?65;4;6;18;22c", {}, graphics.iterm2),
    (b"\x1bP>|XTerm(390)\x1b\\\x1b[?64;1;2;4;9c", {}, graphics.sixel),
    (b"\x1b[?62;22;44c", {}, None),
    (b"\x1b[?4;6c", {}, None),  # the first number is the terminal's class: a VT132
    (b"\x1b[?1;2c", {"TERM_PROGRAM": "iTerm.app"}, graphics.iterm2),
    (b"\x1b[?1;2c", {"LC_TERMINAL": "iTerm2"}, graphics.iterm2),
    (b"\x1b[?1;2c", {"LC_TERMINAL": "iTerm2", "TMUX": "/tmp/x"}, None),
    (b"\x1bP>|tmux 3.4\x1b\\\x1b[?1;2;4c", {"LC_TERMINAL": "iTerm2"}, graphics.sixel),
    (b"", {}, None),
]


@pytest.mark.parametrize("answer, env, wanted", ANSWERS)
def test_a_terminal_is_known_by_its_answers(answer, env, wanted):
    assert terminal.protocol(answer, env) is wanted


CHILD = """
import fcntl, os, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
from refsd.cli import terminal
terminal.SECONDS = 0.2
for _ in range(4):
    before = termios.tcgetattr(2)
    print(ascii(terminal.ask(sys.stderr)), termios.tcgetattr(2) == before, flush=True)
print(terminal.screen(sys.stderr, {"TERM": "xterm"}).encode.func.__name__)
os.tcgetpgrp = lambda fd: 1
print(ascii(terminal.ask(sys.stderr)))
"""


def test_a_terminal_is_asked_and_left_as_it_was():
    """A process with a pseudo-terminal of its own, whose other end answers, or does not."""
    pty, fcntl = pytest.importorskip("pty"), pytest.importorskip("fcntl")
    ours, theirs = pty.openpty()
    answers = [ANSWERS[0][0], ANSWERS[4][0], b"\x1b[?1", b""]
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=theirs, stderr=theirs, text=True,
                          stdout=subprocess.PIPE, start_new_session=True) as child:
        said = []
        for answer in answers:
            heard = b""
            while not heard.endswith(b"\x1b[c"):
                heard += os.read(ours, 1000)
            assert heard == terminal.QUESTIONS.encode(), "nothing is echoed"
            os.write(ours, answer)
            said.append(child.stdout.readline())
        rest = child.communicate(timeout=60)[0]
    os.close(ours), os.close(theirs)
    assert said == [f"{ascii(answer)} True\n" for answer in answers], fcntl
    assert rest == "blocks\nb''\n", "half blocks without an answer; in the background none is asked"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.mark.parametrize("env, encoding, found", [
    ({"TERM": "xterm-256color"}, "utf-8", {"true": False}),
    ({"TERM": "xterm", "COLORTERM": "truecolor"}, "utf-8", {"true": True}),
    ({"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", None),
    ({"TERM": "xterm"}, "ascii", None),
    ({"TERM": "dumb"}, "utf-8", None),
    ({}, "utf-8", None),
])
def test_half_blocks_where_there_are_colours(monkeypatch, env, encoding, found):
    monkeypatch.setattr(terminal, "ask", lambda stream: b"\x1b[?1;2c")
    stream = Terminal()
    stream.encoding = encoding
    on = terminal.screen(stream, env)
    assert found == (None if on is None else on.encode.keywords)
    assert terminal.screen(None, env) is None and terminal.screen(io.StringIO(), env) is None


def test_pictures_take_each_others_place(monkeypatch):
    monkeypatch.setattr("os.get_terminal_size", lambda fd: (80, 24))
    stream = Terminal()
    on = terminal.Screen(stream, lambda image, columns, rows, cell: f"<{columns}x{rows}>")
    for _ in range(2):
        on.show(gradient())
    on.leave()
    on.show(gradient(16, 16))
    new = "\r" + "\n" * 16 + "\x1b[16A\x1b7<{}x16>\x1b8\x1b[16B\r"
    assert stream.getvalue() == new.format(48) + "\r\x1b[16A\x1b7<48x16>\x1b8\x1b[16B\r" + (
        new.format(32))


@pytest.mark.parametrize("size, window, wanted", [
    ((512, 512), (80, 24), (32, 16)), ((512, 512), (80, 10), (14, 7)),
    ((768, 512), (20, 24), (20, 7)),
    ((512, 512), (0, 0), (32, 16)), ((8, 4096), (80, 24), (1, 16)), ((4096, 8), (80, 2), (80, 1)),
])
def test_a_picture_fits_the_window(size, window, wanted):
    assert terminal.fitting(size, window) == wanted


def test_kitty_and_iterm2_get_the_picture_itself():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8))
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", graphics.kitty(image, 12, 5))
    keys = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in pieces]
    assert keys[0] == {"a": "T", "f": "100", "q": "2", "C": "1", "i": str(os.getpid()), "c": "12",
                       "r": "5", "m": "1"}
    assert [key["m"] for key in keys] == ["1"] * (len(pieces) - 1) + ["0"]
    assert max(len(piece) for _, piece in pieces) == 4096 and len(pieces) > 2
    data = base64.b64decode("".join(piece for _, piece in pieces))
    said, inline = re.fullmatch(r"\x1b\]1337;File=([^:]*):(.*)\a", graphics.iterm2(
        image, 12, 5)).groups()
    assert base64.b64decode(inline) == data
    assert f"inline=1;size={len(data)};width=12;height=5;" in said
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(image)).all()


def sixels(text):
    """A sixel picture as a terminal draws it: pixels, of which -1 is not drawn."""
    width, height = map(int, re.match(r'\x1bP0;1;0q"1;1;(\d+);(\d+)', text).groups())
    pixels, palette = np.full((height, width), -1), {}
    x = y = colour = 0
    tokens = re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])",
                         text[text.index("#"):-2])
    for index, r, g, b, count, many, one, move in (token.groups() for token in tokens):
        if index is not None:
            colour = int(index)
            if r is not None:
                palette[colour] = int(r), int(g), int(b)
        elif move is not None:
            x, y = 0, y + 6 * (move == "-")
        else:
            for row in range(6):
                if ord(many or one) - 63 >> row & 1:
                    assert (pixels[y + row, x:x + int(count or 1)] == -1).all(), "drawn twice"
                    pixels[y + row, x:x + int(count or 1)] = colour
            x += int(count or 1)
    return pixels, palette


def test_sixel_draws_every_pixel_once_in_its_colour():
    image = Image.fromarray(np.repeat(np.repeat(np.array(
        [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8), 30, 0), 20, 1))
    text = graphics.sixel(image, 4, 3, (10, 20))
    assert text.endswith("\x1b\\") and "!20" in text
    pixels, palette = sixels(text)
    assert pixels.shape == (60, 40) and (pixels >= 0).all()
    drawn = np.array([palette[i] for i in range(len(palette))])[pixels]
    apart = np.abs(drawn - np.asarray(image) / 2.55)
    assert np.median(apart) <= 1  # percents are whole; resizing blends at the edges


def test_half_blocks_are_two_pixels_each():
    image = gradient()
    lines = graphics.blocks(image, 24, 8).split("\r\n")
    cell = re.compile("\x1b\\[38;2;(\\d+);(\\d+);(\\d+);48;2;(\\d+);(\\d+);(\\d+)m\u2580")
    found = np.array([[list(map(int, one)) for one in cell.findall(line)] for line in lines])
    pixels = np.asarray(image)
    assert (found[:, :, :3] == pixels[::2]).all() and (found[:, :, 3:] == pixels[1::2]).all()
    black, nearly, white = "38;5;16;48;5;16", "38;5;16;48;5;59", "38;5;231;48;5;231"
    for (top, bottom), wanted in {(0, 0): black, (47, 80): nearly, (255, 255): white}.items():
        one = Image.fromarray(np.array([[[top] * 3], [[bottom] * 3]], np.uint8))
        assert wanted in graphics.blocks(one, 1, 1, true=False)
