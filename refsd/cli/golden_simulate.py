"""`refsd golden simulate`: a model in bf16, fp16, fp8 and others, emulated in float64."""

import argparse
import math
from contextlib import ExitStack
from typing import Any

from refsd.cli.arguments import Parser, integer
from refsd.cli.progress import Progress
from refsd.cli.report import one_line, result, result_json

PROMPT = "a glossy red sphere left of a small blue cube"
ABOUT = """\
Run a model with the roundings of another number format, before there is any
hardware: how far each layer stays from the largest number, which overflows
first, what the picture loses, and which part of the model costs most of it.

    refsd golden simulate --format fp16
    refsd golden simulate --format fp8_e4m3 --scope conv2d linear --rank layers
    refsd golden simulate --format bf16 --accumulate bf16 --scope "unet/*"

Formats: tf32, fp16, bf16, fp8_e4m3, fp8_e5m2, bfloat8_b (16 numbers share an
exponent), int8 (weights). docs/tolerances.md says what is emulated and what not."""
SHOWN = 12


def parser() -> Parser:
    """The options of golden simulate."""
    parser = Parser("refsd golden simulate --format NAME [options]", ABOUT)
    add = parser.add_argument
    add("prompt", metavar="PROMPT", nargs="?", default=PROMPT, help="what to draw")
    add("--format", metavar="NAME", required=True, help="bf16, fp16, tf32, fp8_e4m3, ...")
    add("--accumulate", metavar="NAME", default="float32",
        help="the format of sums inside an op (float32)")
    add("--scope", metavar="NAME", nargs="+", default=[],
        help="ops, or patterns of names as in packs but without the step: unet/up_blocks.*")
    add("--rank", metavar="PARTS", default="blocks",
        help="rank blocks or layers by what each alone in the format does, a run for each; or "
             "none (blocks)")
    add("-m", "--model", metavar="PATH", help="a folder, file or hub id (the bundled model)")
    add("--steps", type=integer, metavar="N", default=1, help="denoising steps (1)")
    add("--seed", type=integer, metavar="N", default=0, help="of the initial noise (0)")
    add("-W", "--width", type=integer, metavar="N", help="pixels (what the model was made for)")
    add("-H", "--height", type=integer, metavar="N", help="pixels (what the model was made for)")
    add("--cfg-scale", type=float, metavar="X", default=5.0, help="guidance (5)")
    add("--all", action="store_true", help="show every layer and part")
    return parser.answering(quiet="no word on the work")


def run(options: argparse.Namespace) -> int:
    """Simulate, and say what came of it."""
    from refsd.golden.recording.request import Request, load_truth
    from refsd.golden.tolerances.precision import arithmetic_of
    from refsd.golden.tolerances.simulate import UNITS, simulate
    from refsd.pipelines.request import check_choice

    check_choice("--rank", options.rank, (*UNITS, "none"))
    arithmetic_of(options.format, options.accumulate)  # refuses what does not exist
    pipe = load_truth(options.model)
    request = Request(
        prompt=options.prompt, steps=options.steps, seed=options.seed,
        width=options.width or pipe.default_size, height=options.height or pipe.default_size,
        cfg_scale=options.cfg_scale, scheduler=pipe.scheduler.config.plain())
    request.check(pipe)
    with ExitStack() as stack:
        bars: list[Progress] = []

        def on_run(done: int, of: int) -> None:
            if not bars:
                show = not (options.quiet or options.json)
                bars.append(stack.enter_context(Progress(of, "ranking", show=show)))
            bars[0].step()

        simulation = simulate(pipe, request, options.format, accumulate=options.accumulate,
                         scope=options.scope, on_run=on_run,
                         rank=None if options.rank == "none" else options.rank)
    if options.json:
        result_json(_plain(simulation))
    else:
        _show(simulation, options)
    return 0


def _plain(run: Any) -> dict[str, Any]:
    layers = [{**layer._asdict(), "margin": layer.margin if math.isfinite(layer.margin) else None}
              for layer in run.layers]
    ranking = None if run.ranking is None else [part._asdict() for part in run.ranking]
    return {**run._asdict(), "layers": layers, "ranking": ranking}


def _show(run: Any, options: argparse.Namespace) -> None:
    result(f"{run.format}, sums in {run.accumulate}; relative errors (root mean squares):")
    for name, error in run.errors.items():
        result(f"    {name:<30}{error:>12.3g}")
    if run.first_overflow is None:
        result("Nothing overflows.")
    else:
        count = sum(layer.overflows > 0 for layer in run.layers)
        result(one_line(f"{run.first_overflow} is the first that overflows, of {count} layers "
                        "(cut off here, so that the run goes on)."))
    result(f"\n{'largest':>12}{'margin':>12}  nearest to the largest number of {run.format}")
    for layer in run.layers if options.all else run.layers[:SHOWN]:
        over = f", {layer.overflows:,} overflow" if layer.overflows else ""
        result(one_line(f"{layer.largest:>12.4g}{layer.margin:>12.4g}  {layer.name} "
                        f"({layer.op}){over}"))
    if run.ranking is None:
        return
    result(f"\n{'latents':>12}{'picture':>12}  relative error with this part alone in "
           f"{run.format}")
    for part in run.ranking if options.all else run.ranking[:SHOWN]:
        result(one_line(f"{part.latents:>12.3g}{part.picture:>12.3g}  {part.name}"))
