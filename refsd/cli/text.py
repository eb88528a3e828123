"""`refsd text PROMPT`: a text continued by GPT-2, token by token on stdout."""

import argparse
import secrets
import sys
import time
from typing import Any

from refsd.backends import BACKENDS
from refsd.cli import threads
from refsd.cli.arguments import Parser, choice, integer, number
from refsd.cli.compiling import Compiling
from refsd.cli.recipe import DTYPES, FORMS
from refsd.cli.report import Warnings, note, result_json
from refsd.errors import UsageError

MAX_STDIN = 1 << 20
ABOUT = """\
Continue a text with a GPT-2. Without --model the small one that comes with refsd
completes prompts that the bundled picture model can draw:

    refsd "$(refsd text 'a glossy' --temperature 1)"

Stdout is the prompt and its continuation, as it comes, and nothing else."""


def parser() -> Parser:
    """The options of text."""
    parser = Parser("refsd text PROMPT [options]", ABOUT)
    add = parser.add_argument_group("what to write").add_argument
    add("prompt", metavar="PROMPT", nargs="?",
        help="how it begins, in quotes; - reads stdin; '' is the beginning of any text")
    add("-n", "--tokens", type=integer, metavar="N",
        help="tokens at most (50, or what there is room for)")
    add("--temperature", type=number, metavar="X", default=0.0,
        help="0 takes the likeliest token; 1 draws by what the model says; more is wilder (0)")
    add("--top-k", type=integer, metavar="N", help="draw among the N likeliest tokens")
    add("--top-p", type=number, metavar="X",
        help="draw among the fewest tokens that have this probability together")
    add("--repetition-penalty", type=number, metavar="X", default=1.0,
        help="above 1: tokens that the text has become less likely (1)")
    add("-s", "--seed", type=integer, metavar="N", default=-1,
        help="of what is drawn: 0 to 2^64 - 1; below 0: a new one (the default)")
    add("--stop", metavar="TEXT", action="append", default=[],
        help="end before this text; may be repeated (the model's own end always ends)")

    add = parser.add_argument_group("how").add_argument
    add("-m", "--model", metavar="MODEL",
        help="a folder, or the id of a model in the local Hugging Face cache")
    add("--download", action="store_true", help="let a model id be fetched from huggingface.co")
    add("--variant", metavar="NAME", help="which weights of a folder to take, such as fp16")
    add("--backend", metavar="NAME", default="auto", help=f"auto, {', '.join(BACKENDS)}")
    add("--dtype", type=choice(*DTYPES), metavar="NAME", default="float32",
        help=f"{', '.join(DTYPES)} (float32)")
    add("--weights", type=choice(*FORMS), metavar="NAME",
        help=f"how they are held, if smaller: {', '.join(FORMS)}")
    add("-t", "--threads", type=integer, metavar="N", help="threads of the kernels (all)")
    return parser.answering("all at its end (and any error) as JSON on stdout", "no word on stderr")


def run(options: argparse.Namespace) -> int:
    """Write, or with --json collect, what the model continues."""
    chatty = not (options.quiet or options.json)
    prompt = _check(options)
    with Warnings(show=not options.json) as warnings, threads.limited(options.threads):
        from refsd.pipelines.gpt2 import GPT2

        with Compiling(show=chatty):
            model = GPT2.from_pretrained(
                options.model, backend=options.backend, dtype=options.dtype,
                weights=options.weights, download=options.download, variant=options.variant)
            tokens = model.stream(
                prompt, max_new_tokens=options.tokens, temperature=options.temperature,
                top_k=options.top_k, top_p=options.top_p, stop=options.stop,
                repetition_penalty=options.repetition_penalty, generator=options.seed)
        begun, ids, parts, stopped = time.perf_counter(), [], [], ""
        write = parts.append if options.json else _writer(sys.stdout)
        write(prompt)
        for token in tokens:
            write(token.text)
            ids, stopped = [*ids, token.id], token.stopped
        seconds = time.perf_counter() - begun
    if options.json:
        result_json({"prompt": prompt, "continuation": "".join(parts[1:]), "ids": ids,
                     "stopped": stopped, "seed": options.seed, "seconds": round(seconds, 6),
                     "backend": model.backend, "dtype": options.dtype, "warnings": warnings.said})
        return 0
    write("\n")
    if chatty:
        seed = "" if options.seed is None else f" (seed {options.seed})"
        note(f"refsd: {len(ids)} tokens in {seconds:.2f} s, ended by {stopped}{seed}")
    return 0


def _check(options: argparse.Namespace) -> str:
    """The prompt, after what can be refused before a model is read; the seed, where one is."""
    threads.check(options.threads)
    if options.prompt is None:
        raise UsageError("there is no prompt. Give one in quotes, - for stdin, or '' for none")
    if options.temperature == 0 and options.seed >= 0:
        raise UsageError("--seed is of what is drawn, and --temperature 0 draws nothing; give "
                         "--temperature 1, or leave --seed out")
    if options.temperature == 0:
        options.seed = None
    elif options.seed < 0:
        options.seed = secrets.randbits(32)
    if options.prompt != "-":
        return options.prompt
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise UsageError(f"stdin holds more than {MAX_STDIN:,} bytes; give a shorter prompt")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is no UTF-8 text (byte {error.start}); give some") from None


def _writer(stream: Any) -> Any:
    """Pieces of text to a stream at once; a terminal is spared control characters."""
    encoding = (stream and stream.encoding) or "utf-8"
    harmless = stream is not None and stream.isatty()

    def write(text: str) -> None:
        if stream is None:
            return
        if harmless:
            text = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()

    return write
