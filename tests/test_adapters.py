"""Adapters: their formulas, number by number; every spelling; merging, and the very bits back."""

import itertools
import json
import math

import adapter_samples as samples
import numpy as np
import pytest
import tiny
from weights_samples import refused

import refsd
from refsd.adapters import formats, loaded, names, peft_config
from refsd.adapters.blocks import blocks
from refsd.adapters.kinds import Change, kind_of
from refsd.errors import ModelError, ResourceError, UsageError
from refsd.families import FAMILIES
from refsd.networks import shapes_of
from refsd.quantized import W8A8, Quantized, quantize
from refsd.weights import flatten, to_tree, write_safetensors

CALL = {"height": 32, "width": 32, "num_inference_steps": 1, "generator": 1, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return refsd.StableDiffusionPipeline.from_pretrained(tiny_model, backend="numpy")


@pytest.fixture(autouse=True)
def unloaded(request):
    yield
    if "pipe" in request.fixturenames:
        pipe = request.getfixturevalue("pipe")
        pipe.unfuse_lora()
        pipe.unload_lora_weights()


def leaves(pipe):
    found = {f"unet.{name}": leaf for name, leaf in flatten(pipe.unet.tree).items()}
    return found | {f"text_encoder.text_model.{name}": leaf
                    for name, leaf in flatten(pipe.text_encoder.tree).items()}


def place(module):
    return f"{'text_encoder' if module.startswith('text') else 'unet'}.{module}.weight"


def changed(before, after):
    return {name for name in before if before[name] is not after[name]}


# What each kind adds, an element at a time, as the papers have it.

def by_hand(name, t, shape):
    """scale x delta for a weight (O, I, kh, kw), by loops."""
    O, I, kh, kw = shape
    out = np.zeros(shape)
    t = {key: np.asarray(value, np.float64) for key, value in t.items()}

    def product(a, b, o, column):
        return sum(a[o, r] * b.reshape(len(b), -1)[r, column] for r in range(a.shape[1]))

    def core(g, a, b, o, i, y, x):
        return sum(g[r, s, y, x] * a[r, o] * b[s, i]
                   for r in range(g.shape[0]) for s in range(g.shape[1]))

    for o, i, y, x in itertools.product(*map(range, shape)):
        column = (i * kh + y) * kw + x
        if name == "LoRA":
            value = product(t["lora_up.weight"].reshape(O, -1), t["lora_down.weight"], o, column)
        elif name == "LoRA-core":
            value = core(t["lora_mid.weight"], t["lora_up.weight"][:, :, 0, 0].T,
                         t["lora_down.weight"][:, :, 0, 0], o, i, y, x)
        elif name == "LoHa":
            value = (product(t["hada_w1_a"], t["hada_w1_b"], o, column)
                     * product(t["hada_w2_a"], t["hada_w2_b"], o, column))
        elif name == "LoHa-core":
            value = (core(t["hada_t1"], t["hada_w1_a"], t["hada_w1_b"], o, i, y, x)
                     * core(t["hada_t2"], t["hada_w2_a"], t["hada_w2_b"], o, i, y, x))
        elif name.startswith("LoKr"):
            w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
            B, D = O // len(w1), I // w1.shape[1]
            a, b, c, d = o // B, o % B, i // D, i % D
            if "lokr_t2" in t:
                w2 = core(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"], b, d, y, x)
            elif "lokr_w2" in t:
                w2 = t["lokr_w2"][b, d, y, x]
            else:
                w2 = product(t["lokr_w2_a"], t["lokr_w2_b"], b, (d * kh + y) * kw + x)
            value = w1[a, c] * w2
        elif name == "full":
            value = t["diff"][o, i, y, x]
        out[o, i, y, x] = value
    return out


# alpha over the rank that A1111 and ComfyUI take; none where the factors are whole.
SCALES = {"LoRA": 0.5, "LoRA-core": 0.5, "LoHa": 0.5, "LoHa-core": 0.5, "LoKr": 1, "LoKr-a": 0.5,
          "LoKr-ab": 1 / 3, "LoKr-core": 0.5, "full": 1}


@pytest.mark.parametrize("name", SCALES)
def test_what_each_kind_adds(pipe, name):
    before = leaves(pipe)
    old = before[place(samples.CONV)]
    tensors = samples.kinds(old.shape)[name]
    pipe.load_lora_weights({f"lora_unet_{samples.CONV.replace('.', '_')}.{key}": value
                            for key, value in tensors.items()}, weight=0.7)
    after = leaves(pipe)
    assert changed(before, after) == {place(samples.CONV)}
    true = np.asarray(old, np.float64) + 0.7 * SCALES[name] * by_hand(name, tensors, old.shape)
    # One rounding to float32, and what float64 errs in sums of a few products.
    bound = np.abs(true) * 2.0**-24 + 1e-14
    assert (np.abs(np.asarray(after[place(samples.CONV)]) - true) <= bound).all()


@pytest.mark.parametrize("name", SCALES)
def test_a_matrix_may_be_stored_as_a_1x1_kernel(pipe, name):
    before = leaves(pipe)
    tensors = samples.kinds(before[place(samples.CONV)].shape)[name]
    found = []
    for stored in (tensors, {key: t[..., None, None] if t.ndim == 2 else t
                             for key, t in tensors.items()}):
        pipe.load_lora_weights({f"unet.{samples.CONV}.{key}": t for key, t in stored.items()})
        found.append(np.array(leaves(pipe)[place(samples.CONV)]))
        pipe.unload_lora_weights()
    assert np.array_equal(*found)


@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3_scales_inputs_or_outputs(pipe, on_input):
    old = leaves(pipe)[place(samples.CONV)]
    tensors = samples.kinds(old.shape)["(IA)3" if on_input else "(IA)3-out"]
    pipe.load_lora_weights({f"lora_unet_{samples.CONV.replace('.', '_')}.{key}": value
                            for key, value in tensors.items()}, weight=0.5)
    new, w = leaves(pipe)[place(samples.CONV)], tensors["weight"].astype(np.float64)
    for o, i in itertools.product(range(old.shape[0]), range(old.shape[1])):
        true = np.asarray(old[o, i], np.float64) * (1 + 0.5 * w[i if on_input else o])
        assert (np.abs(np.asarray(new[o, i]) - true) <= np.abs(true) * 2.0**-24 + 1e-14).all()


@pytest.mark.parametrize("axis, shape", [(0, "O111"), (1, "1I11"), (0, "peft"), (0, "peft-conv")])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_dora_gives_each_output_or_input_its_magnitude(axis, shape, strength):
    O, I = 4, 6
    weight = samples.random(0, O, I, 3, 3, dtype="f8")
    weight[:, 2] = 0  # a norm of nothing
    down, up = samples.lora(weight.shape)
    up = up if axis == 0 else np.zeros_like(up)
    count = weight.shape[axis]
    shapes = {"O111": (O, 1, 1, 1), "1I11": (1, I, 1, 1), "peft": (O,), "peft-conv": (1, O, 1, 1)}
    magnitude = 1 + np.abs(samples.random(9, count, dtype="f8")).reshape(shapes[shape])
    change = Change(kind_of(["lora_up", "lora_down"]), {"lora_up": up, "lora_down": down}, 0.25,
                    magnitude, inside=shape.startswith("peft"))
    added = change.delta(weight, strength)

    inside = strength if shape.startswith("peft") else 1
    moved = weight + inside * 0.25 * (up[:, :, 0, 0].astype("f8")
                                      @ down.reshape(2, -1)).reshape(weight.shape)
    true = np.zeros_like(weight)
    for k in range(count):
        part = (slice(None), k) if axis else k
        norm = math.sqrt((moved[part]**2).sum())
        true[part] = moved[part] * (magnitude.reshape(-1)[k] / norm) if norm else 0
    expected = true - weight if shape.startswith("peft") else strength * (true - weight)
    np.testing.assert_allclose(added, expected, rtol=1e-12, atol=1e-14)


# Names.

@pytest.mark.parametrize("name", samples.SPELLINGS)
def test_every_spelling_means_the_same_weight(pipe, name):
    before = leaves(pipe)
    module, down, up = samples.SPELLINGS[name]
    low, high = samples.lora(before[place(samples.ATTENTION)].shape)
    pipe.load_lora_weights({module + down: low, module + up: high})
    after = leaves(pipe)
    assert changed(before, after) == {place(samples.ATTENTION)}
    true = np.asarray(before[place(samples.ATTENTION)], "f8") + high.astype("f8") @ low
    assert np.array_equal(after[place(samples.ATTENTION)], true.astype("f4"))


@pytest.mark.parametrize("name", samples.OTHER_MODULES)
def test_other_modules_are_found(pipe, name):
    before = leaves(pipe)
    module, spelled, down, up = samples.OTHER_MODULES[name]
    low, high = samples.lora(before[place(module)].shape)
    pipe.load_lora_weights({spelled + down: low, spelled + up: high})
    assert changed(before, leaves(pipe)) == {place(module)}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_name_means_two_modules(family):
    """So the first that is found is the only one; at the published sizes."""
    trees = {part: to_tree(shapes_of(part, family.configs[part]))
             for part in loaded.adapted(family.configs)}
    known = names.targets(trees)
    for network, tree in trees.items():
        for module, spelled in names._modules(network, tree):
            for prefix in names.PREFIXES[network]:
                assert known[prefix + spelled] == names.Target(network, module)
    assert len({target for target in known.values()}) == sum(
        name.endswith(".weight") for tree in trees.values() for name in flatten(tree))


@pytest.mark.parametrize("config, scale", [
    ({"r": 2, "lora_alpha": 6}, 3), ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4),
    ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
    ({"r": 9, "lora_alpha": 8, "rank_pattern": {f"^{samples.ATTENTION}": 2}}, 4), ({}, 1),
    ({"r": 4, "lora_alpha": 8, "rank_pattern": {"^attn1.to_q": 2, "o_q": 1}}, 2), ({"r": 9}, 1),
    ({"r": 4, "lora_alpha": 8, "rank_pattern": None, "alpha_pattern": None, "peft_type": 3}, 2),
])
def test_the_scale_of_pefts_config(pipe, config, scale):
    shape = leaves(pipe)[place(samples.ATTENTION)].shape
    module, down, up = samples.SPELLINGS["peft"]
    low, high = samples.lora(shape)
    tensors = {module + down: low, module + up: high}
    trees = {part: one.tree for part, one in loaded.applied(pipe).items()}
    metadata = {peft_config.METADATA: json.dumps({f"unet.{k}": v for k, v in config.items()})}
    plan = formats.plan({k: t.shape for k, t in tensors.items()}, names.targets(trees),
                        loaded.shapes(trees), metadata=metadata, where="x")
    assert formats.scale_of(plan.parts[0], tensors, plan.configs.get("unet")) == scale


def test_the_names_of_text_encoders_in_pefts_config():
    config = {"lora_alpha": 2, "rank_pattern": {"^" + samples.TEXT.removeprefix("text_model."): 8}}
    assert peft_config.scale(config, samples.TEXT, 2) == 0.25


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"a":' * 3000, '{"unet.r": 0}', '{"unet.r": null}', '{"unet.lora_alpha": NaN}',
    '{"unet.use_rslora": 2}', '{"unet.rank_pattern": [1]}', '{"unet.rank_pattern": {"to_q": 0}}',
    '{"unet.alpha_pattern": {"to_(q|k)": 1}}', '{"unet.alpha_pattern": {"to_q": "1"}}',
    '{"unet.lora_alpha": 1e400}',
])
def test_a_config_of_pefts_that_makes_no_sense(text):
    with pytest.raises(ModelError, match="x: its lora_adapter_metadata"):
        peft_config.configs({peft_config.METADATA: text}, "x")


# In and out of the networks.

def two(pipe):
    """Two adapters that meet in one weight."""
    shape = leaves(pipe)[place(samples.ATTENTION)].shape
    (low, high), (low2, high2) = samples.lora(shape, 2, 0), samples.lora(shape, 3, 5)
    te = samples.lora(leaves(pipe)[place(samples.TEXT)].shape, 2, 7)
    one = {f"unet.{samples.ATTENTION}.lora_A.weight": low,
           f"unet.{samples.ATTENTION}.lora_B.weight": high}
    other = {f"unet.{samples.ATTENTION}.lora_A.weight": low2,
             f"unet.{samples.ATTENTION}.lora_B.weight": high2,
             f"text_encoder.{samples.TEXT}.lora_A.weight": te[0],
             f"text_encoder.{samples.TEXT}.lora_B.weight": te[1]}
    return one, other


def test_several_are_merged_at_once_and_unloading_gives_the_very_leaves(pipe):
    before = leaves(pipe)
    one, other = two(pipe)
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.load_lora_weights(other, adapter_name="other")
    assert pipe.get_active_adapters() == ["other"]  # as in diffusers
    pipe.set_adapters(["one", "other"], [0.5, {"unet": -2, "text_encoder": 0.25}])
    assert pipe.get_active_adapters() == ["one", "other"]
    assert pipe.get_list_adapters() == {"unet": ["one", "other"], "text_encoder": ["other"]}

    old, new = (np.asarray(found[place(samples.ATTENTION)], "f8")
                for found in (before, leaves(pipe)))
    products = [np.matmul(*(np.asarray(t, "f8") for t in reversed([*tensors.values()][:2])))
                for tensors in (one, other)]
    assert np.array_equal(new.astype("f4"), (old + (0.5 * products[0] - 2 * products[1])
                                             ).astype("f4"))
    assert changed(before, leaves(pipe)) == {place(samples.ATTENTION), place(samples.TEXT)}

    merged = leaves(pipe)[place(samples.TEXT)]
    pipe.set_adapters(["one", "other"], [1, {"text_encoder": 0.25}])
    assert leaves(pipe)[place(samples.TEXT)] is merged  # nothing changed for it
    pipe.delete_adapters("other")
    assert changed(before, leaves(pipe)) == {place(samples.ATTENTION)}
    assert pipe.get_active_adapters() == ["one"]
    pipe.unload_lora_weights()
    assert not changed(before, leaves(pipe)) and pipe.get_list_adapters() == {}


def values(pipe):
    return {name: np.array(leaf) for name, leaf in leaves(pipe).items()}


def equal(some, others):
    return all(np.array_equal(some[name], others[name]) for name in some)


def test_disabling_and_scaling(pipe):
    before = leaves(pipe)
    pipe.load_lora_weights(two(pipe)[1], adapter_name="a", weight={"unet": 2, "text_encoder": 1})
    merged = values(pipe)
    pipe.disable_lora()
    pipe.disable_lora()
    assert not changed(before, leaves(pipe)) and pipe.get_active_adapters() == []
    pipe.enable_lora()
    assert equal(merged, values(pipe))
    with pipe.lora_scaled({"scale": 0.5}):
        half = values(pipe)
    assert equal(merged, values(pipe)) and not equal(merged, half)
    pipe.set_adapters("a", {"unet": 1, "text_encoder": 0.5})
    assert equal(half, values(pipe))
    pipe.disable_lora()
    pipe.set_adapters("a")
    pipe.enable_lora()  # which has nothing to put back: the adapter was set since
    assert not equal(half, values(pipe)) and pipe.get_active_adapters() == ["a"]


def test_what_is_fused_stays(tiny_model):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(tiny_model, backend="numpy")
    pipe.load_lora_weights(two(pipe)[1], adapter_name="a", weight=0.5)
    half = values(pipe)
    pipe.set_adapters("a", 2)
    pipe.fuse_lora(lora_scale=0.25)
    assert equal(half, values(pipe))
    for call in (pipe.disable_lora, lambda: pipe.set_adapters("a"), pipe.fuse_lora,
                 lambda: pipe.delete_adapters("a"), lambda: pipe.load_lora_weights(two(pipe)[0]),
                 lambda: pipe("a", **CALL, cross_attention_kwargs={"scale": 0.5})):
        with pytest.raises(UsageError, match="unfuse_lora"):
            call()
    pipe.unfuse_lora()
    pipe.set_adapters("a", 0.5)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert equal(half, values(pipe)) and pipe.get_list_adapters() == {}
    pipe.load_lora_weights(two(pipe)[0])  # on top of what was fused
    pipe.unload_lora_weights()
    assert equal(half, values(pipe))


def test_only_some_are_fused(tiny_model):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(tiny_model, backend="numpy")
    one, other = two(pipe)
    pipe.load_lora_weights(other, adapter_name="other")
    alone = values(pipe)
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.set_adapters(["one", "other"])
    pipe.fuse_lora(components=["unet"], adapter_names=["other"])
    assert equal(alone, values(pipe))


def test_a_leaf_that_the_caller_puts_in_is_left_there(pipe):
    """And adapters are then merged into it."""
    one = two(pipe)[0]
    pipe.load_lora_weights(one, adapter_name="a")
    *path, last = f"{samples.ATTENTION}.weight".split(".")
    node = pipe.unet.tree
    for key in path:
        node = node[int(key) if isinstance(node, list) else key]
    old = loaded.applied(pipe)["unet"]._originals[f"{samples.ATTENTION}.weight"]
    node[last] = mine = np.ones(old.shape, "f4")
    pipe.set_adapters("a", 0.5)
    low, high = (np.asarray(t, "f8") for t in one.values())
    assert np.array_equal(node[last], (1 + 0.5 * (high @ low)).astype("f4"))
    pipe.unload_lora_weights()
    assert node[last] is mine
    node[last] = old


@pytest.mark.parametrize("tensors, name", [
    ({"diff": "weight", "diff_b": "bias"}, samples.CONV),
    ({"w_norm": "weight", "b_norm": "bias"}, samples.CONV.replace("conv1", "norm1")),
    ({"diff_b": "bias"}, samples.CONV),
])
def test_full_differences_of_weights_and_biases(pipe, tensors, name):
    before = leaves(pipe)
    added = {key: samples.random(3, *before[f"unet.{name}.{kind}"].shape)
             for key, kind in tensors.items()}
    pipe.load_lora_weights({f"unet.{name}.{key}": t for key, t in added.items()}, weight=0.5)
    after = leaves(pipe)
    assert changed(before, after) == {f"unet.{name}.{kind}" for kind in tensors.values()}
    for key, kind in tensors.items():
        where = f"unet.{name}.{kind}"
        true = np.asarray(before[where], "f8") + 0.5 * added[key].astype("f8")
        assert np.array_equal(after[where], true.astype("f4"))


def test_the_bias_of_pefts_lora_b_and_the_scale_of_a1111(pipe):
    """lora_bias is scaled like the product; a scale in the file comes before alpha."""
    before = leaves(pipe)
    low, high = samples.lora(before[place(samples.CONV)].shape)
    bias = samples.random(3, len(high))
    module = f"unet.{samples.CONV}"
    pipe.load_lora_weights({f"{module}.lora_A.weight": low, f"{module}.lora_B.weight": high,
                            f"{module}.lora_B.bias": bias, f"{module}.alpha": np.float32(64),
                            f"{module}.scale": np.float32(0.25)}, weight=2)
    true = np.asarray(before[f"{module}.bias"], "f8") + 0.5 * bias.astype("f8")
    assert np.array_equal(leaves(pipe)[f"{module}.bias"], true.astype("f4"))
    product = (high[:, :, 0, 0].astype("f8") @ low.reshape(2, -1)).reshape(
        before[f"{module}.weight"].shape)
    true = np.asarray(before[f"{module}.weight"], "f8") + 0.5 * product
    found = np.asarray(leaves(pipe)[f"{module}.weight"])
    assert (np.abs(found - true) <= np.abs(true) * 2.0**-24 + 1e-14).all()


def test_weights_of_blocks(pipe):
    """Of transformers; of the layer of their number beside them; 1 elsewhere."""
    given = {"down": 2, "mid": [3], "up": {"block_1": [4, 5]}}
    found = 0.5 * blocks(given, pipe.unet.tree, "x")
    for name, x in (("down_blocks.0.attentions.0.proj_in.weight", 1),
                    ("down_blocks.0.resnets.0.conv1.bias", 1),
                    ("down_blocks.0.downsamplers.0.conv.weight", 1),
                    ("down_blocks.1.resnets.0.conv1.weight", 0.5),
                    ("mid_block.attentions.0.norm.weight", 1.5),
                    ("mid_block.resnets.0.conv1.weight", 0.5),
                    ("up_blocks.1.attentions.0.proj_in.weight", 2),
                    ("up_blocks.1.resnets.1.conv1.weight", 2.5), ("conv_in.weight", 0.5),
                    ("time_embedding.linear_1.weight", 0.5)):
        assert found.of(name) == x, name
    before = leaves(pipe)
    one = two(pipe)[0]
    pipe.load_lora_weights(one, weight={"unet": given})
    product = np.matmul(*(np.asarray(t, "f8") for t in reversed([*one.values()])))
    where = place(samples.ATTENTION)
    assert np.array_equal(leaves(pipe)[where], (np.asarray(before[where], "f8") + 2 * product)
                          .astype("f4"))


def test_a_pipeline_that_shares_the_networks_shares_the_adapters(pipe):
    pipe.load_lora_weights(two(pipe)[0], adapter_name="a")
    other = refsd.StableDiffusionPipeline.from_pipe(pipe)
    assert other.get_active_adapters() == ["a"]
    other.unload_lora_weights()
    assert pipe.get_active_adapters() == []


def test_a_picture_has_the_adapter_at_the_calls_scale(pipe):
    plain = pipe("a cat", **CALL).images
    pipe.load_lora_weights(two(pipe)[1])
    drawn = pipe("a cat", **CALL).images
    assert not np.array_equal(plain, drawn)
    off = pipe("a cat", **CALL, cross_attention_kwargs={"scale": 0}).images
    assert np.array_equal(plain, off)
    assert np.array_equal(pipe("a cat", **CALL, cross_attention_kwargs={}).images, drawn)
    for bad in ({"scale": "x"}, {"gligen": 1}):
        with pytest.raises(UsageError, match="cross_attention_kwargs"):
            pipe("a cat", **CALL, cross_attention_kwargs=bad)


@pytest.mark.parametrize("dtype, weights", [
    ("float64", None), ("bfloat16", None), ("float16", None), ("float32", "bfloat16"),
    ("float32", "int8"), ("int8", None),
])
def test_a_merged_weight_is_held_as_the_one_before(tiny_model, dtype, weights):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(tiny_model, backend="numba", dtype=dtype,
                                                         weights=weights)
    before = leaves(pipe)[place(samples.ATTENTION)]
    one = two(pipe)[0]
    pipe.load_lora_weights(one)
    after = leaves(pipe)[place(samples.ATTENTION)]
    assert type(after) is type(before) and after.dtype == before.dtype
    assert after.nbytes == before.nbytes and after.name == before.name
    down, up = (np.asarray(t, "f8") for t in one.values())
    true = np.asarray(before).astype("f8") + up @ down
    if isinstance(before, Quantized) and before.scale is not None:
        values, scale = quantize(true.astype("f4"))
        assert np.array_equal(after.values, values) and np.array_equal(after.scale, scale)
        assert isinstance(after, W8A8) == (dtype == "int8")
    else:
        held = after.values if isinstance(after, Quantized) else after.dense()
        assert np.array_equal(held, true.astype("f4" if dtype != "float64" else "f8")
                              .astype(held.dtype))
    pipe.unload_lora_weights()
    assert leaves(pipe)[place(samples.ATTENTION)] is before


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_picture_is_that_of_a_model_saved_with_merged_weights(tiny_model, tmp_path, backend):
    """So what backends pack, and keep of a text, is of the merged leaves, and then of the old."""
    pipe = refsd.StableDiffusionPipeline.from_pretrained(tiny_model, backend=backend)
    conv = samples.kinds(leaves(pipe)[place(samples.CONV)].shape)["LoRA"]
    tensors = two(pipe)[1] | {f"lora_unet_{samples.CONV.replace('.', '_')}.{key}": value
                              for key, value in conv.items()}
    plain = pipe("a cat", **CALL).images
    pipe.load_lora_weights(tensors, weight=20)
    drawn = pipe("a cat", **CALL).images
    saved = {part: {name.removeprefix(f"{part}."): np.ascontiguousarray(leaf)
                    for name, leaf in leaves(pipe).items() if name.startswith(part)}
             for part in ("unet", "text_encoder")}
    pipe.unload_lora_weights()
    assert np.array_equal(pipe("a cat", **CALL).images, plain)
    merged = refsd.StableDiffusionPipeline.from_pretrained(
        tiny.write_model(tmp_path / "merged", **saved), backend=backend)
    assert np.array_equal(merged("a cat", **CALL).images, drawn)
    assert not np.array_equal(plain, drawn)


# What is refused, and that it leaves no trace.

def refusals(pipe):
    shape = leaves(pipe)[place(samples.ATTENTION)].shape
    conv = leaves(pipe)[place(samples.CONV)].shape
    low, high = samples.lora(shape)
    m = f"unet.{samples.ATTENTION}"
    good = {f"{m}.lora_A.weight": low, f"{m}.lora_B.weight": high}
    bad = np.array(low)
    bad[0, 0] = np.nan
    return {
        "unknown": (good | {f"unet.x{i}.lora_A.weight": low for i in range(5)},
                    ("5 of its 7 tensors", "unet.x0", "and 2 more", "strict=False")),
        "no-key-at-all": ({"hello": low}, ("nothing in it", "hello")),
        "empty": ({}, ("it is empty",)),
        "sdxl": (good | {"lora_te2_text_model_x.lora_down.weight": low}, ("of SDXL",)),
        "no-up": ({f"{m}.lora_A.weight": low}, ("LoRA lacks lora_up",)),
        "alpha-alone": ({f"{m}.alpha": np.float32(1)}, ("alone is no adapter",)),
        "a-model": ({f"{m}.weight": low}, ("a weight of a model",)),
        "glora": ({f"{m}.a1.weight": low}, ("GLoRA", "does not compute")),
        "mixed": (good | {f"{m}.hada_w1_a": low}, ("LoRA lacks nothing and has hada_w1_a",)),
        "twice": (good | {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.alpha":
                          np.float32(1)}, ("are the same module",)),
        "two-spellings": (good | {f"{m}.lora.down.weight": low}, ("twice, in two spellings",)),
        "ranks": (good | {f"{m}.lora_B.weight": high[:, :1]}, ("do not fit each other",)),
        "other-width": ({f"{m}.lora_A.weight": low[:, :-1], f"{m}.lora_B.weight": high},
                        ("is for a weight of 8 x 7", "(8, 8)")),
        "outputs": ({f"{m}.lora_A.weight": np.repeat(low, 2, 1),
                     f"{m}.lora_B.weight": high[::2]}, ("is for a weight of 4 x 16",)),
        "no-numbers": ({f"{m}.lora_A.weight": low[:0], f"{m}.lora_B.weight": high[:, :0]},
                       ("its lora_up has shape (8, 0)",)),
        "flat": ({f"{m}.lora_A.weight": low, f"{m}.lora_B.weight": high[:, 0]},
                 ("do not fit each other", "lora_up (8,)")),
        "alpha": (good | {f"{m}.alpha": low}, ("its alpha has shape", "one number")),
        "dora": (good | {f"{m}.dora_scale": np.ones((3, 1), "f4")}, ("its dora_scale", "(3, 1)")),
        "bias": (good | {f"{m}.lora_B.bias": np.ones(8, "f4")}, ("its bias", "not there")),
        "ia3": ({f"{m}.weight": np.ones(5, "f4"), f"{m}.on_input": np.float32(1)}, ("(IA)3",)),
        "nan": (good | {f"{m}.lora_A.weight": bad}, ("NaN or infinite values in", "to_q.lora_A")),
        "core": ({f"unet.{samples.CONV}.lora_mid.weight": np.ones((2, 2, 3, 2), "f4"),
                  f"unet.{samples.CONV}.lora_down.weight": np.ones((2, conv[1], 1, 1), "f4"),
                  f"unet.{samples.CONV}.lora_up.weight": np.ones((conv[0], 2, 1, 1), "f4")},
                 ("is for a weight of",)),
    }


@pytest.mark.parametrize("name", [
    "unknown", "no-key-at-all", "empty", "sdxl", "no-up", "alpha-alone", "a-model", "glora",
    "mixed", "twice", "two-spellings", "ranks", "other-width", "outputs", "no-numbers", "flat",
    "alpha", "dora", "bias", "ia3", "nan", "core"])
def test_what_is_damaged_or_not_for_this_model_is_one_line(pipe, name):
    before = leaves(pipe)
    pipe.load_lora_weights(two(pipe)[0], adapter_name="there")
    loaded_leaves = leaves(pipe)
    tensors, words = refusals(pipe)[name]
    with pytest.raises(ModelError) as caught:
        pipe.load_lora_weights(tensors)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    assert all(word in message for word in words), message
    assert not changed(loaded_leaves, leaves(pipe)) and pipe.get_active_adapters() == ["there"]
    assert changed(before, loaded_leaves)


def test_what_has_no_place_is_left_out_if_that_is_wanted(pipe, caplog):
    tensors, _ = refusals(pipe)["unknown"]
    pipe.load_lora_weights(tensors, strict=False)
    assert "5 tensors without a place" in caplog.text
    assert pipe.get_active_adapters() == ["default_0"]


def test_a_failure_in_the_middle_leaves_the_networks_as_they_were(pipe, monkeypatch):
    one, other = two(pipe)
    pipe.load_lora_weights(one, adapter_name="one")
    before = leaves(pipe)
    real, calls = loaded.Applied._put, []

    def failing(self, weight, leaf):
        calls.append(weight)
        if weight == f"{samples.TEXT}.weight" and len(calls) == 2:
            raise MemoryError
        real(self, weight, leaf)

    monkeypatch.setattr(loaded.Applied, "_put", failing)
    with pytest.raises(MemoryError):
        pipe.load_lora_weights(other, adapter_name="other")
    assert all(np.array_equal(before[name], leaf) for name, leaf in leaves(pipe).items())
    assert changed(before, leaves(pipe)) <= {place(samples.ATTENTION)}  # merged anew
    assert pipe.get_list_adapters() == {"unet": ["one"]}
    pipe.load_lora_weights(other, adapter_name="other")


def test_more_than_the_memory_holds_is_refused_before(pipe, tmp_path, monkeypatch):
    one, _ = two(pipe)
    write_safetensors(tmp_path / "one.safetensors", one)
    before = leaves(pipe)
    size = sum(tensor.nbytes for tensor in one.values())
    for free, words in ((size - 1, "one.safetensors"), (2 * size, "merging the adapters")):
        monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda free=free: free)
        with pytest.raises(ResourceError, match=words):
            pipe.load_lora_weights(tmp_path / "one.safetensors")
        assert not changed(before, leaves(pipe)) and pipe.get_list_adapters() == {}


@pytest.mark.parametrize("call, words", [
    (lambda p: p.set_adapters("b"), "no adapter 'b'"),
    (lambda p: p.set_adapters(["a"], [1, 2]), "2 weights for 1 adapters"),
    (lambda p: p.set_adapters("a", "x"), "a weight is 'x'"),
    (lambda p: p.set_adapters("a", float("nan")), "a weight is nan"),
    (lambda p: p.set_adapters("a", {"vae": 1}), "weights for"),
    (lambda p: p.set_adapters("a", {"unet": {"side": 1}}), "no block 'side'"),
    (lambda p: p.set_adapters("a", {"unet": {"down": {"block_1": 1}}}), "no block with attentions"),
    (lambda p: p.set_adapters("a", {"unet": {"up": {"block_1": [1, 2, 3]}}}), "give one, or 2"),
    (lambda p: p.set_adapters("a", {"unet": {"mid": [1, 2]}}), "a weight is"),
    (lambda p: p.set_adapters("a", {"text_encoder": {"down": 1}}), "a weight is"),
    (lambda p: p.delete_adapters("b"), "no adapter 'b'"),
    (lambda p: p.load_lora_weights({}, adapter_name="a"), "adapter_name is 'a'"),
    (lambda p: p.load_lora_weights({}, adapter_name="a.b"), "adapter_name is 'a.b'"),
    (lambda p: p.load_lora_weights({}, hotswap=True), "no argument 'hotswap'"),
    (lambda p: p.load_lora_weights(3), "got 3"),
    (lambda p: p.load_lora_weights("no-such-file.safetensors"), "no such"),
    (lambda p: p.load_lora_weights("no such\0file"), "no such file or folder"),
    (lambda p: p.fuse_lora(components=["vae"]), "no component 'vae'"),
    (lambda p: p.fuse_lora(lora_scale="x"), "lora_scale is 'x'"),
    (lambda p: p.unfuse_lora(components=["vae"]), "no component 'vae'"),
])
def test_calls_that_cannot_be_met(pipe, call, words):
    pipe.load_lora_weights(two(pipe)[0], adapter_name="a")
    with pytest.raises((UsageError, ModelError), match=words):
        call(pipe)
    assert pipe.get_active_adapters() == ["a"]


# Files.

def test_a_file_a_folder_and_a_damaged_file(pipe, tmp_path):
    one, other = two(pipe)
    write_safetensors(tmp_path / "one.safetensors", one)
    pipe.load_lora_weights(tmp_path / "one.safetensors", adapter_name="file")
    new = np.array(leaves(pipe)[place(samples.ATTENTION)])
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(tmp_path))  # the only one there
    assert np.array_equal(leaves(pipe)[place(samples.ATTENTION)], new)
    pipe.unload_lora_weights()
    write_safetensors(tmp_path / "two.safetensors", other)
    pipe.load_lora_weights(tmp_path, "one.safetensors", "named")
    assert np.array_equal(leaves(pipe)[place(samples.ATTENTION)], new)
    with pytest.raises(UsageError, match="there are 2 .safetensors files"):
        pipe.load_lora_weights(tmp_path)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path.parent, "one.safetensors", "named", subfolder=tmp_path.name)
    assert np.array_equal(leaves(pipe)[place(samples.ATTENTION)], new)
    whole = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    refused(lambda: pipe.load_lora_weights(tmp_path / "cut.safetensors"), "incomplete")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02")
    refused(lambda: pipe.load_lora_weights(tmp_path / "pickle.pt"), "pickle")
    assert pipe.get_active_adapters() == ["named"]


def test_a_file_of_the_hub(pipe, tmp_path, monkeypatch):
    """From the local cache; the network is asked only where that is allowed."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    write_safetensors(tmp_path / "x.safetensors", two(pipe)[0])
    asked = []

    def fetch(name, file, **options):
        asked.append((name, file, options))
        if file == "none.safetensors":
            raise LocalEntryNotFoundError("no")
        if file == "failing.safetensors":
            raise OSError("the disk\nis full")
        return str(tmp_path / "x.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    pipe.load_lora_weights("owner/name", token="t", subfolder=None)
    pipe.load_lora_weights("owner/name", "x.safetensors", download=True)
    usual = "pytorch_lora_weights.safetensors"
    assert asked == [("owner/name", usual, {"local_files_only": True, "token": "t"}),
                     ("owner/name", "x.safetensors", {"local_files_only": False})]
    with pytest.raises(ModelError, match="no none.safetensors of it in the local hub cache"):
        pipe.load_lora_weights("owner/name", "none.safetensors")
    with pytest.raises(ResourceError, match="owner/name: no. Try again, or fetch it by other"):
        pipe.load_lora_weights("owner/name", "none.safetensors", download=True)
    with pytest.raises(ResourceError, match="cannot be had: the disk. Try again"):
        pipe.load_lora_weights("owner/name", "failing.safetensors")
