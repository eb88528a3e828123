"""The published single files' names beside the networks of diffusers and transformers.

Every tensor of a published file is used exactly once, with the shape that the real network has.
"""

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from published import published
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from refsd.families import sd3, sdxl
from refsd.tree import to_tree
from refsd.weights.header import TensorInfo
from refsd.weights.names import without_kernel

UNET = "model.diffusion_model."


def network(kind, config):
    """The names and shapes of a real network of a config, without its numbers."""
    of_diffusers = hasattr(kind, "from_config")
    with torch.device("meta"):
        made = kind.from_config(config) if of_diffusers else kind(kind.config_class(**config))
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}


def below(prefix, shapes):
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()
            if name.startswith(prefix)}


def transformer_config(file):
    """What the tensors of a published file say of its transformer."""
    infos = {name: TensorInfo("F16", shape, 0, 0) for name, shape in below(UNET, file).items()}
    return sd3.transformer_config(sd3.TRANSFORMER, infos)


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
    "vae_16_channels": (sd3.SD3, {"vae": (diffusers.AutoencoderKL, sd3.VAE, set())}),
    **{name: (sd3.SD3, {"transformer": (diffusers.SD3Transformer2DModel, None, set())})
       for name in ("sd3_medium", "sd3.5_medium", "sd3.5_large")},
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_of_a_published_file_is_used_exactly_once(file):
    listed, (family, parts) = published(file), FILES[file]
    for part, (kind, config, unused) in parts.items():
        layout = family.layouts[part]
        real = network(kind, transformer_config(listed) if config is None else config)
        stored, found = below(layout.prefix, listed), layout.locate(to_tree(real))
        assert found.keys() == real.keys()
        for name, location in found.items():
            assert without_kernel(name, location.shape(stored[location.name])) == real[name], name
        counts = {location.name: location.parts for location in found.values()}
        assert stored.keys() - counts.keys() == unused
        assert sorted((location.name, location.part) for location in found.values()) == sorted(
            (name, i) for name, count in counts.items() for i in range(count))


def test_text_encoders_that_have_the_names_of_transformers():
    """CLIP-L's projection is not in the files; T5's embedding is there under both its names."""
    listed, base = published("sd3_text_encoders"), published("sdxl_base")
    large = network(CLIP, sd3.TEXT_ENCODER)
    del large["text_projection.weight"]
    prefixes = {part: layout.prefix for part, layout in sd3.SD3.layouts.items()}
    assert below(prefixes["text_encoder"], listed) == large
    assert below(prefixes["text_encoder_2"], listed) == network(
        CLIP, sd3.SD3.configs["text_encoder_2"])
    assert below(prefixes["text_encoder_3"], listed) == network(T5EncoderModel, sd3.TEXT_ENCODER_3)
    first = below(sdxl.SDXL.layouts["text_encoder"].prefix, base)
    assert first == {**large, "text_model.embeddings.position_ids": (1, 77)}


# The transformers' numbers of parameters, as their model cards round them: 2, 2.5 (with the table
# of positions, which is no parameter) and 8.1 billion.
@pytest.mark.parametrize("file, size, parameters", [
    ("sd3_medium", 192, 2_028_328_000), ("sd3.5_medium", 384, 2_243_171_520),
    ("sd3.5_large", 192, 8_056_627_520)])
def test_the_lists_are_what_diffusers_reads(file, size, parameters):
    listed = published(file)
    config = transformer_config(listed)
    real = network(diffusers.SD3Transformer2DModel, config)
    read = convert_sd3_transformer_checkpoint_to_diffusers(
        {name: torch.empty(shape, device="meta") for name, shape in listed.items()})
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == real
    assert config["pos_embed_max_size"] == size
    assert parameters == sum(torch.Size(shape).numel() for name, shape in real.items()
                             if name != "pos_embed.pos_embed")


def test_the_lists_have_the_published_numbers_of_tensors():
    counts = {name: len(published(name)) for name in FILES}
    assert counts["sdxl_base"] + counts["vae_4_channels"] == 2515
    assert counts["sdxl_refiner"] + counts["vae_4_channels"] == 1858
    assert [counts[name] + counts["vae_16_channels"]
            for name in ("sd3_medium", "sd3.5_medium", "sd3.5_large")] == [735, 909, 1167]
