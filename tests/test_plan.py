"""What drawings cost, from shapes: the published models' parameters, memory, and what would fit."""

import math

import pytest

from refsd.backends import BACKENDS
from refsd.families import FAMILIES, published, short_names
from refsd.networks import shapes_of

HERE = [name for name, backend in BACKENDS.items() if backend.device == "cpu"]
CLIP_L, VAE_4, VAE_16 = 123_060_480, 83_653_863, 83_819_683
CLIP_G, T5 = 694_659_840, 4_762_310_656
# The published numbers of parameters, part for part; transformers' with their table of positions,
# which is stored though it is not trained: 192 x 192 x 1536 of 2,084,951,104 and 192 x 192 x 2432.
PARAMETERS = {
    "sd1": {"text_encoder": CLIP_L, "unet": 859_520_964, "vae": VAE_4},
    # without the last layer of OpenCLIP's text encoder, and its projection
    "sd2": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": VAE_4},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "unet": 2_567_463_684,
             "vae": VAE_4},
    "sdxl-refiner": {"text_encoder_2": CLIP_G, "unet": 2_259_526_788, "vae": VAE_4},
    "sd3": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5,
            "transformer": 2_028_328_000 + 192**2 * 1536, "vae": VAE_16},
    "sd3.5-medium": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5,
                     "transformer": 2_243_171_520 + 384**2 * 1536, "vae": VAE_16},
    "sd3.5-large": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5,
                    "transformer": 8_056_627_520 + 192**2 * 2432, "vae": VAE_16},
}


@pytest.mark.parametrize("name", short_names())
def test_the_published_numbers_of_parameters(name):
    family, configs = published(name)
    assert {part: sum(map(math.prod, shapes_of(part, config).values()))
            for part, config in configs.items()} == PARAMETERS[name]
    assert family in FAMILIES
