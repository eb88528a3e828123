"""Adapters against diffusers and PEFT, which add what they add while they compute (unfused).

The criterion is that of pictures everywhere: every grey level within one, 99.9 % identical.
"""

import copy
import warnings

import numpy as np
import peft
import pytest
import tiny_diffusers
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from lycoris.modules import locon, loha, lokr
from peft.utils import get_peft_model_state_dict
from tiny_diffusers import PROMPT, SIZE

import refsd
from refsd.adapters.loaded import applied
from refsd.weights import flatten

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
ALL = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
       "conv_shortcut", "time_emb_proj", "conv_in", "conv_out", "downsamplers.0.conv"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_diffusers.write_model(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def pipes(model):
    theirs = StableDiffusionPipeline.from_pretrained(model)
    theirs.set_progress_bar_config(disable=True)
    return theirs, refsd.StableDiffusionPipeline.from_pretrained(model, backend="numpy")


@pytest.fixture
def both(pipes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pipes
        pipes[0].unload_lora_weights()
        pipes[0]._lora_scale = 1.0  # of an earlier call, which diffusers takes for later loading
    pipes[1].unfuse_lora()
    pipes[1].unload_lora_weights()


def made(pipes, config, text_config=None, *, seed=0):
    """Random tensors as PEFT makes them for these configs, by network; names as PEFT saves them.

    Small enough that the networks stay tame: else they blow up what float32 rounds.
    """
    found, seeded = {}, torch.Generator().manual_seed(seed)
    for network, one in (("unet", config), ("text_encoder", text_config)):
        if one is not None:
            net = copy.deepcopy(getattr(pipes[0], network))
            peft.inject_adapter_in_model(one, net, adapter_name="default")
            found[network] = {
                name: 0.1 * torch.randn(tensor.shape, generator=seeded)
                + (tensor if "magnitude" in name else 0)
                for name, tensor in get_peft_model_state_dict(net, adapter_name="default").items()}
    return found


def config(kind=peft.LoraConfig, targets=ALL, **options):
    return kind(target_modules=targets, init_weights=True, **options) if kind is not (
        peft.LoraConfig) else kind(target_modules=targets, **options)


def save(folder, found, **metadata):
    """As diffusers saves them; with PEFT's config where metadata has one."""
    text = found.get("text_encoder")
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=found.get("unet"),
        text_encoder_lora_layers=text and convert_state_dict_to_diffusers(text),
        **{f"{network}_lora_adapter_metadata": one.to_dict() for network, one in metadata.items()})
    return folder


def draw(both, **options):
    tiny_diffusers.same_picture(*both, **{"prompt": PROMPT, "negative_prompt": "blurry",
                                          "num_inference_steps": 3, "height": SIZE, "width": SIZE,
                                          **options})


def moves(both):
    """That the adapter changes the picture at all."""
    ours = both[1]
    options = {"num_inference_steps": 1, "height": SIZE, "width": SIZE, "generator": 1,
               "output_type": "np"}
    on = ours(PROMPT, **options).images
    off = ours(PROMPT, **options, cross_attention_kwargs={"scale": 0}).images
    assert np.abs(on - off).max() > 1.5 / 255


def test_a_file_that_diffusers_saves(both, tmp_path):
    """Of both networks, all kinds of layers, alpha 3 of a rank of 6, and of 2 for some."""
    unet = config(r=6, lora_alpha=3, rank_pattern={"to_k": 2}, alpha_pattern={"to_v": 9})
    text = config(targets=TEXT, r=4, lora_alpha=8, use_rslora=True)
    save(tmp_path, made(both, unet, text), unet=unet, text_encoder=text)
    for pipe in both:
        pipe.load_lora_weights(tmp_path)
    moves(both)
    draw(both)
    draw(both, cross_attention_kwargs={"scale": 0.3})
    for pipe in both:
        pipe.disable_lora()
    draw(both)


def test_a_file_without_config_has_alpha_equal_to_the_rank(both, tmp_path):
    save(tmp_path, made(both, config(r=4, lora_alpha=32, rank_pattern={"conv1": 2}),
                        config(targets=TEXT, r=4)))
    for pipe in both:
        pipe.load_lora_weights(tmp_path / "pytorch_lora_weights.safetensors")
    moves(both)
    draw(both)


def kohya(found, alpha):
    """kohya's names, as diffusers writes them: the alpha is the rank there, here it is not."""
    tensors = {}
    for network, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for name, tensor in convert_state_dict_to_kohya(found[network]).items():
            module, _, part = name.partition(".")
            tensors[f"{prefix}{module}.{part}"] = torch.tensor(alpha) if part == "alpha" else tensor
    return tensors


def test_a_kohya_file(both):
    found = made(both, config(r=4, targets=[*ATTENTION, "proj_in", "conv1", "ff.net.2"]),
                 config(targets=TEXT, r=2))
    tensors = kohya(found, 3.0)
    assert any(name.startswith("lora_unet_down_blocks_0_resnets_0_conv1.") for name in tensors)
    for pipe in both:
        pipe.load_lora_weights(dict(tensors))
    moves(both)
    draw(both)


def test_names_of_old_attention_processors(both):
    found = made(both, config(r=4, targets=ATTENTION), config(targets=TEXT[:4], r=4))
    tensors = {}
    for name, tensor in found["unet"].items():
        module, part = name.split(".lora_")
        module = module.replace("to_out.0", "to_out").rpartition(".")
        part = {"A.weight": "down.weight", "B.weight": "up.weight"}[part]
        tensors[f"unet.{module[0]}.processor.{module[2]}_lora.{part}"] = tensor
    for name, tensor in found["text_encoder"].items():
        module, part = name.split(".lora_")
        for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"),
                         ("out_proj", "to_out")):
            module = module.replace(new, old)
        part = {"A.weight": "down.weight", "B.weight": "up.weight"}[part]
        tensors[f"text_encoder.text_model.{module}_lora.{part}"] = tensor
    for pipe in both:
        pipe.load_lora_weights(dict(tensors))
    moves(both)
    draw(both)


def test_two_at_once_and_which_is_active_before(both, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        save(tmp_path / name, made(both, config(r=4, targets=[*ATTENTION, "conv1"]),
                                   config(targets=TEXT, r=4), seed=seed))
        for pipe in both:
            pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    assert both[0].get_active_adapters() == both[1].get_active_adapters() == ["b"]
    draw(both)
    for weights in ([0.7, -0.4], [{"unet": 0.5, "text_encoder": 0}, 1.5]):
        for pipe in both:
            pipe.set_adapters(["a", "b"], weights)
        draw(both)
    assert both[0].get_list_adapters() == both[1].get_list_adapters()
    for pipe in both:
        pipe.delete_adapters("b")
    assert both[1].get_active_adapters() == ["a"]
    draw(both)


def test_weights_of_blocks(both):
    """Of layers beside the transformers too; not of conv_in, where diffusers stops."""
    found = made(both, config(r=4, targets=[*ATTENTION, "proj_in", "conv1", "downsamplers.0.conv"]))
    tensors = {f"unet.{name}": tensor for name, tensor in found["unet"].items()}
    weights = {"down": 0.2, "mid": 2, "up": {"block_1": [-1, 0.5]}}
    for pipe in both:
        pipe.load_lora_weights(dict(tensors), adapter_name="a")
        pipe.set_adapters("a", [{"unet": weights}])
    moves(both)
    draw(both)


def test_fused(model, pipes, tmp_path):
    """Pipelines of their own: what is fused stays."""
    theirs = copy.deepcopy(pipes[0])
    ours = refsd.StableDiffusionPipeline.from_pretrained(model, backend="numpy")
    save(tmp_path, made(pipes, config(r=4), config(targets=TEXT, r=4)))
    for pipe in (theirs, ours):
        pipe.load_lora_weights(tmp_path)
        pipe.fuse_lora(lora_scale=0.6)
    draw((theirs, ours))
    for pipe in (theirs, ours):
        pipe.unload_lora_weights()
    draw((theirs, ours))


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_dora_as_peft_has_it(both, weight):
    found = made(both, config(r=4, use_dora=True, targets=[*ATTENTION, "conv1", "proj_in"]))
    tensors = {f"unet.{name}": tensor for name, tensor in found["unet"].items()}
    assert any("lora_magnitude_vector" in name for name in tensors)
    for pipe in both:
        pipe.load_lora_weights(dict(tensors), adapter_name="a")
        pipe.set_adapters("a", weight)
    moves(both)
    draw(both)


@pytest.mark.parametrize("kind, options", [
    (peft.LoHaConfig, {"use_effective_conv2d": False}),
    (peft.LoHaConfig, {"use_effective_conv2d": True}),
    (peft.LoKrConfig, {"use_effective_conv2d": False}),
    (peft.LoKrConfig, {"use_effective_conv2d": True, "decompose_both": True}),
    (peft.LoKrConfig, {"decompose_factor": 4, "decompose_both": True}),
], ids=str)
def test_loha_and_lokr_as_peft_has_them(both, kind, options):
    """The weights that PEFT's layers add, one by one; the picture that they make together."""
    theirs, ours = both
    one = config(kind, r=4, alpha=2, targets=[*ATTENTION, "conv1", "proj_in", "ff.net.2"],
                 **options)
    before = flatten(ours.unet.tree)
    net = copy.deepcopy(theirs.unet)
    torch.manual_seed(0)
    peft.inject_adapter_in_model(one, net, adapter_name="default")
    for name, parameter in net.named_parameters():
        if "hada_" in name or "lokr_" in name:
            parameter.data = 0.4 * torch.randn(parameter.shape)
    tensors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(
        net, adapter_name="default").items()}
    tensors |= {f"{name.rpartition('.')[0]}.alpha": torch.tensor(2.0) for name in tensors}
    ours.load_lora_weights(tensors)
    after = flatten(ours.unet.tree)
    layers = {name: layer for name, layer in net.double().named_modules()
              if hasattr(layer, "get_delta_weight")}
    assert {f"{name}.weight" for name in layers} == {
        name for name in before if before[name] is not after[name]}
    for name, layer in layers.items():
        low_rank = any(f"unet.{name}.{part}" in tensors
                       for part in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b"))
        factor = 1 if low_rank else 4 / 2  # PEFT scales whole factors too, by alpha / r
        true = np.asarray(before[f"{name}.weight"], "f8") + factor * (
            layer.get_delta_weight("default").detach().numpy())
        found = np.asarray(after[f"{name}.weight"])
        # One rounding to float32, and what float64 errs in sums of a few products.
        assert (np.abs(found - true) <= np.abs(true) * 2.0**-24 + 1e-14).all()


KINDS = {"locon": locon.LoConModule, "loha": loha.LohaModule, "lokr": lokr.LokrModule}
WITH = {"": {}, "core": {"use_tucker": True}, "both": {"decompose_both": True, "factor": 2},
        "whole": {"full_matrix": True}, "dora-outputs": {"weight_decompose": True},
        "dora-inputs": {"weight_decompose": True, "wd_on_out": False}}


@pytest.mark.parametrize("options", WITH)
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_lycoris(both, kind, options):
    """The file that it saves of a linear layer and a convolution, read as kohya's."""
    theirs, ours = both
    before, tensors, true = flatten(ours.unet.tree), {}, {}
    seeded = torch.Generator().manual_seed(0)
    for name in ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
                 "down_blocks.0.resnets.0.conv2", "down_blocks.0.attentions.0.proj_in"):
        layer = copy.deepcopy(theirs.unet.get_submodule(name)).double()
        module = KINDS[kind]("x", layer, 1.0, lora_dim=4, alpha=1.0, **WITH[options]).double()
        for own, parameter in module.named_parameters():
            random = 0.3 * torch.rand(parameter.shape, generator=seeded)
            parameter.data = (random + (own == "dora_scale")).double()
        tensors |= {f"lora_unet_{name.replace('.', '_')}.{key}": value.detach().float()
                    for key, value in module.custom_state_dict().items()}
        # Not get_merged_weight: of LoHa and LoKr it counts the scale twice, training once.
        added = module.make_weight() * module.scale if kind == "locon" else module.get_weight(
            layer.weight.shape)
        merged = layer.weight + added.reshape(layer.weight.shape)
        true[f"{name}.weight"] = (module.apply_weight_decompose(merged) if "dora" in options
                                  else merged).detach().numpy()
    ours.load_lora_weights(tensors)
    after = flatten(ours.unet.tree)
    assert {name for name in before if before[name] is not after[name]} == true.keys()
    for name, expected in true.items():
        # LyCORIS adds 2^-52 to each norm; else one rounding to float32, and float64's own.
        difference = np.abs(np.asarray(after[name]) - expected)
        assert (difference <= np.abs(expected) * 2.0**-24 + 1e-14).all()


def test_whole_networks_are_put_back(both, tmp_path):
    ours = both[1]
    before = [*flatten(ours.unet.tree).values(), *flatten(ours.text_encoder.tree).values()]
    save(tmp_path, made(both, config(r=4), config(targets=TEXT, r=4)))
    ours.load_lora_weights(tmp_path)
    touched = sum(len(one._merged) for one in applied(ours).values())
    now = [*flatten(ours.unet.tree).values(), *flatten(ours.text_encoder.tree).values()]
    assert sum(a is not b for a, b in zip(before, now)) == touched > 90
    ours.unload_lora_weights()
    now = [*flatten(ours.unet.tree).values(), *flatten(ours.text_encoder.tree).values()]
    assert all(a is b for a, b in zip(before, now))
