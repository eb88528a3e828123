"""What drawings cost, from shapes: the published models' parameters, memory, and what would fit."""

import json
import math

import pytest
import tiny

from refsd.__main__ import main
from refsd.backends import BACKENDS
from refsd.cli.plan import size
from refsd.errors import ModelError, ResourceError, UsageError
from refsd.families import FAMILIES, published, short_names
from refsd.memory_models import BESIDE
from refsd.networks import shapes_of
from refsd.numba_ops.simd import WIDTH
from refsd.pipelines import memory
from refsd.pipelines.figures import Request, figures
from refsd.pipelines.lighter import lighter
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import calls, plan_model, planned_networks, sized
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.registry import make_ready
from refsd.tree import flatten
from refsd.weights import load_checkpoint
from refsd.weights.lighter import Choice, advice

HERE = [name for name, backend in BACKENDS.items() if backend.device == "cpu"]
CLIP_L, VAE_4, VAE_16 = 123_060_480, 83_653_863, 83_819_683
CLIP_G, T5 = 694_659_840, 4_762_310_656
# The published numbers of parameters, part for part; transformers' with their table of positions,
# which is stored though it is not trained: 192 x 192 x 1536 of 2,084,951,104 and 192 x 192 x 2432.
PARAMETERS = {
    "sd1": {"text_encoder": CLIP_L, "unet": 859_520_964, "vae": VAE_4},
    # without the last layer of OpenCLIP's text encoder, and its projection
    "sd2": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": VAE_4},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "unet": 2_567_463_684,
             "vae": VAE_4},
    "sdxl-refiner": {"text_encoder_2": CLIP_G, "unet": 2_259_526_660, "vae": VAE_4},
    "sd3": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5,
            "transformer": 2_028_328_000 + 192**2 * 1536, "vae": VAE_16},
    "sd3.5-medium": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5,
                     "transformer": 2_243_171_520 + 384**2 * 1536, "vae": VAE_16},
    "sd3.5-large": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5,
                    "transformer": 8_056_627_520 + 192**2 * 2432, "vae": VAE_16},
    "gpt2": {"gpt2": 124_439_808}, "gpt2-medium": {"gpt2": 354_823_168},
    "gpt2-large": {"gpt2": 774_030_080}, "gpt2-xl": {"gpt2": 1_557_611_200},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")


# -- the published models


def test_every_published_model_is_in_the_table():
    assert set(short_names()) == PARAMETERS.keys()


@pytest.mark.parametrize("name", short_names())
def test_the_published_numbers_of_parameters(name):
    _, configs = published(name)
    assert {part: sum(map(math.prod, shapes_of(part, config).values()))
            for part, config in configs.items()} == PARAMETERS[name]


@pytest.mark.parametrize("name", short_names())
def test_every_published_model_is_planned_without_weights(name):
    """Its calls read what the others give, and read all of the weights."""
    found = outline(name)
    networks = planned_networks(found.configs)
    asked = sized(networks) if "vae" in networks else None
    read = set()
    for part, network in networks.items():
        of_part = {part: network}
        if not part.startswith("text_encoder") and "vae" in networks and part != "vae":
            of_part = {**{p: n for p, n in networks.items() if p.startswith("text")}, **of_part}
        for name, (_, plan, _) in calls(of_part, asked).items():
            assert plan and plan.flops > 0 < plan.peak <= plan.naive
            read |= {(part, p.path) for p in plan if p.path} if name in (
                part, "decode", "encode", "read", "token") else set()
    layers = {(part, path.rpartition(".")[0]) for part, config in found.configs.items()
              for path in shapes_of(part, config)}
    assert not layers - read


def test_what_the_denoisers_read_of_the_texts():
    """Widths and lengths by the papers: of two encoders side by side; of CLIP's and T5's in a row;
    pooled vectors; six sizes, or five and a score.
    """
    def denoiser(name):
        networks = planned_networks(outline(name).configs)
        return next(call for part, (call, *_) in calls(networks, sized(networks)).items()
                    if part in ("unet", "transformer"))

    def shapes(call):
        return [tuple(spec.shape) for spec in call.args], {
            key: tuple(call.keywords[key].shape) for key in ("text_embeds", "time_ids")
            if key in call.keywords}

    for name, side, length, width, beside in [
        ("sd2", 96, 77, 1024, {}),
        ("sdxl", 128, 77, 2048, {"text_embeds": (2, 1280), "time_ids": (2, 6)}),
        ("sdxl-refiner", 128, 77, 1280, {"text_embeds": (2, 1280), "time_ids": (2, 5)}),
    ]:  # fmt: skip
        assert shapes(denoiser(name)) == (
            [(2, 4, side, side), (2,), (2, length, width)], beside)
    assert shapes(denoiser("sd3.5-large")) == (
        [(2, 16, 128, 128), (2,), (2, 77 + 256, 4096), (2, 2048)], {})


# -- memory


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype, weights", [
    ("float32", None), ("float32", "int8"), ("float32", "float16"), ("float32", "as-is"),
    ("bfloat16", None), ("int8", None), ("float64", None)])
def test_planned_weights_have_the_bytes_of_loaded_ones(model, backend, dtype, weights):
    make_ready(backend, "float32")
    pipe = StableDiffusionPipeline.from_pretrained(model, backend=backend, dtype=dtype,
                                                   weights=weights)
    planned = figures(outline(str(model)), Request(64, 64, dtype=dtype, weights=weights,
                                                   backend=backend))
    assert planned.weights == memory.weight_bytes(pipe)
    checked = memory.estimate_bytes(pipe, 64, 64, 1)  # before drawing, by formulas
    leaves = sum(len(flatten(network.tree)) for network in pipe.networks.values())
    assert planned.libraries == BACKENDS[backend].memory.libraries + leaves * BESIDE
    if backend == "numpy":
        assert planned.peak == checked + leaves * BESIDE


# Measured: VmHWM of a fresh process whose kernels are compiled, of random float16 weights of the
# family's size, one step of 512 x 512 pixels; MB of 10^6 bytes. The goal is 5 %.
@pytest.mark.parametrize("family, options, measured", [
    ("sd1", {}, 5556.7), ("sd1", {"dtype": "bfloat16"}, 2906.0),
    ("sd1", {"dtype": "bfloat16", "weights": "int8"}, 1773.0),
    ("sdxl", {"dtype": "bfloat16", "weights": "int8"}, 4271.5)])
def test_the_peak_of_a_process_is_known(family, options, measured):
    planned = figures(outline(family), Request(512, 512, backend="numba", **options))
    assert planned.peak / 1e6 == pytest.approx(measured, rel=0.01)


def test_keys_and_values_of_the_text():
    """Of two texts of 77 tokens in float32, of each of the 16 layers that ask them."""
    found = figures(outline("sd1"), Request(backend="numba"), free=8 * 2**30)
    assert found.text == 2 * 4 * 2 * 77 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert figures(outline("sd3"), Request(512, 512, backend="numba")).text == 0
    assert [stage.kept for stage in found.stages] == [0, found.text, found.text]
    alone = found.calls[2].peak + 18 * 4 * 512**2  # in a pool of its own
    assert found.most is found.stages[2] and alone <= found.most.working < 1.01 * alone
    less = figures(outline("sd1"), Request(backend="numba"), free=4 * 2**30)
    assert less.working < found.working  # in bands


# Bytes of the UNet's arena and of its largest workspace, by the bytes of a vector: with shorter
# ones Winograd's block of tiles is less than a picture, and a whole weight is transformed before.
WORKING = {64: (171_218_240, 73_270_848), 32: (313_132_608, 247_455_296)}


def test_the_plan_of_each_call():
    """T21: at least 50 % below the sum of all results."""
    calls = figures(outline("sd1"), Request(backend="numba")).calls
    for call in calls:
        assert 0 < call.workspace < call.arena <= call.peak < call.results / 2, call.name
    unet = calls[1]
    assert (unet.results, unet.arena, unet.workspace) == (4_075_881_472, *WORKING[WIDTH])


def test_a_network_beyond_float16_is_planned_in_float32():
    networks = planned_networks(outline("sd3").configs, dtype="float16")
    assert {part: network.dtype for part, network in networks.items() if hasattr(network, "dtype")
            } == {"transformer": "float16", "vae": "float16"}
    third = networks["text_encoder_3"].tree["shared"]["weight"]
    assert third.dtype == "float32" and third.nbytes == 2 * math.prod(third.shape)


def test_a_decoder_that_overflows_in_float16_is_planned_in_float32():
    halves = [figures(outline("sdxl"), Request(512, 512, dtype=dtype, backend="numpy",
                                               tiling="off")) for dtype in ("float16", "bfloat16")]
    assert halves[0].weights == halves[1].weights
    assert halves[0].working == pytest.approx(2 * halves[1].working, rel=0.05)


def test_the_figures_of_a_drawing():
    found = figures(outline("sd1"), Request(steps=20, backend="numpy"), free=2**32)
    assert (found.width, found.height, found.model_calls) == (512, 512, 21)  # PNDM: one more
    plans = plan_model()
    assert found.flops == {
        "texts": plans["text_encoder"].flops, "step": plans["unet"].flops,
        "decode": plans["decode"].flops, "drawing": plans["text_encoder"].flops
        + 21 * plans["unet"].flops + plans["decode"].flops}
    assert [call.name for call in found.calls] == ["text_encoder", "unet", "decode", "encode"]
    assert found.calls[1].flops == plans["unet"].flops and found.calls[1].ops == 685
    assert found.peak == found.libraries + found.weights + found.working
    assert sum(network.parameters for network in found.networks) == 1_066_235_307
    assert sum(network.bytes for network in found.networks) == found.weights == 4 * 1_066_235_307
    assert not found.fits and all(choice.bytes <= 2**32 for choice in found.choices)
    assert [choice.options for choice in found.choices][:3] == [
        {"offload": "component"}, {"offload": "block"}, {"weights": "bfloat16"}]


def test_more_pictures_and_no_guidance():
    once = figures(outline("sd1"), Request(backend="numpy", guided=False))
    twice = figures(outline("sd1"), Request(backend="numpy"))
    four = figures(outline("sd1"), Request(backend="numpy", pictures=4))
    assert 1.99 < twice.flops["step"] / once.flops["step"] <= 2  # the time is embedded once a row
    assert four.flops["decode"] == 4 * twice.flops["decode"]
    assert 3.99 < four.flops["step"] / twice.flops["step"] <= 4
    assert four.flops["texts"] == twice.flops["texts"] > once.flops["texts"]
    assert four.working > twice.working and four.weights == twice.weights
    assert once.free is None and once.fits is None and once.choices == ()


def test_choices_fit_when_they_are_taken():
    """What is said to fit is what a plan of it says."""
    found = figures(outline("sd1"), Request(1024, 1024, 4, backend="numpy", tiling="off"),
                    free=7 * 2**30)
    assert {"num_images_per_prompt": 1} not in [choice.options for choice in found.choices]
    assert found.choices
    names = {"num_images_per_prompt": "pictures", "vae.tiling": "tiling"}
    for choice in found.choices:
        options = {names.get(key, key): value for key, value in choice.options.items()}
        asked = {"width": 1024, "height": 1024, "pictures": 1 if "width" in options else 4,
                 "backend": "numpy", "tiling": "off", **options}
        assert figures(outline("sd1"), Request(**asked)).peak == choice.bytes <= found.free


def test_networks_share_memory_and_blocks_need_the_least():
    whole, component, block = (figures(outline("sd1"), Request(backend="numpy", offload=offload))
                               for offload in (None, "component", "block"))
    size = {network.part: network.bytes for network in whole.networks}
    assert whole.most.name == block.most.name == "decode" and component.most.name == "unet"
    assert [stage.weights for stage in component.stages] == [size["unet"], size["vae"]]
    assert {stage.weights for stage in whole.stages} == {sum(size.values())}
    assert component.weights > 4 * block.weights
    assert [stage.working for stage in whole.stages] == [stage.working for stage in block.stages]
    rows = {choice.options["offload"]: choice.bytes for choice in whole.held
            if "offload" in choice.options}
    assert rows == {"component": component.peak, "block": block.peak}
    assert not any("offload" in choice.options for choice in figures(
        outline("gpt2"), Request(backend="numpy")).held)


def test_a_part_that_a_model_may_lack():
    whole = figures(outline("sd3"), Request(backend="numpy"), free=7 * 2**30)
    least = {"without": "text_encoder_3", "weights": "bfloat16"}
    fitting = [choice for choice in whole.choices if "offload" not in choice.options]
    assert fitting[0].options == least  # not even int8 weights of all parts would do
    asked = Request(backend="numpy", **least)
    without = figures(outline("sd3"), asked, free=7 * 2**30)
    assert without.fits and without.peak == fitting[0].bytes
    assert (whole.weights - 4 * T5) / 2 < without.weights < 0.51 * (whole.weights - 4 * T5)
    assert [network.part for network in without.networks] == [
        "text_encoder", "text_encoder_2", "transformer", "vae"]
    assert without.flops["step"] == whole.flops["step"]  # zeros stand in its place
    for name in ("sd3", "sd1"):
        with pytest.raises(UsageError, match="may lack"):
            figures(outline(name), Request(backend="numpy", without="unet"))


def test_the_longest_text():
    found = figures(outline("gpt2"), Request(backend="numpy"))
    assert found.flops.keys() == {"read", "token"} and found.flops["read"] > 500 * found.flops[
        "token"]
    # keys and values of 1024 tokens are among what is alive
    assert found.working > 2 * 12 * 1024 * 768 * 4
    with pytest.raises(UsageError, match="width"):
        figures(outline("gpt2"), Request(width=64, backend="numpy"))


# -- advice


def test_a_model_that_does_not_fit_says_which_option_would(model, monkeypatch):
    def available(free):
        monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: free)

    available(450_000)  # 359,148 in float32, and the largest tensor once more
    assert load_checkpoint(model)
    available(300_000)
    with pytest.raises(ResourceError) as refused:
        load_checkpoint(model)
    assert "weights='bfloat16' (--weights bfloat16)" in str(refused.value)
    assert load_checkpoint(model, weights="bfloat16")
    available(1000)
    with pytest.raises(ResourceError, match="The least is 0.1 MiB, with dtype='bfloat16', "
                                            "weights='int8'"):
        load_checkpoint(model)
    with pytest.raises(ResourceError, match="available. Free some, or force it"):
        load_checkpoint(model, dtype=None)  # each in its own type: nothing else was asked for


def test_advice_names_the_first_that_fits():
    choices = [Choice({"vae.tiling": "exact"}, 3 << 30), Choice({"width": 64, "height": 32}, 1000)]
    assert advice(choices, 4 << 30) == (
        "With vae.tiling='exact' (--vae-tiling exact) it takes 3.0 GiB and fits")
    assert advice(choices, 2 << 30) == (
        "With width=64, height=32 (-W 64 -H 32) it takes 0.0 MiB and fits")
    assert advice(choices, 10) == "The least is 0.0 MiB, with width=64, height=32 (-W 64 -H 32)"
    assert advice([], 10) == ""


def test_a_drawing_that_does_not_fit_says_what_would(model, monkeypatch):
    pipe = StableDiffusionPipeline.from_pretrained(model, backend="numpy")
    pipe.vae.tiling = "off"
    options = [choice.options for choice in lighter(pipe, 512, 512, 2)]
    assert options == [
        {"vae.tiling": "exact"}, {"num_images_per_prompt": 1}, {"width": 256, "height": 256},
        {"width": 128, "height": 128}, {"width": 64, "height": 64}]
    assert pipe.vae.tiling == "off"
    needed = memory.working_bytes(pipe, 64, 64, 1)
    monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: needed)
    with pytest.raises(ResourceError, match=r"With width=64, height=64 \(-W 64 -H 64\)"):
        pipe("a", width=512, height=512)
    assert pipe("a", width=64, height=64, num_inference_steps=1).images


# -- the command


def answer(capfd, *args):
    code = main(["plan", *args])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_the_command(model, capfd):
    code, out, err = answer(capfd, "-m", "sdxl", "-W", "768", "--budget", "6GiB", "--backend",
                            "numpy")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 40 and max(map(len, out.splitlines())) <= 100
    assert "768 x 1024, 20 steps" in out and "2,567,463,684" in out
    assert "it does not fit into the 6.00 GiB of the budget" in out
    assert "it would with --weights int8" in out

    found = json.loads(answer(capfd, "-m", str(model), "--json", "--backend", "numpy")[1])
    assert (found["width"], found["fits"], found["choices"]) == (32, True, [])
    assert found["parameters"] == 89_787 and found["weight_bytes"] == 4 * 89_787
    assert found["held"][0]["options"] == {"dtype": "float32"}
    assert found["held"][0]["bytes"] == found["peak"]
    assert all(call["arena"] > call["workspace"] > 0 for call in found["calls"])
    assert found["text"] > 0
    assert "nothing" not in found and found["backend"] == "numpy" and found["steps"] == 20


@pytest.mark.parametrize("args, words", [
    (["-m", "sd9"], "sd9"), (["--budget", "4 apples"], "4GiB"), (["--budget", "0"], "4GiB"),
    (["-m", "sd3", "--without", "vae"], "may lack text_encoder_3"),
    (["-W", "511"], "multiple of 8"), (["-b", "0"], "--batch"), (["--steps", "0"], "--steps"),
    (["--dtype", "bfloat16", "--weights", "float16"], "not held"),
    (["--vae-tiling", "exakt"], "exact"), (["--backend", "numba2"], "numba2"),
])
def test_what_the_command_refuses(args, words, capfd):
    code, out, err = answer(capfd, *args)
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


def test_a_path_goes_before_a_short_name(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tiny.write_model(tmp_path / "sd1")
    assert outline("sd1").configs["unet"]["block_out_channels"] == [8, 16]
    (tmp_path / "sd2").mkdir()
    with pytest.raises(ModelError):
        outline("sd2")


def test_sizes_of_memory():
    assert size("4GiB") == size("4G") == size("4GB") == size("4GIB") == 4 << 30
    assert size("1.5MiB") == 3 << 19 and size(".5G") == 1 << 29
    assert size("1000") == 1000 and size("2k") == 2048
    for text in ("", "GiB", "-1G", "1e99G", "nanG", "infG", "4BB", "9" * 400):
        with pytest.raises(UsageError, match="--budget"):
            size(text)


def test_families_that_draw_are_found_by_their_short_names():
    assert all(family.published for family in FAMILIES)
    assert published("sd9") is None and outline().configs == outline("sd1").configs
