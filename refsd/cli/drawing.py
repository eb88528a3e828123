"""Drawing from a recipe: what `refsd PROMPT` and `refsd repro` have in common."""

import hashlib
import logging
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from refsd.backends import find_backend
from refsd.cli import hires, pictures_in, sampler_names, variation
from refsd.cli.recipe import Recipe
from refsd.errors import ResourceError
from refsd.pipelines import stages
from refsd.pipelines.memory import estimate_bytes
from refsd.pipelines.request import idle
from refsd.random.by_name import GENERATORS
from refsd.version import __version__

logger = logging.getLogger(__name__)

LIBRARIES = ("numpy", "scipy", "tokenizers", "safetensors", "pillow")
VECTORS = ("AVX512_ICL", "AVX512_SKX", "AVX512F", "AVX2", "AVX", "SVE", "NEON")  # wide ones first


class Drawn(NamedTuple):
    """A picture (H, W, 3) uint8, the latents it was decoded from, and where the time went."""

    pixels: np.ndarray
    latents: np.ndarray
    seconds: dict[str, float]
    step_seconds: list[float]


def choose_sampler(pipe: Any, name: str | None) -> None:
    """Replace the pipeline's scheduler by the named one, with the model's options.

    None keeps the model's own.
    """
    if name is not None:
        pipe.scheduler = sampler_names.of_model(name, pipe.scheduler.config)


def versions(backend: str) -> dict[str, str]:
    """Of everything whose version may change a bit of the picture on a backend, and of Python.

    Not only programs: kernels add up as many partial sums as a vector has numbers, and NumPy and
    BLAS choose their code by the processor.
    """
    return {"refsd": __version__, "python": platform.python_version(), **_libraries(),
            "machine": platform.machine(), "numpy vectors": _numpy_vectors(),
            **find_backend(backend).versions()}


@cache
def _libraries() -> dict[str, str]:
    """Milliseconds of reading files, which a run of thousands of pictures need not repeat."""
    return {name: version(name) for name in LIBRARIES}


def _numpy_vectors() -> str:
    from numpy._core._multiarray_umath import __cpu_features__ as features

    return next((name for name in VECTORS if features.get(name)), "baseline")


def calls(pipe: Any, steps: int) -> int:
    """How many steps a picture takes; UsageError if the sampler cannot do `steps`."""
    return len(stages.make_schedule(pipe.scheduler, steps, mu=pipe.own_mu))


NOTHING = {"eta": 0.0, "guidance_rescale": 0.0, "negative_prompt": ""}


def effective(pipe: Any, recipe: Recipe) -> Recipe:
    """The recipe without the options that change nothing with this pipeline; each is warned of.

    So that a picture never says that it was made with what it was not made with.
    """
    without_effect = idle(pipe, guidance_scale=recipe.cfg_scale,
                          guidance_rescale=recipe.guidance_rescale, eta=recipe.eta,
                          negative=recipe.negative_prompt)
    for name, why in without_effect.items():
        logger.warning("--%s changes nothing: %s", name.replace("_", "-"), why)
    return replace(recipe, **{name: NOTHING[name] for name in without_effect})


def draw(pipe: Any, recipe: Recipe, on_step: Callable, *, resume: str | None = None,
         pictures: pictures_in.Pictures | None = None) -> Drawn:
    """One picture, or the rest of one. Raises ResourceError when the memory does not suffice."""
    before, spoken = (pipe.check_finite, pipe.make_generator), pipe.dialect
    pipe.dialect, pipe.make_generator = recipe.compat, GENERATORS[recipe.rng]
    pipe.check_finite = not recipe.allow_nonfinite
    pipe.vae.tiling = recipe.vae_tiling
    try:
        with tuned(recipe):
            return _draw(pipe, recipe, on_step, resume, pictures)
    except MemoryError:
        needed = estimate_bytes(pipe, recipe.width, recipe.height, 1) / 2**30
        raise ResourceError(f"out of memory: {recipe.width} x {recipe.height} needs about "
                            f"{needed:.1f} GiB. Ask for a smaller picture, or free some") from None
    finally:
        pipe.dialect = spoken
        pipe.check_finite, pipe.make_generator = before


def _draw(pipe, recipe, on_step, resume, pictures):
    generator = pipe.make_generator(recipe.seed)
    common = {"num_inference_steps": recipe.steps, "guidance_scale": recipe.cfg_scale,
              "negative_prompt": recipe.negative_prompt or None, "eta": recipe.eta,
              "generator": recipe.seed if pipe.dialect.reseeds else generator,
              "output_type": "latent", "callback_on_step_end": on_step, "resume": resume}
    if recipe.pictures:
        generated = pictures_in.draw(pipe, recipe, pictures.images, **common)
    else:
        generated = pipe(
            recipe.prompt, height=recipe.height, width=recipe.width, clip_skip=recipe.clip_skip,
            guidance_rescale=recipe.guidance_rescale,
            latents=variation.first_latents(pipe, recipe, generator), **common)
    if recipe.hires:
        generated = hires.draw(pipe, recipe, generated, on_step)
    begun = time.perf_counter()
    picture = pipe.to_output(generated.images, "np")
    pixels = pipe.to_bytes(np.nan_to_num(picture))[0]  # NaN, where allowed, is black
    seconds = {"text": generated.seconds["encode"], "steps": generated.seconds["denoise"],
               "decode": time.perf_counter() - begun}
    pixels = pictures_in.put_back(recipe, pictures, pixels)
    return Drawn(np.ascontiguousarray(pixels), np.asarray(generated.images), seconds,
                 generated.step_seconds)


def tuned_choices() -> dict[str, str]:
    """What `refsd tune` found for this machine and these threads; UsageError if it has not run."""
    from refsd.numba_ops.cpu import tuning

    return tuning.load()


def tuned(recipe: Recipe) -> AbstractContextManager:
    """Within the block convolutions take the algorithms that the recipe names."""
    return find_backend(recipe.backend).tuned(recipe.tuned) if recipe.tuned else nullcontext()


def digest(pixels: np.ndarray) -> str:
    """SHA-256 of the pixels, row by row.   (H, W, 3) uint8"""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
