"""`refsd warmup`: compile the kernels that a generation needs, before one is wanted."""

import argparse
import time

from refsd.cli.arguments import Parser, choice
from refsd.cli.compiling import Compiling
from refsd.cli.recipe import DTYPES
from refsd.cli.report import Warnings, result, result_json

ABOUT = """\
Compile the kernels that drawing needs and keep them. The first picture does the same
by itself; afterwards nothing is compiled until refsd, Numba or the machine changes."""


def parser() -> Parser:
    """The options of warmup."""
    parser = Parser("refsd warmup [options]", ABOUT)
    add = parser.add_argument
    add("--dtype", type=choice(*DTYPES), metavar="NAME", default="float32",
        help=f"{', '.join(DTYPES)}: of the weights and the arithmetic (float32)")
    return parser.answering(quiet="no progress")


def run(options: argparse.Namespace) -> int:
    """Compile what is missing; say how many kernels that were, how long it took, where they are."""
    chatty = not (options.quiet or options.json)
    with Warnings(show=not options.json) as warnings, Compiling(show=chatty):
        begun = time.perf_counter()
        from refsd.numba_ops.cache import cache_folder
        from refsd.numba_ops.jit import compilations
        from refsd.numba_ops.warmup import make_ready, plan

        make_ready(options.dtype)
        seconds = time.perf_counter() - begun
        kernels, folder = len(plan(options.dtype)), cache_folder()
    if options.json:
        result_json({"kernels": kernels, "compiled": compilations.count, "dtype": options.dtype,
                     "seconds": round(seconds, 3), "cache": folder and str(folder),
                     "warnings": warnings.said})
    else:
        done = f"{compilations.count} compiled" if compilations.count else "nothing to compile"
        result(f"{kernels} kernels are ready, {done}, {seconds:.1f} s; kept in {folder}"
               if folder else f"{kernels} kernels are ready, {done}, {seconds:.1f} s; not kept")
    return 0
