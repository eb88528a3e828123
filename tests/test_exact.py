"""Exact mode: convolutions that add up the products of the formula, and what asks for them."""

import threading

import numpy as np
import pytest
import tiny

import refsd
from refsd import functional as F
from refsd import registry
from refsd.__main__ import main
from refsd.cli.png import read_png
from refsd.cli.recipe import parse_recipe
from refsd.numba_ops import warmup
from refsd.numba_ops.cpu import conv as numba_conv
from refsd.ops import conv as numpy_conv
from refsd.random import TorchGenerator, draw_noise

PROMPT = "a glossy red sphere left of a small blue cube"


@pytest.fixture
def chosen(monkeypatch):
    """Every algorithm that a convolution on either backend takes, as (kernel's side, name)."""
    registry.make_ready("numba", "float32")  # which asks for all algorithms, to compile them
    taken = []
    choose, decide = numba_conv.choose, numpy_conv.conv2d_algorithm

    def on_numba(result, kernel, **options):
        found = choose(result, kernel, **options)
        taken.append((kernel[2], found.algorithm))
        return found

    def on_numpy(weight, **options):
        found = decide(weight, **options)
        if "exact" in options:  # asked by the definition; the contract asks without
            taken.append((weight.shape[2], found.algorithm))
        return found

    monkeypatch.setattr(numba_conv, "choose", on_numba)
    monkeypatch.setattr(numpy_conv, "conv2d_algorithm", on_numpy)
    return taken


def draw(**options):
    """The same noise for every dtype: torch's generator draws others in float64."""
    pipe = refsd.StableDiffusionPipeline.from_pretrained(**options)
    noise = draw_noise((1, 4, 16, 16), "float32", TorchGenerator(7))
    return pipe(PROMPT, guidance_scale=3, latents=noise.astype(pipe.unet.dtype), generator=7,
                num_inference_steps=2, output_type="np").images


def test_a_generation_takes_no_winograd(chosen):
    exact = draw(exact=True)
    names = {name for _, name in chosen}
    assert names == {"im2col"} and len(chosen) > 50
    assert np.array_equal(exact, draw(exact=True))

    chosen.clear()
    usual = draw()
    assert "winograd4" in {name for _, name in chosen}
    # The two differ in roundings only. What a picture can show is half a grey level; both errors
    # against the float64 picture are below that, and then no grey level moves by more than one.
    truth = draw(dtype="float64", exact=True)
    errors = [np.abs(picture - truth).max() for picture in (usual, exact)]
    assert 0 < max(errors) < 0.5 / 255
    assert 0 < np.abs(usual - exact).max() <= sum(errors)


@pytest.mark.parametrize("backend, side, usual", [("numba", 3, "winograd4"), ("numba", 15, "fft"),
                                                  ("numpy", 7, "fft")])
def test_use_decides_for_all_that_is_inside(chosen, backend, side, usual):
    x, weight = np.ones((1, 32, 40, 40), "f4"), np.ones((32, 32, side, side), "f4")

    def taken():
        chosen.clear()
        F.conv2d(x, weight)
        return [name for _, name in chosen]

    with refsd.use(backend):
        assert taken() == [usual]
        with refsd.use(backend, exact=True):
            assert taken() == ["im2col"]
            with refsd.use(backend):  # what a part of a pipeline says inside
                assert taken() == ["im2col"]
            thread = threading.Thread(target=lambda: chosen.append(registry.exact_wanted()))
            thread.start()
            thread.join()
            assert chosen[-1] is False
        assert taken() == [usual]


def test_an_algorithm_that_is_asked_for_by_name_is_taken(chosen):
    x, weight = np.ones((1, 16, 20, 20), "f4"), np.ones((16, 16, 3, 3), "f4")
    for backend in ("numba", "numpy"):
        with refsd.use(backend, exact=True):
            F.conv2d(x, weight, algorithm="winograd2")
    assert [name for _, name in chosen] == ["winograd2"] * 2


def test_the_parts_of_an_exact_pipeline_are_exact_alone(chosen):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(exact=True)
    noise = np.ones((1, 4, 16, 16), "f4")
    text = pipe.text_encoder(pipe.tokenizer([PROMPT])).last_hidden_state
    pipe.unet(noise, 1, text)
    pipe.vae.encode(pipe.vae.decode(noise))
    assert {name for _, name in chosen} == {"im2col"}


def test_kernels_are_planned_alike_in_any_mode_and_nobody_hears_it():
    """One process may draw exactly first and otherwise later: all kernels are made ready then."""
    heard = []
    with refsd.use("numba", exact=True), refsd.watch(lambda *event: heard.append(event)):
        planned = warmup.plan("float32")
    assert planned == warmup.plan("float32") and heard == []
    assert any("winograd" in kernel.__module__ for kernel, _ in planned)


def test_the_command_line_records_it_and_repro_keeps_to_it(chosen, tmp_path, capfd):
    path = str(tmp_path / "x.png")
    options = ["--steps", "1", "-s", "3", "-W", "64", "-H", "64", "-q"]
    assert main([PROMPT, *options, "--exact", "-o", path]) == 0
    assert {name for _, name in chosen} == {"im2col"}
    recipe = parse_recipe(read_png(path).texts["refsd"], path)
    assert recipe.exact is True

    chosen.clear()
    assert main(["repro", path, "-q"]) == 0
    assert {name for _, name in chosen} == {"im2col"}

    assert main([PROMPT, *options, "-o", path]) == 0
    assert parse_recipe(read_png(path).texts["refsd"], path).exact is False
    assert main(["repro", path, "-q"]) == 0
    assert "winograd4" in {name for _, name in chosen}


def test_an_older_recipe_was_drawn_without(tmp_path, capfd):
    model, path = str(tiny.write_model(tmp_path / "model")), str(tmp_path / "x.png")
    assert main(["a cat", "-m", model, "--steps", "1", "-q", "-o", path]) == 0
    text = read_png(path).texts["refsd"]
    older = text.replace('"exact": false, ', "")
    assert older != text
    assert parse_recipe(older, path) == parse_recipe(text, path)
