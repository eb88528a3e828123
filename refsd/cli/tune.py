"""`refsd tune`: measure which algorithm is the fastest for each convolution of a model, here."""

import argparse
from typing import Any

from refsd.cli import threads
from refsd.cli.arguments import Parser, integer
from refsd.cli.compiling import Compiling
from refsd.cli.report import Warnings, result, result_json
from refsd.pipelines.request import check_integer

ABOUT = """\
Measure every algorithm that a model's convolutions could take in float32, at one
size, and keep the fastest in the cache folder, for these kernels, this processor
and this number of threads. Only refsd --tuned reads it: pictures then differ by
roundings. Convolutions of bfloat16 and float16 keep to the rule."""
SPECTRA = 384 * 1024  # bytes of weights, which FFT keeps, for each output pixel: no more
WORTH = 0.95  # of the rule's time: less than 5 % would be decided by noise


def parser() -> Parser:
    """The options of tune."""
    parser = Parser("refsd tune [options]", ABOUT)
    add = parser.add_argument
    add("-m", "--model", metavar="MODEL", help="as in drawing (default: the model in refsd)")
    add("-W", "--width", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-H", "--height", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-t", "--threads", type=integer, metavar="N", help="threads (all)")
    add("--repeat", type=integer, metavar="N", default=5, help="runs of which the best counts (5)")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Measure, show, keep what beats the rule."""
    check_integer("--repeat", options.repeat, 1, 1000)
    with Warnings(show=not options.json) as warnings, threads.limited(options.threads):
        from refsd.numba_ops.cpu import tuning

        tuning.path()  # refuses before the work
        rows = []
        for shape_key, call in _convolutions(options).items():
            rows.append({"place": shape_key, **_measure(call, options.repeat)})
            if not options.json:
                _show(rows[-1])
        better = {row["place"]: row["fastest"] for row in rows if row["fastest"] != row["rule"]}
        kept = tuning.save(better, measured={row["place"] for row in rows})
    if options.json:
        result_json({"convolutions": rows, "file": str(kept), "warnings": warnings.said})
    else:
        result(f"{len(better)} of {len(rows)} (*) differ from the rule; refsd --tuned reads {kept}")
    return 0


def _convolutions(options: argparse.Namespace) -> dict[str, Any]:
    """Profiled calls by what a choice depends on; of several the one with the most pictures."""
    from refsd.numba_ops.cpu import conv
    from refsd.pipelines.auto import AutoPipelineForText2Image
    from refsd.profiling import profile
    from refsd.registry import make_ready, ops
    from refsd.schedulers import DDIMScheduler

    pipe = AutoPipelineForText2Image.from_pretrained(
        options.model, backend="numba", scheduler=DDIMScheduler())  # any would do
    with Compiling(show=not options.json):
        make_ready("numba", "float32")
    heard = profile(pipe, "", width=options.width, height=options.height, num_inference_steps=1)
    calls = [call for call in heard.calls if call.op == "conv2d"]
    found = {}
    for call in sorted(calls, key=lambda call: call.inputs["x"].shape[0]):
        N, O, H, W = ops()["conv2d"].contract(**call.inputs, **call.options).shape
        stride, dilation = (value if isinstance(value, tuple) else (value, value) for value in (
            call.options["stride"], call.options["dilation"]))
        found[conv.shape_key((N, H, W, O), call.inputs["weight"].shape, stride, dilation,
                         call.options["groups"])] = call
    return found


def _measure(call: Any, repeat: int) -> dict[str, Any]:
    """One convolution by all algorithms that fit."""
    from refsd.algorithms import explain_conv2d
    from refsd.numba_ops.cpu import tuning
    from refsd.profiling.tables import describe

    x, weight = call.inputs["x"], call.inputs["weight"]
    options = {name: value for name, value in call.options.items() if name != "algorithm"}
    found = explain_conv2d(x, weight, backend="numba", **options)
    most = SPECTRA * found.output.shape[2] * found.output.shape[3]
    names = [cost.algorithm for cost in found.costs if cost.weight_bytes is not None
             and (cost.algorithm != "fft" or cost.weight_bytes <= most)]
    seconds = tuning.measure(x, weight, options, names, repeat)
    rule, fastest = found.algorithm, min(seconds, key=seconds.get, default=found.algorithm)
    if rule in seconds and seconds[fastest] > WORTH * seconds[rule]:
        fastest = rule
    return {"convolution": describe(call), "rule": rule, "fastest": fastest, "seconds": seconds,
            "wrong": [name for name in names if name not in seconds]}


def _show(row: dict[str, Any]) -> None:
    times = [f"{name} {1e3 * value:.3f} ms" for name, value in row["seconds"].items()]
    times += [f"{name} is WRONG" for name in row["wrong"]]
    mark = " " if row["fastest"] == row["rule"] else "*"
    result(f"{mark} {row['convolution']:<44} {row['fastest']:<10} {', '.join(times)}")
