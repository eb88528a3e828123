"""The text model that is loaded, and how a job's texts are written with it."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.cli.report import Warnings
from refsd.errors import UsageError
from refsd.serve.drawer import Stop
from refsd.serve.jobs import Piece, TextJob
from refsd.serve.models import TextModel


class AskedText(NamedTuple):
    """What is to be written: the model's id, the prompt, how many texts of how many tokens at most.

    seed is None where nothing is drawn, else that of the first text, and one more for each other.
    sampling: what refsd.GPT2.stream takes beside. said: the fields of the request.
    """

    model: str
    prompt: str
    count: int
    tokens: int
    seed: int | None
    sampling: dict[str, Any]
    said: dict[str, Any]


class Writer:
    """Writes in the thread that calls it, with one model at a time."""

    def __init__(self, models: Mapping[str, TextModel], base: argparse.Namespace):
        self.models, self.base = models, base
        self.model: str | None = None
        self.gpt2: Any = None

    def load(self, model: str) -> None:
        """Have this model loaded; another one is let go of before."""
        if self.model == model:
            return
        from refsd.pipelines.gpt2 import GPT2

        self.model = self.gpt2 = None
        base = self.base
        self.gpt2 = GPT2.from_pretrained(
            self.models[model].path, backend=base.backend, dtype=base.dtype, weights=base.weights,
            download=base.download, variant=base.variant)
        self.model = model

    def write(self, job: TextJob) -> None:
        """Write the job's texts. Raises Stop, and what writing raises."""
        asked = job.asked
        with Warnings(show=False) as warnings:
            job.warnings = warnings.said
            self.load(asked.model)
            job.prompt_tokens = len(self.gpt2.tokenizer(asked.prompt)) or 1
            for index in range(asked.count):
                job.begin_picture(index, asked.tokens)
                seed = None if asked.seed is None else asked.seed + index
                try:
                    tokens = self.gpt2.stream(asked.prompt, max_new_tokens=asked.tokens,
                                              generator=seed, **asked.sampling)
                except UsageError as problem:
                    raise UsageError(str(problem).replace("max_new_tokens", "max_tokens")) from None
                for token in tokens:
                    if job.stop:
                        raise Stop
                    job.write(Piece(index, token.text, token.stopped))
