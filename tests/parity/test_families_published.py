"""The published single files' names beside the networks of diffusers and transformers.

Every tensor of a published file is used exactly once, with the shape that the real network has.
"""

import diffusers
import pytest
import torch
from published import published
from transformers import CLIPTextModelWithProjection

from refsd.families import sdxl
from refsd.weights.names import without_kernel
from refsd.weights.tree import to_tree


def network(kind, config):
    """The names and shapes of a real network of a config, without its numbers."""
    of_diffusers = hasattr(kind, "from_config")
    with torch.device("meta"):
        made = kind.from_config(config) if of_diffusers else kind(kind.config_class(**config))
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}


def below(prefix, shapes):
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()
            if name.startswith(prefix)}


# Name in the file -> the network, its config, the tensors that refsd leaves out.
CLIP = CLIPTextModelWithProjection
SECOND = (CLIP, sdxl.TEXT_ENCODER_2, {"logit_scale"})
FILES = {
    "sdxl_base": (sdxl.SDXL, {
        "unet": (diffusers.UNet2DConditionModel, sdxl.UNET, set()),
        "text_encoder_2": SECOND}),
    "sdxl_refiner": (sdxl.REFINER, {
        "unet": (diffusers.UNet2DConditionModel, sdxl.REFINER_UNET, set()),
        "text_encoder_2": SECOND}),
    "vae_4_channels": (sdxl.SDXL, {"vae": (diffusers.AutoencoderKL, sdxl.VAE, set())}),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_of_a_published_file_is_used_exactly_once(file):
    listed, (family, parts) = published(file), FILES[file]
    for part, (kind, config, unused) in parts.items():
        layout = family.layouts[part]
        real = network(kind, config)
        stored, found = below(layout.prefix, listed), layout.locate(to_tree(real))
        assert found.keys() == real.keys()
        for name, location in found.items():
            assert without_kernel(name, location.shape(stored[location.name])) == real[name], name
        counts = {location.name: location.parts for location in found.values()}
        assert stored.keys() - counts.keys() == unused
        assert sorted((location.name, location.part) for location in found.values()) == sorted(
            (name, i) for name, count in counts.items() for i in range(count))


def test_the_lists_have_the_published_numbers_of_tensors():
    counts = {name: len(published(name)) for name in FILES}
    assert counts["sdxl_base"] + counts["vae_4_channels"] == 2515
    assert counts["sdxl_refiner"] + counts["vae_4_channels"] == 1858
