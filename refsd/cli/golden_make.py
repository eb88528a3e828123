"""`refsd golden make`: run the reference in float64 and record it as a golden pack."""

import argparse
import os
import time
from pathlib import Path

from refsd.cli import draw, farming, golden_cases
from refsd.cli.arguments import Parser, fraction, integer
from refsd.cli.report import Warnings, note, result, result_json
from refsd.errors import UsageError
from refsd.pipelines.request import check_choice, check_integer

SPREAD = 3
PROMPT = "a glossy red sphere left of a small blue cube"
ABOUT = """\
Draw a picture with the reference in float64, on one thread of BLAS so that the
same pack comes of every machine like this one, and record it for those who port.

    refsd golden make -o pack "a red cone" --level 2
    refsd golden make -o packs --suite golden/suites/bundled.json
    refsd golden make -o ops --ops
    refsd golden make -o mine --ops --cases my-unet.onnx

Levels: 0 tokens, embeddings, final latents, picture; 1 also the noise and every
step's latents and predictions; 2 also every block's output; 3 every op with its
inputs; 4 also the scores and probabilities of the attentions that are named."""
MORE = "docs/golden-make.md says more, and golden/README.md what a pack is."


def parser() -> Parser:
    """The options of drawing a picture, and what is recorded of it."""
    parser = Parser("refsd golden make -o FOLDER [PROMPT] [options]", ABOUT, epilog=MORE)
    draw.add_picture(parser, seed=" (0)")
    group = parser.add_argument_group("what to record")
    add = group.add_argument
    add("-o", "--output", metavar="FOLDER", help="a new folder, or an empty one")
    add("--level", type=integer, metavar="N", help="0 to 4 (1, or what the suite says)")
    add("--suite", metavar="FILE", help="a JSON file of prompts: a pack each, and an index")
    add("--ops", action="store_true", help="no model: every op alone, on hard inputs")
    add("--text", action="store_true", help="PROMPT continued by a GPT-2, likeliest tokens first")
    add("--tokens", metavar="N", type=integer, help="with --text: so many more tokens (8)")
    add("--record-steps", metavar="LIST", type=_steps, default=(0,),
        help="from level 2 on: the steps whose UNet calls are opened, as 0,5,10-12 or all (0)")
    add("--include", metavar="PATTERN", action="append", default=[],
        help="only tensors of such names, as unet/*/mid_block.*; may be repeated")
    add("--exclude", metavar="PATTERN", action="append", default=[], help="none of such names")
    add("--op", metavar="NAME", help="only results of this op")
    add("--family", metavar="NAME", help="with --ops: only those of a file of refsd/ops, as norm")
    golden_cases.add_options(group)
    add("--attention", metavar="PATTERN", action="append", default=[],
        help="at level 4: attentions to open, as *mid_block*attn2*; all of SD 1.5 are 2.7 GB")
    add("--shard", metavar="I/N", type=fraction, default=(1, 1),
        help="the I-th of N parts: of a suite's packs, which take about the same time, or of a "
        "run's tensors")
    farming.add_option(add, "a suite's packs")
    add("--resume", action="store_true", help="go on with what was interrupted")
    add("--no-tolerances", action="store_true",
        help="do not work out what a port may differ by, op by op")
    add("--spread", type=integer, metavar="RUNS", default=SPREAD,
        help="runs with other roundings, for each format, that measure how far a network spreads "
        "them; 0 for none, as comparing ops alone needs (3)")
    add("--spread-formats", metavar="LIST", default="float32,bfloat16",
        help="the formats of these runs, as float32,float16 (float32,bfloat16)")
    # What drawing asks and recording does not: the truth is always computed the same way.
    own = {action.dest for action in parser._actions}
    drawing = vars(draw.parser().parse_args([])).items()
    parser.set_defaults(**{key: value for key, value in drawing if key not in own}
                        | {"seed": 0, "backend": "numpy", "dtype": "float64", "exact": True})
    return parser.answering(quiet="no word on the work", group=group)


def _steps(text):
    """0,5,10-12 -> (0, 5, 10, 11, 12); all -> None"""
    if text == "all":
        return None
    steps = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 1000):
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give numbers from 0 to 999 such "
                                             "as 0,5,10-12, or all")
        steps.update(range(int(first), int(last) + 1))
    return tuple(sorted(steps))


def run(options: argparse.Namespace) -> int:
    """Record, and say what is there."""
    _check(options)
    with Warnings(show=not options.json) as warnings:
        begun = time.perf_counter()
        made = (_ops if options.ops else _text if options.text else _runs)(options)
        seconds = round(time.perf_counter() - begun, 3)
        if options.json:
            result_json({"packs": made, "seconds": seconds, "warnings": warnings.said})
            return 0
        for pack in made:
            result(f"{pack['folder']} ({pack['tensors']} tensors, {pack['bytes'] / 1e6:.1f} MB)")
        if not options.quiet:
            note(f"refsd: {len(made)} {'pack' if len(made) == 1 else 'packs'} in {seconds:.1f} s")
    return 0


def _check(options):
    """Everything that can be refused before a model is read."""
    if options.output is None:
        raise UsageError("there is no folder for the pack. Give one with -o")
    prompted = options.words is not None or options.prompt is not None
    if options.tokens is not None and not options.text:
        raise UsageError("--tokens is for --text: give both, or leave it out")
    if options.text and (options.suite or options.ops or not prompted):
        raise UsageError("--text records a prompt's continuation: give a prompt, and neither "
                         "--suite nor --ops")
    golden_cases.check(options)
    if options.ops and (options.suite or prompted):
        raise UsageError("--ops records no model: leave out the prompt and --suite")
    if options.suite and prompted:
        raise UsageError("the prompts are in the suite: leave out the other one")
    if not prompted:
        options.words = PROMPT
    farming.check(options)
    if options.dask is not None and options.suite is None:
        raise UsageError("--dask deals out the packs of a --suite: give one, or leave it out")
    if options.level is not None:
        check_integer("--level", options.level, 0, 4)
    options.loaded = None
    if options.suite:
        from refsd.golden.recording.suites import read_suite

        options.loaded = read_suite(options.suite)
        options.model = options.loaded.model if options.model is None else options.model
    if options.spread != 0:
        check_integer("--spread (0 for none)", options.spread, 2, 1000)
    options.spread_formats = _formats(options.spread_formats)
    if options.attention and options.level != 4:
        raise UsageError("--attention is for --level 4: give both, or leave it out")
    draw.check(options)
    if options.family is not None:
        from refsd.golden.recording.cases import families

        if not options.ops:
            raise UsageError("--family is for --ops: give both, or leave it out")
        check_choice("--family", options.family, families())
    if options.op is not None:
        from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
        from refsd.registry import ops

        check_choice("--op", options.op, sorted(
            ops() if options.ops else {*ops(), *PIPELINE_OPS, "block"}))


def _formats(text):
    from refsd.golden.tolerances.formats import format_named

    return tuple(format_named(name).name for name in text.split(","))


def _ops(options):
    from refsd.cli import golden_run
    from refsd.golden.recording.cases import make_ops

    if options.cases is not None:
        manifest, left = golden_cases.run(options, golden_run.tolerance(options))
        return [golden_run.made(options.output, manifest) | {
            "left_out": [one._asdict() for one in left]}]
    manifest = make_ops(options.output, op=options.op, family=options.family,
                        resume=options.resume, tolerance=golden_run.tolerance(options))
    return [golden_run.made(options.output, manifest)]


def _text(options):
    from refsd.cli import golden_run
    from refsd.golden.recording.text import TextRequest

    request = TextRequest(options.words if options.prompt is None else options.prompt,
                          tokens=8 if options.tokens is None else options.tokens)
    pipe = request.load(options.model, variant=options.variant, download=options.download)
    options.about_model = request.model_of(pipe, options.model, variant=options.variant)
    level = 1 if options.level is None else options.level
    return [golden_run.record(pipe, options, options.output, request, level)]


def _runs(options):
    from refsd.cli import golden_run
    from refsd.golden.recording.suites import write_index

    suite = options.loaded
    named = [run.get("sampler") for run in suite.runs] if suite else []
    sampler = next(filter(None, [options.sampler, *named]), None)
    if suite is None:
        pipe = golden_run.load(options, sampler)
        level = 1 if options.level is None else options.level
        request = golden_run.request_of(pipe, options, {})
        return [golden_run.record(pipe, options, options.output, request, level)]

    level = suite.level if options.level is None else options.level
    if options.dask is not None:
        from refsd.cli import units_packs

        Path(options.output).mkdir(parents=True, exist_ok=True)
        try:
            return units_packs.run(options, level, sampler)
        finally:  # what is there, and what is to come
            write_index(Path(options.output), suite)
    pipe = golden_run.load(options, sampler)
    requests = [golden_run.request_of(pipe, options, run) for run in suite.runs]
    mine = _dealt(pipe, requests, options.shard)
    options.shard = (1, 1)
    made = [golden_run.record(pipe, options, os.path.join(options.output, suite.runs[i]["name"]),
                              requests[i], level, suite.runs[i]["name"]) for i in mine]
    write_index(Path(options.output), suite)
    return made


def _dealt(pipe, requests, shard):
    """Which of the requests are this machine's."""
    from refsd.cli.costs import Costs
    from refsd.farm.shards import deal

    if shard == (1, 1):
        return range(len(requests))
    costs = Costs(pipe)
    return deal([costs.calling(request, request.check(pipe)) for request in requests],
                shard[1])[shard[0] - 1]
