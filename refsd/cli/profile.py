"""`refsd profile`: where the time of a generation goes, by stage, op, block, layer and shape."""

import argparse
import json
from typing import Any

from refsd.backends import find_backend
from refsd.cli import draw, output, threads
from refsd.cli.arguments import Parser, integer
from refsd.cli.recipe import Recipe
from refsd.cli.report import Warnings, note, one_line, result, result_json
from refsd.cli.session import Session
from refsd.pipelines.request import check_integer

NO_LAYER = "(before the first layer)"  # of a step or a stage
PROMPT = "a glossy red sphere left of a small blue cube"
ABOUT = """\
Draw a picture and show where the time went: by stage and step, by op, by block
and layer of the models, and by the shapes of the calls. One step is drawn before,
so that compiling is not counted. The picture is not kept."""


def parser() -> Parser:
    """The options of profile: those of drawing that decide the pixels, and its own."""
    parser = Parser("refsd profile [PROMPT] [options]", ABOUT)
    draw.add_request(parser)
    add = parser.add_argument_group("what to show").add_argument
    add("--top", type=integer, metavar="N", default=12, help="rows of each long table (12)")
    add("--trace", metavar="FILE",
        help="also write a Chrome trace, .json, for chrome://tracing or ui.perfetto.dev")
    add("--json", action="store_true", help="all tables (and any error) as JSON on stdout")
    add("-q", "--quiet", action="store_true", help="no word on the work")
    add("-v", "--verbose", action="store_true", help="every step; tracebacks of errors")
    # What drawing asks and profile does not.
    defaults = vars(draw.parser().parse_args([])) | {"disable_image_metadata": True, "seed": 0}
    parser.set_defaults(**defaults)
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw, and show the tables."""
    check_integer("--top", options.top, 1, 10**6)
    if options.words is None and options.prompt is None:
        options.words = PROMPT
    prompt, _ = draw.check(options)
    if options.trace is not None:
        output.try_out(options.trace, (".json",))
    with Warnings(show=not options.json) as warnings, threads.limited(options.threads):
        from refsd import profiling
        from refsd.cli import drawing
        from refsd.profiling.tables import tables
        from refsd.profiling.trace import trace

        chatty = not (options.quiet or options.json)
        session = Session(options, chatty)
        recipe = session.recipe(options, prompt)
        if chatty:
            calls = drawing.calls(session.pipe, recipe.steps)
            note(f"refsd: a step to warm up, then {calls} steps")
        with drawing.tuned(recipe):  # also while the tables ask for the algorithms
            measured = _draw(profiling, session.pipe, recipe)
            about = _about(recipe, measured)
            shown = {**about, **tables(measured)}
            traced = None if options.trace is None else trace(measured, about=about)
        if traced is not None:
            data = json.dumps(traced).encode()
            output.save(data, output.Target(options.trace), "The trace")
        if options.json:
            result_json({**shown, "trace": options.trace, "warnings": warnings.said})
        else:
            _show(shown, options)
    return 0


def _draw(profiling: Any, pipe: Any, recipe: Recipe) -> Any:
    """The recipe's picture, as drawing.draw has it."""
    from refsd.random.by_name import GENERATORS

    pipe.make_generator = GENERATORS[recipe.rng]
    pipe.check_finite = not recipe.allow_nonfinite
    return profiling.profile(
        pipe, recipe.prompt, negative_prompt=recipe.negative_prompt, clip_skip=recipe.clip_skip,
        num_inference_steps=recipe.steps, guidance_scale=recipe.cfg_scale, generator=recipe.seed,
        height=recipe.height, width=recipe.width, guidance_rescale=recipe.guidance_rescale,
        eta=recipe.eta)


def _about(recipe: Recipe, measured: Any) -> dict[str, Any]:
    return {"model": recipe.model["name"], "width": recipe.width, "height": recipe.height,
            "sampler_steps": recipe.steps, "backend": recipe.backend, "dtype": recipe.dtype,
            "exact": measured.exact, "threads": recipe.threads, "versions": recipe.versions}


def _show(report: dict[str, Any], options: argparse.Namespace) -> None:
    result(one_line(
        f"{report['model']}, {report['width']} x {report['height']}, {report['backend']}"
        f"{' exact' if report['exact'] else ''}, {report['dtype']}, {report['threads']} threads: "
        f"{report['seconds']:.3f} s"))
    _show_stages(report, options.verbose)
    _table("by op", report["ops"], "op", len(report["ops"]))
    _table("by block", report["blocks"], "block", options.top)
    _table("by layer", report["layers"], "layer", options.top,
           of=lambda row: f"{row['layer'] or NO_LAYER} {row['op']}")
    _table("by call, the slowest", report["calls"], "call", options.top, of=_call)
    often = sorted(report["calls"], key=lambda row: -row["calls"])
    _table("by call, the most frequent", often, "call", min(options.top, 5), of=_call)


def _call(row: dict[str, Any]) -> str:
    algorithm = f" [{row['algorithm']}]" if row["algorithm"] else ""
    return f"{row['op']} {row['call']}{algorithm}"


def _show_stages(report: dict[str, Any], each: bool) -> None:
    result(f"\n{'by stage':<24}{'s':>9}{'share':>8}{'calls':>8}{'in ops':>10}{'outside':>10}"
           f"{'profiling':>11}")
    rows = list(report["stages"])
    if each:
        rows[-1:-1] = report["steps"]
    for row in rows:
        result(f"{row['name']:<24}{row['seconds']:>9.3f}{row['share']:>8.1%}{row['calls']:>8}"
               f"{row['in_ops']:>10.3f}{row['outside']:>10.3f}{row['profiling']:>11.3f}")
    times = sorted(row["seconds"] for row in report["steps"])
    result(f"a step: median {times[len(times) // 2]:.4f} s, {times[0]:.4f} to {times[-1]:.4f} "
           f"({len(times)} steps)")
    if find_backend(report["backend"]).layout_copies() is not None:
        copies = {row["name"]: row["layout_copies"] for row in report["stages"]}
        where = [f"{row['layout_copies']} by {row['op']}" for row in report["ops"]
                 if row["layout_copies"]]
        result(f"layout copies: {', '.join(f'{name} {n}' for name, n in copies.items())}"
               + (f" ({', '.join(where)})" if where else ""))


def _table(title: str, rows: list[dict], key: str, count: int, of: Any = None) -> None:
    names = [one_line((of(row) if of else row[key]) or NO_LAYER, 100)
             for row in rows[:count]]
    width = max(24, *map(len, names))
    result(f"\n{title:<{width}}{'s':>9}{'share':>8}{'calls':>8}{'ms each':>10}{'GFLOP/s':>10}"
           f"{'GB/s':>8}")
    for name, row in zip(names, rows):
        result(f"{name:<{width}}{row['seconds']:>9.3f}{row['share']:>8.1%}{row['calls']:>8}"
               f"{1e3 * row['seconds'] / row['calls']:>10.3f}{row['gflop_per_second']:>10.1f}"
               f"{row['gb_per_second']:>8.1f}")
    if len(rows) > count:
        result(f"... and {len(rows) - count} more")
