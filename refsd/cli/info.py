"""`refsd info PICTURE`: what a PNG says of how it was made."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.infotext import parse_infotext
from refsd.cli.recipe import KEYWORD, parse_recipe
from refsd.cli.report import one_line, result, result_json

ABOUT = """\
Show what a PNG says of how it was made: refsd's recipe, and the infotext that
AUTOMATIC1111, Forge, stable-diffusion.cpp and refsd write."""


def parser() -> Parser:
    """The options of info."""
    found = Parser(prog="refsd info", description=ABOUT, usage="refsd info PICTURE [--json]")
    found.add_argument("picture", metavar="PICTURE", help="a .png file")
    found.add_argument("--json", action="store_true", help="everything as JSON")
    found.add_argument("-v", "--verbose", action="store_true", help="tracebacks of errors")
    return found


def run(options: argparse.Namespace) -> int:
    """Show it. A picture without any such text is an answer too, not an error."""
    from refsd.cli.drawing import digest
    from refsd.cli.png import read_png

    picture = read_png(options.picture)
    recipe = found_recipe(picture.texts, options.picture)
    written = picture.texts.get("parameters")
    infotext = None if written is None else parse_infotext(written)
    unchanged = None if recipe is None else recipe.pixels == digest(picture.pixels)
    if options.json:
        result_json({
            "path": options.picture, "width": picture.width, "height": picture.height,
            "texts": picture.texts,
            "infotext": None if infotext is None else infotext._asdict(),
            "recipe": None if recipe is None else asdict(recipe),
            "pixels_unchanged": unchanged,
        })
        return 0

    result(f"{one_line(options.picture)}: PNG, {picture.width} x {picture.height} pixels")
    if recipe is not None:
        _show(_of_recipe(recipe))
        result("the pixels are " + ("those that were drawn" if unchanged else
                                    "not those that were drawn: the picture was changed since"))
    elif infotext is not None:
        _show({"prompt": infotext.prompt, "negative prompt": infotext.negative_prompt,
               **infotext.settings})
    else:
        others = f" (its texts: {one_line(', '.join(picture.texts), 200)})" if picture.texts else ""
        result(f"it does not say how it was made{others}")
    return 0


def found_recipe(texts: dict[str, str], path: str):
    """The checked recipe among a PNG's texts, or None; UsageError for a damaged one."""
    return parse_recipe(texts[KEYWORD], path) if KEYWORD in texts else None


def _of_recipe(recipe: Any) -> dict[str, Any]:
    """The fields for reading: the few that are tables become a line each."""
    shown = {key: value for key, value in asdict(recipe).items()
             if value not in ("", None, {}) and key not in (
                 "scheduler", "model", "versions", "schema", "pixels")}
    scheduler = dict(recipe.scheduler)
    shown["scheduler"] = f"{scheduler.pop('_class_name', 'unknown')} {json.dumps(scheduler)}"
    shown["model"] = recipe.model.get("name", "")
    for file, sha256 in recipe.model.get("files", {}).items():
        shown[f"  {sha256}"] = file
    shown["versions"] = ", ".join(f"{name} {found}" for name, found in recipe.versions.items())
    shown["pixels"] = f"sha256 {recipe.pixels}"
    return shown


def _show(fields: dict[str, Any]) -> None:
    width = min(max(map(len, fields)), 24) + 1
    for name, value in fields.items():
        result(one_line(f"{name + ':':<{width}} {value}"))
