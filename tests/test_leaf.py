"""Weights as leaves: named, unchangeable, with what is prepared of them; changes are seen."""

import copy
import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest
import tiny

import refsd
from refsd import functional as F
from refsd.contracts import Output
from refsd.dense import to_dense
from refsd.leaf import Weight, layer_of, seal
from refsd.numba_ops import weights
from refsd.pipelines.planned import planned_network
from refsd.registry import ops, trace, use, watch
from refsd.weights import flatten, load_checkpoint, read_safetensors, write_safetensors

PARTS = ("text_encoder", "unet", "vae")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


def load(folder, backend="numpy"):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend=backend)


# -- one leaf


def test_nobody_can_change_a_leaf():
    source = draw(6, 5)
    kept = seal(source.copy())
    for weight in (Weight(source, "conv.weight"), Weight(kept), Weight(Weight(kept), "again")):
        source[:], before = 0, np.array(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            kept.shape = (5, 6)
            weight.dense().shape = (30,)
        for array in (weight.dense(), weight[1:], weight.T, weight.view("i4"), np.asarray(weight)):
            while isinstance(array, np.ndarray) and not array.flags.owndata:
                with pytest.raises(ValueError):
                    array.flags.writeable = True
                array = array.base
        with pytest.raises(ValueError, match="read-only"):
            weight *= 2
        with pytest.raises(ValueError, match="put a changed copy in its place"):
            weight[0] = 1
        assert weight.shape == before.shape
        np.testing.assert_array_equal(weight, before)
        kept.shape = (6, 5)


def test_a_leaf_is_used_like_an_array(tmp_path):
    array = draw(3, 4)
    weight = Weight(array, "unet.conv_in.weight")
    assert (weight.shape, weight.dtype, weight.ndim, weight.size, weight.nbytes, len(weight)) == (
        (3, 4), np.float32, 2, 12, 48, 3)
    for found, wanted in [
            (np.asarray(weight), array), (np.array(weight, "f8"), array.astype("f8")),
            (weight + 1, array + 1), (2 * weight, 2 * array), (weight - array, 0 * array),
            (draw(2, 3) @ weight, draw(2, 3) @ array), (weight[1, ::2], array[1, ::2]),
            (weight.T, array.T), (weight.copy(), array), (list(weight), array), (-weight, -array),
            (np.concatenate([weight, weight]), np.concatenate([array, array])),
            (weight == array, array == array), (weight != array, array != array),
            (weight == array[0, 0], array == array[0, 0]),
            (weight.astype("f8"), array.astype("f8"))]:
        np.testing.assert_array_equal(found, wanted)
    assert weight.copy().flags.writeable and np.array(weight).flags.writeable
    assert (weight == Weight(array)).all() and (weight != Weight(-array)).all()
    assert weight.identity != Weight(array).identity
    assert repr(weight) == "<weight unet.conv_in.weight float32 (3, 4)>"
    with pytest.raises(AttributeError, match="filled"):
        weight.filled  # noqa: B018
    write_safetensors(tmp_path / "saved.safetensors", {"a": weight})
    np.testing.assert_array_equal(read_safetensors(tmp_path / "saved.safetensors")["a"], array)


def test_copies_and_pickles_keep_values_and_name():
    weight = Weight(draw(3, 4), "unet.conv_in.weight")
    assert copy.deepcopy({"conv_in": [weight]})["conv_in"][0] is weight is copy.copy(weight)
    weight.prepared("columns", (), np.copy)
    again = pickle.loads(pickle.dumps(weight))
    assert again.name == weight.name and again.prepared_bytes == 0
    np.testing.assert_array_equal(again, weight)


def test_what_is_prepared_is_kept_once_for_each_use_and_freed_with_the_leaf():
    weight, made = Weight(draw(3, 4)), []

    def make(array):
        made.append(weakref.ref(found := array * 2))
        return [found]

    for use_of, key in [("a", (1,)), ("b", (1,)), ("a", (1,)), ("a", (2,)), ("a", (2,))]:
        weight.prepared(use_of, key, make)
    assert len(made) == 3 and made[0]() is None and weight.prepared_bytes == 2 * 48
    weight.prepared("own memory", (), lambda array: array[1:])
    assert weight.prepared_bytes == 2 * 48
    del weight
    assert [reference() for reference in made] == [None] * 3


def test_two_leaves_of_one_tensor_are_two():
    memory = seal(draw(6, 5))
    first, second = Weight(memory, "encoder.weight"), Weight(memory, "decoder.weight")
    assert np.shares_memory(first, second) and (first.name, second.name) == (
        "encoder.weight", "decoder.weight")
    with use("numba"):
        np.testing.assert_array_equal(F.linear(draw(2, 5), first), F.linear(draw(2, 5), second))
        del first
        np.testing.assert_array_equal(F.linear(draw(2, 5), second), F.linear(draw(2, 5), memory))


# -- ops on leaves


class LowRank(Weight):
    """A form to come: a base and a product of two thin matrices."""

    __slots__ = ("pair",)

    def __init__(self, base, up, down):
        super().__init__(base, base.name)
        self.pair = up, down

    def dense(self):
        return seal(super().dense() + self.pair[0] @ self.pair[1])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_an_op_on_a_leaf_is_the_op_on_its_dense_array(backend):
    """Also of a form that no kernel knows, on any parameter, in lists, positional or by name."""
    base, other = Weight(draw(6, 5), "unet.out.weight"), Weight(draw(3, 5, seed=1))
    low = LowRank(base, draw(6, 1), draw(1, 5))
    x, bias = draw(2, 5), Weight(draw(6, seed=2))
    kernel = Weight(draw(6, 5, 3, 3))
    image = draw(1, 5, 20, 20)
    calls = [(F.linear, (x, low), {"bias": bias}), (F.linear, (x, base, bias), {}),
             (F.concat, ([base, low, other],), {"axis": 0}), (F.mul, (low, 2), {}),
             (F.embedding, (np.array([[1, 0]]), low), {}),
             (F.layer_norm, (x, other[0]), {"bias": Weight(draw(5)), "eps": 1e-5}),
             *((F.conv2d, (image, kernel, bias), {"padding": 1, "algorithm": algorithm})
               for algorithm in ("im2col", "winograd2", "winograd4", "fft"))]
    with use(backend):
        for op, args, options in calls:
            heard = []
            with watch(lambda *event, heard=heard: heard.append(event)):
                found = op(*args, **options)
            plain = op(*map(to_dense, args), **{k: to_dense(v) for k, v in options.items()})
            np.testing.assert_array_equal(found, plain)
            np.testing.assert_array_equal(op(*args, **options), plain)
            given = [*heard[0][1].values()]  # listeners are given the leaves
            assert all(any(arg is value for value in given) for arg in args
                       if isinstance(arg, Weight))


def test_contracts_see_no_difference():
    weight, infer = draw(6, 5), ops()["linear"].contract
    assert infer(draw(2, 5), Weight(weight)) == infer(draw(2, 5), weight)
    with pytest.raises(refsd.errors.UsageError, match="weight has shape"):
        F.linear(draw(2, 4), Weight(weight))


# -- names


def test_every_leaf_of_a_model_knows_its_path(folder):
    for component, part in load_checkpoint(folder).items():
        assert {leaf.name: leaf for leaf in flatten(part.tree).values()} == {
            f"{component}.{path}": leaf for path, leaf in part.tensors.items()}
    for backend in ("numpy", "numba"):
        pipe = load(folder, backend)
        for part in PARTS:
            prefix = "text_encoder.text_model" if part == "text_encoder" else part
            for path, leaf in flatten(getattr(pipe, part).tree).items():
                assert leaf.name == f"{prefix}.{path}"


def test_two_pipelines_of_one_file_share_names_and_no_leaf(folder):
    first, second = load(folder), load(folder)
    pairs = zip(flatten(first.unet.tree).values(), flatten(second.unet.tree).values())
    assert all(a.name == b.name and a is not b for a, b in pairs)
    first.unet.tree["conv_in"]["weight"] = 2 * first.unet.tree["conv_in"]["weight"]
    mixed = refsd.StableDiffusionPipeline.from_pretrained(folder, vae=first.vae, backend="numpy")
    assert {leaf.name.partition(".")[0] for leaf in flatten(mixed.vae.tree).values()} == {"vae"}
    assert np.array_equal(picture(second), picture(mixed))
    assert not np.array_equal(picture(second), picture(first))


def test_planned_leaves_have_names_too():
    for component in PARTS:
        for path, leaf in flatten(planned_network(component).tree).items():
            assert leaf.name.removeprefix("text_model.") == path
    conv_in = planned_network("unet").tree["conv_in"]
    seen = []

    def answer(op, inputs, options, inferred):
        seen.append(layer_of(inputs))
        return inferred

    with trace(answer):
        assert isinstance(F.conv2d(draw(1, 4, 8, 8), **conv_in, padding=1), Output)
        F.silu(draw(2))
    assert seen == ["conv_in", None]


# -- changes


def picture(pipe, **options):
    return pipe("a red cube", num_inference_steps=2, guidance_scale=3.0, generator=1,
                output_type="np", **options).images


def attention_of(pipe):
    return pipe.unet.tree["mid_block"]["attentions"][0]["transformer_blocks"][0]


CHANGES = {
    "an array in place of a leaf": lambda block: block["attn2"]["to_k"].update(
        weight=3 * block["attn2"]["to_k"]["weight"]),
    "another leaf of the same name": lambda block: block["attn2"]["to_v"].update(
        weight=Weight(3 * block["attn2"]["to_v"]["weight"], block["attn2"]["to_v"]["weight"].name)),
    "a dict": lambda block: block["attn2"].update(
        to_k={"weight": 3 * block["attn2"]["to_k"]["weight"]}),
    "a subtree": lambda block: block.update(attn2=scaled(block["attn2"])),
    "a linear layer": lambda block: block["attn1"]["to_q"].update(
        weight=3 * block["attn1"]["to_q"]["weight"]),
    "a bias": lambda block: block["attn2"]["to_out"][0].update(
        bias=1 + block["attn2"]["to_out"][0]["bias"]),
    "a norm": lambda block: block["norm2"].update(weight=3 * block["norm2"]["weight"]),
}


def scaled(tree):
    if isinstance(tree, dict):
        return {key: scaled(child) for key, child in tree.items()}
    return [scaled(child) for child in tree] if isinstance(tree, list) else 3 * tree


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_pictures_is_seen(folder, change, backend):
    """As a pipeline has it that never saw the old weights."""
    pipe, fresh = load(folder, backend), load(folder, backend)
    before = picture(pipe)
    CHANGES[change](attention_of(pipe))
    CHANGES[change](attention_of(fresh))
    assert np.array_equal(picture(pipe), picture(fresh)) and not np.array_equal(
        before, picture(pipe))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("change", ["an array in place of a leaf", "another leaf of the same name",
                                    "a subtree"])
def test_a_callback_that_changes_weights_is_seen_and_the_old_ones_are_freed(folder, change,
                                                                            backend):
    """The rest of the run is that of the new weights: keys and values of the text included."""
    pipe, latents, old = load(folder, backend), [], []

    def swap(pipeline, step, timestep, kwargs):
        latents.append(kwargs["latents"].copy())
        if step == 0:
            attn = attention_of(pipe)["attn2"]
            old.append(weakref.ref(attn["to_v" if "name" in change else "to_k"]["weight"]))
            CHANGES[change](attention_of(pipe))
        if step == 1:
            gc.collect()
            assert old[0]() is None
        return {}

    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": 1,
               "output_type": "latent"}
    found = pipe("a red cube", callback_on_step_end=swap, **options).images

    never = load(folder, backend)  # the same steps without anything to keep: a new Text in each

    def anew(pipeline, step, timestep, kwargs):
        if step == 0:
            CHANGES[change](attention_of(never))
        return {"prompt_embeds": kwargs["prompt_embeds"]}

    wanted = never("a red cube", callback_on_step_end=anew, **options,
                   callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]).images
    assert np.array_equal(found, wanted)
    unchanged = load(folder, backend)("a red cube", **options).images
    assert not np.array_equal(found, unchanged)


def test_a_merged_weight_is_restored_bit_exactly():
    """An adapter by hand: the leaf is put back, and what was packed of it is still there."""
    tree, x = {"weight": Weight(draw(64, 64), "unet.out.weight")}, draw(3, 64)
    with use("numba"):
        before, base = F.linear(x, **tree), tree["weight"]
        packed, _ = weights.columns(base)
        tree["weight"] = Weight(base + 0.5 * draw(64, 1) @ draw(1, 64), base.name)
        merged = F.linear(x, **tree)
        tree["weight"] = base
        np.testing.assert_array_equal(F.linear(x, **tree), before)
        assert weights.columns(base)[0] is packed and not np.array_equal(merged, before)
