"""`refsd --prompts FILE`: a picture for each line, under a name made of what it is a picture of.

A file's name is a hash of the resolved recipe without what does not decide the picture, so the same
request has the same name on every machine, and a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from refsd import atomic, schedulers
from refsd.cli import farming, output, threads, variation
from refsd.cli.naming import name_of
from refsd.cli.recipe import Recipe
from refsd.cli.report import Warnings, note, one_line, result
from refsd.cli.requests import BadLines, read_requests
from refsd.cli.session import Session
from refsd.errors import ModelError, UsageError
from refsd.pipelines.request import check_side

NO = {"output_latents": "--output-latents is for pictures of one size",
      "disable_image_metadata": "--disable-image-metadata leaves out the recipe, by which a "
                                "finished picture is known",
      "save_state": "--save-state is for one picture",
      "save_state_at": "--save-state-at is for one picture",
      "resume": "--resume is for one picture",
      "audit": "--audit is for one request"}
SAID = ("seed", "width", "height", "pixels")  # of a picture, where it was drawn


class Picture(NamedTuple):
    """A picture of the file: its place among all, its line, and what is drawn.

    It is the line's `nth`, counted from 0; `asked` are the line's options.
    """

    index: int
    line: int
    asked: argparse.Namespace
    nth: int
    recipe: Recipe


def run(options: argparse.Namespace, check: Callable) -> int:
    """Draw what the lines say, after `check`, which refuses what no line changes."""
    default = _check(options)
    asked = dict(vars(options))
    check(options)
    try:
        requests = read_requests(options.prompts, options, default)
    except BadLines as bad:
        return _refuse(bad, options)
    chatty = not (options.quiet or options.json)
    with Warnings(show=not options.json), threads.limited(options.threads):
        session = Session(options, chatty)
        try:
            pictures = _resolve(session, requests, options)
        except BadLines as bad:
            return _refuse(bad, options)
        if options.shard is not None:
            pictures = _shard(session, pictures, options, chatty)
        said = Said(options.results)
        if options.dask is not None:
            job = _job(session, asked, pictures)
            del session  # workers of this machine need its memory
            return _farm(job, pictures, said, options, chatty)
        for picture in pictures:
            said.add(picture, _picture(session, picture.recipe, options.output))
        if not pictures:  # of this shard: its file is there all the same
            said.write()
        if chatty and session.seconds.get("steps"):
            session.say_times()
    return 0


def _check(options):
    """Refuse what does not go with --prompts; the prompt of lines that have none."""
    if options.words is not None:
        raise UsageError(f"--prompts and the prompt {options.words[:40]!r} both say what to draw; "
                         "give one of them")
    for name, why in NO.items():
        if getattr(options, name):
            raise UsageError(f"{why}: leave it out with --prompts")
    farming.check(options)
    if options.dask is not None and options.preview is not None:
        raise UsageError("--preview shows what is drawn here: leave it out with --dask")
    options.output = "" if options.output is None else options.output
    if options.output and not os.path.isdir(options.output):
        raise UsageError(f"--output {options.output}: with --prompts it is a folder; name one that "
                         "exists")
    output.try_out(os.path.join(options.output, f"{'0' * 32}.png"), (".png",))
    if options.results is not None:
        options.results = _of_shard(options.results, options.shard)
        output.try_out(options.results, (".jsonl", ".json", ".txt"))
    options.seed = max(options.seed, 0)  # not a new one: names are made of it
    if options.variation_strength:
        options.variation_seed = max(options.variation_seed or 0, 0)
    default, options.prompt = options.prompt, options.prompt or ""
    return default


def _of_shard(name, shard):
    """The results' file: each shard has its own, so that none takes another's place."""
    if shard is None:
        return name
    if shard[1] > 1 and "{shard}" not in name:
        raise UsageError(f"--results {name}: each shard needs a file of its own; write {{shard}} "
                         "into the name, as in results-{shard}.jsonl")
    return name.replace("{shard}", f"{shard[0]}-of-{shard[1]}")


def _refuse(bad, options):
    """A line of error for each bad line."""
    if not options.json:
        for problem in bad.problems[:-1]:
            note(one_line(f"refsd: error: {problem}"))
        bad = BadLines(bad.problems[-1:])
    raise bad


def _resolve(session, requests, options):
    """The pictures of all lines; all are refused before the first is drawn."""
    pictures, problems, own = [], [], session.pipe.scheduler
    for request in requests:
        try:
            recipe = first_recipe(session, own, request.options)
        except (UsageError, ModelError) as problem:
            problems.append(f"{options.prompts}, line {request.line}: {problem}")
        else:
            pictures += [Picture(len(pictures) + i, request.line, request.options, i,
                                 variation.nth(recipe, i)) for i in range(options.batch_count)]
    if problems:
        raise BadLines(problems)
    return pictures


def first_recipe(session: Session, own: Any, asked: argparse.Namespace) -> Recipe:
    """That of a line's first picture; `own` is the model's scheduler as it was loaded.

    UsageError or ModelError where one of the line's pictures cannot be drawn.
    """
    session.pipe.scheduler = own
    if asked.variation_strength and asked.variation_seed is None:
        asked.variation_seed = 0
    asked.variation = variation.chosen(asked, asked.batch_count)
    variation.seeds(asked, asked.batch_count)
    recipe = session.recipe(asked, asked.prompt)
    for name in ("width", "height"):
        check_side(name, getattr(recipe, name), session.pipe.multiple)
    return recipe


def _shard(session, pictures, options, chatty):
    """Those of the pictures that are dealt to this machine."""
    from refsd.cli import units_pictures
    from refsd.farm.shards import deal

    part, parts = options.shard
    units = units_pictures.units(session, pictures)
    mine = [units[i] for i in deal([unit.cost for unit in units], parts)[part - 1]]
    if chatty:
        work = sum(unit.cost for unit in mine) / sum(unit.cost for unit in units)
        note(f"refsd: shard {part}/{parts}: {len(mine)} of {len(units)} pictures, "
             f"{100 * work:.1f} % of the work")
    keys = {unit.key for unit in mine}
    return [picture for picture in pictures if name_of(picture.recipe) in keys]


def _job(session, asked, pictures):
    """All pictures as units, and the options as they open a worker."""
    from refsd.cli import farming, units_pictures

    setup = {**asked, "backend": session.pipe.backend,
             "threads": farming.threads_of(asked["dask"], asked["threads"])}
    return units_pictures.job(session, setup, units_pictures.units(session, pictures))


def _farm(job, pictures, said, options, chatty):
    """Have the pictures drawn by workers; of equal ones the first was drawn, the others are there.
    """
    from refsd.cli import farming

    begun, drawn = time.perf_counter(), 0
    wanted: dict[str, list[Picture]] = {}
    for picture in pictures:
        wanted.setdefault(name_of(picture.recipe), []).append(picture)

    def done(unit, about):
        nonlocal drawn
        drawn += about["drawn"]
        path = os.path.join(options.output, unit.results[0])
        for i, picture in enumerate(wanted[unit.key]):
            said.add(picture, {"path": path, **about, "drawn": about["drawn"] and i == 0})

    farming.run(job, options.dask, options.output, done, what="pictures", show=chatty)
    if chatty:
        there = "" if drawn == len(job.units) else "; the others were there"
        note(f"refsd: {drawn} of {len(job.units)} pictures drawn in "
             f"{time.perf_counter() - begun:.1f} s{there}")
    return 0


def _picture(session, recipe, folder):
    """Draw it, unless it is there; what the line of JSON says of it."""
    name = name_of(recipe)
    path = os.path.join(folder, f"{name}.png")
    finished = read_finished(path, name)
    said = draw(session, recipe, path) if finished is None else about(finished)
    return {"path": path, **said}


def draw(session: Session, recipe: Recipe, path: str) -> dict[str, Any]:
    """Draw it and write it; what is said of it, without its path."""
    session.pipe.scheduler = schedulers.from_config(recipe.scheduler)
    said = session.picture(recipe, output.Target(path), say=False)
    return {**{key: said[key] for key in SAID}, "drawn": True}


def about(recipe: Recipe) -> dict[str, Any]:
    """The same of a picture that is there."""
    width, height = recipe.size
    return {"seed": recipe.seed, "width": width, "height": height, "pixels": recipe.pixels,
            "drawn": False}


def read_finished(path: str, name: str) -> Recipe | None:
    """The recipe of the picture of this name, if it is there and its pixels are those drawn."""
    from refsd.cli.drawing import digest
    from refsd.cli.info import found_recipe
    from refsd.cli.png import read_png

    if not os.path.lexists(path):
        return None
    try:
        picture = read_png(path)
        recipe = found_recipe(picture.texts, path)
    except UsageError:
        recipe = None
    if recipe is not None and name_of(recipe) == name and recipe.pixels == digest(picture.pixels):
        return recipe
    note(f"refsd: {one_line(path)} is not the picture of its name; it is drawn again")
    return None


class Said:
    """A line of JSON for each picture: on stdout, or in a file, which is always whole."""

    def __init__(self, file: str | None):
        self.file, self.lines = file, []

    def add(self, picture: Picture, said: dict[str, Any]) -> None:
        """One more picture is there."""
        line = json.dumps({"index": picture.index, "line": picture.line,
                           "prompt": picture.recipe.prompt, **said})
        if self.file is None:
            result(line)
            return
        self.lines.append(line + "\n")
        self.write()
        result(f"{one_line(said['path'])} (seed {said['seed']})")

    def write(self) -> None:
        """The file, if there is to be one, with the lines so far."""
        if self.file is not None:
            atomic.write_file(self.file, [text.encode() for text in self.lines])
