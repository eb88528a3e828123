"""`refsd serve`: a page that draws, and the HTTP APIs that other programs speak."""

import argparse
import importlib.util
import os
import signal
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import urlsplit

from refsd.cli import draw, embeddings, session, tiling
from refsd.cli.arguments import Parser, integer
from refsd.cli.report import note, one_line, result, result_json
from refsd.errors import UsageError
from refsd.pipelines.request import check_integer
from refsd.serve import listening
from refsd.serve.settings import Settings

PORT, FOLDER, QUEUE = 7860, "pictures", 16
NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}

ABOUT = """\
Open a page on which pictures are drawn, watched and found again, and answer
programs that speak A1111's API or OpenAI's. Nobody but this machine is answered,
unless --host says so, which needs a token.

    refsd serve
    refsd serve -m path/to/model -m path/to/another --lora-dir loras

The first --model is the default; without any it is the model in refsd. Ctrl-C ends
it after the step at hand. docs/server.md says more."""


def parser() -> Parser:
    """The options of serve."""
    found = Parser("refsd serve [options]", ABOUT)
    add = found.add_argument_group("where, and for whom").add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1",
        help="where to listen (127.0.0.1: this machine alone); 0.0.0.0 is all its addresses")
    add("--port", type=integer, metavar="N", default=PORT, help=f"{PORT}; 0 takes a free one")
    add("--token", metavar="TEXT",
        help="what each client has to show, 16 letters or more; better in the environment "
        "variable REFSD_TOKEN, which no list of processes shows")
    add("--allow-host", metavar="NAME", action="append", default=[],
        help="another name of this machine that browsers may use, such as that of a proxy; may be "
        "repeated")
    add("--allow-origin", metavar="URL", action="append", default=[],
        help="a web page of another address that may ask too, such as https://example.org; may "
        "be repeated")

    add = found.add_argument_group("what").add_argument
    add("-m", "--model", metavar="MODEL", action="append", default=[],
        help="a model, as refsd draw takes it, or a GPT-2 that writes; may be repeated")
    add("--lora-dir", metavar="DIR", help="the LoRAs that may be asked for by name")
    add("--vae", metavar="PATH", help="another VAE, or a tiny one, for all models")
    add("--download", action="store_true", help="let a model id be fetched from huggingface.co")
    add("--variant", metavar="NAME", help="which weights of a folder to take, such as fp16")
    add("-o", "--output", metavar="FOLDER", default=FOLDER,
        help=f"where pictures are kept and found again ({FOLDER})")
    add("--queue", type=integer, metavar="N", default=QUEUE,
        help=f"how many jobs may wait ({QUEUE})")
    embeddings.add_options(found)
    draw.add_arithmetic(found)
    tiling.add_options(found)
    return found.answering("the address (and any error) as JSON on stdout",
                           "no word but warnings and errors")


class Given(NamedTuple):
    """What can be known before a model is read."""

    base: argparse.Namespace
    settings: Settings


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes; 0 after SIGTERM, 130 after Ctrl-C."""
    given = check(options)
    require_extra()
    from refsd.serve.log import logged

    with listening.listen(options.host, options.port) as listener, logged(verbose=options.verbose):
        return _serve(options, given, listener)


def check(options: argparse.Namespace) -> Given:
    """Everything that can be refused at once."""
    check_integer("--port", options.port, 0, 65535)
    check_integer("--queue", options.queue, 1, 1000)
    token = options.token if options.token is not None else os.environ.get("REFSD_TOKEN") or None
    settings = Settings(options.allow_host, options.allow_origin, token)
    _, address = listening.resolve(options.host, options.port)
    if token is None and not listening.is_loopback(address):
        raise UsageError(f"--host {options.host}: whoever reaches this machine could draw; give "
                         "--token, or --host 127.0.0.1")
    return Given(drawing_options(options), settings)


def drawing_options(options: argparse.Namespace) -> argparse.Namespace:
    """Those of `refsd draw` that hold for all jobs, checked."""
    own = vars(draw.parser().parse_args([]))
    held = {name: value for name, value in vars(options).items() if name in own}
    base = argparse.Namespace(**{**own, **held, "model": None, "output": None, "json": False,
                                 "lora_dir": None})
    draw.check(argparse.Namespace(**{**vars(base), "prompt": ""}))
    session.offload(base)
    return base


def require_extra() -> None:
    """UsageError where a package of the extra is not installed."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}, which a plain refsd is installed "
                         'without: pip install "refsd[web]"')


def _serve(options, given, listener):
    from refsd.cli.compiling import Compiling
    from refsd.registry import make_ready
    from refsd.serve import routes
    from refsd.serve.asked import Limits
    from refsd.serve.metrics import Metrics
    from refsd.serve.models import find_all, find_loras
    from refsd.serve.server import Server
    from refsd.serve.studio import Studio

    models, writers = find_all(options.model, download=options.download, variant=options.variant)
    loras = find_loras(options.lora_dir)
    metrics = Metrics()
    studio = Studio(models, options.output, loras, Limits(queue=options.queue), base=given.base,
                    ended=metrics.job, ahead=True, writers=writers)
    url = listening.url(options.host, listener)
    settings = replace(given.settings, hosts=[urlsplit(url).netloc, *given.settings.hosts])
    app = routes.application(studio, metrics, settings)
    with Compiling(show=not (options.quiet or options.json)):
        make_ready(given.base.backend, given.base.dtype)
    server = Server(app, studio, lambda: _say(options, url, models), verbose=options.verbose)
    try:
        server.run([listener])
    finally:
        studio.close()
    if not (options.quiet or options.json):
        note("refsd: the server has ended")
    return 0 if server.signum == signal.SIGTERM else 128 + server.signum


def _say(options, url, models):
    """That requests are answered from now on."""
    if options.json:
        result_json({"url": url, "pid": os.getpid(), "models": [*models],
                     "output": os.path.abspath(options.output)})
    elif not options.quiet:
        result(one_line(f"refsd serves at {url} until Ctrl-C; pictures are kept in "
                        f"{options.output}"))
