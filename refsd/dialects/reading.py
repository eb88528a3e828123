"""A prompt as a dialect reads it: which texts, with which weights, up to which steps, as chunks."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from refsd.dialects import Dialect, chunks, editing
from refsd.dialects.chunks import Chunk
from refsd.dialects.emphasis import Fragment, fragments
from refsd.dialects.words import words

_TAG = re.compile(r"<\w+:[^<>]+>")  # of LoRAs and the like: A1111 takes them out, of prompts only


class Spell(NamedTuple):
    """A text that the model reads up to and including its call `end`, counted from 0."""

    end: int
    text: str
    chunks: list[Chunk]


class Part(NamedTuple):
    """One of the prompts that make up a prompt, and its weight among them."""

    weight: float
    spells: list[Spell]


def read(dialect: Dialect, tokenizer: Any, text: str, steps: int, *,
         negative: bool = False) -> list[Part]:
    """The parts of a prompt over `steps` calls of the model; a negative prompt is one part.

    A1111 counts its schedule's steps from 1 and its model's calls from 0, and compares the two: the
    first text lasts one call longer than the prompt says. Source: modules/sd_samplers_cfg_denoiser
    and reconstruct_cond_batch of modules/prompt_parser.py.
    """
    if dialect.syntax == "plain":
        return [Part(1.0, [Spell(steps, text, chunks.whole(tokenizer, text))])]
    if dialect.syntax == "comfy":
        found = chunks.of_words(tokenizer, words(text, tokenizer.embedding))
        return [Part(1.0, [Spell(steps, text, found)])]
    composed = [editing.Composed(text, 1.0)] if negative else editing.compose(_TAG.sub("", text))
    return [Part(weight, list(_spells(dialect, tokenizer, part, steps)))
            for part, weight in composed]


def _spells(dialect: Dialect, tokenizer: Any, text: str, steps: int) -> Iterator[Spell]:
    """The texts of one prompt of A1111; those that come again are chunked once."""
    known: dict[str, list[Chunk]] = {}
    for end, version in editing.versions(text, steps, old=dialect.old_editing):
        if version not in known:
            weighed = [Fragment(version, 1.0)] if dialect.emphasis == "none" else fragments(version)
            known[version] = chunks.of_fragments(tokenizer, weighed)
        yield Spell(end, version, known[version])
