"""The model that is loaded, and how a job's pictures are drawn with it and written."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refsd import schedulers
from refsd.cli import output
from refsd.cli.pictures_in import Pictures
from refsd.cli.report import Warnings
from refsd.cli.session import Session
from refsd.errors import UsageError
from refsd.serve.jobs import Job, Picture
from refsd.serve.models import Model


class Stop(Exception):
    """The job is not wanted any more."""


class Skip(Exception):
    """The picture is not wanted any more, the next one is."""


class Drawer:
    """Draws in the thread that calls it, with one model at a time."""

    def __init__(self, models: Mapping[str, Model], folder: Path):
        self.models, self.folder = models, folder
        self.model: str | None = None
        self.session: Session | None = None

    def load(self, model: str, options: argparse.Namespace) -> None:
        """Have this model loaded; another one is let go of before, so that both need no place."""
        if self.model == model:
            return
        self.model = self.session = self._own = None
        found = self.models[model]
        wanted = None if found.takes == "latents" else Pictures(
            {}, {"mask": found.takes == "mask" or None})  # which class loads it, not a job's own
        self.session = Session(argparse.Namespace(**{
            **vars(options), "pictures": wanted, "model": found.path}), False)
        self._own, self.model = self.session.pipe.scheduler, model

    def draw(self, job: Job) -> None:
        """Draw and write the job's pictures. Raises Stop, and what drawing raises."""
        asked = job.asked
        with Warnings(show=False) as warnings:
            warnings.said += asked.warnings
            job.warnings = warnings.said
            self.load(asked.model, asked.options)
            self.session.pipe.scheduler = self._own
            recipe = self.session.recipe(asked.options, asked.prompt)
            from refsd.cli import variation

            for index in range(asked.count):
                try:
                    self._picture(job, index, variation.nth(recipe, index))
                except Skip:
                    continue

    def _picture(self, job, index, recipe):
        from refsd.cli import drawing, png

        pipe = self.session.pipe
        pipe.scheduler = schedulers.from_config(recipe.scheduler)
        job.begin_picture(index, self.session.prepare(recipe))
        require_wanted(job)
        drawn = drawing.draw(pipe, recipe, _Steps(job, pipe), pictures=job.asked.options.pictures)
        recipe = replace(recipe, pixels=drawing.digest(drawn.pixels))
        texts = recipe.texts()
        target = output.Target(os.path.join(self.folder, f"refsd-{recipe.seed}.png"), fresh=True)
        path = Path(output.save(png.encode_png(drawn.pixels, texts), target,
                                f"The picture of seed {recipe.seed}"))
        job.pictures.append(Picture(path.name, path, recipe.seed, *recipe.size,
                                    texts["parameters"], recipe.pixels))
        job.changes.tell()


def require_wanted(job: Job) -> None:
    """Raise what is wished for instead of the next step."""
    if job.stop:
        raise Stop
    if job.skip:
        raise Skip


class _Steps:
    """A callback_on_step_end that counts, shows every N-th step but the last, and stops."""

    def __init__(self, job: Job, pipe: Any):
        self.job, self.every = job, job.asked.preview
        if self.every:
            from refsd.pipelines.preview import colours

            try:
                colours(pipe.vae.config)
            except UsageError:  # no map known for these latents: there are no previews
                self.every = 0
        self.tensor_inputs = ("denoised",) if self.every else ()

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        step = self.job.count_step()
        require_wanted(self.job)
        if self.every and step % self.every == 0 and step != self.job.steps:
            self.job.show(pipe.preview(tensors["denoised"])[0])
        self.job.changes.tell()
