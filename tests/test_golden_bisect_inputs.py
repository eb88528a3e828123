"""bisect where a port dumps a part of itself, was fed the golden tensors, or casts at its doors."""

import numpy as np
import pytest
from golden_port_ops import ROUND, Ops, schedule
from golden_runs import STEPS, WEIGHTS, Dump, port
from tiny import SCHEDULER

from refsd.golden.comparing.bisect import bisect
from refsd.golden.packs.pack import Pack

HALVES = ("bfloat16", "float16")


@pytest.fixture(scope="module")
def pack(runs):
    """Without a spread: nothing but bounds to judge by."""
    with Pack.open(runs / "level3") as opened:
        yield opened


def judged(pack, runs, tensors, **options):
    return bisect(pack, Dump(tensors), model=runs / "model", **options)


def golden(pack, format, wanted):
    """The pack's own tensors, rounded once."""
    return {name: ROUND[format](pack.read(name)) if entry.dtype == "float32" else pack.read(name)
            for name, entry in pack.entries.items() if wanted(name)}


@pytest.mark.parametrize("format", ["float32", *HALVES])
@pytest.mark.parametrize("wanted", ["", "unet/", "denoise/concat", "attn2", "unet/000/conv_in"])
def test_the_golden_tensors_rounded_once_are_right(runs, pack, format, wanted):
    """All of them, or a part whose inputs were not dumped: the text of a UNet alone."""
    found = judged(pack, runs, golden(pack, format, lambda name: wanted in name), format=format)
    assert found.first is None, found.sentence
    assert {row.status for row in found.rows} <= {"explained", "missing"}


@pytest.mark.parametrize("format", HALVES)
def test_a_unet_that_was_fed_golden_tensors_is_judged_alone(runs, pack, format):
    """Text, noise and latents came from the pack, in its float32, and nothing of them is dumped."""
    dump = fed(pack, Ops(format=format))
    found = judged(pack, runs, dump, format=format)
    assert found.first is None, found.sentence
    assert {row.status for row in found.rows} == {"explained", "missing"}
    to_k = next(row for row in found.rows if row.name.endswith("attentions.0.transformer_blocks.0"
                                                               ".attn2.to_k"))
    assert to_k.computed
    # Its own text, of which there is a part in the dump, is wrong: but that is not what it was fed.
    name = "text/000/text_model.embeddings"
    found = judged(pack, runs, dump | {name: -pack.read(name)}, format=format)
    assert [row.name for row in found.bad] == [name]
    to_k = next(row for row in found.rows if row.name == to_k.name)
    assert to_k.notes == ("given the golden x",)


def fed(pack, ops):
    """The first step's network on the pack's own tensors."""
    def after(name, array):
        given = {"denoise/concat", "denoise/000/concat"}
        return (array, pack.read(name)) if name in given else (array, array)

    return {name: array for name, array in port(pack, ops, after=after).items()
            if name.startswith("unet/000/")}


@pytest.mark.parametrize("format", ["float32", *HALVES])
def test_a_text_that_is_not_dumped_is_computed_and_its_bound_tells(runs, pack, format):
    """Through a whole encoder: 57 ops."""
    dump = {name: array for name, array in port(pack, Ops(format=format)).items()
            if name.startswith("unet/000/")}
    found = judged(pack, runs, dump, format=format)
    assert found.first is None, found.sentence
    assert {row.status for row in found.rows} == {"explained", "missing"}
    name = next(row.name for row in found.rows if row.name.endswith("attn2.to_k"))
    found = judged(pack, runs, dump | {name: dump[name][..., ::-1]}, format=format)
    assert (found.first.name, found.first.status) == (name, "wrong")
    assert len(found.first.computed) > 50 and found.first.times > 5


@pytest.mark.parametrize("format", HALVES)
def test_noise_that_is_rounded_at_the_door_is_no_error_of_the_op(runs, pack, format):
    """Whether the dump has the noise as it was given, as it was rounded, or not at all."""
    dump = port(pack, Ops(format=format))
    noise = pack.read("denoise/noise")
    conv = {"unet/000/conv_in": dump["unet/000/conv_in"]}
    for more in ({}, {"denoise/noise": noise}, {"denoise/noise": ROUND[format](noise)}):
        found = judged(pack, runs, conv | more, format=format)
        assert found.first is None, found.sentence
        assert [row.name for row in found.rows if row.status == "explained"][-1] == (
            "unet/000/conv_in")
        found = judged(pack, runs, {"unet/000/conv_in": 1.1 * conv["unet/000/conv_in"]} | more,
                       format=format)
        assert found.first.name == "unet/000/conv_in"


def test_a_cast_at_the_door_excuses_no_other_error(runs, pack):
    """The op is computed on the rounded inputs, not allowed whatever a rounding could do."""
    norm = "unet/000/down_blocks.0.resnets.0.norm1"
    exact = golden(pack, "float32", lambda name: name.startswith("unet/000/"))
    x, ops = exact["unet/000/conv_in"], Ops(format="bfloat16")
    weight, bias = (WEIGHTS["unet"][f"{norm.removeprefix('unet/000/')}.{part}"]
                    for part in ("weight", "bias"))

    def first(read):
        y = ops.group_norm(read(x), weight, bias, **pack.entries[norm].options)
        found = judged(pack, runs, exact | {norm: y}, format="bfloat16", only=[norm])
        return found.rows[0]

    assert first(lambda x: x).notes == ()
    assert first(ROUND["bfloat16"]).notes == (
        "its inputs rounded to bfloat16 first",)
    half = np.arange(x.size).reshape(x.shape) % 2 == 0
    assert first(lambda x: np.where(half, x, ROUND["bfloat16"](x))).status == "explained"
    assert first(lambda x: x + np.float32(3e-2) * np.abs(x)).status == "wrong"


FLOAT32 = {"denoise": "float32", "decode": "float32", "picture": "float32"}
BY_STAGE = ["bfloat16", "denoise/*=float32", "decode/*=float32", "picture/*=fp32"]


@pytest.mark.parametrize("format", ["bfloat16", BY_STAGE], ids=["one", "by stage"])
@pytest.mark.parametrize("cast", [False, True], ids=["in the network", "in the concat"])
def test_float32_latents_beside_a_bfloat16_network(runs, pack, format, cast):
    """The cast is in the network's first ops, or in what makes its batch."""
    def after(name, array):
        return (ROUND["bfloat16"](array) if cast and name.endswith("/concat")
                and name.startswith("denoise/0") else array), array

    dump = port(pack, Ops(format="bfloat16", formats=FLOAT32), after=after)
    found = judged(pack, runs, dump, format=format)
    assert found.first is None, found.sentence
    assert all("/eps_" in row.name for row in found.rows if row.status == "open")


def test_a_small_mistake_of_a_float32_sampler_beside_a_bfloat16_network(runs, pack):
    """alpha_bar of the neighbouring timestep is less than bfloat16's rounding of the latents."""
    last = "denoise/002/latents"

    def after(name, array):
        changed = array * np.float32(1 + 2e-3) if name == last else array
        return changed, changed

    dump = port(pack, Ops(format="bfloat16", formats=FLOAT32), after=after)
    assert judged(pack, runs, dump, format="bfloat16").first is None
    found = judged(pack, runs, dump, format=BY_STAGE)
    assert (found.first.name, found.first.format) == (last, "float32")
    assert "what float32 rounding allows" in found.sentence


def test_the_last_alpha_bar_of_a_float32_sampler_beside_a_bfloat16_network(runs, pack):
    """set_alpha_to_one, which bfloat16 may hide: held to the sampler's own format."""
    dump = port(pack, Ops(format="bfloat16", formats=FLOAT32))
    *_, (_, alpha_bar, _) = schedule(SCHEDULER, STEPS)
    sampler = Ops(format="float32")
    last = "denoise/002/latents"
    wrong = dump | {last: sampler.ddim(dump["denoise/001/latents"], dump["denoise/002/guided"],
                                       alpha_bar, 1.0)}
    only = ["denoise/002/*"]
    assert judged(pack, runs, dump, format=BY_STAGE, only=only).first is None
    found = judged(pack, runs, wrong, format=BY_STAGE, only=only)
    assert (found.first.name, found.first.finding.reason) == (last, "set_alpha_to_one")
    coarse = judged(pack, runs, wrong, format="bfloat16", only=only).rows[-1]
    assert coarse.name == last and found.first.times > 1000 * coarse.times


def test_a_stage_whose_inputs_are_cast_first(runs, pack):
    """255 x is off by two roundings of a picture that was rounded to float16 on the way."""
    image, half = pack.read("picture/image"), ROUND["float16"]
    bytes_ = np.rint(half(255 * half(image))).astype("u1")
    assert (bytes_ != pack.read("picture/pixels")).any()
    dump = {"picture/image": image, "picture/pixels": bytes_}
    found = judged(pack, runs, dump, format="float16")
    assert found.first is None
    assert found.rows[-1].notes == ("its inputs rounded to float16 first",)
    assert judged(pack, runs, dump).first.name == "picture/pixels"


def test_only_some_names_are_judged_on_all_of_the_dump(runs, pack):
    dump = port(pack, Ops())
    wrong = dump | {"text/000/last_hidden_state": 2 * dump["text/000/last_hidden_state"]}
    found = judged(pack, runs, wrong, only=["unet/000/*.attn1.*", "unet/000/conv_in"])
    assert found.first is None
    assert all(".attn1." in row.name or row.name == "unet/000/conv_in" for row in found.rows)
    assert {row.status for row in found.rows} == {"explained"}
    assert not [row for row in found.rows if row.borrowed or row.computed]
