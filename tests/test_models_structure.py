"""Which ops the networks consist of, in which order, and what they cost; wrong trees."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from model_samples import CLIPS, UNETS, VAES, added_inputs, tree, values

import refsd
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.families import sdxl
from refsd.models import clip, layers, unet, vae
from refsd.pipelines.planned import planned_network
from refsd.planning import Asked, planning


def f32(*shape):
    return Spec(shape, "float32")


@pytest.fixture(scope="module")
def plans():
    """The ops of Stable Diffusion 1.5 for one picture of 512 x 512."""
    net = planned_network("text_encoder")
    with planning() as text:
        out = clip.clip_text(Spec((1, 77), "int64"), **net.tree, config=net.config)
        assert out == f32(1, 77, 768)
    net = planned_network("unet")
    with planning() as denoise:
        out = unet.unet(f32(1, 4, 64, 64), Spec((1,), "int64"), f32(1, 77, 768), **net.tree,
                        config=net.config)
        assert out == f32(1, 4, 64, 64)
    net = planned_network("vae")
    found, config = net.tree, net.config
    with planning() as encode:
        out = vae.encode(f32(1, 3, 512, 512), encoder=found["encoder"],
                         quant_conv=found["quant_conv"], config=config)
        assert out == (f32(1, 4, 64, 64),) * 2
    with planning() as decode:
        out = vae.decode(f32(1, 4, 64, 64), decoder=found["decoder"],
                         post_quant_conv=found["post_quant_conv"], config=config)
        assert out == f32(1, 3, 512, 512)
    return {"text": text, "unet": denoise, "encode": encode, "decode": decode}


# Counted from the published architecture. UNet: 22 residual blocks of two convolutions, 14 of them
# with a shortcut, 3 halvings, 3 doublings, the first and the last, and 16 transformers of two
# projections: 44 + 14 + 3 + 3 + 2 + 32 = 98.
@pytest.mark.parametrize("part, counts", [
    ("unet", {"conv2d": 98, "attention": 32, "group_norm": 2 * 22 + 16 + 1, "layer_norm": 48,
              "linear": 16 * 10 + 22 + 2, "geglu": 16, "concat": 12, "upsample_nearest": 3,
              "timestep_embedding": 1, "to_tokens": 16, "silu": 2 * 22 + 22 + 1 + 1}),
    # 14 residual blocks and 2 shortcuts, 3 doublings, first, last, and the 1 x 1 before
    ("decode", {"conv2d": 2 * 14 + 2 + 3 + 3, "attention": 1, "group_norm": 2 * 14 + 1 + 1,
                "linear": 4, "upsample_nearest": 3}),
    # 10 residual blocks and 2 shortcuts, 3 halvings, first, last, and the 1 x 1 after
    ("encode", {"conv2d": 2 * 10 + 2 + 3 + 3, "attention": 1, "group_norm": 2 * 10 + 1 + 1,
                "slice": 2, "clamp": 1}),
    ("text", {"linear": 12 * 6, "attention": 12, "layer_norm": 25, "quick_gelu": 12,
              "embedding": 2}),
])
def test_the_ops_of_stable_diffusion_1_5(plans, part, counts):
    found = Counter(planned.op for planned in plans[part])
    assert {op: found[op] for op in counts} == counts


# Multiplications and additions of matrix products alone, in thousand millions: known figures for
# a picture of 512 x 512 (the UNet: 338.6 and another 63 inside attention).
@pytest.mark.parametrize("part, known", [("unet", 401.6), ("decode", 1257), ("encode", 558),
                                         ("text", 6.65)])
def test_the_cost_of_stable_diffusion_1_5(plans, part, known):
    total = 0
    for planned in plans[part]:
        if planned.op in ("linear", "conv2d"):
            total += planned.output.flops
        if planned.op == "attention":
            N, L, _ = planned.inputs["q"].shape
            scores = N * planned.options["heads"] * L * planned.inputs["k"].shape[1]
            total += planned.output.flops - 5 * scores
    assert abs(total / 2e9 - known) < 0.0012 * known  # the figures are rounded to 3 or 4 digits


def test_every_eps_of_stable_diffusion_1_5(plans):
    """1e-5 in the UNet's residual blocks and at its end, 1e-6 before its transformers and in all
    of the VAE, 1e-5 in every layer_norm."""
    def found(part, op):
        return Counter(planned.options["eps"] for planned in plans[part] if planned.op == op)

    assert found("unet", "group_norm") == {1e-5: 45, 1e-6: 16}
    assert found("unet", "layer_norm") == {1e-5: 48}
    assert found("decode", "group_norm") == {1e-6: 30}
    assert found("encode", "group_norm") == {1e-6: 22}
    assert found("text", "layer_norm") == {1e-5: 25}


def test_heads_masks_and_paddings_of_stable_diffusion_1_5(plans):
    attentions = [planned for part in plans.values() for planned in part
                  if planned.op == "attention"]
    kinds = Counter((p.options["heads"], p.options["causal"]) for p in attentions)
    assert kinds == {(8, False): 32, (12, True): 12, (1, False): 2}
    widths = {p.inputs["q"].shape[2] // p.options["heads"] for p in attentions}
    assert widths == {40, 80, 160, 64, 512}
    for part, padding in (("unet", 1), ("encode", ((0, 1), (0, 1)))):
        halvings = [p for p in plans[part] if p.op == "conv2d" and p.options["stride"] == 2]
        assert [p.options["padding"] for p in halvings] == [padding] * 3


# Of the two larger UNets that read a vector and sizes too, counted from their published configs.
# Base: 2 + 2 layers down, the middle and 3 + 3 up with transformers of 2, 10, 10, 10 and 2 blocks:
# 11 of 70 blocks. Refiner: two levels of 2 and 3 layers and the middle, 11 of 4 blocks each. Of
# residual blocks (two convolutions each) base has 6 + 2 + 9, 2 of the 6 and all 9 with a shortcut;
# the refiner 8 + 2 + 12, 2 of the 8 and all 12 with one. Convolutions besides: halvings,
# doublings, the first and the last. Linear layers: 10 a block, 2 a transformer, one a residual
# block, 2 of the time and 2 of what is added.
LARGE = {
    "base": (sdxl.UNET, 6, {"attention": 140, "geglu": 70, "layer_norm": 210, "concat": 10,
                            "linear": 700 + 22 + 17 + 4, "timestep_embedding": 2,
                            "conv2d": 2 * 17 + 11 + 2 + 2 + 2, "group_norm": 2 * 17 + 11 + 1,
                            "silu": 3 * 17 + 3, "to_tokens": 11}, {10: 20, 20: 120}),
    "refiner": (sdxl.REFINER_UNET, 5, {"attention": 88, "geglu": 44, "layer_norm": 132,
                                       "concat": 13, "linear": 440 + 22 + 22 + 4,
                                       "timestep_embedding": 2, "to_tokens": 11,
                                       "conv2d": 2 * 22 + 14 + 3 + 3 + 2,
                                       "group_norm": 2 * 22 + 11 + 1, "silu": 3 * 22 + 3},
                {12: 40, 24: 48}),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_the_ops_of_unets_with_an_added_embedding(name):
    config, ids, counts, heads = LARGE[name]
    net = planned_network("unet", config)
    with planning() as plan:
        out = unet.unet(f32(1, 4, 128, 128), Spec((1,), "int64"), f32(1, 77, net.text_width),
                        **net.tree, text_embeds=f32(1, 1280), time_ids=f32(1, ids),
                        config=net.config)
    assert out == f32(1, 4, 128, 128)
    found = Counter(planned.op for planned in plan)
    assert {op: found[op] for op in counts} == counts
    assert Counter(p.options["heads"] for p in plan if p.op == "attention") == heads
    assert {p.inputs["q"].shape[2] // p.options["heads"] for p in plan if p.op == "attention"} == {
        64}
    read = {id(array) for p in plan for array in p.inputs.values()}
    assert {id(leaf) for leaf in leaves_of(net.tree, Spec)} <= read


def test_a_text_encoder_with_a_projection_is_planned_with_it():
    """Of OpenCLIP's bigG: 32 layers of 6 linear layers, and the projection of one vector a text."""
    net = planned_network("text_encoder_2", sdxl.TEXT_ENCODER_2)
    with planning() as plan:
        states, vector = net.calls("text_encoder_2", Asked(1, 2, 8, 8, 8), {})[
            "text_encoder_2"]()
    assert (states, vector) == (f32(2, 77, 1280), f32(2, 1280))
    found = Counter(planned.op for planned in plan)
    assert (found["linear"], found["gelu"], found["gather"]) == (32 * 6 + 1, 32, 1)
    assert plan[-1].path == "text_projection" and plan[-1].inputs["x"] == f32(2, 1280)


def test_the_very_weights_arrive_and_every_one_is_used():
    """A recorder names tensors by identity; and no tensor of a checkpoint is left unread."""
    for component, config in (("unet", UNETS["four levels as SD 1.x"]),
                              ("text_encoder", CLIPS["gelu"])):
        found, models_config = tree(component, config)
        leaves = {id(leaf) for leaf in leaves_of(found)}
        used = set()

        def hear(op, inputs, options, output, used=used):
            used.update(id(array) for array in inputs.values())

        with refsd.watch(hear):
            if component == "unet":
                unet.unet(values(1, 1, 4, 8, 8), np.array([1]), values(2, 1, 5, 10), **found,
                          config=models_config)
            else:
                clip.clip_text(np.array([[1, 2]]), **found, config=models_config)
        assert leaves <= used


def leaves_of(node, kind=np.ndarray):
    children = node.values() if isinstance(node, dict) else node
    for child in children:
        if isinstance(child, kind):
            yield child
        else:
            yield from leaves_of(child, kind)


@pytest.mark.parametrize("name", UNETS)
def test_every_skip_is_used_once_latest_first(name):
    config = UNETS[name]
    found, models_config = tree("unet", config)
    width = config["cross_attention_dim"]
    events = []
    with refsd.watch(lambda *event: events.append(event)):
        unet.unet(values(1, 1, config.get("in_channels", 4), 8, 8), np.array([1]),
                  values(2, 1, 5, width[-1] if isinstance(width, list) else width), **found,
                  config=models_config, **added_inputs(config, 1))
    made = {id(output): i for i, (*_, output) in enumerate(events)}
    joined = [inputs["arrays"] for op, inputs, _, output in events
              if op == "concat" and output.ndim == 4]
    skips = [made[id(arrays[1])] for arrays in joined]
    layers_each = config["layers_per_block"]
    levels = len(config["block_out_channels"])
    total = sum(layers_each) if isinstance(layers_each, list) else layers_each * levels
    assert len(skips) == total + levels  # each layer, each halving, and conv_in
    assert skips == sorted(set(skips), reverse=True)
    first_conv = next(i for i, event in enumerate(events) if event[0] == "conv2d")
    assert skips[-1] == first_conv
    before = [made[id(arrays[0])] for arrays in joined]
    # without a middle block the deepest level's output is its own skip
    deeper = before[0] - skips[0]
    assert before == sorted(before) and (deeper > 0) == ("mid_block" in found) and deeper >= 0


@pytest.mark.parametrize("size", [(16, 24), (7, 9), (1, 3)])
def test_unet_keeps_any_size(size):
    found, config = tree("unet", UNETS["odd widths, heads a level"])
    with planning():
        y = unet.unet(f32(3, 4, *size), Spec((3,), "int64"), f32(3, 77, 10), **found, config=config)
    assert y == f32(3, 4, *size)


ALL = {"unet": UNETS, "vae": VAES, "text_encoder": CLIPS}


@pytest.mark.parametrize("component, name", [(c, name) for c in ALL for name in ALL[c]])
def test_planned_shapes_are_the_real_ones(component, name):
    """The contracts infer every op of a real run."""
    config = ALL[component][name]
    found, models_config = tree(component, config)

    def run():
        if component == "unet":
            width = config["cross_attention_dim"]
            width = width[-1] if isinstance(width, list) else width
            return unet.unet(values(1, 2, config.get("in_channels", 4), 6, 4), np.array([1, 2]),
                             values(2, 2, 3, width), **found, config=models_config,
                             **added_inputs(config, 2))
        if component == "vae":
            return vae.encode(values(1, 2, 3, 10, 8), encoder=found["encoder"],
                              quant_conv=found.get("quant_conv"), config=models_config)
        return clip.clip_text(np.array([[1, 2, 3]]), **found, config=models_config)

    real = []
    with refsd.watch(lambda op, _, __, output: real.append((op, output.shape, str(output.dtype)))):
        run()
    with planning() as plan:
        run()
    assert [(p.op, p.output.shape, p.output.dtype) for p in plan] == real

    with planning() as more:  # the other half, so that nothing that is expected is unread
        if component == "vae":
            vae.decode(values(1, 2, models_config.latent_channels, 5, 4), config=models_config,
                       decoder=found["decoder"], post_quant_conv=found.get("post_quant_conv"))
        if "cond_proj" in found.get("time_embedding", {}):
            layer = found["time_embedding"]["cond_proj"]["weight"]
            unet.embed_time(np.array([1]), values(3, 1, layer.shape[1]), **found["time_embedding"],
                            dim=layer.shape[0], config=models_config, dtype="float32")
    read = {id(array) for p in [*plan, *more] for array in p.inputs.values()}
    assert {id(leaf) for leaf in leaves_of(found)} <= read


# Python's own call protocol checks a checkpoint.
@pytest.mark.parametrize("path, change, message", [
    (("conv_in",), "missing", "'conv_in'"),
    (("conv_out", "weight"), "missing", "'weight'"),
    (("conv_in", "scale"), "extra", "'scale'"),
    (("extra_block",), "extra", "'extra_block'"),
    (("time_embedding", "linear_3"), "extra", "'linear_3'"),
    (("down_blocks", 0, "resnets", 0, "norm1"), "missing", "'norm1'"),
    (("down_blocks", 0, "resnets", 0, "norm3"), "extra", "'norm3'"),
    (("down_blocks", 0, "resnets", 0, "norm1", "bias"), "missing", "'bias'"),
    (("down_blocks", 0, "attentions", 0, "transformer_blocks", 0, "attn1", "to_q"), "missing",
     "'to_q'"),
    (("down_blocks", 0, "attentions", 0, "transformer_blocks", 0, "attn3"), "extra", "'attn3'"),
    (("mid_block", "resnets"), "missing", "'resnets'"),
    (("up_blocks", 1, "attention"), "extra", "'attention'"),
])
def test_a_wrong_key_is_a_type_error_that_names_it(path, change, message):
    found, config = tree("unet", UNETS["two levels"])
    node = found
    for step in path[:-1]:
        node = node[step]
    if change == "missing":
        del node[path[-1]]
    else:
        node[path[-1]] = values(0, 1)
    with pytest.raises(TypeError, match=message):
        unet.unet(values(1, 1, 4, 8, 8), np.array([1]), values(2, 1, 5, 10), **found, config=config)


@pytest.mark.parametrize("part, key", [("encoder", "conv_norm_out"), ("encoder", "mid_block")])
def test_a_wrong_key_of_the_vae_is_named(part, key):
    found, config = tree("vae", VAES["two levels"])
    del found[part][key]
    with pytest.raises(TypeError, match=f"'{key}'"):
        vae.encode(values(1, 1, 3, 8, 8), encoder=found["encoder"], config=config)


def test_a_wrong_key_of_clip_is_named():
    found, config = tree("text_encoder", CLIPS["gelu"])
    del found["encoder"]["layers"][1]["mlp"]
    with pytest.raises(TypeError, match="'mlp'"):
        clip.clip_text(np.array([[1, 2]]), **found, config=config)


@pytest.mark.parametrize("skipped", [-1, 3, 1.0, True])
def test_layers_that_are_not_there_cannot_be_skipped(skipped):
    found, config = tree("text_encoder", CLIPS["gelu"])
    with pytest.raises(UsageError, match="clip_text: layers_skipped is .*, wanted an integer from "
                                         "0 to 2"):
        clip.clip_text(np.array([[1, 2]]), **found, config=config, layers_skipped=skipped)


def test_heads_must_be_given_for_every_level():
    found, config = tree("unet", UNETS["two levels"])
    for heads in ((2,), (2, 2, 2)):
        with pytest.raises(UsageError, match="unet: 2 levels down, 2 up, heads"):
            unet.unet(values(1, 1, 4, 8, 8), np.array([1]), values(2, 1, 5, 10), **found,
                      config=replace(config, heads=heads))


def test_a_text_longer_than_the_positions_is_refused():
    found, config = tree("text_encoder", CLIPS["gelu"])
    with pytest.raises(IndexError, match="indices run from 0 to 12, there are rows 0 to 11"):
        clip.clip_text(np.zeros((1, 13), "int64"), **found, config=config)


def test_the_halving_of_the_vae_pads_right_and_below():
    """A picture that is 1 in its last row only: a kernel of ones sees it in the last row only."""
    x = np.zeros((1, 1, 4, 4), "float32")
    x[0, 0, 3] = 1
    ones = {"weight": np.ones((1, 1, 3, 3), "float32"), "bias": np.zeros(1, "float32")}
    block = {"resnets": [], "downsamplers": [{"conv": ones}]}
    y = vae.down(x, **block, config=planned_network("vae").config)
    assert y.tolist() == [[[[0, 0], [3, 2]]]]
    symmetric = layers.downsample(x, conv=ones, padding=1)
    assert symmetric.tolist() == [[[[0, 0], [2, 3]]]]
