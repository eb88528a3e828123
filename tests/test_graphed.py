"""Pipelines whose networks run as graphs: the same pictures, and whoever listens hears each op."""

import json
from functools import cache

import numpy as np
import pytest
import tiny
import tiny_three
import tiny_xl

import refsd
from refsd.errors import UsageError
from refsd.leaf import Weight
from refsd.models.layers import Text
from refsd.pipelines import graph_mode, graphed
from refsd.pipelines.auto import AutoPipelineForText2Image
from refsd.pipelines.loading import bundled_model
from refsd.pipelines.planned import planned_network

WRITE = {"sd1": tiny.write_model, "sdxl": tiny_xl.write_model, "sd3": tiny_three.write_model}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {name: write(place / name) for name, write in WRITE.items()}


@pytest.fixture
def pipes(folders):
    return cache(lambda name, **options: AutoPipelineForText2Image.from_pretrained(
        folders[name], **{"backend": "numpy", **options}))


@pytest.fixture
def ran(monkeypatch):
    """The number of nodes of each graph that was run."""
    found = []
    run = graphed.run
    monkeypatch.setattr(graphed, "run", lambda graph, *inputs: (
        found.append(len(graph.nodes)), run(graph, *inputs))[1])
    return found


def draw(pipe, **options):
    return pipe("a red cat", height=32, width=32, num_inference_steps=3, generator=1,
                output_type="np", **options).images


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", WRITE)
def test_pictures_have_the_bits_of_eager_ones(pipes, ran, name, backend):
    pipe = pipes(name, backend=backend, graph=False)
    expected = draw(pipe)
    assert not ran
    pipe.graph = True
    assert np.array_equal(draw(pipe), expected)
    # what is computed once, each of three steps, and the decoder with nothing before it
    steps = ran[1]
    assert ran[:4] == [ran[0], steps, steps, steps] and len(ran) == 6 and ran[4] == 0


def test_the_setting_reaches_each_network(pipes):
    pipe = pipes("sd1", graph=True)
    assert pipe.graph is pipe.unet.graph is pipe.vae.graph is True
    pipe.graph = None
    assert pipe.unet.graph is pipe.vae.graph is None
    for wrong in (1, "yes"):
        with pytest.raises(UsageError, match="give True, False, or None: where it is faster"):
            pipe.graph = wrong
        with pytest.raises(UsageError, match="graph is"):
            refsd.StableDiffusionPipeline.from_pretrained(graph=wrong)


def test_none_is_where_it_was_found_faster(pipes, ran, monkeypatch):
    pipe = pipes("sd1")
    draw(pipe)
    assert pipe.graph is None and not ran
    monkeypatch.setitem(graph_mode.FASTER, ("numpy", "float32", "UNet"), ("group_norm_silu",))
    monkeypatch.setattr(graph_mode, "LARGE", 0)
    pipe = pipes("sd1", graph=None)
    expected = draw(pipe)
    assert len(ran) == 4
    (_, chosen), = vars(pipe.unet)["_graphs"]
    assert [one.__name__ for one in chosen] == ["group_norm_silu"]
    pipe.graph = False
    assert np.array_equal(draw(pipe), expected) and len(ran) == 4


@pytest.mark.parametrize(("backend", "dtype"), [("numba", "float32"), ("numba", "bfloat16"),
                                               ("numpy", "float32")])
def test_a_large_unet_is_a_graph_by_itself_where_no_bit_changes(backend, dtype):
    found = planned_network("unet", backend=backend, dtype=dtype).as_graph(len)
    if (backend, dtype) == ("numba", "float32"):
        assert [one.__name__ for one in found._passes] == ["linear_geglu"]
    else:
        assert found is len


def test_a_small_one_is_not_for_tracing_takes_longer():
    config = json.loads((bundled_model() / "unet" / "config.json").read_text())
    assert planned_network("unet", config, backend="numba").as_graph(len) is len


def test_a_listener_hears_what_it_hears_of_eager_calls(pipes, ran):
    heard = {}
    pipe = pipes("sd1")
    for pipe.graph in (False, True):
        heard[pipe.graph] = []
        with refsd.watch(lambda op, *event: heard[pipe.graph].append(op)):
            draw(pipe)
    assert heard[True] == heard[False] and "silu" in heard[True] and not ran


def call(pipe, text, seed=0, time=7.0):
    sample = np.random.default_rng(seed).standard_normal((2, 4, 4, 4)).astype("f4")
    return pipe.unet(sample, time, text)


def states(seed, writeable=False):
    found = np.random.default_rng(seed).standard_normal((2, 5, 16)).astype("f4")
    found.flags.writeable = writeable
    return found


def both(pipe, *arguments, **options):
    """Whether graph and eager call give the same."""
    pipe.graph = False
    expected = call(pipe, *arguments, **options)
    pipe.graph = True
    return np.array_equal(call(pipe, *arguments, **options), expected)


def test_keys_and_values_are_made_once_for_a_text(pipes, ran):
    pipe = pipes("sd1")
    first, second = Text(states(0)), Text(states(1))
    assert all(both(pipe, text, time=time) for text in (first, second) for time in (3.0, 600.0))
    keys_and_values = 2 * sum("attn2" in name for name in (
        name for name in refsd.tree.flatten(pipe.unet.tree) if name.endswith("to_k.weight")))
    assert [n for n in ran if n == keys_and_values] == [keys_and_values] * 2 and len(ran) == 6


def test_of_a_text_that_may_be_written_to_they_are_made_at_every_call(pipes):
    pipe, array = pipes("sd1"), states(0, writeable=True)
    for given in (Text(array), array):
        assert both(pipe, given)
        array *= 2
        assert both(pipe, given)


def test_weights_that_may_be_written_to_are_read_at_every_call(folders):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folders["sd1"], backend="numpy")
    block = pipe.unet.tree["mid_block"]["attentions"][0]["transformer_blocks"][0]["attn2"]
    block["to_k"]["weight"] = np.array(block["to_k"]["weight"])
    text = Text(states(0))
    assert both(pipe, text)
    block["to_k"]["weight"] *= 2
    assert both(pipe, text)


def test_a_leaf_that_is_replaced_is_noticed(folders):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folders["sd1"], backend="numpy")
    text = Text(states(0))
    assert both(pipe, text)
    for layer in ("to_k", "to_q"):
        attention = pipe.unet.tree["mid_block"]["attentions"][0]["transformer_blocks"][0]["attn2"]
        old = attention[layer]["weight"]
        attention[layer]["weight"] = Weight(2 * old.dense(), old.name)
        assert both(pipe, text)


def test_other_shapes_get_other_graphs_and_the_first_ones_stay(pipes, monkeypatch):
    pipe, text, traced = pipes("sd1", graph=True), Text(states(0)), []
    trace = graphed.trace
    monkeypatch.setattr(graphed, "trace", lambda *given: traced.append(given) or trace(*given))
    for side in (4, 6, 4, 6):
        sample = np.ones((2, 4, side, 4), "f4")
        found = pipe.unet(sample, 3, text)
        pipe.graph = False
        assert np.array_equal(found, pipe.unet(sample, 3, text))
        pipe.graph = True
    assert len(traced) == 2


def test_a_controlnets_residuals_are_inputs(pipes):
    pipe, text = pipes("sd1"), Text(states(0))
    skips = []
    with refsd.watch(lambda op, inputs, options, output: (
            skips.append(inputs["arrays"][1].shape) if op == "concat" else None)):
        pipe.graph = False
        call(pipe, text)
    residuals = [np.full(shape, 0.5, "f4") for shape in reversed(skips)]
    middle = np.full((2, 16, 2, 2), 0.25, "f4")
    sample = np.ones((2, 4, 4, 4), "f4")
    found = {}
    for pipe.graph in (False, True):
        found[pipe.graph] = pipe.unet(sample, 3, text, down_block_additional_residuals=residuals,
                                      mid_block_additional_residual=middle)
    assert np.array_equal(found[True], found[False])
    assert not np.array_equal(found[True], pipe.unet(sample, 3, text))


def test_skipped_layers_are_another_graph(pipes):
    pipe, found = pipes("sd3"), {}
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype("f4") for shape in (
        (2, 16, 4, 4), (2, 5, 32), (2, 16))]
    for pipe.graph in (False, True):
        found[pipe.graph] = [pipe.transformer(arrays[0], 3, Text(arrays[1]), arrays[2],
                                              skip_layers=skipped) for skipped in ((), (1,), ())]
    assert all(map(np.array_equal, found[True], found[False]))
    assert not np.array_equal(found[True][0], found[True][1])


def test_encoding_a_picture_too(pipes, ran):
    pipe, found = pipes("sd1"), {}
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 16)).astype("f4")
    for pipe.graph in (False, True):
        found[pipe.graph] = pipe.vae.encode(image).latent_dist
    assert np.array_equal(found[True].mean, found[False].mean) and ran
    assert np.array_equal(found[True].logvar, found[False].logvar)


def test_texts_are_kept_no_longer_than_they_live(pipes):
    pipe, text = pipes("sd1", graph=True), Text(states(0))
    call(pipe, text)
    (made,) = vars(pipe.unet)["_graphs"].values()
    assert len(made._kept) == len(pipe.unet._with_text) == 1
    del text
    assert len(made._kept) == len(pipe.unet._with_text) == 0


def test_weights_that_come_while_they_are_used(folders, ran):
    """In another order than eager calls ask for them: those of keys and values come first."""
    expected = draw(refsd.StableDiffusionPipeline.from_pretrained(folders["sd1"],
                                                                  backend="numpy"))
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folders["sd1"], backend="numpy",
                                                         offload="block", graph=True)
    assert np.array_equal(draw(pipe), expected) and ran
