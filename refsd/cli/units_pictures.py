"""The units of `refsd --prompts FILE`: a picture each, dealt to shards or to a cluster's workers.

A unit's key is the name of its picture: what decides it, with the hashes of all files. A worker
makes that name anew of its own files, and refuses to draw what would be another picture.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refsd.cli import batch, draw, threads, variation
from refsd.cli.costs import Costs
from refsd.cli.naming import name_of
from refsd.cli.requests import FIELDS
from refsd.cli.session import Session
from refsd.errors import ModelError
from refsd.farm.units import Job, Unit, key_of
from refsd.version import __version__

# Options that name files or folders, each of one place or of several.
PLACES = ("model", "vae", "text_encoder", "text_encoder_2", "taesd", "lora", "lora_dir",
          "embedding", "embd_dir", "init_img", "mask", "control_net", "control_image")


def units(session: Session, pictures: Sequence[batch.Picture]) -> tuple[Unit, ...]:
    """A unit for each picture that there is once or more among these."""
    costs, found = Costs(session.pipe), {}
    for picture in pictures:
        recipe = picture.recipe
        name = name_of(recipe)
        if name not in found:
            request = {field: getattr(picture.asked, field) for field in FIELDS}
            found[name] = Unit(name, f"line {picture.line}, seed {recipe.seed}",
                               {**request, "nth": picture.nth}, costs.of(recipe), (f"{name}.png",))
    return tuple(found.values())


def job(session: Session, setup: dict[str, Any], units: Sequence[Unit]) -> Job:
    """Units with what opens a worker: the options before draw.check made something of them."""
    setup = {**setup, **{name: _anywhere(setup[name]) for name in PLACES}}
    return Job("pictures", setup, identity(session), tuple(units))


def _anywhere(value):
    """A place from the root, since workers are where they were started; PATH:WEIGHT too.

    What is not there, such as the id of a model, stays.
    """
    if isinstance(value, list):
        return [_anywhere(one) for one in value]
    if value is None or os.path.exists(value):
        return value and os.path.abspath(value)
    path, colon, weight = value.rpartition(":")
    return f"{os.path.abspath(path)}:{weight}" if colon and os.path.exists(path) else value


def identity(session: Session) -> dict[str, str]:
    """What a worker has to be, where nothing of a unit is known yet."""
    model = {"files": sorted(session.model.get("files", {}).values())}
    return {"refsd": __version__, "backend": session.pipe.backend, "model": key_of(model)}


def open_worker(setup: dict[str, Any]) -> "Drawer":
    """Load the model."""
    options = argparse.Namespace(**{**setup, "json": True, "quiet": True})
    draw.check(options)
    with threads.limited(options.threads):
        return Drawer(options)


def finished(unit: Unit, folder: Path) -> dict[str, Any] | None:
    """What is said of the picture, if it is there."""
    recipe = batch.read_finished(str(folder / unit.results[0]), unit.key)
    return None if recipe is None else batch.about(recipe)


class Drawer:
    """A worker: a model that draws one picture after the other."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.session = options, Session(options, False)
        self.own, self.identity = self.session.pipe.scheduler, identity(self.session)

    def do(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Draw it. Raises ModelError where a file that it is drawn with is not the caller's."""
        request = dict(unit.recipe)
        nth = request.pop("nth")
        asked = argparse.Namespace(**{**vars(self.options), **request})
        with threads.limited(self.options.threads):
            recipe = variation.nth(batch.first_recipe(self.session, self.own, asked), nth)
            if name_of(recipe) != unit.key:
                raise ModelError(f"{unit.name}: here it would be another picture than was asked "
                                 "for. See that the files that it is drawn with are the same for "
                                 "all workers")
            return batch.draw(self.session, recipe, str(folder / unit.results[0]))
