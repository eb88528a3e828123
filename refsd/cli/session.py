"""A loaded model that draws recipes, writes the pictures, and keeps the time."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from refsd.cli import (
    control,
    hires,
    output,
    pictures_in,
    preview,
    resuming,
    sampler_names,
    taesd,
    threads,
    tiling,
)
from refsd.cli.adapters import Adapters, chosen
from refsd.cli.compiling import Compiling
from refsd.cli.progress import Progress
from refsd.cli.recipe import Recipe
from refsd.cli.report import note, result
from refsd.registry import make_ready


class Session:
    """A loaded model, which draws recipes, and the clock."""

    def __init__(self, options: argparse.Namespace, chatty: bool, screen: Any = None):
        from refsd.pipelines import identity
        from refsd.pipelines.auto import family_of_model

        self.options, self.chatty, self.screen = options, chatty, screen
        self.seconds: dict[str, float] = {}
        self.step_seconds: list[float] = []
        self.latents: list[Any] = []
        self.pictures, self.control = options.pictures, options.control
        self.embeddings = options.embeddings
        self.adapters = Adapters(strict=not options.lora_partial)
        with self._timed("kernels"), Compiling(show=chatty):  # loading a model needs some of them
            make_ready(options.backend, options.dtype)
        with self._timed("model"):
            parts = {"vae": options.vae, "text_encoder": options.text_encoder,
                     "text_encoder_2": options.text_encoder_2}
            family = family_of_model(options.model, download=options.download,
                                     variant=options.variant)
            if chatty and options.model is not None:
                note(f"refsd: {options.model} is {family.name}")
            load = pictures_in.loader({} if self.pictures is None else self.pictures.recorded,
                                      family)
            self.pipe = load.from_pretrained(
                options.model, backend=options.backend, dtype=options.dtype,
                weights=options.weights, download=options.download, variant=options.variant,
                exact=options.exact, scheduler=self._scheduler, ema=options.ema,
                prediction_type=options.prediction, **offload(options), **parts,
                **family.leaving_out(options.without))
            self.model = identity.of(options.model, variant=options.variant, parts=parts,
                                     ema=options.ema, without=options.without,
                                     hashes=not options.disable_image_metadata)
            tiling.require(self.pipe, options.vae_tiling)
            taesd.put_on(self.pipe, options)
            self.controlled = {}
            if self.control is not None:
                self.control.load(self.pipe, options)
                self.controlled = self.control.recorded()

    def _scheduler(self, config: dict[str, Any]) -> Any:
        """The sampler asked for, of the model's options, which stay for other requests."""
        self.scheduler_config = config
        return sampler_names.of_model(self.options.sampler, config)

    def recipe(self, options: argparse.Namespace, prompt: str) -> Recipe:
        """The resolved request, refused where this model or its sampler cannot do it."""
        from refsd.cli import compat, drawing

        self.pipe.dialect = options.compat
        if options.sampler != self.options.sampler:
            self.pipe.scheduler = sampler_names.of_model(options.sampler, self.scheduler_config)
        prompt, asked = chosen(options, prompt)
        embeddings = self.embeddings.recorded(self.pipe, prompt, options.negative_prompt)
        size = pictures_in.size(self.pipe, options, options.pictures)
        width, height = control.size(self.control, self.pipe, options, size)
        pictures = pictures_in.settle(self.pipe, options.pictures, options)
        preview.require_colours(options, self.pipe,
                                pictures_in.calls(self.pipe, pictures, options.steps))
        return drawing.effective(self.pipe, Recipe(
            prompt=prompt, negative_prompt=options.negative_prompt, seed=options.seed,
            width=width, height=height, pictures=pictures, control=self.controlled,
            steps=options.steps, cfg_scale=options.cfg_scale, eta=options.eta,
            guidance_rescale=options.guidance_rescale, clip_skip=options.clip_skip,
            rng=compat.rng(options), compat=options.compat,
            scheduler=self.pipe.scheduler.config.plain(),
            backend=self.pipe.backend, dtype=options.dtype,
            threads=threads.in_use(self.pipe.backend), exact=options.exact,
            tuned=drawing.tuned_choices() if options.tuned else {}, weights=options.weights,
            allow_nonfinite=options.allow_nonfinite, model=self.model, variation=options.variation,
            vae_tiling=options.vae_tiling, adapters=self.adapters.recorded(asked),
            embeddings=embeddings, hires=hires.settle(self.pipe, options, width, height),
            versions=drawing.versions(self.pipe.backend)))

    def prepare(self, recipe: Recipe) -> int:
        """Have the model be as a recipe says; gives how many steps its picture takes."""
        if self.control is not None:
            self.control.put_on(self.pipe, recipe)
        self.embeddings.put_on(self.pipe, recipe)
        if recipe.adapters or self.adapters.places:
            with self._timed("adapters"):
                self.adapters.put_in(self.pipe, recipe.adapters)
        return pictures_in.calls(self.pipe, recipe.pictures, recipe.steps) + hires.calls(
            self.pipe, recipe.hires)

    def picture(self, recipe: Recipe, target: output.Target, *, say: bool = True) -> dict[str, Any]:
        """Draw the picture of a recipe, write it, and say so."""
        from refsd.cli import drawing, png

        calls, seed = self.prepare(recipe), recipe.seed
        with Progress(calls, f"seed {seed}", show=self.chatty,
                      done=resuming.steps_done(self.options)) as progress:
            so_far = None if self.options.preview is None else preview.Preview(
                self.options, self.screen, target, progress)
            on_step = resuming.on_step(self.options, recipe, calls, so_far or progress.step)
            drawn = drawing.draw(self.pipe, recipe, on_step, resume=self.options.resume,
                                 pictures=self.pictures)
        if so_far is not None:
            drawn.seconds["steps"] -= so_far.seconds
            drawn.seconds["preview"] = so_far.seconds
        for name, value in drawn.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0) + value
        self.step_seconds += [round(seconds, 6) for seconds in drawn.step_seconds]
        if self.options.output_latents is not None:
            self.latents.append(drawn.latents)

        recipe = replace(recipe, pixels=drawing.digest(drawn.pixels))
        with self._timed("write"):
            texts = {} if self.options.disable_image_metadata else recipe.texts()
            path = output.save(png.encode_png(drawn.pixels, texts), target,
                               f"The picture of seed {seed}")
        if so_far is not None:
            so_far.finish(drawn.pixels)
        if not self.options.json and path == output.STDOUT:
            note(f"refsd: written to stdout (seed {seed})")
        elif say and not self.options.json:
            result(f"{path} (seed {seed})")
        width, height = recipe.size
        return {"path": path, "seed": seed, "width": width, "height": height,
                "pixels": recipe.pixels}

    def save_latents(self, path: str) -> None:
        """All pictures' latents, (B, 4, h, w), before the division by the scaling factor."""
        from refsd.cli import arrays

        with self._timed("write"):
            data = arrays.encode(self.latents, path)
            output.save(data, output.Target(path), "The file of latents")

    def say_times(self) -> None:
        """Where the time went, in one line, and each step's with --verbose."""
        steps = self.step_seconds
        if self.options.verbose:
            each = ", ".join(f"{seconds:.3f}" for seconds in steps)
            note(f"refsd: seconds of each step: {each}")
        spent = {name: f"{value:.2f} s" for name, value in self.seconds.items()}
        spent["steps"] += f" ({len(steps)} x {self.seconds['steps'] / len(steps):.3f} s)"
        parts = ", ".join(f"{name} {value}" for name, value in spent.items())
        note(f"refsd: {parts}; {sum(self.seconds.values()):.2f} s in all")

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - begun


def offload(options: argparse.Namespace) -> dict[str, Any]:
    """When weights are to be in memory; --budget chooses, unless --offload does."""
    from refsd.cli.plan import size

    if options.budget is None:
        return {"offload": options.offload}
    return {"offload": None if options.offload == "none" else options.offload,
            "memory_budget": size(options.budget)}
