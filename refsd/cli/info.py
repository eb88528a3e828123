"""`refsd info FILE`: what a picture says of how it was made, or what a model's file holds."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from refsd.cli import control, embeddings, info_model
from refsd.cli.adapters import in_words
from refsd.cli.arguments import Parser
from refsd.cli.recipe import KEYWORD, parse_recipe
from refsd.cli.report import Warnings, one_line, result, result_json
from refsd.errors import UsageError

ABOUT = """\
Show what a picture says of how it was made: refsd's recipe, the infotext that
AUTOMATIC1111, Forge, SD.Next, stable-diffusion.cpp and refsd write, or what
ComfyUI, InvokeAI, NovelAI, Fooocus, SwarmUI and Draw Things say. Of a model's
.safetensors or .gguf file: what it holds, in which types. What a whole model is
made of, a folder's too, and what it lacks, says refsd models."""


def parser() -> Parser:
    """The options of info."""
    parser = Parser("refsd info FILE [--json]", ABOUT)
    parser.add_argument("picture", metavar="FILE",
                        help="a PNG, JPEG or WebP picture; a .safetensors or .gguf file")
    return parser.answering("everything as JSON")


def run(options: argparse.Namespace) -> int:
    """Show it. A picture without any such text is an answer too, not an error."""
    from refsd.cli.metadata import find_description, find_infotext
    from refsd.cli.pictures import read_picture

    if options.picture.lower().endswith(info_model.ENDINGS):
        return info_model.show(options.picture, as_json=options.json)
    picture = read_picture(options.picture)
    with Warnings(show=not options.json) as warnings:
        for damage in dict.fromkeys(picture.damage):
            warnings.say(f"{options.picture}: damaged: {damage}. What could be read is shown")
        recipe = _readable_recipe(picture.texts, options.picture, warnings)
        unchanged = None if recipe is None else _unchanged(picture, recipe, warnings)
    infotext = find_infotext(picture.texts)
    described = None if infotext is not None and infotext.settings else \
        find_description(picture.texts)
    if options.json:
        result_json({
            "path": options.picture, "format": picture.format,
            "width": picture.width, "height": picture.height, "texts": picture.texts,
            "infotext": None if infotext is None else infotext._asdict(),
            "described": None if described is None else described._asdict(),
            "recipe": None if recipe is None else asdict(recipe),
            "pixels_unchanged": unchanged, "warnings": warnings.said,
        })
        return 0

    result(f"{one_line(options.picture)}: {picture.format}, {picture.width} x {picture.height} "
           "pixels")
    if recipe is not None:
        _show(_of_recipe(recipe))
        result("the pixels are " + (
            "unknown: they cannot be read" if unchanged is None else "those that were drawn"
            if unchanged else "not those that were drawn: the picture was changed since"))
    elif described is not None:
        _show({"written by": described.program, "prompt": described.prompt,
               "negative prompt": described.negative_prompt, **described.settings})
    elif infotext is not None:
        _show({"prompt": infotext.prompt, "negative prompt": infotext.negative_prompt,
               **infotext.settings, **({"extras": infotext.extras} if infotext.extras else {})})
    else:
        others = f" (its texts: {one_line(', '.join(picture.texts), 200)})" if picture.texts else ""
        result(f"it does not say how it was made{others}")
    return 0


def _unchanged(picture: Any, recipe: Any, warnings: Warnings) -> bool | None:
    """Whether the pixels are those of the recipe; None, with a warning, where none can be had."""
    from refsd.cli.drawing import digest

    try:
        return recipe.pixels == digest(picture.pixels)
    except UsageError as error:
        warnings.say(str(error))
        return None


def _readable_recipe(texts: dict[str, str], path: str, warnings: Warnings) -> Any:
    """The recipe, or None with a warning: a damaged or newer one does not hide what else is said.

    UsageError where it is all that there is.
    """
    try:
        return found_recipe(texts, path)
    except UsageError as error:
        if texts.keys() <= {KEYWORD}:
            raise
        warnings.say(f"{error}. What else the file says is shown")
        return None


def found_recipe(texts: dict[str, str], path: str):
    """The checked recipe among a picture's texts, or None; UsageError for a damaged one."""
    return parse_recipe(texts[KEYWORD], path) if KEYWORD in texts else None


def _of_recipe(recipe: Any) -> dict[str, Any]:
    """The fields for reading: the few that are tables become a line each."""
    shown = {key: value for key, value in asdict(recipe).items()
             if value not in ("", None, {}, []) and key not in (
                 "scheduler", "model", "versions", "schema", "pixels")}
    scheduler = dict(recipe.scheduler)
    shown["scheduler"] = f"{scheduler.pop('_class_name', 'unknown')} {json.dumps(scheduler)}"
    if recipe.control:
        shown["control"] = control.in_words(recipe.control)
    if recipe.embeddings:
        shown["embeddings"] = embeddings.in_words(recipe.embeddings)
    if recipe.adapters:
        shown["adapters"] = in_words(recipe.adapters)
    shown["model"] = recipe.model.get("name", "")
    for file, sha256 in recipe.model.get("files", {}).items():
        shown[f"  {sha256}"] = file
    shown["versions"] = ", ".join(f"{name} {number}" for name, number in recipe.versions.items())
    shown["pixels"] = f"sha256 {recipe.pixels}"
    return shown


def _show(fields: dict[str, Any]) -> None:
    width = min(max(map(len, fields)), 24) + 1
    for name, value in fields.items():
        result(one_line(f"{name + ':':<{width}} {value}"))
