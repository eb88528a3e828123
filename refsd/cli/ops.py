"""`refsd ops`: the ops and their backends; one of them in full; why a convolution is done so."""

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from refsd.arguments import FLOATS
from refsd.backends import BACKENDS, choose_backend
from refsd.cli.arguments import Parser, choice
from refsd.cli.report import result, result_json
from refsd.errors import UsageError
from refsd.pipelines.request import check_choice
from refsd.registry import Op, kernels, ops

ABOUT = """\
List the ops of refsd and the backends that compute them.

    refsd ops show conv2d        formula, contract, where its functions are
    refsd ops why conv2d 2x320x64x64 320x320x3x3 --padding 1
                                 which algorithm a convolution takes, and why:
                                 shapes of picture and kernel, as N x C x H x W
                                 and O x C/groups x kH x kW
    refsd ops why linear 2x4096x320 1280x320 --backend cuda --capability 80
                                 which kernel a GPU of compute capability 8.0
                                 takes, for the shapes of the op's arrays; needs
                                 no GPU. Norms take the shape of x alone"""
ANSWERS = ("list", "show", "why")


def parser() -> Parser:
    """The options of ops."""
    parser = Parser("refsd ops [show OP | why OP SHAPE ...] [options]", ABOUT)
    add = parser.add_argument
    add("action", nargs="?", default="list", help=argparse.SUPPRESS)
    add("op", metavar="OP", nargs="?", help="the name of an op")
    add("picture", metavar="PICTURE", nargs="?", help="shape of the picture: 2x320x64x64")
    add("kernel", metavar="KERNEL", nargs="?", help="shape of the weights: 320x320x3x3")
    add("values", metavar="VALUES", nargs="?", help="attention on a GPU: the shape of v")
    pair = "N, or vertical x horizontal: 2x1"
    add("--stride", type=_numbers(1, 2), metavar="N", default=1, help=pair)
    add("--padding", type=_numbers(1, 2, 4), metavar="N", default=0,
        help=f"{pair}, or top x bottom x left x right")
    add("--dilation", type=_numbers(1, 2), metavar="N", default=1, help=pair)
    add("--groups", type=_numbers(1), metavar="N", default=1, help="groups of channels (1)")
    add("--dtype", type=choice(*FLOATS), metavar="NAME", default="float32",
        help=f"{', '.join(FLOATS)} (float32)")
    add("--backend", metavar="NAME", default="auto", help=f"auto, {', '.join(BACKENDS)}")
    add("--exact", action="store_true", help="as it is chosen with refsd --exact")
    add("--capability", type=int, metavar="NN", help="of a GPU, 80 for 8.0; default: the one here")
    add("--heads", type=int, metavar="N", default=8, help="of attention (8)")
    add("--masked", action="store_true", help="attention has a mask")
    add("--axis", type=int, metavar="N", default=-1, help="of softmax (-1)")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """List, show or explain."""
    check_choice("ops", options.action, ANSWERS)
    needed = {"list": (), "show": ("op",), "why": ("op", "picture", "kernel")}[options.action]
    if options.action == "why" and _of_gpu(options):
        needed = ("op", "picture", *(name for name in ("kernel", "values")
                                     if getattr(options, name) is not None))
    for name in ("op", "picture", "kernel", "values"):
        word = getattr(options, name)
        if (word is not None) != (name in needed):
            raise UsageError(f"ops {options.action}: " + (f"{name.upper()} is missing" if not word
                                                          else f"{word!r} is one too many")
                             + ". See refsd ops --help")
    if options.op is not None:
        check_choice("ops: the op", options.op, tuple(ops()))
    {"list": _list, "show": _show, "why": _why}[options.action](options)
    return 0


def _list(options: argparse.Namespace) -> None:
    summaries = [_summary(op) for op in ops().values()]
    if options.json:
        result_json(summaries)
        return
    for op in summaries:
        result(f"{op['name']}{op['signature']}   [{', '.join(op['kernels'])}]")
        result(f"    {op['summary']}")


def _summary(op: Op) -> dict[str, Any]:
    """Name, signature, first line of the docstring, and where each backend's function is."""
    return {"name": op.name, "signature": str(op.signature),
            "summary": inspect.getdoc(op.definition).partition("\n")[0],
            "kernels": {backend: source_location(function)
                        for backend, function in kernels(op.name).items()}}


def source_location(function: Any) -> str:
    """Where a function is, as FILE:LINE from the folder that holds refsd."""
    function = inspect.unwrap(function)
    file = Path(inspect.getsourcefile(function))
    root = Path(__file__).parents[2]
    return f"{file.relative_to(root).as_posix()}:{inspect.getsourcelines(function)[1]}"


def _show(options: argparse.Namespace) -> None:
    op = ops()[options.op]
    declared = inspect.getsource(op.definition).partition("def ")[0].rstrip()
    summary = {**_summary(op), "docstring": inspect.getdoc(op.definition), "contract": declared}
    if options.json:
        result_json(summary)
        return
    result(f"{op.name}{op.signature}\n")
    result("\n".join(f"    {line}".rstrip() for line in summary["docstring"].splitlines()) + "\n")
    result(f"{'definition':<12} {summary['kernels']['numpy']}")
    for backend, where in summary["kernels"].items():
        if backend != "numpy":
            result(f"{backend:<12} {where}")
    result(f"{'contract':<12} what is refused, and the result's shape and cost:\n")
    result(declared)


def _of_gpu(options: argparse.Namespace) -> bool:
    """Whether the answer is a kernel: a convolution has an algorithm, on every backend."""
    if options.capability is not None and options.backend != "cuda":
        raise UsageError("ops why: --capability is of a GPU; give --backend cuda too")
    return options.backend == "cuda" and (options.op != "conv2d" or options.capability is not None)


def _why_gpu(options: argparse.Namespace) -> None:
    from refsd.numba_ops.cuda.why import explain

    if options.capability is None:
        choose_backend("cuda")  # or it says why not
        from refsd.numba_ops.cuda.device import current

        options.capability = current().capability
    shapes = [_shape(name.upper(), text) for name in ("picture", "kernel", "values")
              if (text := getattr(options, name)) is not None]
    chosen = {"conv2d": ("stride", "padding", "dilation", "groups"), "group_norm": ("groups",),
              "attention": ("heads", "masked"), "softmax": ("axis",)}.get(options.op, ())
    given = {name: getattr(options, name) for name in chosen}
    if options.op.endswith("_norm"):
        given["eps"] = 1e-5  # no rule looks at it
    choice = explain(options.op, shapes, dtype=options.dtype, capability=options.capability,
                     **given)
    if options.json:
        result_json({**choice._asdict(), "output": choice.output._asdict()})
        return
    constants = ", ".join(map(str, choice.constants))
    result(f"{choice.kernel}({constants}) on a GPU of capability {choice.capability / 10}: "
           f"{choice.why}")
    parts = f", each sum in {choice.pieces} pieces" if choice.pieces > 1 else ""
    result(f"The result is {' x '.join(map(str, choice.output.shape))}{parts}; by the definition "
           f"{choice.output.flops / 1e9:,.2f} GFLOP.")


def _why(options: argparse.Namespace) -> None:
    if _of_gpu(options):
        _why_gpu(options)
        return
    if options.op != "conv2d":
        raise UsageError(f"ops why: {options.op} has one algorithm on each backend; only conv2d "
                         "has a choice: ask about that, or about a kernel, with --backend cuda")
    from refsd.algorithms import explain_conv2d
    from refsd.contracts import Spec

    x, weight = (Spec(_shape(name, text), options.dtype) for name, text in
                 (("PICTURE", options.picture), ("KERNEL", options.kernel)))
    choice = explain_conv2d(
        x, weight, backend=choose_backend(options.backend), exact=options.exact,
        stride=options.stride, padding=options.padding, dilation=options.dilation,
        groups=options.groups)
    if options.json:
        result_json({**choice._asdict(), "output": choice.output._asdict(),
                     "costs": [cost._asdict() for cost in choice.costs]})
        return
    result(f"{choice.algorithm} on {choice.backend}: {choice.why}")
    shape = " x ".join(map(str, choice.output.shape))
    result(f"The result is {shape}; by the definition {choice.output.flops / 1e9:,.2f} GFLOP.\n")
    result(f"{'algorithm':<12}{'multiplications':>19}{'MB of weights':>16}")
    for cost in choice.costs:
        numbers = f"{'does not fit':>19}" if cost.multiplications is None else (
            f"{cost.multiplications:>19,}{cost.weight_bytes / 1e6:>16,.2f}")
        result(f"{cost.algorithm:<12}{numbers}" + (" <-" if cost.algorithm == choice.algorithm
                                                   else ""))


def _shape(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text, re.ASCII):
        raise UsageError(f"ops why: {name} is {text[:40]!r}; give a shape such as 2x320x64x64")
    return tuple(map(int, text.split("x")))


def _numbers(*counts: int):
    """The type of an option that is one number, or two or four joined by x, as F.conv2d has it."""

    def read(text: str) -> Any:
        if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text, re.ASCII) or (
                len(text.split("x")) not in counts):
            wanted = " or ".join("x".join(["N"] * count) for count in counts)
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give {wanted}")
        sizes = tuple(map(int, text.split("x")))
        return {1: sizes[0], 2: sizes, 4: (sizes[:2], sizes[2:])}[len(sizes)]

    return read
