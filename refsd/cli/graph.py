"""`refsd graph`: a network as a graph of ops, without weights: a listing, DOT, JSON or ONNX."""

import argparse
from typing import Any

from refsd.atomic import write_file
from refsd.backends import BACKENDS, find_backend
from refsd.cli.arguments import Parser, choice, integer
from refsd.cli.draw import DTYPES
from refsd.cli.report import one_line, result
from refsd.errors import UsageError
from refsd.families import short_names
from refsd.pipelines.request import check_choice, check_integer, check_side

ABOUT = """\
Show what a network computes, op by op, before anything is loaded or downloaded:
by default a step of the denoiser as lines to read.

    refsd graph -m {first}
    refsd graph -m {first} --part decode -W 256 -H 256 --dot -o decode.dot
    refsd graph -m {first} --passes --backend numba
    refsd graph -m path/to/model --onnx -o unet.onnx

Published models have a short name and need no file: refsd plan --help lists them.
JSON is read back by refsd.graph.read; ONNX, which alone has the model's weights,
needs pip install refsd[onnx]."""


def parser() -> Parser:
    """The options of graph."""
    first = short_names()[0]
    found = Parser("refsd graph -m MODEL [options]", ABOUT.format(first=first))
    add = found.add_argument
    add("-m", "--model", metavar="MODEL", help="a short name, a folder, a .safetensors or .gguf "
        f"file, an id in the local hub cache, bundled ({first})")
    add("--part", metavar="CALL", help="which call: the denoiser's part, text_encoder, decode, "
        "encode; of GPT-2 read, token (the denoiser's)")
    add("-W", "--width", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-H", "--height", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-b", "--batch", type=integer, metavar="N", default=1, help="pictures at once (1)")
    add("--dtype", type=choice(*DTYPES), metavar="NAME", default="float32",
        help=f"{', '.join(DTYPES)} (float32)")
    add("--backend", metavar="NAME", default="auto", help=f"auto, {', '.join(BACKENDS)}")
    add("--without", metavar="PART",
        help="a part to leave out that the model may lack, such as text_encoder_3")
    add("--passes", action="store_true", help="what passes fuse for the backend, where, and where "
        "not and why; --dot and --json then give the graph after them")
    add("--dot", action="store_true", help="in the language of Graphviz")
    add("--onnx", action="store_true", help="as an ONNX model, with -o")
    add("-o", "--output", metavar="FILE", help="where to (stdout)")
    return found.answering("the graph (and any error) as JSON")


def run(options: argparse.Namespace) -> int:
    """Trace it and write it."""
    check_integer("--batch", options.batch, 1, 1000)
    for name in ("width", "height"):
        if (side := getattr(options, name)) is not None:
            check_side(f"--{name}", side, 8)
    if options.dot + options.onnx + options.json > 1:
        raise UsageError("--dot, --onnx and --json are three forms; give one")
    if options.onnx and options.output is None:
        raise UsageError("--onnx writes a file; give -o FILE")
    if options.onnx and options.passes:
        raise UsageError("--onnx writes the graph before its passes: in ONNX a fused op is those "
                         "that it stands for; leave --passes out")
    from refsd.graph import dot, to_json, trace
    from refsd.graph.passes import optimize
    from refsd.pipelines.outline import outline

    found = outline(options.model)
    part, call = _call(found, options)
    graph, said = trace(call), None
    if options.onnx:
        _write_onnx(graph, found, part, options)
        return 0
    if options.passes:
        graph, report = optimize(graph, backend=find_backend(options.backend).name)
        said = "\n".join(map(one_line, [*report.lines(), "{} ops, {} after the passes".format(
            *report.nodes)]))
    text = dot(graph) if options.dot else to_json(graph) if options.json else said or str(graph)
    if options.output is None:
        result(text)
        return 0
    write_file(options.output, [f"{text}\n".encode()])
    result(one_line(f"{options.output}: {len(graph.nodes)} ops"))
    return 0


def _call(found: Any, options: argparse.Namespace) -> tuple[str, Any]:
    """The call of a network that is asked for, and which part that is.

    UsageError names the calls that there are.
    """
    from refsd.pipelines.planned import calls, denoiser_of, planned_networks, sized

    found.family.leaving_out(options.without)
    configs = {part: config for part, config in found.configs.items() if part != options.without}
    networks = planned_networks(configs, backend=find_backend(options.backend).name,
                                dtype=options.dtype)
    asked = sized(networks, pictures=options.batch, width=options.width, height=options.height)
    there = calls(networks, asked)
    denoiser = denoiser_of(networks)[0]
    default = denoiser if denoiser in there else next(iter(there))
    name = default if options.part is None else check_choice("--part", options.part, tuple(there))
    part = name if name in networks else "vae" if "vae" in networks else denoiser
    return part, there[name][0]


def _write_onnx(graph: Any, found: Any, part: str, options: argparse.Namespace) -> None:
    """With the weights, if the model has any."""
    from refsd.graph.onnx import write_onnx

    weights = None
    if found.plans is not None:
        from refsd.weights.checkpoint import load

        weights = load({part: found.plans[part]}, dtype=options.dtype, force=False)[part].tensors
    written = write_onnx(graph, options.output, weights=weights)
    where = "" if written.weights is None else (
        f", without weights, which belong into {written.weights}" if written.missing
        else f", weights in {written.weights}")
    result(one_line(f"{options.output}: {len(graph.nodes)} ops in {written.nodes} nodes of ONNX"
                    f"{where}"))
