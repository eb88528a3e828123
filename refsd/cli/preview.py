"""--preview: the picture so far, every few steps, in a file beside it and on the terminal."""

import argparse
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

from refsd import atomic
from refsd.cli import output
from refsd.cli.png import encode_png
from refsd.cli.progress import Progress
from refsd.cli.terminal import Screen, screen
from refsd.errors import ResourceError, UsageError
from refsd.pipelines.request import check_integer

logger = logging.getLogger(__name__)


def check(options: argparse.Namespace, targets: list[output.Target]) -> Screen | None:
    """Refuse what cannot be shown, before a model is read; the terminal, if one is to show it."""
    if options.preview is None:
        if options.preview_vae:
            raise UsageError("--preview-vae says how --preview decodes; give --preview N too")
        return None
    check_integer("--preview", options.preview, 1, 1000)
    chatty = not (options.quiet or options.json)
    found = screen(sys.stderr) if chatty else None
    if found is None and any(file_beside(target) is None for target in targets):
        raise UsageError("--preview: no file can stand beside this output, and stderr is no "
                         "terminal for pictures; name a .png file with -o, or leave it out")
    return found


def require_colours(options: argparse.Namespace, pipe: Any, steps: int) -> None:
    """Refuse a model whose latents have no colours, before the first step; say what has no effect.
    """
    if options.preview is None:
        return
    if options.preview >= steps:
        logger.warning("--preview %d changes nothing: there are %d steps", options.preview, steps)
    if not options.preview_vae:
        from refsd.pipelines.preview import colours

        colours(pipe.vae.config)


def file_beside(target: output.Target) -> str | None:
    """NAME.preview.png for NAME.png; None for stdout and devices."""
    if target.path == output.STDOUT or output.in_place(target.path):
        return None
    return os.path.splitext(target.path)[0] + ".preview.png"


class Preview:
    """A callback_on_step_end that shows x0 as seen from every N-th step but the last.

    The file is replaced each time, and gone when the picture is there; if drawing stops before, it
    stays. What cannot be written is said once and stops nothing.
    """

    tensor_inputs = ("denoised",)

    def __init__(self, options: argparse.Namespace, on: Screen | None, target: output.Target,
                 progress: Progress):
        self.every, self.vae = options.preview, options.preview_vae
        self.screen, self.file, self.progress = on, file_beside(target), progress
        self.seconds, self.written = 0.0, False

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        """One more step is done."""
        self.progress.step()
        if (index + 1) % self.every or index + 1 == self.progress.total:
            return
        begun = time.perf_counter()
        image = pipe.preview(tensors["denoised"], vae=self.vae)[0]
        if self.file is not None:
            self._write(image)
        if self.screen is not None:
            with self.progress.aside():
                self.screen.show(image)
        self.seconds += time.perf_counter() - begun

    def _write(self, image: Any) -> None:
        try:
            atomic.write_file(self.file, [encode_png(image, {})])
            self.written = True
        except ResourceError as problem:
            logger.warning("%s. The preview is not written; drawing goes on", problem)

    def finish(self, pixels: Any) -> None:
        """The picture (H, W, 3) is written: it takes the place of the previews."""
        if self.screen is not None:
            from PIL import Image

            self.screen.show(Image.fromarray(pixels))
            self.screen.leave()
        if self.written:
            with suppress(OSError):
                os.unlink(self.file)
