"""`python -m refsd PROMPT`: draw pictures and write them as PNG files."""

import argparse
import os
from collections.abc import Callable

from refsd.backends import BACKENDS, find_backend
from refsd.cli import (
    adapters,
    auditing,
    batch_options,
    compat,
    control,
    embeddings,
    hires,
    output,
    pictures_in,
    preview,
    resuming,
    sampler_names,
    taesd,
    threads,
    tiling,
    variation,
)
from refsd.cli.arguments import Parser, choice, integer, number
from refsd.cli.recipe import DTYPES, FORMS, RNGS
from refsd.cli.report import Warnings, note, result_json
from refsd.cli.session import Session
from refsd.contracts import HALVES
from refsd.errors import UsageError
from refsd.pipelines.request import MAX_PICTURES, check_integer, check_numbers
from refsd.version import __version__

CFG_SCALE = 7.0  # sd-cli's
BUNDLED_CFG_SCALE = 3.0  # where the bundled model was measured to draw best: its model card

ABOUT = """\
Draw a picture of a text (refsd PROMPT does the same). Without --model the small
model that comes with refsd draws little still lifes of 128 x 128 pixels:

    python -m refsd "a glossy red sphere left of a small blue cube"

Other commands: refsd --help."""

MORE = """\
Picture i of a batch has the seed SEED + i and can be drawn alone. Every PNG holds
what it was made with. docs/cli.md says more; exit codes: 0 done, 1 differs, 2 bad
request, 3 bad model, 4 the machine said no (disk, memory), 130 interrupted."""


def parser() -> Parser:
    """The options of drawing."""
    parser = Parser("refsd draw PROMPT [options]", ABOUT, epilog=MORE)
    parser.add_argument("--version", action="version", version=f"refsd {__version__}",
                       help="show the version and stop")
    add_request(parser)
    pictures_in.add_options(parser)
    control.add_options(parser)
    taesd.add_options(parser)
    variation.add_options(parser)
    adapters.add_options(parser)
    embeddings.add_options(parser)
    compat.add_options(parser)
    tiling.add_options(parser)
    batch_options.add_options(parser)
    hires.add_options(parser)
    resuming.add_options(parser)

    add = parser.add_argument_group("how many, where to, and what to say").add_argument
    add("-b", "--batch-count", type=integer, metavar="N", default=1, help="pictures to draw (1)")
    add("-o", "--output", metavar="PATH",
        help="a .png file (an older one is replaced), a folder, or - for stdout; {seed} and "
        "{index} are filled in (default: a new file refsd-SEED.png)")
    add("--audit", action="store_true",
        help="show how near each op comes to the ends of float16 and bfloat16, and which overflows")
    add("--preview", type=integer, metavar="N",
        help="every N steps the picture so far: in NAME.preview.png beside the output, and on a "
        "terminal that shows pictures (kitty, iTerm2, sixel) or colours")
    add("--preview-vae", action="store_true",
        help="previews decoded by the VAE, as sharp as the picture and as slow")
    add("--output-latents", metavar="FILE", help="also write the latents, .npy or .safetensors")
    add("--disable-image-metadata", action="store_true", help="write no texts into the PNG")
    add("--json", action="store_true", help="the answer (and any error) as JSON on stdout")
    add("-q", "--quiet", action="store_true", help="no progress, no times")
    add("-v", "--verbose", action="store_true", help="the time of every step; tracebacks of errors")
    return parser


def add_request(parser: Parser) -> None:
    """The options that decide the pixels."""
    add_picture(parser)
    add_arithmetic(parser)


def add_picture(parser: Parser, *, seed: str = "; below 0: a new one (the default)") -> None:
    """The picture that is wanted: of what, how large, by which model and sampler."""
    add = parser.add_argument_group("what to draw").add_argument
    add("words", metavar="PROMPT", nargs="?", help="what to draw, in quotes")
    add("-p", "--prompt", metavar="TEXT", help="the same as an option")
    add("-n", "--negative-prompt", metavar="TEXT", default="", help="what to keep away from")
    add("-W", "--width", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-H", "--height", type=integer, metavar="N", help="pixels (default: the model's own size)")
    add("-s", "--seed", type=integer, metavar="N", default=-1,
        help=f"a number from 0 to 2^64 - 1{seed}")

    add = parser.add_argument_group("how").add_argument
    add("-m", "--model", metavar="MODEL",
        help="a diffusers folder, a .safetensors or .gguf file, or the id of a model in the local "
        "Hugging Face cache (default: the model in refsd)")
    add("--download", action="store_true", help="let a model id be fetched from huggingface.co")
    add("--variant", metavar="NAME", help="which weights of a folder to take, such as fp16")
    add("--vae", metavar="PATH",
        help="another VAE: a folder, a .safetensors or .gguf file, a model id")
    add("--text-encoder", metavar="PATH", help="another text encoder, likewise")
    add("--text-encoder-2", metavar="PATH", help="another second text encoder, of models with two")
    add("--without", metavar="PART",
        help="a part to leave out that the model may lack, such as text_encoder_3")
    add("--ema", action="store_true", help="the moving averages of a single file's UNet")
    add("--prediction", type=choice("epsilon", "v", "sample"), metavar="NAME",
        help="what the UNet predicts: epsilon, v, sample (default: what the model says)")
    add("--steps", type=integer, metavar="N", default=20,
        help="denoising steps (20; the Python API has diffusers' 50)")
    add("--cfg-scale", type=number, metavar="X",
        help="how much to follow the prompt (7.0; 3.0 for the model in refsd, which draws best "
        "there; the Python API has diffusers' 7.5)")
    add("--guidance-rescale", type=number, metavar="X", default=0.0,
        help="0 to 1: keep the contrast that a large --cfg-scale exaggerates (0)")
    add("--sampler", "--sampling-method", metavar="NAME",
        help=f"{', '.join(sampler_names.SAMPLERS)} (default: the model's own)")
    add("--schedule", type=choice(*sampler_names.SCHEDULES), metavar="NAME",
        help=f"the sigmas of a sampler that takes them: {', '.join(sampler_names.SCHEDULES)}")
    add("--eta", type=number, metavar="X", default=0.0,
        help="0 to 1: noise that ddim and tcd add at each step (0)")
    add("--clip-skip", type=integer, metavar="N",
        help="last layers of the text encoder to leave out, as diffusers counts: 1 here is "
        "Clip skip 2 in A1111 (0)")
    add("--rng", type=choice(*RNGS), metavar="NAME", default="torch-cpu",
        help="whose noise: torch-cpu as diffusers and ComfyUI have it (default), cuda as A1111 "
        "on a graphics card, numpy")


OFFLOADS = ("none", "component", "block", "auto")


def add_arithmetic(parser: Parser) -> None:
    """How it is computed."""
    add = parser.add_argument_group("on what, and how exactly").add_argument
    add("--backend", metavar="NAME", default="auto",
        help=f"auto, {', '.join(BACKENDS)} (auto: the fastest that is there)")
    add("--dtype", type=choice(*DTYPES), metavar="NAME", default="float32",
        help=f"{', '.join(DTYPES)}: of the weights and the arithmetic (float32)")
    add("--weights", type=choice(*FORMS), metavar="NAME",
        help="how the weights are held, if smaller: float32, bfloat16, float16, int8, as-is (as "
        "--dtype; those of refsd quantize as int8)")
    add_offload(add)
    add("-t", "--threads", type=integer, metavar="N", help="threads of the kernels (all)")
    add("--exact", action="store_true",
        help="convolutions as sums of products only, without Winograd and FFT: slower")
    add("--tuned", action="store_true",
        help="convolutions as refsd tune found them to be the fastest; the recipe keeps which")
    add("--allow-nonfinite", action="store_true", help="go on after a NaN or an infinity")


def add_offload(add: Callable) -> None:
    """When weights are in memory, which no picture shows."""
    add("--offload", type=choice(*OFFLOADS), metavar="NAME", default="none",
        help="have weights in memory only while they are used, with the same pictures: none, "
        "component (one network at a time), block (parts of one, read ahead), auto (what fits) "
        "(none)")
    add("--budget", metavar="SIZE", help="let --offload follow from the memory that there is to "
        "be, such as 4GiB")


def run(options: argparse.Namespace) -> int:
    """Draw what the options say."""
    if batch_options.wanted(options):
        from refsd.cli import batch

        return batch.run(options, check)
    with Warnings(show=not options.json) as warnings:
        return _run(options, warnings)


def _run(options, warnings):
    resuming.prepare(options)
    prompt, seeds = check(options)
    targets = output.plan(options.output, seeds)
    if options.output_latents is not None:
        output.try_out(options.output_latents, (".npy", ".safetensors"))
    chatty = not (options.quiet or options.json)
    screen = preview.check(options, targets)
    if not chatty:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    else:
        note(f"refsd: seed {seeds[0]}" + (f" to {seeds[-1]}" if seeds[-1] != seeds[0] else ""))

    with threads.limited(options.threads):
        session = Session(options, chatty, screen)
        recipe = session.recipe(options, prompt)
        resuming.require_same(options, recipe)
        with auditing.auditing(options.audit, show=not options.json,
                               to_stdout=options.output != output.STDOUT) as audit:
            written = [session.picture(variation.nth(recipe, index), target)
                       for index, target in enumerate(targets)]
        if options.output_latents is not None:
            session.save_latents(options.output_latents)
        if options.json:
            seconds = {name: round(value, 6) for name, value in session.seconds.items()}
            result_json({"images": written, "model": session.model["name"], "seconds": seconds,
                         "step_seconds": session.step_seconds, "warnings": warnings.said,
                         **({} if audit is None else {"audit": auditing.plain(audit)})})
        elif chatty:
            session.say_times()
    return 0


def check(options: argparse.Namespace) -> tuple[str, list[int]]:
    """Everything that can be refused before a model is read; the prompt and the seeds."""
    if options.words is not None and options.prompt is not None:
        raise UsageError(f"the prompt is given twice, as {options.words!r} and with --prompt; "
                         "give it once")
    prompt = options.words if options.prompt is None else options.prompt
    if prompt is None:
        raise UsageError("there is no prompt. Give one in quotes, or see refsd --help")
    adapters.chosen(options, prompt)
    compat.check(options)
    if options.json and options.output == output.STDOUT:
        raise UsageError("--json and --output - both want stdout; give one of them")
    options.sampler = sampler_names.chosen(options.sampler, options.schedule)
    backend = find_backend(options.backend)
    if options.tuned and (options.exact or not backend.tunable):
        raise UsageError("--tuned is for the backend numba without --exact: leave it out")
    if options.tuned and options.dtype in HALVES:
        raise UsageError(f"--tuned is not for {options.dtype}, which refsd tune does not measure: "
                         "leave it out")
    count = check_integer("--batch-count", options.batch_count, 1, MAX_PICTURES)
    if options.seed < 0:
        import secrets

        options.seed = secrets.randbits(32)
    options.variation = variation.chosen(options, count)
    seeds = variation.seeds(options, count)
    if options.cfg_scale is None:
        options.cfg_scale = CFG_SCALE if options.model else BUNDLED_CFG_SCALE
    threads.check(options.threads)
    options.pictures, options.control = pictures_in.check(options), control.check(options)
    options.embeddings = embeddings.chosen(options)
    taesd.check(options)
    hires.check(options)
    check_numbers(vars(options), lambda key: f"--{key.replace('_', '-')}")
    return prompt, seeds
