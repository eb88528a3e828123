"""A model in another format: what the emulation rounds, what is reported, what a spread allows."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.special import fdtri

from refsd import functional as F
from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request, load_truth
from refsd.golden.tolerances.bounds import bound
from refsd.golden.tolerances.emulate import Emulator, deviation
from refsd.golden.tolerances.formats import FORMATS, round_to
from refsd.golden.tolerances.precision import OUTLIERS, PRECISIONS
from refsd.golden.tolerances.simulate import simulate
from refsd.golden.tolerances.spread import (
    Errors,
    add_spread,
    emulated_run,
    more_than_mean,
    narrowness,
    spread,
)
from refsd.registry import trace

SIZE = 32  # pixels: latents of 4 x 4


@pytest.fixture(scope="module")
def pipe():
    return load_truth()


@pytest.fixture(scope="module")
def recipe(pipe):
    return Request(prompt="a red cone", width=SIZE, height=SIZE, steps=1, cfg_scale=3.0,
                  scheduler=pipe.scheduler.config.plain())


@pytest.fixture
def pack(pipe, recipe, tmp_path):
    make(tmp_path / "pack", recipe, pipe=pipe, selection=Selection(level=2))
    return tmp_path / "pack"


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_an_op_is_rounded_as_a_port_would():
    x, w, b = numbers(5, 64), numbers(7, 64, seed=1), numbers(7, seed=2)
    with trace(Emulator("bfloat16")):
        y = F.linear(x, w, b)
        moved = F.transpose(x, axes=(1, 0))
    stored = [round_to(t, "bfloat16") for t in (w, b)]
    np.testing.assert_array_equal(y, round_to(x @ stored[0].T + stored[1], "bfloat16"))
    np.testing.assert_array_equal(moved, x.T)
    with trace(Emulator("int8")):
        y = F.linear(x, w, b)
    exact = x @ round_to(w, "int8").T + round_to(b, "float32")
    np.testing.assert_array_equal(y, round_to(exact, "float32"))


def test_only_what_applies_is_rounded():
    with trace(Emulator("fp8_e4m3", applies=lambda op, inputs: op == "silu")):
        x = numbers(99)
        np.testing.assert_array_equal(F.exp(x), np.exp(x))
        assert len(set(F.silu(x))) < 60, "8 bits have few numbers"


def test_the_same_seed_gives_the_same_roundings():
    x, w = numbers(5, 64), numbers(7, 64, seed=1)
    results = []
    for seed in (1, 1, 2):
        with trace(Emulator("float32", seed=seed)):
            results.append(F.linear(x, w))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


@pytest.mark.parametrize("accumulate", ["float32", "float16"])
def test_errors_inside_an_op_have_the_size_of_a_running_sum(accumulate):
    """As the sum itself makes them: less than the model's (which never rounds exactly), no tenth"""
    x, w = numbers(40, 500), numbers(30, 500, seed=1)
    dtype = FORMATS[accumulate].name
    y = np.zeros((40, 30), dtype)
    x, w = (round_to(t, accumulate) for t in (x, w))
    for k in range(500):
        y += np.outer(x[:, k].astype(dtype), w[:, k].astype(dtype))
    error = math.sqrt(np.mean((y - x @ w.T)**2))
    wanted = deviation("linear", [x, w], {}, x @ w.T, PRECISIONS[accumulate])
    assert 0.1 * wanted < error < wanted
    likely = bound("linear", [x, w], {}, x @ w.T, accumulate=accumulate)
    ratio = math.sqrt(OUTLIERS) * wanted / math.sqrt(np.mean(likely.deviation**2))
    assert 0.8 < ratio < 1.25


def test_a_simulation_reports_margins_and_ranks(pipe, recipe):
    found = simulate(pipe, recipe, "bf16", rank="blocks",
                     scope=["unet/conv_*", "unet/mid_block.*", "decode/decoder.conv_out"])
    assert found.format == "bfloat16" and found.first_overflow is None
    text, latents, picture = found.errors.values()
    assert text == 0 and 1e-5 < latents < 0.5 and 1e-5 < picture < 0.5
    by_name = {layer.name: layer for layer in found.layers}
    conv = by_name["unet/conv_in"]
    assert conv.op == "conv2d" and conv.margin == FORMATS["bfloat16"].largest / conv.largest
    margins = [layer.margin for layer in found.layers]
    assert margins == sorted(margins)
    pictures = [part.picture for part in found.ranking]
    assert pictures == sorted(pictures, reverse=True) and pictures[0] > 0
    assert {part.name for part in found.ranking} == {
        "unet/conv_in", "unet/mid_block.resnets.0", "unet/mid_block.attentions.0",
        "unet/mid_block.resnets.1", "unet/conv_norm_out", "unet/conv_out",
        "decode/decoder.conv_out"}
    # Roundings of the parts are independent: together as the root of the sum of squares, about.
    assert 0.5 < math.hypot(*pictures) / picture < 2
    assert [part.latents == 0 for part in found.ranking] == [
        part.name.startswith("decode/") for part in found.ranking], "decoding comes after"


def test_a_finer_format_does_less(pipe, recipe):
    errors = [simulate(pipe, recipe, name, rank=None).errors["picture/image"]
              for name in ("float32", "tf32", "bfloat16", "fp8_e5m2")]
    assert errors == sorted(errors) and errors[1] > 100 * errors[0]


def test_overflow_is_named_and_cut_off(pipe, recipe, monkeypatch):
    """The last weights before the picture, 10^5 times as large, are too much for float16."""
    layer = pipe.vae.tree["decoder"]["conv_out"]
    monkeypatch.setitem(layer, "weight", layer["weight"] * 1e5)
    found = simulate(pipe, recipe, "fp16", rank=None)
    assert found.first_overflow == "decode/decoder.conv_out"
    first = found.layers[0]
    assert first.name == "decode/decoder.conv_out" and first.margin < 1 and first.overflows > 0
    assert all(layer.overflows == 0 for layer in found.layers[1:])
    assert math.isfinite(found.errors["picture/image"])


def test_a_scope_limits_what_is_rounded(pipe, recipe):
    whole = simulate(pipe, recipe, "fp8_e4m3", rank=None)
    part = simulate(pipe, recipe, "fp8_e4m3", scope=["decode/*"], rank=None)
    assert part.errors["denoise/final"] == 0 < part.errors["picture/image"]
    assert {layer.name.split("/")[0] for layer in part.layers} == {"decode"}
    assert part.errors["picture/image"] < whole.errors["picture/image"]
    with pytest.raises(UsageError, match="nothing in the model fits conv3d"):
        simulate(pipe, recipe, "bf16", scope=["conv3d"], rank=None)
    with pytest.raises(UsageError, match="rank is 'ops'"):
        simulate(pipe, recipe, "bf16", rank="ops")


def test_a_spread_is_written_into_the_pack(pipe, recipe, pack):
    told = []
    add_spread(pack, formats=("float32", "bfloat16"), runs=2, pipe=pipe,
               on_run=lambda *run: told.append(run))
    assert told == [(f, i) for f in ("float32", "bfloat16") for i in (0, 1)]
    with Pack.open(pack) as opened:
        assert not opened.verify()
        entry = opened.entries["denoise/final"]
        fine, coarse = (entry.tolerance[f]["spread"] for f in ("float32", "bfloat16"))
        assert set(fine) == {"rms", "max", "runs", "confidence"} and fine["runs"] == 2
        assert 0 < 1000 * fine["rms"] < coarse["rms"] < 1
        assert opened.entries["denoise/noise"].tolerance["float32"]["spread"]["rms"] == 0


def test_a_port_stays_within_the_spread(pipe, recipe, pack):
    """Runs that the limit was not made from: other seeds, and rounding to nearest throughout."""
    with Pack.open(pack) as opened:
        limits = spread(opened, "bfloat16", pipe=pipe)
        for seed in (101, 102, None):
            errors = Errors(opened)
            emulated_run(pipe, recipe, Selection(level=2), errors, Emulator("bfloat16", seed=seed))
            for name, ((size, _, _),) in errors.seen.items():
                assert size <= limits[name]["rms"], (seed, name)
        # and one in a coarser format does not
        errors = Errors(opened)
        emulated_run(pipe, recipe, Selection(level=2), errors, Emulator("fp8_e5m2"))
        size = errors.seen["denoise/final"][0][0]
        assert size > limits["denoise/final"]["rms"]


def test_a_spread_needs_a_run_and_two_of_them(pipe, pack):
    with Pack.open(pack) as opened:
        with pytest.raises(UsageError, match="runs is 1; give 2 or more"):
            spread(opened, "bfloat16", runs=1, pipe=pipe)
        opened.manifest = dataclasses.replace(opened.manifest, kind="ops")
        with pytest.raises(UsageError, match="needs a run"):
            spread(opened, "bfloat16", pipe=pipe)


def of_directions(random, count, runs):
    """(sizes, sketches) of runs whose errors are normal in so many of 64 directions."""
    rows = random.standard_normal((runs, count)) @ np.linalg.qr(
        random.standard_normal((64, count)))[0].T / count**0.5
    return np.linalg.norm(rows, axis=1), rows


def test_directions_that_errors_vary_in():
    random = np.random.default_rng(0)
    assert narrowness([0.0] * 3, np.zeros((3, 64))) == 0
    assert 3 < 1 / narrowness(*of_directions(random, 4, 50)) < 5
    # One large run says more than small ones that are at right angles to each other.
    assert narrowness([2, 1, 1], np.eye(64)[:3] * [[2], [1], [1]]) == pytest.approx(
        ((2**2 + 2 * 1) / 2) / 5 / 2**2)
    few, many = (more_than_mean(1 / count, 4, 0.9999) for count in (1, 64))
    assert many < more_than_mean(1 / 8, 4, 0.9999) < few
    # As if the directions were known, with many runs; with few, for want of knowing, more.
    assert more_than_mean(1 / 8, 100, 0.9999) == pytest.approx(fdtri(8, 800, 0.9999), rel=0.05)
    assert more_than_mean(1 / 8, 3, 0.9999) > 2 * fdtri(8, 24, 0.9999)


@pytest.mark.parametrize("runs", [2, 3, 4])
@pytest.mark.parametrize("count", [2, 8, 32])
def test_one_more_run_stays_below_the_limit_as_often_as_it_says(count, runs):
    """Though nobody tells in how many directions errors vary: 3 runs do not show that."""
    random, confidence = np.random.default_rng([count, runs]), 0.99
    beyond = 0
    for _ in range(1000):
        sizes, sketches = of_directions(random, count, runs + 1)
        factor = more_than_mean(narrowness(sizes[1:], sketches[1:]), runs, confidence)
        beyond += sizes[0] ** 2 > factor * np.mean(sizes[1:] ** 2)
    assert beyond <= 10 + 3 * 10**0.5


def test_the_command(capsys):
    arguments = ["golden", "simulate", "--format", "fp8_e4m3", "--steps", "1", "-W", "32", "-H",
                 "32", "--rank", "none"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "fp8_e4m3, sums in float32" in shown and "nearest to the largest number" in shown
    assert main([*arguments, "--json", "--scope", "conv2d"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranking"] is None and found["layers"] and found["errors"]["picture/image"] > 0
    assert main(["golden", "simulate", "--format", "fp7"]) == 2
    assert "format is 'fp7'; give one of" in capsys.readouterr().err
