"""The networks of a pipeline as callables that work alone: weights, configuration, backend.

Each takes and gives arrays of its backend. `use` appears here, at the edge, and nowhere below.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refsd import functional as F
from refsd.errors import UsageError
from refsd.models import clip, unet, vae
from refsd.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from refsd.random import draw_noise
from refsd.registry import release, use


class TextOutput(NamedTuple):
    """What CLIP says of a text: a vector a token, and one for the whole."""

    last_hidden_state: Any
    pooler_output: Any


class TextEncoder:
    """CLIP's text encoder: ids (N, L) -> TextOutput((N, L, D), (N, D))."""

    def __init__(self, tree: dict, config: CLIPTextConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact

    def __call__(self, input_ids: np.ndarray, *, clip_skip: int | None = None) -> TextOutput:
        """Encode; `clip_skip` leaves that many last layers out, as in diffusers.

        Raises UsageError for ids that are not integers (N, L) below the vocabulary's size.
        """
        ids = np.asarray(input_ids)
        rows = self.tree["embeddings"]["token_embedding"]["weight"].shape[0]
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 1 <= ids.shape[1] <= (
                self.config.max_length):
            raise UsageError(f"text_encoder: ids are {ids.dtype} {ids.shape}; give integers (N, L) "
                             f"with L from 1 to {self.config.max_length}")
        if ids.size and not 0 <= ids.min() <= ids.max() < rows:
            raise UsageError(f"text_encoder: ids run from {ids.min()} to {ids.max()}; "
                             f"the vocabulary has 0 to {rows - 1}")
        layers = len(self.tree["encoder"]["layers"])
        skipped = 0 if clip_skip is None else clip_skip
        if not isinstance(skipped, int) or isinstance(skipped, bool) or not 0 <= skipped < layers:
            raise UsageError(f"clip_skip is {clip_skip!r}; give an integer from 0 to {layers - 1}")
        with use(self.backend, exact=self.exact):
            hidden = clip.clip_text(ids, **self.tree, config=self.config, layers_skipped=skipped)
            return TextOutput(hidden, clip.pool(hidden, ids, config=self.config))


class UNet:
    """The noise predictor: (N, 4, h, w), t, (N, L, D) -> (N, 4, h, w)."""

    def __init__(self, tree: dict, config: UNetConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["conv_in"]["weight"].dtype)
        self.in_channels = tree["conv_in"]["weight"].shape[1]
        condition = tree["time_embedding"].get("cond_proj")
        self.time_cond_dim = None if condition is None else condition["weight"].shape[1]

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, *,
                 timestep_cond: Any = None) -> Any:
        """Predict; timestep is one training step for the whole batch or one for each sample.

        encoder_hidden_states is an array (N, L, D), or a models.layers.Text of one: what layers
        make of the text is then computed once for all calls that are given the same.
        """
        steps = np.asarray(timestep)
        if steps.ndim == 0:
            steps = np.full(sample.shape[0], steps)
        if steps.shape != (sample.shape[0],):
            raise UsageError(f"unet: timestep has shape {steps.shape}; give a number or one for "
                             f"each of the {sample.shape[0]} samples")
        if (timestep_cond is None) != (self.time_cond_dim is None):
            raise UsageError("unet: timestep_cond is "
                             + ("missing; this model is distilled and expects "
                                f"(N, {self.time_cond_dim})" if timestep_cond is None else
                                "given, but this model has no time_embedding.cond_proj"))
        with use(self.backend, exact=self.exact):
            return unet.unet(sample, steps, encoder_hidden_states, **self.tree,
                             config=self.config, timestep_cond=timestep_cond)


class DiagonalGaussian:
    """The VAE's posterior: independent normal latents with `mean` and `logvar`, (N, 4, h, w)."""

    def __init__(self, mean: Any, logvar: Any, backend: str):
        self.mean, self.logvar, self.backend = mean, logvar, backend

    @property
    def latent_dist(self) -> "DiagonalGaussian":
        """Itself, so that code written for diffusers reads the same here."""
        return self

    def mode(self) -> Any:
        """The most likely latents: the mean."""
        return self.mean

    def sample(self, generator: Any) -> Any:
        """mean + e^(logvar / 2) noise, from a refsd.random generator or a list, one a picture."""
        noise = draw_noise(self.mean.shape, str(self.mean.dtype), generator)
        with use(self.backend):
            return vae.sample_posterior(self.mean, self.logvar, noise)


class VAE:
    """Pictures to latents and back; latents here are not scaled by `config.scaling_factor`."""

    def __init__(self, tree: dict, config: VAEConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact

    def encode(self, image: Any) -> DiagonalGaussian:
        """(N, 3, H, W) in [-1, 1], H and W multiples of the downscale -> posterior (N, 4, h, w)"""
        factor = self.config.downscale
        if len(image.shape) != 4 or any(n < 1 or n % factor for n in image.shape[2:]):
            raise UsageError(f"vae.encode: image has shape {tuple(image.shape)}; give (N, 3, H, W) "
                             f"with H and W multiples of {factor}")
        weights = {"encoder": self.tree["encoder"], "quant_conv": self.tree.get("quant_conv")}
        with use(self.backend, exact=self.exact):
            mean, logvar = vae.encode(image, **weights, config=self.config)
        return DiagonalGaussian(mean, logvar, self.backend)

    def decode(self, latents: Any) -> Any:
        """(N, 4, h, w) -> (N, 3, H, W), about [-1, 1]; one picture at a time to bound the memory"""
        weights = {"decoder": self.tree["decoder"],
                   "post_quant_conv": self.tree.get("post_quant_conv")}
        release(self.backend)  # small memory that the UNet's steps left
        with use(self.backend, exact=self.exact):
            pictures = [vae.decode(F.slice(latents, axis=0, start=i, stop=i + 1), **weights,
                                   config=self.config) for i in range(latents.shape[0])]
            return F.concat(pictures, axis=0)


def as_generators(generator: Any, make: Any, count: int) -> Any:
    """What the caller gave as `generator`, as one generator or a list of `count` of them.

    An int becomes make(int). Raises UsageError for a list of another length or another type.
    """
    if isinstance(generator, Sequence) and not isinstance(generator, str):
        if len(generator) != count:
            raise UsageError(f"generator is a list of {len(generator)}; give one for each of the "
                             f"{count} pictures, or a single one")
        return [as_generators(one, make, 1) for one in generator]
    if hasattr(generator, "randn"):
        return generator
    return make(generator)
