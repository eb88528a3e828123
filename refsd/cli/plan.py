"""`refsd plan`: what a drawing costs and whether it fits, without weights."""

import argparse
import re
import textwrap
from dataclasses import asdict
from typing import Any

from refsd.backends import BACKENDS, find_backend
from refsd.cli.arguments import Parser, choice, integer, number
from refsd.cli.draw import DTYPES, FORMS, OFFLOADS
from refsd.cli.report import gib, one_line, result, result_json
from refsd.cli.tiling import TILINGS
from refsd.errors import UsageError
from refsd.families import short_names
from refsd.pipelines.request import check_integer, check_side, free_bytes

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
ABOUT = """\
Say what a drawing costs before anything is loaded or downloaded: parameters,
FLOPs of one call and of the whole drawing, the memory that it takes at its peak,
and whether it fits here or which option would make it fit.

    refsd plan -m {first} -W 768 -H 768
    refsd plan -m {last} --dtype bfloat16 --budget 8GiB

Published models have a short name and need no file:
{names}.
Of a folder or a file the configs and headers alone are read. What a model is made
of, and what it lacks, says refsd models."""


def parser() -> Parser:
    """The options of plan."""
    names = short_names()
    found = Parser("refsd plan -m MODEL [options]", ABOUT.format(
        names=textwrap.fill(", ".join(names), 78), first=names[0], last=names[-1]))
    add = found.add_argument
    add("-m", "--model", metavar="MODEL", help="a short name, a folder, a .safetensors or .gguf "
        f"file, an id in the local hub cache, bundled ({names[0]})")
    add("-W", "--width", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-H", "--height", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-b", "--batch", type=integer, metavar="N", default=1,
        help="pictures at once: num_images_per_prompt of the Python API (1)")
    add("--steps", type=integer, metavar="N", default=20, help="denoising steps (20)")
    add("--cfg-scale", type=number, metavar="X", default=7.0,
        help="up to 1 the model is asked once a step, above it twice (7)")
    add("--dtype", type=choice(*DTYPES), metavar="NAME", default="float32",
        help=f"{', '.join(DTYPES)} (float32)")
    add("--weights", type=choice(*FORMS), metavar="NAME",
        help=f"how they are held, if smaller: {', '.join(FORMS)}")
    add("--backend", metavar="NAME", default="auto", help=f"auto, {', '.join(BACKENDS)}")
    add("--vae-tiling", type=choice(*TILINGS), metavar="NAME", default="auto",
        help=f"how the VAE works: {', '.join(TILINGS)} (auto)")
    add("--without", metavar="PART",
        help="a part to leave out that the model may lack, such as text_encoder_3")
    add("--offload", type=choice(*OFFLOADS[:-1]), metavar="NAME", default="none",
        help=f"when weights are in memory: {', '.join(OFFLOADS[:-1])} (none)")
    add("--budget", metavar="SIZE", help="the memory that there is to be, such as 4GiB or 800MiB "
        "(default: what this machine has free)")
    return found.answering()


def run(options: argparse.Namespace) -> int:
    """Show it. A drawing that does not fit is an answer too, not an error."""
    check_integer("--batch", options.batch, 1, 1000)
    check_integer("--steps", options.steps, 1, 1000)
    for name in ("width", "height"):
        if (side := getattr(options, name)) is not None:
            check_side(f"--{name}", side, 8)
    budget = None if options.budget is None else size(options.budget)
    from refsd.pipelines.figures import Request, figures
    from refsd.pipelines.outline import outline

    request = Request(options.width, options.height, options.batch, options.steps,
                      options.cfg_scale > 1, options.dtype, options.weights, options.backend,
                      options.vae_tiling, options.without,
                      None if options.offload == "none" else options.offload)
    found = outline(options.model)
    free = budget
    if free is None:
        free = free_bytes(find_backend(options.backend).name)
    planned = figures(found, request, free=free)
    if options.json:
        result_json(record(planned))
    else:
        show(planned, given=budget is not None)
    return 0


def size(text: str, option: str = "--budget") -> int:
    """Bytes: 4GiB, 4G, 800MiB, or a number. UsageError for another text."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([KMGT]?)(I?B)?", text.upper(), re.ASCII)
    count = float(found[1]) * UNITS[found[2]] if found else 0
    if not 0 < count < 2**60:
        raise UsageError(f"{option} is {text[:40]!r}; give a size such as 4GiB or 800MiB")
    return int(count)


def record(planned: Any) -> dict[str, Any]:
    """The figures as JSON values."""
    shown = asdict(planned)
    request = shown.pop("request")
    choices = {key: [{"options": dict(one.options), "bytes": one.bytes}
                     for one in getattr(planned, key)] for key in ("held", "choices")}
    stages = [{**asdict(stage), "bytes": stage.bytes} for stage in planned.stages]
    shown |= {"stages": stages, "libraries": planned.libraries, "working": planned.working}
    return {**shown, **{key: value for key, value in request.items() if key not in shown},
            "weights": request["weights"], "weight_bytes": planned.weights, **choices,
            "parameters": sum(network.parameters for network in planned.networks),
            "peak": planned.peak, "fits": planned.fits}


def show(planned: Any, *, given: bool) -> None:
    """One screen."""
    asked = planned.request
    size = (f"{planned.width} x {planned.height}"
            f"{f' x {asked.pictures}' if asked.pictures > 1 else ''}, {asked.steps} steps"
            if planned.width else "the longest text")
    result(one_line(
        f"{planned.model}: {planned.family}, {size}, {asked.backend}, {asked.dtype}"
        f"{f', weights {asked.weights}' if asked.weights else ''}"
        f"{f', offload {asked.offload}' if asked.offload else ''}"))
    result(f"\n{'network':<22}{'parameters':>16}{'loaded':>12}")
    for network in planned.networks:
        result(f"{network.part:<22}{network.parameters:>16,}{gib(network.bytes):>12}")
    total = sum(network.parameters for network in planned.networks)
    loaded = sum(network.bytes for network in planned.networks)
    result(f"{'all':<22}{total:>16,}{gib(loaded):>12}")

    result(f"\n{'one call':<17}{'ops':>6}{'GFLOP':>11}{'all results':>13}{'at once':>10}"
           f"{'in an arena':>13}{'workspace':>11}")
    for call in planned.calls:
        result(f"{call.name:<17}{call.ops:>6,}{call.flops / 1e9:>11,.1f}{gib(call.results):>13}"
               f"{gib(call.peak):>10}{gib(call.arena):>13}{gib(call.workspace):>11}")
    flops = planned.flops
    if "drawing" in flops:
        result(f"the drawing: {flops['drawing'] / 1e12:,.2f} TFLOP = texts "
               f"{flops['texts'] / 1e12:,.3f} + {planned.model_calls} steps x "
               f"{flops['step'] / 1e12:,.3f} + decoding {flops['decode'] / 1e12:,.3f}")

    result(f"\n{'peak memory':<34}{'all':>12}")
    for one in planned.held:
        result(f"{one.line:<34}{gib(one.bytes):>12}")
    result(f"\n{'as asked':<17}{'libraries':>12}{'weights':>12}{'read ahead':>12}{'text':>12}"
           f"{'working':>12}{'all':>13}")
    for stage in planned.stages:
        sizes = stage.libraries, stage.weights, stage.ahead, stage.kept, stage.working
        most = "  the peak" if stage is planned.most else ""
        result(f"{stage.name:<17}{''.join(f'{gib(size):>12}' for size in sizes)}"
               f"{gib(stage.bytes):>13}{most}")
    for line in verdict(planned, given=given):
        result(line)


def verdict(planned: Any, *, given: bool) -> list[str]:
    """Whether it fits, and what would."""
    if planned.free is None:
        return ["how much memory is free here is not known: see --budget"]
    where = f"{gib(planned.free)} {'of the budget' if given else 'free here'}"
    if planned.fits:
        return [f"it fits into the {where}"]
    lines = [f"it does not fit into the {where}: {gib(planned.peak - planned.free)} are missing"]
    lines += [f"it would with {one.line}: {gib(one.bytes)}" for one in planned.choices[:4]]
    return lines if planned.choices else [*lines, "no option of refsd makes it fit"]
