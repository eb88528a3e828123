"""--save-state and --resume: a picture that is drawn in two goes, with the same bits."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from refsd.arguments import shown
from refsd.cli import output
from refsd.cli.arguments import Parser, integer
from refsd.cli.naming import decisive
from refsd.cli.recipe import Recipe, parse_recipe
from refsd.errors import UsageError
from refsd.pipelines.request import check_integer


def add_options(parser: Parser) -> None:
    """The options of a picture that is to be continued."""
    add = parser.add_argument_group("to be continued").add_argument
    add("--save-state", metavar="FILE",
        help="write the latents, the sampler's memory and the generators into a .safetensors file "
        "after the step of --save-state-at, and go on")
    add("--save-state-at", type=integer, metavar="N", help="after which step")
    add("--resume", metavar="FILE",
        help="go on after the step that --save-state wrote; the other options are to be the same "
        "(prompt and seed may be left out)")


def prepare(options: argparse.Namespace) -> None:
    """Refuse what does not go together; a prompt and a seed that are not given are the file's."""
    if (options.save_state is None) != (options.save_state_at is None):
        raise UsageError("--save-state FILE and --save-state-at N belong together; give both")
    options.saved = None
    if options.save_state is None and options.resume is None:
        return
    if options.batch_count != 1:
        raise UsageError(f"--batch-count {options.batch_count}: a picture is saved and resumed by "
                         "itself; leave it out")
    if options.save_state is not None:
        check_integer("--save-state-at", options.save_state_at, 1, 1000)
        output.try_out(options.save_state, (".safetensors",))
    if options.resume is not None:
        from refsd.pipelines.resume import read_state

        if not os.path.isfile(options.resume):
            raise UsageError(f"{options.resume}: no such file; give one that --save-state wrote")
        state = read_state(options.resume)
        if "recipe" not in state.about["notes"]:
            raise UsageError(f"{options.resume}: saved from Python, without a recipe; resume it "
                             "there, or give one that --save-state wrote")
        options.saved_step = state.about["step"]
        text = json.dumps(state.about["notes"]["recipe"])
        options.saved = parse_recipe(text, options.resume)
        if options.words is None and options.prompt is None:
            options.prompt = options.saved.prompt
        options.seed = options.saved.seed if options.seed < 0 else options.seed


def steps_done(options: argparse.Namespace) -> int:
    """How many steps were made before."""
    return options.saved_step if options.resume is not None else 0


def require_same(options: argparse.Namespace, recipe: Recipe) -> None:
    """UsageError that names what of the recipe is not as it was saved."""
    if options.saved is None:
        return
    here, there = decisive(recipe), decisive(options.saved)
    for name in ("pictures", "control"):  # each of what is in them by itself
        for recorded in (here, there):
            parts = recorded.pop(name, {})
            recorded.update({f"{name}.{key}": value for key, value in parts.items()})
    for name in [*there, *(here.keys() - there.keys())]:
        if here.get(name) != there.get(name):
            raise UsageError(f"{options.resume}: saved by another request, {name} is "
                             f"{shown(here.get(name))} here and {shown(there.get(name))} there; "
                             "resume with the options it was saved with")


def on_step(options: argparse.Namespace, recipe: Recipe, steps: int, other: Callable) -> Callable:
    """The callback of a drawing that also saves it, if that is asked for.

    UsageError for a step after which there is none, or that --resume has behind it.
    """
    if options.save_state is None:
        return other
    at, done = options.save_state_at, steps_done(options)
    if not done < at < steps:
        why = f"step {at} of {steps} has none after it" if at >= steps else (
            f"{options.resume} is after step {done} already")
        raise UsageError(f"--save-state-at {at}: {why}; " + (
            f"give {done + 1} to {steps - 1}" if done + 1 < steps else "leave it out"))
    from refsd.pipelines.resume import SaveState

    return Both(SaveState(options.save_state, options.save_state_at,
                          notes={"recipe": asdict(recipe)}), other)


class Both:
    """Two callbacks at the end of a step, one after the other."""

    def __init__(self, first: Callable, second: Callable):
        self.first, self.second = first, second
        self.tensor_inputs = tuple({name: None for each in (first, second)
                                    for name in getattr(each, "tensor_inputs", ())})

    def __call__(self, *step: Any) -> Any:
        """One more step is done."""
        self.first(*step)
        return self.second(*step)
