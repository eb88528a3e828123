"""The VAE in overlapping tiles that are blended, and in bands that give the bits of the whole."""

import numpy as np
import pytest
import tiny

from refsd.errors import UsageError
from refsd.models.config import VAEConfig
from refsd.pipelines.components import VAE
from refsd.weights import to_tree


def small_vae(backend="numpy", **changes):
    """The VAE of tests/tiny.py, with a sample_size of its own."""
    config = VAEConfig.from_json({"scaling_factor": 0.18215, "latent_channels": 4, **tiny.VAE,
                                  **changes})
    return VAE(to_tree(tiny.tensors("vae")), config, backend)


def normal(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype("f4")


def test_blending_is_a_ramp_between_neighbours():
    """Tiles of 4 latents, every 3: the picture's first 24 rows are the first tile's own."""
    vae = small_vae(sample_size=32)
    vae.enable_tiling()
    latents = normal(1, 4, 6, 3)
    made, parts = vae.decode(latents), [vae.decode(latents[:, :, i:i + 4]) for i in (0, 3)]
    share = (np.arange(8) / 8)[:, None].astype("f4")
    between = parts[0][:, :, 24:] * (1 - share) + parts[1][:, :, :8] * share
    wanted = np.concatenate([parts[0][:, :, :24], between, parts[1][:, :, 8:]], axis=2)
    np.testing.assert_array_equal(made, wanted)
    vae.disable_tiling()
    assert abs(vae.decode(latents) - made).max() > 0.01


def test_what_fits_into_one_tile_is_whole():
    vae = small_vae(sample_size=32)
    latents = normal(1, 4, 4, 3)
    np.testing.assert_array_equal(vae.decode(latents, tiling="blend"), vae.decode(latents))


@pytest.mark.parametrize("name, value, message", [
    ("tile_latent_min_size", 1, "tile_latent_min_size is 1; give at least 2"),
    ("tile_sample_min_size", 7.5, "tile_sample_min_size is 7.5; give at least 2"),
    ("tile_overlap_factor", 1, "tile_overlap_factor is 1; give a number from 0 to 0.5"),
    ("tiling", "tiles", "tiling is 'tiles'; .*give one of off"),
])
def test_what_cannot_be_tiled_is_refused(name, value, message):
    vae = small_vae(sample_size=32)
    vae.enable_tiling()
    setattr(vae, name, value)
    with pytest.raises(UsageError, match=message):
        vae.decode(normal(1, 4, 6, 4))
