"""`refsd quantize`: a model's folder with int8 weights, and what that costs, layer by layer."""

import argparse

from refsd.cli.arguments import Parser, choice, integer
from refsd.cli.report import Warnings, answer
from refsd.errors import UsageError

ABOUT = """\
Write a model's folder with int8 weights, a scale for each output channel, and
measure: each layer's error at its own output, and of the picture's latents.

    refsd quantize -m MODEL -o small
    refsd quantize -m MODEL -o small --keep 'unet.conv_in.*'"""
ROWS = 8


def parser() -> Parser:
    """The options of quantize."""
    parser = Parser("refsd quantize -o FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("-o", "--output", metavar="FOLDER", help="a new or an empty folder")
    add("-m", "--model", metavar="MODEL", help="a folder or a hub id (the bundled model)")
    add("--weights", type=choice("int8"), metavar="NAME", default="int8", help="int8 (int8)")
    add("--keep", metavar="PATTERN", action="append", default=[],
        help="weights that stay float32, such as 'unet.conv_in.*'; may be repeated")
    add("--prompt", metavar="TEXT", default="a photo", help="of the calibration run (a photo)")
    add("--steps", type=integer, metavar="N", default=4, help="its denoising steps (4)")
    add("--worst", type=integer, metavar="N", default=ROWS,
        help="layers whose part in the latents' error is measured, a run each (8)")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write and measure."""
    if options.output is None:
        raise UsageError("there is no folder to write. Give a new one with -o")
    from refsd.pipelines import quantize
    from refsd.pipelines.auto import AutoPipelineForText2Image
    from refsd.pipelines.loading import bundled_model
    from refsd.weights import resolve

    model = bundled_model() if options.model is None else resolve(options.model)
    with Warnings(show=not options.json) as warnings:
        sizes = quantize.write(model, options.output, keep=options.keep)
        pipe = AutoPipelineForText2Image.from_pretrained(model)
        layers, error = quantize.measure(pipe, options.prompt, steps=options.steps,
                                         worst=options.worst, keep=options.keep)
    about = {"weights": options.weights, "keep": options.keep, "prompt": options.prompt,
             "steps": options.steps, "bytes": sizes}
    quantize.write_report(options.output, layers, error, about)
    lines = [f"{layer.name}: its output {layer.own:.2e}"
             + ("" if layer.latents is None else f", the latents {layer.latents:.2e}")
             + (", kept" if layer.kept else "") for layer in layers[:options.worst]]
    return answer(
        options.json, {"folder": options.output, **about, "latents": error,
                       "layers": len(layers), "warnings": warnings.said},
        f"{options.output}: {sum(sizes.values()):,} bytes; latents after {options.steps} steps "
        f"differ by {error:.2e}; {quantize.REPORT} has all {len(layers)} layers", *lines)
