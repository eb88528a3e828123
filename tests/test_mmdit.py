"""SD 3's transformer: against its formula written plainly, its tree, its costs, what it refuses.

tests/parity compares with diffusers.
"""

import math
from collections import Counter

import mmdit_truth
import numpy as np
import pytest
from mmdit_truth import LARGE_35, MEDIUM_3, MEDIUM_35, tensors
from model_samples import values

import refsd
from refsd.contracts import Spec
from refsd.errors import ModelError, UsageError
from refsd.models import mmdit
from refsd.models.layers import Text
from refsd.models.mmdit import MMDiTConfig
from refsd.networks import shapes_of, validate
from refsd.pipelines.transformer import Transformer
from refsd.planning import WeightSpec, planning
from refsd.weights import to_tree
from refsd.weights.checkpoint import Component


def small(heads, width, layers, **more):
    return {"num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers,
            "caption_projection_dim": heads * width, "joint_attention_dim": 10,
            "pooled_projection_dim": 7, "in_channels": 3, "out_channels": 2,
            "pos_embed_max_size": 6, **more}


NORMED = {"qk_norm": "rms_norm"}
# config, size of the latents, blocks left out
SAMPLES = {
    "SD 3": (small(2, 4, 2), (8, 12), ()),
    "SD 3.5 medium": (small(2, 4, 3, **NORMED, dual_attention_layers=[0, 1]), (6, 10), ()),
    "SD 3.5 large": (small(3, 4, 2, **NORMED), (10, 2), ()),
    "skipped": (small(2, 6, 4, **NORMED, dual_attention_layers=[2]), (4, 4), (1, 3)),
    "patches of 3": (small(1, 8, 1, patch_size=3, out_channels=None), (3, 15), ()),
}


def arrays(config, size, batch=2):
    return (values(1, batch, config["in_channels"], *size), np.float32([999.5, 3.25][:batch]),
            values(2, batch, 5, 10), values(3, batch, 7))


def ask(found, config, inputs, skipped=(), dtype="float64"):
    sample, steps, *more = inputs
    tree = to_tree({name: array.astype(dtype) for name, array in found.items()})
    return mmdit.mmdit(sample.astype(dtype), steps, *(x.astype(dtype) for x in more), **tree,
                       skip_layers=skipped, config=MMDiTConfig.from_json(validate(
                           "transformer", config)))


@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_the_formula(name):
    """Of numbers near 1; 1e-10 is far above what float64 rounds, far below any mistake."""
    config, size, skipped = SAMPLES[name]
    found, inputs = tensors(config), arrays(config, size)
    truth = mmdit_truth.mmdit(found, *inputs, heads=config["num_attention_heads"],
                              patch=config.get("patch_size", 2), layers=config["num_layers"],
                              skipped=skipped)
    y = ask(found, config, inputs, skipped)
    assert y.shape == truth.shape and 0.1 < abs(truth).mean() < 10
    assert abs(y - truth).max() < 1e-10 * abs(truth).max()


@pytest.mark.parametrize("name", SAMPLES)
def test_every_tensor_is_used_as_it_is(name):
    config, size, _ = SAMPLES[name]
    found, used = tensors(config), set()

    def hear(op, inputs, options, output):
        used.update(id(array) for array in inputs.values())

    sample, steps, *more = arrays(config, size)
    with refsd.watch(hear):
        mmdit.mmdit(sample, steps, *more, **to_tree(found), config=MMDiTConfig(
            config["num_attention_heads"], 128))
    assert {id(array) for array in found.values()} <= used


def test_blocks_without_gates_change_nothing():
    """adaLN-Zero: as training begins, with no gate open, a block is the identity."""
    config = SAMPLES["SD 3.5 medium"][0]
    found = {name: array * 0 if ".norm1" in name else array
             for name, array in tensors(config).items()}
    block = to_tree(found)["transformer_blocks"][0]
    x, text, told = values(1, 2, 6, 8), values(2, 2, 5, 8), values(3, 2, 8)
    left = mmdit.joint_block(x, text, told, **block, heads=2)
    assert np.array_equal(left[0], x) and np.array_equal(left[1], text)


def test_skipped_blocks_are_as_if_they_were_not_there():
    config, size, _ = SAMPLES["skipped"]
    found, inputs = tensors(config), arrays(config, size)
    sample, steps, *more = inputs
    tree = to_tree(found)
    tree["transformer_blocks"] = [tree["transformer_blocks"][i] for i in (0, 2)]
    few = mmdit.mmdit(sample, steps, *more, **tree, config=MMDiTConfig(2, 128))
    for skipped in ((1, 3), [3, 1]):
        assert np.array_equal(ask(found, config, inputs, skipped, "float32"), few)


@pytest.mark.parametrize("skipped", [(4,), (-1,), (0, "1")])
def test_blocks_that_are_not_there(skipped):
    config, size, _ = SAMPLES["skipped"]
    with pytest.raises(UsageError, match=r"^mmdit: skip_layers is .*blocks, 0 to 3"):
        ask(tensors(config), config, arrays(config, size), skipped)


@pytest.mark.parametrize("size", [(5, 4), (4, 3), (14, 4), (4, 14), (0, 4), (4, 0)])
def test_sizes_that_no_patches_fill_or_no_places_are_for(size):
    config = SAMPLES["SD 3"][0]
    with pytest.raises(UsageError, match="^mmdit: sample has shape .*multiples of 2, up to 12"):
        ask(tensors(config), config, arrays(config, size))


# -- the published transformers

@pytest.mark.parametrize("config, tensors, parameters, places", [
    (MEDIUM_3, 683, 2_028_328_000, 192**2 * 1536),
    (MEDIUM_35, 909, 2_243_171_520, 384**2 * 1536),
    (LARGE_35, 1227, 8_056_627_520, 192**2 * 2432)], ids=["SD 3 medium", "3.5 medium", "3.5 large"])
def test_counts_of_the_published_ones(config, tensors, parameters, places):
    """As diffusers counts them, to whom the table of places is no parameter."""
    shapes = shapes_of("transformer", config)
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters + places


def test_the_ops_of_sd_3_5_medium():
    leaves = {name: WeightSpec(shape, "float32") for name, shape in
              shapes_of("transformer", MEDIUM_35).items()}
    for name, leaf in leaves.items():
        leaf.name = name
    with planning() as plan:
        y = mmdit.mmdit(Spec((2, 16, 128, 128), "float32"), Spec((2,), "float32"),
                        Spec((2, 333, 4096), "float32"), Spec((2, 2048), "float32"),
                        **to_tree(leaves), config=MMDiTConfig.from_json(MEDIUM_35))
    assert y == Spec((2, 16, 128, 128), "float32")
    count = Counter(planned.op for planned in plan)
    # 24 blocks, 13 of them with an attention of the picture to itself; the last one only reads the
    # text: 6 projections, 2 outputs, 4 of the perceptrons and 2 modulations are 3 fewer in it.
    assert count["attention"] == 24 + 13
    assert count["linear"] == 24 * 14 - 3 + 13 * 4 + 4 + 1 + 2
    assert count["rms_norm"] == 24 * 4 + 13 * 2
    assert count["layer_norm"] == 24 * 4 - 1 + 1
    assert count["gelu_tanh"] == 2 * 24 - 1 and count["conv2d"] == 1
    assert {p.options["eps"] for p in plan if p.op.endswith("_norm")} == {1e-6}
    lengths = Counter(p.inputs["q"].shape[1] for p in plan if p.op == "attention")
    assert lengths == {64 * 64 + 333: 24, 64 * 64: 13}
    assert {p.options["heads"] for p in plan if p.op == "attention"} == {24}
    assert all(p.options["causal"] is False for p in plan if p.op == "attention")


@pytest.mark.parametrize("option, value", [
    ("qk_norm", "layer_norm"), ("pos_embed_max_size", None), ("pos_embed_max_size", 0),
    ("sample_size", None), ("dual_attention_layers", None), ("dual_attention_layers", ["all"]),
    ("dual_attention_layers", [64]), ("num_layers", 0), ("num_layers", 65), ("patch_size", 0),
    ("attention_head_dim", 2000), ("joint_attention_dim", 0), ("pooled_projection_dim", "2048"),
    ("in_channels", 0), ("out_channels", -1), ("caption_projection_dim", 9),
    ("num_attention_heads", 3), ("_class_name", "FluxTransformer2DModel")])
def test_configs_that_it_does_not_compute(option, value):
    named = {"num_attention_heads": "caption_projection_dim is 8, expected .*, 12",
             "_class_name": "the class is 'Flux.*expected SD3Transformer2DModel"}
    with pytest.raises(ModelError, match=named.get(option, f"{option} is .*, expected")):
        validate("transformer", {**small(2, 4, 2), option: value})


def test_out_channels_are_those_of_the_input_where_none_are_said():
    shapes = shapes_of("transformer", small(2, 4, 1, out_channels=None, in_channels=5))
    assert shapes["proj_out.weight"] == (20, 8)


# -- the part of a pipeline


@pytest.fixture
def part():
    config = validate("transformer", SAMPLES["skipped"][0])
    return Transformer.of(Component(config, tensors(config), "here"), "numpy", False)


def test_the_part_is_the_model(part):
    config, size, _ = SAMPLES["skipped"]
    inputs = sample, steps, text, pooled = arrays(config, size)
    expected = ask(tensors(config), config, inputs, (1,), "float32")
    assert (part.dtype, part.in_channels, part.patch_size, part.text_width, part.pooled_width,
            part.time_cond_dim, part.config.sample_size) == ("float32", 3, 2, 10, 7, None, 128)
    for kept in (text, Text(text)):
        whole = part(sample, steps, kept, pooled)
        for skipped in ([1], np.array([1]), (1,)):
            y = part(sample, steps, kept, pooled, skip_layers=skipped)
            assert np.array_equal(y, expected) and not np.array_equal(y, whole)
        assert np.array_equal(whole, part(sample.tolist(), steps, kept, pooled, skip_layers=None))
        (y,) = part(sample, steps, kept, pooled, skip_layers=(1,), return_dict=False)
        assert np.array_equal(y, expected)
    one = part(sample, 5, text, pooled)
    assert np.array_equal(one, part(sample, [5, 5], text, pooled))


def test_calls_with_a_text_are_kept_as_long_as_it_is_alive(part, monkeypatch):
    """One of each set of skipped blocks, for a backend that replays them."""
    made = []
    monkeypatch.setattr(type(refsd.backends.BACKENDS["numpy"]), "replayed",
                        lambda backend, function, reads: made.append(reads) or function)
    sample, steps, states, pooled = arrays(*SAMPLES["skipped"][:2])
    text = Text(states)
    for skipped in ((), (1,), (), (1,)):
        part(sample, steps, text, pooled, skip_layers=skipped)
    assert made == [part.tree] * 2
    assert len(part._with_text) == 1
    del text
    assert len(part._with_text) == 0
    part(sample, steps, states, pooled)
    assert len(made) == 2


@pytest.mark.parametrize("changed, message", [
    ({0: np.zeros((2, 4, 4, 4))}, r"sample has shape .*; give \(N, 3, h, w\)"),
    ({1: [1, 2, 3]}, "timestep has shape .*one for each of the 2 samples"),
    ({2: np.zeros((2, 5, 9))}, r"encoder_hidden_states has .*; give \(2, L, 10\)"),
    ({2: np.zeros((1, 5, 10))}, r"encoder_hidden_states has .*; give \(2, L, 10\)"),
    ({3: np.zeros((2, 8))}, r"pooled_projections has shape .*; give \(2, 7\)"),
    ({3: np.zeros((1, 7))}, r"pooled_projections has shape .*; give \(2, 7\)"),
    ({"skip_layers": [4]}, "skip_layers is 4; give an integer from 0 to 3"),
    ({"skip_layers": [1.5]}, "skip_layers is 1.5; give an integer"),
    ({"joint_attention_kwargs": {"scale": 2}}, "joint_attention_kwargs=.* has no meaning here"),
    ({"block_controlnet_hidden_states": [1]}, "block_controlnet_hidden_states=.* has no meaning"),
    ({"skip_layer": [1]}, " has no argument 'skip_layer'"),
])
def test_the_part_names_what_is_wrong(part, changed, message):
    inputs = list(arrays(*SAMPLES["skipped"][:2]))
    for key in [key for key in changed if isinstance(key, int)]:
        inputs[key] = changed.pop(key)
    with pytest.raises(UsageError, match=f"^transformer:? ?{message}"):
        part(*inputs, **changed)
