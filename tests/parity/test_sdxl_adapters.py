"""Adapters of Stable Diffusion XL against diffusers and PEFT: of UNet and both text encoders."""

import copy

import diffusers
import peft
import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_diffusers import PROMPT, same_picture
from tiny_sdxl import write_model

import refsd

UNET = ["to_q", "to_k", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_in"]
TEXT = ["q_proj", "out_proj", "fc1"]
PARTS = {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("x"), "base")
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs, refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend="numpy")


@pytest.fixture(scope="module")
def layers(both):
    """Random tensors as PEFT makes them, by network."""
    found, seeded = {}, torch.Generator().manual_seed(0)
    for part, targets in PARTS.items():
        net = copy.deepcopy(getattr(both[0], part))
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, r=4), net,
                                     adapter_name="default")
        found[part] = {name: 0.1 * torch.randn(tensor.shape, generator=seeded) for name, tensor in
                       get_peft_model_state_dict(net, adapter_name="default").items()}
    return found


def as_diffusers(folder, layers):
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"],
        text_encoder_2_lora_layers=layers["text_encoder_2"])
    return folder / "pytorch_lora_weights.safetensors"


def as_kohya(folder, layers):
    """lora_unet_, lora_te1_ and lora_te2_; alphas are the ranks."""
    found = convert_state_dict_to_kohya({f"unet.{name}": tensor for name, tensor in
                                         layers["unet"].items()})
    for number, part in enumerate(("text_encoder", "text_encoder_2"), 1):
        for name, tensor in layers[part].items():
            module, end = name.rsplit(".lora_", 1)
            text = module if module.startswith("text_model") else f"text_model.{module}"
            key = f"lora_te{number}_{text.replace('.', '_')}"
            found[f"{key}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = tensor
            found[f"{key}.alpha"] = torch.tensor(4.0)
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, folder / "k.safetensors")
    return folder / "k.safetensors"


@pytest.mark.parametrize("save", [as_diffusers, as_kohya])
def test_an_adapter_of_all_networks(both, layers, tmp_path, save):
    options = {"prompt": PROMPT, "negative_prompt": "rain", "num_inference_steps": 2}
    theirs, ours = both
    plain = ours(generator=7, output_type="np", **options).images
    for pipe in both:
        pipe.load_lora_weights(save(tmp_path, layers), adapter_name="x")
    assert ours.get_list_adapters() == theirs.get_list_adapters()
    same_picture(*both, **options)
    drawn = ours(generator=7, output_type="np", **options).images
    assert abs(drawn - plain).max() > 1.5 / 255
    for pipe in both:  # one encoder alone
        pipe.set_adapters("x", {"unet": 0.0, "text_encoder": 0.0, "text_encoder_2": 1.0})
    same_picture(*both, **options)
    assert abs(ours(generator=7, output_type="np", **options).images - drawn).max() > 1.5 / 255
    for pipe in both:
        pipe.unload_lora_weights()
    assert (ours(generator=7, output_type="np", **options).images == plain).all()
