"""What a network with an add_embedding reads beside the text, and what text encoders give it."""

import json

import numpy as np
import pytest
from model_samples import CLIPS, UNETS, VAES, added_inputs, tree, values

from refsd import functional as F
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.golden.porting.contracts_stages import describe_stages
from refsd.models import clip, unet
from refsd.models.config import CLIPTextConfig
from refsd.models.controlnet import ControlNetConfig
from refsd.models.layers import Text
from refsd.networks import shapes_of, validate
from refsd.pipelines.components import TextEncoder, UNet
from refsd.pipelines.controlnet import ControlNet
from refsd.pipelines.planned import calls, planned_networks
from refsd.planning import Asked
from refsd.registry import use, watch
from refsd.schedulers import DDIMScheduler
from refsd.weights import flatten, to_tree, write_safetensors
from refsd.weights.checkpoint import Component

NAME = "added embedding, depths a level"
CONFIG = UNETS[NAME]
ADDED = added_inputs(CONFIG, 2)  # (2, 9) and (2, 5): 9 + 6 x 5 = 39


def random_tree(component, config):
    random = np.random.default_rng(0)
    return to_tree({name: (random.standard_normal(shape) / 3).astype("f4")
                    for name, shape in shapes_of(component, config).items()})


def unet_and_inputs():
    return UNet(*tree("unet", CONFIG), "numpy"), (values(1, 2, 4, 8, 8), 7, values(2, 2, 5, 10))


OF_CONTROL = {key: value for key, value in CONFIG.items()
              if key not in ("up_block_types", "sample_size")} | {
    "conditioning_embedding_out_channels": [4, 4]}


def controlnet_and_inputs():
    net = ControlNet(random_tree("controlnet", OF_CONTROL),
                     ControlNetConfig.from_json(validate("controlnet", OF_CONTROL)), "numpy")
    picture = np.random.default_rng(3).random((2, 3, 16, 16), "f4")
    return net, (values(1, 2, 4, 8, 8), 7, values(2, 2, 5, 10), picture)


NETWORKS = {"unet": unet_and_inputs, "controlnet": controlnet_and_inputs}


def flat(found):
    """The arrays of a network's answer."""
    return [found] if isinstance(found, np.ndarray) else [*found[0], found[1]]


@pytest.mark.parametrize("name", NETWORKS)
def test_both_spellings_are_the_models_own(name):
    network, inputs = NETWORKS[name]()
    found = flat(network(*inputs, **ADDED))
    again = flat(network(*inputs, added_cond_kwargs=ADDED))
    lists = {"text_embeds": ADDED["text_embeds"].tolist(),
             "time_ids": ADDED["time_ids"].astype("int64").tolist()}
    mixed = flat(network(*inputs, text_embeds=lists["text_embeds"], added_cond_kwargs={
        "time_ids": lists["time_ids"], "text_embeds": None, "image_embeds": None}))
    for one, two, three in zip(found, again, mixed, strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)
    for key in ADDED:
        other = flat(network(*inputs, **{**ADDED, key: ADDED[key][::-1]}))
        assert all(abs(one - two).max() > 1e-3 for one, two in zip(found[1:], other[1:]))


def test_a_controlnet_of_such_a_model_is_loaded_from_a_folder(tmp_path):
    network, inputs = controlnet_and_inputs()
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", flatten(network.tree))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel",
                                                      **OF_CONTROL}))
    loaded = ControlNet.from_pretrained(tmp_path, backend="numpy")
    assert loaded.added_width == 39
    for one, two in zip(flat(loaded(*inputs, **ADDED)), flat(network(*inputs, **ADDED)),
                        strict=True):
        assert np.array_equal(one, two)


def test_the_network_is_the_model_with_a_text_too():
    network, (sample, step, text) = unet_and_inputs()
    found = network(sample, step, text, **ADDED)
    truth = unet.unet(sample, np.full(2, step), text, **network.tree, config=network.config,
                      **ADDED)
    assert np.array_equal(found, truth)
    assert np.array_equal(network(sample, step, Text(text), **ADDED), truth)
    assert network.added_width == 39


def test_what_is_added_is_added_to_the_time():
    network, (sample, step, text) = unet_and_inputs()
    branch = network.tree["add_embedding"]
    with use("numpy"):
        added = unet.embed_added(**ADDED, **branch, config=network.config)
    ids = np.concatenate([F.timestep_embedding(
        column, dim=6, flip_sin_to_cos=True, freq_shift=0, dtype="float32")
        for column in ADDED["time_ids"].T], axis=1)
    assert added.shape == (2, 32)
    h = np.concatenate([ADDED["text_embeds"], ids], axis=1).astype("f8")
    h = h @ branch["linear_1"]["weight"].T.astype("f8") + branch["linear_1"]["bias"]
    h = h / (1 + np.exp(-h))
    h = h @ branch["linear_2"]["weight"].T.astype("f8") + branch["linear_2"]["bias"]
    # three roundings a term of the longest sum, 39 products, and of SiLU a few
    assert abs(added - h).max() < 64 * 2.0**-24 * (1 + abs(h).max()) * 4

    zero = {part: {key: leaf * 0 for key, leaf in layer.items()} for part, layer in branch.items()}
    network.tree["add_embedding"] = zero
    silent = network(sample, step, text, **ADDED)
    bare = {key: part for key, part in network.tree.items() if key != "add_embedding"}
    without = unet.unet(sample, np.full(2, step), text, **bare, config=network.config)
    assert np.array_equal(silent, without)


REFUSED = {
    "no text": ({"text_embeds": None}, "text_embeds missing; this model has an add_embedding: "
                r"give text_embeds \(N, P\) and time_ids \(N, K\) with P \+ 6 K = 39"),
    "no ids": ({"time_ids": None}, "time_ids missing; this model"),
    "neither": ({"text_embeds": None, "time_ids": None}, "text_embeds and time_ids missing"),
    "a text of one": ({"text_embeds": values(1, 1, 9)},
                      r"text_embeds has shape \(1, 9\); give \(2, P\)"),
    "ids of one": ({"time_ids": values(1, 1, 5)}, r"time_ids has shape \(1, 5\); give \(2, K\)"),
    "a vector of ids": ({"time_ids": values(1, 5)}, r"time_ids has shape \(5,\); give \(2, K\)"),
    "ids too many": ({"time_ids": values(1, 2, 6)},
                     r"text_embeds \(2, 9\) and time_ids \(2, 6\) make 9 \+ 6 x 6 numbers a sample;"
                     " add_embedding reads 39: give others"),
    "too short a text": ({"text_embeds": values(1, 2, 8)}, r".* make 8 \+ 6 x 5 numbers a sample"),
    "twice": ({"added_cond_kwargs": {"time_ids": 1}},
              "time_ids is given, and in added_cond_kwargs too; give it once"),
    "another's": ({"added_cond_kwargs": {"image_embeds": 1}},
                  "added_cond_kwargs has 'image_embeds'; give text_embeds and time_ids alone"),
    "no dict": ({"added_cond_kwargs": [1]},
                r"added_cond_kwargs=\[1\] has no meaning here; give a dict with"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("why", REFUSED)
def test_what_is_missing_too_much_or_of_other_sizes_is_named(name, why):
    network, inputs = NETWORKS[name]()
    change, message = REFUSED[why]
    with pytest.raises(UsageError, match=f"^{name}: {message}"):
        network(*inputs, **{**ADDED, **change})


def test_a_model_without_takes_none():
    network = UNet(*tree("unet", UNETS["two levels"]), "numpy")
    inputs = values(1, 2, 4, 8, 8), 7, values(2, 2, 5, 10)
    assert network.added_width is None
    plain = network(*inputs)
    for nothing in (None, {}, {"text_embeds": None}):
        assert np.array_equal(network(*inputs, added_cond_kwargs=nothing), plain)
    with pytest.raises(UsageError, match="^unet: text_embeds and time_ids given, but this model "
                                         "has no add_embedding: leave them out"):
        network(*inputs, added_cond_kwargs=ADDED)
    with pytest.raises(UsageError, match="^unet: time_ids given, but"):
        network(*inputs, time_ids=ADDED["time_ids"])


TWO = {"text_encoder": CLIPS["quick_gelu"],
       "text_encoder_2": {**CLIPS["gelu"], "projection_dim": 9,
                          "architectures": ["CLIPTextModelWithProjection"]},
       "unet": {**CONFIG, "cross_attention_dim": 16}, "vae": VAES["two levels"]}


def test_a_plan_knows_what_is_read_beside_the_text():
    """The vector is as wide as the encoder's projection, and the rest are sizes."""
    networks = planned_networks(TWO)
    predict, plan, found = calls(networks, Asked(3, 2, 8, 4, 2))["unet"]
    assert found == Spec((6, 4, 8, 4), "float32")
    assert predict.keywords["text_embeds"] == Spec((6, 9), "float32")
    assert predict.keywords["time_ids"] == Spec((6, 5), "float32")
    net = UNet(*tree("unet", TWO["unet"]), "numpy")
    real, inputs = [], added_inputs(CONFIG, 6)
    with watch(lambda op, _, __, output: real.append((op, output.shape))):
        net(values(1, 6, 4, 8, 4), 7, values(2, 6, 12, 16), **inputs)
    assert [(planned.op, planned.output.shape) for planned in plan] == real


def test_contracts_say_what_is_read_beside_the_text():
    denoise = describe_stages(TWO, DDIMScheduler())["denoise"]["inputs"]
    assert {name: tensor["shape"] for name, tensor in denoise.items()} == {
        "latents": [1, 4, 8, 8], "prompt_embeds": [1, 12, 16],
        "negative_prompt_embeds": [1, 12, 16],
        "text_embeds": [1, 9], "time_ids": [1, 5]}


def encoder_of(config):
    part = Component(validate("text_encoder", config),
                     flatten(random_tree("text_encoder", config)), "")
    return TextEncoder.of(part, "numpy", False)


PROJECTED = {**CLIPS["gelu"], "architectures": ["CLIPTextModelWithProjection"],
             "projection_dim": 6, "eos_token_id": 2}


def test_a_projection_gives_the_text_as_a_vector():
    encoder, ids = encoder_of(PROJECTED), np.array([[1, 39, 2, 5], [3, 2, 39, 0]])
    found = encoder(ids)
    assert len(found) == 2 and found[0] is found.text_embeds and found.pooler_output is None
    last = found[1]
    assert last is found.last_hidden_state and found.hidden_states is None
    weight = encoder.tree["text_projection"]["weight"]
    assert found.text_embeds.shape == (2, 6)
    expected = last[[0, 1], [1, 2]].astype("f8") @ weight.T.astype("f8")
    assert abs(found.text_embeds - expected).max() < 1e-6

    plain = encoder_of(CLIPS["gelu"])(ids)
    assert plain[0] is plain.last_hidden_state and plain[1] is plain.pooler_output
    assert plain.text_embeds is None and len(plain) == 2


@pytest.mark.parametrize("config", [PROJECTED, CLIPS["quick_gelu"]], ids=["projected", "plain"])
def test_hidden_states_are_those_of_fewer_layers(config):
    encoder, ids = encoder_of(config), np.array([[1, 2, 39]])
    found = encoder(ids, output_hidden_states=True)
    layers = len(encoder.tree["encoder"]["layers"])
    assert len(found) == 3 and found[2] is found.hidden_states
    assert type(found.hidden_states) is tuple and len(found.hidden_states) == layers + 1
    norm, eps = encoder.tree["final_layer_norm"], encoder.config.eps
    with use("numpy"):
        assert np.array_equal(found.hidden_states[0], clip.embed(ids, **encoder.tree["embeddings"]))
        for skip in range(layers):
            expected = encoder(ids, clip_skip=skip).last_hidden_state
            state = found.hidden_states[-1 - skip]
            assert np.array_equal(F.layer_norm(state, **norm, eps=eps), expected)
            assert abs(state - expected).max() > 0.1  # no norm has seen it
    assert np.array_equal(found.last_hidden_state, encoder(ids).last_hidden_state)
    with pytest.raises(UsageError, match="^output_hidden_states is 'x'; give True or False"):
        encoder(ids, output_hidden_states="x")
    with pytest.raises(UsageError, match="^unet: output_hidden_states=True has no meaning here; "
                                         "only text encoders have them"):
        unet_and_inputs()[0](values(1, 1, 4, 8, 8), 1, values(2, 1, 5, 10),
                             output_hidden_states=True)


def test_where_a_text_ends_decides_its_vector():
    """At the largest id where a config says 2, as the published ones do, else at its first end."""
    ids = np.array([[1, 39, 2, 5]])
    ends = {2: 1, 39: 1, 5: 3, 7: 0}
    for eos, end in ends.items():
        encoder = encoder_of({**PROJECTED, "eos_token_id": eos})
        assert isinstance(encoder.config, CLIPTextConfig)
        found = encoder(ids)
        with use("numpy"):
            alone = F.linear(found.last_hidden_state[:, end], **encoder.tree["text_projection"])
        assert np.array_equal(found.text_embeds, alone), eos
