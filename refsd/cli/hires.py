"""--hires-scale: A1111's hires. fix, a second pass over a larger picture."""

import argparse
from dataclasses import replace
from typing import Any

from refsd.cli import variation
from refsd.cli.arguments import Parser, choice, integer, number
from refsd.errors import UsageError
from refsd.pipelines.request import MAX_SIDE, NUMBERS, check_integer, check_number, check_side
from refsd.rules import Rule, only, or_empty, record
from refsd.rules import integer as whole
from refsd.rules import number as real

# A1111's names, as in refsd.pipelines.upscale, which imports NumPy
NAMES = {"latent": "Latent", "latent-antialiased": "Latent (antialiased)",
         "latent-bicubic": "Latent (bicubic)",
         "latent-bicubic-antialiased": "Latent (bicubic antialiased)",
         "latent-nearest": "Latent (nearest)", "latent-nearest-exact": "Latent (nearest-exact)",
         "lanczos": "Lanczos", "nearest": "Nearest"}
LARGEST = 8  # of a scale
FIELDS = {"scale": real(1, LARGEST), "steps": NUMBERS["steps"], "denoising": real(1e-6, 1),
          "upscaler": only(*NAMES), "width": whole(1, MAX_SIDE), "height": whole(1, MAX_SIDE)}
RULE: Rule = or_empty(record(FIELDS))


def add_options(parser: Parser) -> None:
    """The options of the second pass."""
    add = parser.add_argument_group("larger, in a second pass (A1111's hires. fix)").add_argument
    add("--hires-scale", "--hr-scale", type=number, metavar="X",
        help="draw the picture over, X times as large")
    add("--hires-steps", type=integer, metavar="N", help="its steps, all of them (as --steps)")
    add("--hires-denoising", "--hires-denoising-strength", type=number, metavar="X",
        help="how much is drawn over: above 0, up to 1 (0.7)")
    add("--hires-upscaler", type=choice(*NAMES), metavar="NAME",
        help=f"{', '.join(NAMES)} (latent)")


def check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is read."""
    scale = options.hires_scale
    if scale is None:
        for name in ("hires_steps", "hires_denoising", "hires_upscaler"):
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} is for a second pass; give --hires-scale X too")
        return
    check_number("--hires-scale", scale, 1, LARGEST)
    if options.hires_steps is not None:
        check_integer("--hires-steps", options.hires_steps, 1, 1000)
    if options.hires_denoising is not None and check_number(
            "--hires-denoising", options.hires_denoising, 0, 1) == 0:
        raise UsageError("--hires-denoising is 0; give a number above 0, up to 1")
    for other in ("resume", "save_state"):
        if getattr(options, other) is not None:
            raise UsageError(f"--{other.replace('_', '-')} is for a picture of one pass; leave out "
                             "--hires-scale")
    if options.pictures is not None:
        raise UsageError("--hires-scale is for pictures of text alone; leave it out, and give the "
                         "size with --width and --height")


def settle(pipe: Any, options: argparse.Namespace, width: int, height: int) -> dict[str, Any]:
    """What the recipe says of it; {} is one pass. UsageError where the sampler cannot do it."""
    if options.hires_scale is None:
        return {}
    pipe.require("hires")
    scale, factor = float(options.hires_scale), pipe.vae_scale_factor
    sides = [int(side * scale) // factor * factor for side in (width, height)]
    for side in sides:
        check_side(f"--hires-scale {scale:g} makes a side that", side, factor)
    found = {"scale": scale, "steps": options.hires_steps or options.steps,
             "denoising": 0.7 if options.hires_denoising is None else options.hires_denoising,
             "upscaler": options.hires_upscaler or "latent", "width": sides[0], "height": sides[1]}
    calls(pipe, found)
    return found


def calls(pipe: Any, hires: dict[str, Any]) -> int:
    """How many steps the second pass takes."""
    if not hires:
        return 0
    from refsd.cli import drawing
    from refsd.pipelines.hires import schedule_length

    total = schedule_length(hires["steps"], hires["denoising"])
    order = getattr(pipe.scheduler, "order", 1)
    return drawing.calls(pipe, total) - (total - hires["steps"]) * order


def settings(hires: dict[str, Any]) -> dict[str, Any]:
    """What A1111's line says of it."""
    if not hires:
        return {}
    return {"Denoising strength": f"{hires['denoising']:g}", "Hires upscale": f"{hires['scale']:g}",
            "Hires steps": hires["steps"], "Hires upscaler": NAMES[hires["upscaler"]]}


def draw(pipe: Any, recipe: Any, first: Any, on_step: Any) -> Any:
    """The second pass over the latents of the first; times are those of both."""
    from refsd.pipelines.hires import StableDiffusionHiresPipeline

    hires, generator = recipe.hires, pipe.make_generator(recipe.seed)
    larger = replace(recipe, width=hires["width"], height=hires["height"])
    drawn = StableDiffusionHiresPipeline.from_pipe(pipe)(
        recipe.prompt, first.images, larger.height, larger.width, hires["denoising"],
        hires["upscaler"], num_inference_steps=hires["steps"], guidance_scale=recipe.cfg_scale,
        guidance_rescale=recipe.guidance_rescale, eta=recipe.eta, clip_skip=recipe.clip_skip,
        negative_prompt=recipe.negative_prompt,
        generator=recipe.seed if pipe.dialect.reseeds else generator,
        noise=variation.first_latents(pipe, larger, generator), output_type="latent",
        callback_on_step_end=on_step)
    drawn.seconds = {name: value + first.seconds[name] for name, value in drawn.seconds.items()}
    drawn.step_seconds = first.step_seconds + drawn.step_seconds
    return drawn
