"""`refsd repro PICTURE` of a picture that another program drew."""

import argparse
from typing import Any

from refsd.backends import choose_backend
from refsd.cli import adapters, foreign, output, threads
from refsd.cli.compiling import Compiling
from refsd.cli.progress import Progress
from refsd.cli.recipe import Recipe
from refsd.cli.report import Warnings, note, one_line, result, result_json
from refsd.errors import UsageError
from refsd.registry import make_ready


def run(picture: Any, options: argparse.Namespace) -> int:
    """Draw what it says, say what is not in refsd, and compare: 0 when all pixels are the same."""
    found = foreign.read(picture)
    if found is None:
        raise UsageError(f"{options.picture}: it does not say how it was made, or in a way that "
                         "refsd cannot draw from (refsd info shows what it says). Give one of "
                         "refsd, A1111, stable-diffusion.cpp or ComfyUI")
    if options.model is None:
        model = " ".join(filter(None, (repr(found.model) if found.model else "", found.model_hash)))
        raise UsageError(f"{options.picture}: drawn by {found.program} with the model "
                         f"{model or 'that it does not name'}. Say with -m where it is")
    prompt, asked = adapters.chosen(options, found.values["prompt"])
    target = output.plan(options.output, [found.values["seed"]])[0] \
        if options.output is not None else None
    chatty = not (options.quiet or options.json)
    with Warnings(show=not options.json) as warnings, threads.limited(options.threads):
        prompt, without = foreign.untagged(prompt)
        missing = [line for line in (*found.missing, *without)
                   if not (options.vae and line.startswith("VAE "))]
        for line in missing:
            warnings.say(one_line(f"drawn without what refsd does not have, or cannot know: {line}",
                                  300))
        recipe, pipe, adapted = _loaded(found, prompt, asked, options, warnings)
        adapted.put_in(pipe, recipe.adapters)
        drawn = _draw(pipe, recipe, chatty)
        if target is not None:
            from refsd.cli import png

            output.save(png.encode_png(drawn.pixels, recipe.texts()), target, "The new picture")
    comparison = _compare(picture.pixels, drawn.pixels)
    if options.json:
        result_json({"program": found.program, **comparison, "compat": recipe.compat,
                     "sampler": found.sampler, "missing": missing, "warnings": warnings.said})
    else:
        result(one_line(f"{found.program}, drawn with --compat {recipe.compat} --sampler "
                        f"{found.sampler} --rng {recipe.rng}: {_in_words(comparison)}"))
    return 0 if comparison["same"] else 1


def _loaded(found: foreign.Foreign, prompt: str, asked: list[dict[str, Any]],
            options: argparse.Namespace, warnings: Warnings) -> tuple[Recipe, Any, Any]:
    """The recipe, the model's pipeline, and the adapters of the command line."""
    from refsd.cli import drawing, session
    from refsd.pipelines import identity
    from refsd.pipelines.auto import AutoPipelineForText2Image

    parts = {"vae": options.vae, "text_encoder": options.text_encoder,
             "text_encoder_2": options.text_encoder_2}
    backend = choose_backend(options.backend or "auto")
    pipe = AutoPipelineForText2Image.from_pretrained(
        options.model, backend=backend, download=options.download, scheduler=found.scheduler,
        **session.offload(options), **parts)
    pipe.dialect = found.compat
    model, adapted = identity.of(options.model, variant=None, parts=parts), adapters.Adapters()
    theirs, ours = found.model_hash, model["hash"]
    single = ours in model["files"].values()  # what A1111 hashes; of a folder there is none
    if theirs and single and not ours.startswith(theirs[:10].lower()):
        warnings.say(one_line(f"the model's hash is {ours[:10]}, the picture's {theirs[:10]}: "
                              "another model", 200))
    recipe = Recipe(**{**found.values, "prompt": prompt},
                    rng=found.rng, compat=found.compat, variation=found.variation, model=model,
                    scheduler=pipe.scheduler.config.plain(), backend=backend, dtype="float32",
                    threads=threads.in_use(backend), allow_nonfinite=False,
                    adapters=adapted.recorded(asked), versions=drawing.versions(backend))
    return drawing.effective(pipe, recipe), pipe, adapted


def _draw(pipe: Any, recipe: Recipe, chatty: bool) -> Any:
    from refsd.cli import drawing

    calls = drawing.calls(pipe, recipe.steps)
    with Compiling(show=chatty):
        make_ready(recipe.backend, recipe.dtype)
    if chatty:
        note(f"refsd: drawing seed {recipe.seed} again")
    with Progress(calls, f"seed {recipe.seed}", show=chatty) as progress:
        return drawing.draw(pipe, recipe, progress.step)


def _compare(old: Any, new: Any) -> dict[str, Any]:
    """How two pictures differ, which may have two sizes.   (H, W, 3) uint8 each"""
    import numpy as np

    if old.shape != new.shape:
        return {"same": False, "size": [old.shape[1], old.shape[0]],
                "drawn": [new.shape[1], new.shape[0]]}
    apart = np.abs(old.astype(np.int16) - new)
    return {"same": not apart.any(), "pixels": old.shape[0] * old.shape[1],
            "differing": int(apart.any(axis=2).sum()), "largest": int(apart.max()),
            "mean": round(float(apart.mean()), 3)}


def _in_words(comparison: dict[str, Any]) -> str:
    if "size" in comparison:
        return "different: the picture is {} x {} pixels, the new one {} x {}".format(
            *comparison["size"], *comparison["drawn"])
    if comparison["same"]:
        return f"identical: all {comparison['pixels']:,} pixels are the same"
    return (f"different: {comparison['differing']:,} of {comparison['pixels']:,} pixels, by up to "
            f"{comparison['largest']} of 255 grey levels, {comparison['mean']:g} on average")
