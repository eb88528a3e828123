"""The networks of a pipeline as callables that work alone: weights, configuration, backend.

Each takes arrays of NumPy's or of its backend, and gives the latter. `use` appears here, at the
edge, and nowhere below.
"""

import weakref
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array, as_number, is_array, shown
from refsd.backends import BACKENDS, find_backend
from refsd.errors import UsageError
from refsd.half import to_float32
from refsd.models import clip, unet, vae
from refsd.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from refsd.models.layers import Text
from refsd.pipelines.from_diffusers import answer
from refsd.pipelines.memory import TILED_FROM
from refsd.pipelines.request import check_choice, check_integer
from refsd.pipelines.tensors import shaped, text_width
from refsd.places import beside, on_host
from refsd.random import TorchGenerator, draw_noise
from refsd.random.borrowed import BorrowedGenerator, is_torch_generator
from refsd.registry import use

NO_GENERATORS = (type, ModuleType)  # torch.Generator itself, np.random: they have a randn too


class TextOutput(NamedTuple):
    """What CLIP says of a text: a vector a token, and one for the whole."""

    last_hidden_state: Any
    pooler_output: Any


class TextEncoder:
    """CLIP's text encoder: ids (N, L) -> TextOutput((N, L, D), (N, D))."""

    def __init__(self, tree: dict, config: CLIPTextConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact

    def __call__(self, input_ids: np.ndarray, *, clip_skip: int | None = None,
                 **others: Any) -> TextOutput:
        """Encode; `clip_skip` leaves that many last layers out, as in diffusers.

        Raises UsageError for ids that are not integers (N, L) below the vocabulary's size.
        """
        answer("text_encoder", others)  # what it gives is a tuple in any case
        ids = as_array("text_encoder: ids", on_host(input_ids))
        rows = self.tree["embeddings"]["token_embedding"]["weight"].shape[0]
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 1 <= ids.shape[1] <= (
                self.config.max_length):
            raise UsageError(f"text_encoder: ids are {ids.dtype} {ids.shape}; give integers (N, L) "
                             f"with L from 1 to {self.config.max_length}")
        if ids.size and not 0 <= ids.min() <= ids.max() < rows:
            raise UsageError(f"text_encoder: ids run from {ids.min()} to {ids.max()}; "
                             f"the vocabulary has 0 to {rows - 1}")
        layers = len(self.tree["encoder"]["layers"])
        if clip_skip is not None:
            clip_skip = check_integer("clip_skip", clip_skip, 0, layers - 1)
        skipped = 0 if clip_skip is None else clip_skip
        with use(self.backend, exact=self.exact):
            hidden = clip.clip_text(ids, **self.tree, config=self.config, layers_skipped=skipped)
            return TextOutput(hidden, clip.pool(hidden, ids, config=self.config))


def each_step(name: str, timestep: Any, count: int) -> np.ndarray:
    """A training step for each of `count` samples, of one for all or of as many.   -> (N,)"""
    steps = to_float32(as_array(f"{name}: timestep", on_host(timestep)))
    if steps.size == 1:
        steps = np.full(count, steps.item(), steps.dtype)
    if steps.shape != (count,):
        raise UsageError(f"{name}: timestep has shape {steps.shape}; give a number or one for "
                         f"each of the {count} samples")
    return steps


class UNet:
    """The noise predictor: (N, 4, h, w), t, (N, L, D) -> (N, 4, h, w)."""

    def __init__(self, tree: dict, config: UNetConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["conv_in"]["weight"].dtype)
        self.in_channels = tree["conv_in"]["weight"].shape[1]
        self.text_width = text_width(tree)
        condition = tree["time_embedding"].get("cond_proj")
        self.time_cond_dim = None if condition is None else condition["weight"].shape[1]
        self._with_text: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, *,
                 timestep_cond: Any = None, down_block_additional_residuals: Any = None,
                 mid_block_additional_residual: Any = None, **others: Any) -> Any:
        """Predict; timestep is one training step for the whole batch or one for each sample.

        encoder_hidden_states is an array (N, L, D), or a models.layers.Text of one: what layers
        make of the text is then computed once for all calls that are given the same. The additional
        residuals are what a ControlNet gives: a list, and an array.
        """
        answered, put = answer("unet", others), BACKENDS[self.backend].put
        sample = put(shaped("unet: sample", sample, ("N", self.in_channels, "h", "w"), self.dtype))
        steps = each_step("unet", timestep, sample.shape[0])
        if (timestep_cond is None) != (self.time_cond_dim is None):
            raise UsageError("unet: timestep_cond is "
                             + ("missing; this model is distilled: give "
                                f"(N, {self.time_cond_dim})" if timestep_cond is None else
                                "given, but this model has no time_embedding.cond_proj: "
                                "leave it out"))
        if timestep_cond is not None:
            timestep_cond = put(shaped("unet: timestep_cond", timestep_cond,
                                       (len(steps), self.time_cond_dim), self.dtype))
        if not isinstance(encoder_hidden_states, Text):
            encoder_hidden_states = put(shaped(
                "unet: encoder_hidden_states", encoder_hidden_states,
                (len(steps), "L", self.text_width), self.dtype))
        if (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise UsageError("unet: down_block_additional_residuals and "
                             "mid_block_additional_residual belong together; give both or neither")
        residuals = [] if mid_block_additional_residual is None else [
            put(as_array("unet: a residual", residual, self.dtype)) for residual in
            (*down_block_additional_residuals, mid_block_additional_residual)]
        with use(self.backend, exact=self.exact):
            predict = self._predicting(encoder_hidden_states)
            return answered(predict(sample, steps, timestep_cond, *residuals))

    def _predicting(self, text):
        """The model with this text. With a Text it is called again: a backend may keep the call."""
        if not isinstance(text, Text):
            return partial(self._predict, lambda: text)
        if text not in self._with_text:
            predict = partial(self._predict, weakref.ref(text))
            self._with_text[text] = BACKENDS[self.backend].replayed(predict, self.tree)
        return self._with_text[text]

    def _predict(self, text, sample, steps, condition, *residuals):
        *skips, middle = residuals or (None,)
        return unet.unet(sample, steps, text(), **self.tree, config=self.config,
                         timestep_cond=condition, down_block_additional_residuals=skips or None,
                         mid_block_additional_residual=middle)


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

    def sample(self, generator: Any = None) -> Any:
        """mean + e^(logvar / 2) noise, from a seed, a generator or a list, one a picture."""
        if generator is not None:
            generator = as_generators(generator, TorchGenerator, self.mean.shape[0])
        noise = beside(self.mean, draw_noise(self.mean.shape, str(self.mean.dtype), generator))
        with use(self.backend):
            return vae.sample_posterior(self.mean, self.logvar, noise)


class VAE:
    """Pictures to latents and back; latents here are not scaled by `config.scaling_factor`.

    `tiling` is how both work where a call does not say: "off", in one piece; "exact", in bands of
    rows, with the same bits, less memory and more time; "auto", whichever the memory allows; or
    "blend", in overlapping tiles of the sizes below, as after diffusers' enable_tiling().
    """

    TILINGS: tuple[str, ...] = ("off", "auto", "exact", "blend")

    def __init__(self, tree: dict, config: VAEConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["decoder"]["conv_in"]["weight"].dtype)
        self.tiling, self.tile_overlap_factor = "auto", 0.25
        self.tile_sample_min_size = config.sample_size
        self.tile_latent_min_size = config.sample_size // config.downscale

    def enable_tiling(self) -> None:
        """Work in overlapping tiles from now on, as diffusers does."""
        self.tiling = "blend"

    def disable_tiling(self) -> None:
        """In one piece again, or in bands that give the same bits."""
        self.tiling = "auto"

    @property
    def tiling(self) -> str:
        """One of TILINGS; UsageError for others."""
        return self._tiling

    @tiling.setter
    def tiling(self, name: str) -> None:
        self._tiling = check_choice("vae.tiling", name, self.TILINGS)

    @property
    def use_tiling(self) -> bool:
        """Whether tiles are blended, as diffusers has it."""
        return self.tiling == "blend"

    def encode(self, image: Any, *, tiling: str | None = None, **others: Any) -> DiagonalGaussian:
        """(N, 3, H, W) in [-1, 1], H and W multiples of the downscale -> posterior (N, 4, h, w)

        One picture at a time, to bound the memory.
        """
        factor, channels = self.config.downscale, self.tree["encoder"]["conv_in"]["weight"].shape[1]
        answered = answer("vae.encode", others)
        image = as_array("vae.encode: image", image)
        if "int" in str(image.dtype):
            raise UsageError(f"vae.encode: image holds {image.dtype}, {tuple(image.shape)}; give "
                             "floats in [-1, 1], channels first: pixels / 127.5 - 1")
        image = BACKENDS[self.backend].put(as_array("vae.encode: image", image, self.dtype))
        good = len(image.shape) == 4 and image.shape[0] >= 1 and image.shape[1] == channels
        if not good or any(n < 1 or n % factor for n in image.shape[2:]):
            raise UsageError(f"vae.encode: image has shape {tuple(image.shape)}; give "
                             f"(N, {channels}, H, W) with H and W multiples of {factor}")
        weights = {"encoder": self.tree["encoder"], "quant_conv": self.tree.get("quant_conv")}
        network = partial(vae.moments, **weights, config=self.config)
        with use(self.backend, exact=self.exact):
            mean, logvar = vae.posterior(self._one_by_one(network, "encoder", image, tiling))
        return answered(DiagonalGaussian(mean, logvar, self.backend))

    def decode(self, latents: Any, *, tiling: str | None = None, **others: Any) -> Any:
        """(N, 4, h, w) -> (N, 3, H, W), about [-1, 1]; one picture at a time to bound the memory"""
        answered = answer("vae.decode", others)
        latents = BACKENDS[self.backend].put(shaped(
            "vae.decode: latents", latents, ("N", self.config.latent_channels, "h", "w"),
            self.dtype))
        weights = {"decoder": self.tree["decoder"],
                   "post_quant_conv": self.tree.get("post_quant_conv")}
        find_backend(self.backend).release()  # small memory that the UNet's steps left
        network = partial(vae.decode, **weights, config=self.config)
        with use(self.backend, exact=self.exact):
            return answered(self._one_by_one(network, "decoder", latents, tiling))

    def _one_by_one(self, network, part, x, tiling):
        """network(x), one picture after the other, each as `tiling` says"""
        tiling, side = tiling or self.tiling, self.config.downscale if part == "decoder" else 1
        if tiling != "auto" or x.shape[2] * x.shape[3] * side**2 > TILED_FROM:
            from refsd.pipelines.vae_tiling import tiled

            network = tiled(self, network, part, x, tiling)
        return F.concat([network(F.slice(x, axis=0, start=i, stop=i + 1))
                         for i in range(x.shape[0])], axis=0)


def as_generators(generator: Any, make: Any, count: int) -> Any:
    """What the caller gave as `generator`, as one generator or a list of `count` of them.

    A seed, of any integer type, becomes make(seed); a torch.Generator is drawn from. Raises
    UsageError for a list of another length or another type.
    """
    if is_array(generator):
        generator = generator.tolist()
    if isinstance(generator, Sequence) and not isinstance(generator, (str, bytes)):
        if len(generator) != count:
            raise UsageError(f"generator is a list of {len(generator)}; give one for each of the "
                             f"{count} pictures, or a single one")
        return [as_generators(one, make, 1) for one in generator]
    if is_torch_generator(generator) and not isinstance(generator, NO_GENERATORS):
        return BorrowedGenerator(generator)
    numpys = type(generator).__module__.startswith("numpy.random")
    if hasattr(generator, "randn") and not numpys and not isinstance(generator, NO_GENERATORS):
        return generator
    seed = as_number(generator)
    if not isinstance(seed, int):
        raise UsageError(f"generator is {shown(generator)}; give an integer seed, a generator of "
                         "refsd.random or of torch on the CPU, or a list with one a picture"
                         + ("; or the noise itself, as latents" if numpys else ""))
    return make(seed)
