"""A run as a golden pack: what `refsd golden make` records, here or on a cluster's workers."""

import argparse
import os
from functools import partial
from typing import Any

from refsd.cli import drawing, sampler_names
from refsd.cli.progress import Progress
from refsd.cli.report import one_line
from refsd.golden.packs.manifest import Manifest, read_manifest
from refsd.golden.packs.writer import MANIFEST
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request, load_truth, model_of


def load(options: argparse.Namespace, sampler: str | None) -> Any:
    """The model as all truth is computed; options.about_model is what a manifest says of it."""
    pipe = load_truth(options.model, variant=options.variant, download=options.download,
                      scheduler=partial(sampler_names.own_or, sampler))
    options.about_model = model_of(pipe, options.model, variant=options.variant)
    return pipe


def request_of(pipe: Any, options: argparse.Namespace, run: dict[str, Any]) -> Request:
    """A picture's; what the suite's run says stands above the command line."""
    sampler = run.get("sampler", options.sampler)
    before = pipe.scheduler
    drawing.choose_sampler(pipe, None if sampler is None else sampler_names.find_sampler(sampler))
    scheduler, pipe.scheduler = pipe.scheduler.config.plain(), before
    values = {"prompt": options.words if options.prompt is None else options.prompt,
              "width": options.width or pipe.default_size,
              "height": options.height or pipe.default_size}
    for key in ("negative_prompt", "seed", "steps", "cfg_scale", "guidance_rescale", "eta",
                "clip_skip", "rng"):
        values[key] = getattr(options, key)
    values |= {key: value for key, value in run.items() if key not in ("name", "sampler")}
    return Request(**values, scheduler=scheduler)


def selection_of(options: argparse.Namespace, level: int) -> Selection:
    """Which tensors are recorded."""
    return Selection(
        level=level, steps=options.record_steps, op=options.op, include=tuple(options.include),
        exclude=tuple(options.exclude), attention=tuple(options.attention), shard=options.shard)


def record(pipe: Any, options: argparse.Namespace, folder: str, request: Any, level: int,
           name: str = "recording") -> dict[str, Any]:
    """A pack of one run in a folder; what is said of it."""
    show = not (options.quiet or options.json)
    manifest = finished(folder) if options.resume else None
    if manifest is None:
        with Progress(request.steps, name, show=show) as progress:
            manifest = make(
                folder, request, pipe=pipe, about_model=options.about_model,
                selection=selection_of(options, level), resume=options.resume,
                title=one_line(request.prompt, 900), tolerance=tolerance(options),
                on_step=progress.step)
    if options.spread and not has_spread(manifest):
        from refsd.golden.tolerances import spread

        formats = options.spread_formats
        with Progress(options.spread * len(formats), "spread", show=show) as progress:
            spread.add_spread(folder, formats=formats, runs=options.spread, pipe=pipe,
                              on_run=progress.step)
        manifest = finished(folder)
    return made(folder, manifest)


def tolerance(options: argparse.Namespace) -> Any:
    """What works out the tolerances of an op, or None."""
    if options.no_tolerances:
        return None
    from refsd.golden.tolerances import tolerance

    return tolerance.of


def finished(folder: str) -> Manifest | None:
    """The manifest of a pack that is whole, None where there is none yet."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return read_manifest(file.read(), path)


def has_spread(manifest: Manifest) -> bool:
    """Whether runs with other roundings have been measured for it."""
    return any("spread" in bounds for entry in manifest.tensors
               for bounds in entry.tolerance.values())


def made(folder: str, manifest: Manifest) -> dict[str, Any]:
    """What is said of a pack."""
    return {"folder": str(folder), "tensors": len(manifest.tensors),
            "bytes": sum(file["bytes"] for file in manifest.files.values())}
