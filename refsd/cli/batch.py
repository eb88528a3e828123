"""`refsd --prompts FILE`: a picture for each line, under a name made of what it is a picture of.

A file's name is a hash of the resolved recipe without what does not decide the picture, so the same
request has the same name on every machine, and a run that was stopped goes on where it was.
"""

import argparse
import json
import os
from collections.abc import Callable

from refsd import atomic, schedulers
from refsd.cli import output, threads, variation
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


def run(options: argparse.Namespace, check: Callable) -> int:
    """Draw what the lines say, after `check`, which refuses what no line changes."""
    default = _check(options)
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
        lines: list[str] = []
        for index, (number, recipe) in enumerate(pictures):
            said = {"index": index, "line": number,
                    **_picture(session, recipe, options.output)}
            _say(said, lines, options.results)
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
    options.output = "" if options.output is None else options.output
    if options.output and not os.path.isdir(options.output):
        raise UsageError(f"--output {options.output}: with --prompts it is a folder; name one that "
                         "exists")
    output.try_out(os.path.join(options.output, f"{'0' * 32}.png"), (".png",))
    if options.results is not None:
        output.try_out(options.results, (".jsonl", ".json", ".txt"))
    options.seed = max(options.seed, 0)  # not a new one: names are made of it
    if options.variation_strength:
        options.variation_seed = max(options.variation_seed or 0, 0)
    default, options.prompt = options.prompt, options.prompt or ""
    return default


def _refuse(bad, options):
    """A line of error for each bad line."""
    if not options.json:
        for problem in bad.problems[:-1]:
            note(one_line(f"refsd: error: {problem}"))
        bad = BadLines(bad.problems[-1:])
    raise bad


def _resolve(session, requests, options):
    """Each picture's line and recipe; all are refused before the first is drawn."""
    pictures, problems, own = [], [], session.pipe.scheduler
    for request in requests:
        session.pipe.scheduler, asked = own, request.options
        try:
            if asked.variation_strength and asked.variation_seed is None:
                asked.variation_seed = 0
            asked.variation = variation.chosen(asked, options.batch_count)
            variation.seeds(asked, options.batch_count)
            recipe = session.recipe(asked, asked.prompt)
            for name in ("width", "height"):
                check_side(name, getattr(recipe, name), session.pipe.multiple)
        except (UsageError, ModelError) as problem:
            problems.append(f"{options.prompts}, line {request.line}: {problem}")
        else:
            pictures += [(request.line, variation.nth(recipe, i))
                         for i in range(options.batch_count)]
    if problems:
        raise BadLines(problems)
    return pictures


def _picture(session, recipe, folder):
    """Draw it, unless it is there; what the line of JSON says of it."""
    name = name_of(recipe)
    path = os.path.join(folder, f"{name}.png")
    finished = read_finished(path, name)
    if finished is not None:
        width, height = recipe.size
        said = {"path": path, "seed": recipe.seed, "width": width, "height": height,
                "pixels": finished.pixels}
    else:
        session.pipe.scheduler = schedulers.from_config(recipe.scheduler)
        said = session.picture(recipe, output.Target(path), say=False)
    return {"prompt": recipe.prompt, **said, "drawn": finished is None}


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


def _say(said, lines, file):
    """One picture as a line of JSON: on stdout, or in the file, which is always whole."""
    line = json.dumps(said)
    if file is None:
        result(line)
        return
    lines.append(line + "\n")
    atomic.write_file(file, [text.encode() for text in lines])
    result(f"{one_line(said['path'])} (seed {said['seed']})")
