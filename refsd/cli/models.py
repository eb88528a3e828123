"""`refsd models PATH`: what a model is made of, part for part, and what it lacks."""

import argparse
from dataclasses import asdict
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import Warnings, gib, one_line, result, result_json
from refsd.errors import ModelError

ABOUT = """\
Say what a model is made of: its family, each part with its class, parameters,
types and bytes on disk, what is missing or wrong, what is not used, the class of
the Python API that draws with it and its own sampler. Configs and headers are
read, no tensors; nothing is drawn.

Of one file as such, refsd info shows types, metadata, or how a picture was made.
What drawing with a model costs in memory and work says refsd plan."""


def parser() -> Parser:
    """The options of models."""
    found = Parser("refsd models [MODEL] [options]", ABOUT)
    found.add_argument("model", metavar="MODEL", nargs="?", help="a folder, a .safetensors or "
                       ".gguf file, or an id in the local hub cache (the model in refsd)")
    found.add_argument("--variant", metavar="NAME",
                       help="which weights of a folder to take, such as fp16")
    return found.answering()


def run(options: argparse.Namespace) -> int:
    """Show it. The exit code is that of drawing with it: 3 where a part is missing or wrong."""
    with Warnings(show=not options.json) as warnings:
        from refsd.pipelines.inventory import inventory

        found = inventory(options.model, variant=options.variant)
    if options.json:
        result_json({**record(found), "warnings": warnings.said})
    else:
        show(found)
    return ModelError.exit_code if found.problems else 0


def record(found: Any) -> dict[str, Any]:
    """It as JSON values."""
    parts = [{**asdict(part), "bytes": part.bytes, "found": part.found} for part in found.parts]
    return {**asdict(found), "parts": parts, "bytes": sum(part.bytes for part in found.parts),
            "parameters": sum(part.parameters for part in found.parts),
            "problems": found.problems}


def show(found: Any) -> None:
    """One screen."""
    result(one_line(f"{found.model}: {found.family}, for refsd.{found.pipeline}"))
    result(f"\n{'part':<18}{'class':<30}{'parameters':>16}{'on disk':>12}  types")
    for part in found.parts:
        if part.found:
            result(one_line(f"{part.part:<18}{part.kind:<30}{part.parameters:>16,}"
                            f"{gib(part.bytes):>12}  {', '.join(part.types)}"))
        else:
            why = "is wrong or missing, see below" if part.problem else "is not there; it may be"
            result(f"{part.part:<18}{why}")
    result(f"{'all':<18}{'':<30}{sum(part.parameters for part in found.parts):>16,}"
           f"{gib(sum(part.bytes for part in found.parts)):>12}")
    result("")
    for name, whose in found.tokenizers.items():
        result(f"{name:<18}{whose}")
    if found.scheduler or found.scheduler_problem:
        result(f"{'scheduler':<18}{found.scheduler or 'none that refsd has, see below'}")
    if found.unused:
        result(one_line(f"{'not used':<18}{', '.join(found.unused)}"))
    for problem in found.problems:
        result(one_line(f"problem: {problem}"))
    if found.problems:
        result("as it is, refsd cannot use it")
