"""`refsd repro PICTURE`: draw it again from its recipe, and say whether it is the same."""

import argparse
from dataclasses import replace
from typing import Any

from refsd.backends import choose_backend
from refsd.cli import adapters, control, draw, embeddings, hires, output, pictures_in, threads
from refsd.cli.arguments import Parser, integer
from refsd.cli.compiling import Compiling
from refsd.cli.info import found_recipe
from refsd.cli.progress import Progress
from refsd.cli.recipe import KEYWORD, Recipe
from refsd.cli.report import Warnings, note, one_line, result, result_json
from refsd.errors import ModelError, UsageError
from refsd.registry import make_ready

ABOUT = """\
Draw a picture again from the recipe in its PNG, and compare: exit code 0 when all
pixels are the same, 1 when some differ. Of A1111, stable-diffusion.cpp and ComfyUI
it draws what they say of it, and says what refsd does not have."""


def parser() -> Parser:
    """The options of repro."""
    parser = Parser("refsd repro PICTURE [options]", ABOUT)
    add = parser.add_argument
    add("picture", metavar="PICTURE", help="a .png file, with its texts")
    add("-m", "--model", metavar="MODEL",
        help="where the model is, if it is not the one in refsd or a model id")
    add("--vae", metavar="PATH", help="where the other VAE is, if the picture was drawn with one")
    add("--text-encoder", metavar="PATH", help="likewise the text encoder")
    add("--text-encoder-2", metavar="PATH", help="likewise the second text encoder")
    add("-i", "--init-img", metavar="PATH",
        help="where the picture is that it was drawn from, if not beside it under its name")
    add("--mask", metavar="PATH", help="likewise the mask")
    add("--control-net", metavar="PATH", action="append", default=[],
        help="where a ControlNet is that it was drawn with; may be repeated, in the recipe's order")
    add("--control-image", metavar="PATH", action="append", default=[],
        help="likewise what it read, if not beside the picture under its name")
    add("--embedding", metavar="PATH", action="append", default=[],
        help="where an embedding is that it was drawn with; may be repeated")
    add("--embd-dir", metavar="DIR", help="a folder of them, which is searched by their hashes")
    add("--lora", metavar="PATH", action="append", default=[],
        help="where a LoRA is that the picture was drawn with; may be repeated")
    add("--lora-dir", metavar="DIR", help="a folder of them, which is searched by their hashes")
    add("--download", action="store_true", help="let a model id be fetched from huggingface.co")
    add("--backend", metavar="NAME", help="another backend than the recipe's")
    add("-t", "--threads", type=integer, metavar="N",
        help="threads of the kernels (the recipe's: on numpy their number may change bits)")
    draw.add_offload(add)
    add("-o", "--output", metavar="PATH", help="also write the new picture")
    return parser.answering(quiet="no progress")


def run(options: argparse.Namespace) -> int:
    """Compare; 0 when the pictures are the same, 1 when not."""
    threads.check(options.threads)
    from refsd.cli.png import read_png

    picture = read_png(options.picture)
    if KEYWORD not in picture.texts:
        from refsd.cli import redraw

        return redraw.run(picture, options)
    recipe = _recipe(picture, options)
    model = _model(recipe, options)
    given = adapters.of_recipe(recipe.adapters, options, options.picture)
    target = output.plan(options.output, [recipe.seed])[0] if options.output is not None else None
    chatty = not (options.quiet or options.json)
    with Warnings(show=not options.json) as warnings, threads.limited(recipe.threads):
        pictures = pictures_in.of_recipe(recipe.pictures, options, options.picture)
        options.control = control.of_recipe(recipe.control, options, options.picture)
        drawn = _draw(recipe, model, given, pictures, options, chatty)
        if target is not None:
            from refsd.cli import png

            output.save(png.encode_png(drawn.pixels, recipe.texts()), target, "The new picture")
    comparison = compare(picture.pixels, drawn.pixels, recipe)
    if options.json:
        result_json({**comparison, "warnings": warnings.said})
    else:
        for line in _in_words(comparison, recipe):
            result(one_line(line))
    return 0 if comparison["same"] else 1


def _recipe(picture: Any, options: argparse.Namespace) -> Recipe:
    """The picture's recipe, with what the options replace."""
    recipe = found_recipe(picture.texts, options.picture)
    width, height = recipe.size
    if (picture.width, picture.height) != (width, height):
        raise UsageError(f"{options.picture}: {picture.width} x {picture.height} pixels, its "
                         f"recipe says {width} x {height}: it was cropped or scaled. "
                         "Give the picture as it was drawn")
    return replace(recipe, backend=choose_backend(options.backend or recipe.backend),
                   threads=options.threads or recipe.threads)


def _model(recipe: Recipe, options: argparse.Namespace) -> str | None:
    """What to load; UsageError where only the user can know the place."""
    from refsd.pipelines import identity

    name = recipe.model.get("name", "")
    if options.model is not None:
        return options.model
    if name == identity.BUNDLED:
        return None
    if identity.HUB_ID.fullmatch(name):
        return name
    raise UsageError(f"{options.picture}: drawn with the model {name!r} from a local path, which "
                     "the recipe does not keep. Say with -m where it is")


def _parts(recipe: Recipe, options: argparse.Namespace) -> dict[str, str | None]:
    """The places of networks that replaced the model's; UsageError where only the user knows."""
    from refsd.pipelines import identity

    parts = {}
    for part in ("vae", "text_encoder", "text_encoder_2"):
        name, other = recipe.model.get(part), getattr(options, part)
        if name is not None and other is None and not identity.HUB_ID.fullmatch(name):
            raise UsageError(f"{options.picture}: drawn with another {part}, {name!r}. Say with "
                             f"--{part.replace('_', '-')} where it is")
        parts[part] = other or name
    return parts


def _draw(recipe: Recipe, model: str | None, given: adapters.Adapters, pictures: Any,
          options: argparse.Namespace, chatty: bool) -> Any:
    from refsd import schedulers
    from refsd.cli import drawing, session
    from refsd.pipelines import identity
    from refsd.pipelines.auto import family_of_model

    variant, ema = recipe.model.get("variant"), "ema" in recipe.model
    without = recipe.model.get("without")
    parts = _parts(recipe, options)
    family = family_of_model(model, download=options.download, variant=variant)
    pipe = pictures_in.loader(recipe.pictures, family).from_pretrained(
        model, backend=recipe.backend, dtype=recipe.dtype, variant=variant,
        weights=recipe.weights, download=options.download, exact=recipe.exact,
        scheduler=schedulers.from_config(recipe.scheduler), ema=ema, **parts,
        **session.offload(options), **family.leaving_out(without))
    used = identity.of(model, variant=variant, parts=parts, without=without)
    _require_same_files(recipe.model.get("files", {}), used["files"])
    if recipe.adapters:
        given.put_in(pipe, recipe.adapters)
    embeddings.chosen(options).put_in(pipe, recipe.embeddings, options.picture)
    if options.control is not None:
        options.dtype, options.weights, options.exact = recipe.dtype, recipe.weights, recipe.exact
        options.control.load(pipe, options)
        options.control.put_on(pipe, recipe)
    calls = pictures_in.calls(pipe, recipe.pictures, recipe.steps) + hires.calls(
        pipe, recipe.hires)
    with Compiling(show=chatty):
        make_ready(recipe.backend, recipe.dtype)
    if chatty:
        note(f"refsd: drawing seed {recipe.seed} again")
    with Progress(calls, f"seed {recipe.seed}", show=chatty) as progress:
        return drawing.draw(pipe, recipe, progress.step, pictures=pictures)


def _require_same_files(recorded: dict[str, str], used: dict[str, str]) -> None:
    """ModelError unless the weights are those of the recipe, whatever the files are called."""
    if sorted(recorded.values()) != sorted(used.values()):
        raise ModelError("the model is not the one that drew this picture: the SHA-256 of its "
                         f"weights ({', '.join(used)}) differ from the recipe's. Give the right "
                         "one with -m")


def compare(old: Any, new: Any, recipe: Recipe) -> dict[str, Any]:
    """How two pictures differ.   (H, W, 3) uint8 twice

    `differing` counts pixels, `largest` is in grey levels of 255; `redrawn_as_recorded` says
    whether the new picture is the one the recipe names, whatever became of the file since.
    """
    import numpy as np

    from refsd.cli.drawing import digest, versions

    apart = np.abs(old.astype(np.int16) - new)
    return {
        "same": not apart.any(),
        "pixels": old.shape[0] * old.shape[1],
        "differing": int(apart.any(axis=2).sum()),
        "largest": int(apart.max()),
        "redrawn_as_recorded": digest(new) == recipe.pixels,
        "file_as_recorded": digest(old) == recipe.pixels,
        "other_versions": {name: [recipe.versions.get(name, ""), now]
                           for name, now in versions(recipe.backend).items()
                           if recipe.versions.get(name) != now},
    }


def _in_words(result: dict[str, Any], recipe: Recipe) -> list[str]:
    if result["same"]:
        return [f"identical: all {result['pixels']:,} pixels are the same"]
    lines = [f"different: {result['differing']:,} of {result['pixels']:,} pixels "
             f"({100 * result['differing'] / result['pixels']:.2f} %), by up to "
             f"{result['largest']} of 255 grey levels"]
    if result["redrawn_as_recorded"]:
        return [*lines, "the new picture is the recorded one: the file was changed since"]
    for name, (then, now) in result["other_versions"].items():
        lines.append(f"a possible cause: {name} was {then or 'not recorded'} then, is {now} now")
    if not result["other_versions"]:
        lines.append("nothing that the recipe records differs; refsd doctor checks this machine")
    return lines
