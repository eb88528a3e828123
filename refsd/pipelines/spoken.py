"""Prompts encoded as a dialect has it: its chunks, its weights, its changes from step to step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from refsd.arguments import as_array, as_number
from refsd.backends import BACKENDS
from refsd.dialects import weighing
from refsd.dialects.chunks import Chunk, empty
from refsd.dialects.names import spelled
from refsd.dialects.reading import Part, read
from refsd.errors import UsageError
from refsd.half import is_half, to_float32
from refsd.pipelines import stages
from refsd.pipelines.composed import Block, ComposedGuidance, Timeline, constants, even
from refsd.pipelines.generators import as_generators
from refsd.places import on_host
from refsd.random.by_name import GENERATORS

MAX_ENCODED = 1024  # chunks of one prompt's changes: 250 MB of texts of width 768
UNCOUNTED = 100  # steps, to see whether a prompt changes between them


def guidance_of(pipe: Any, positive: Any, negative: Any, *, copies: int, clip_skip: int | None,
                guided: bool, steps: int | None) -> tuple[Any, Any, Callable | None]:
    """The texts of every picture at the first step, and what makes their prediction object.

    positive and negative are lists of prompts, or arrays (B, L, D). The third is None where each
    picture has one text of one length that stays: then Guidance does. UsageError where prompts
    change in a drawing whose steps are not counted, or that cannot be guided.
    """
    if clip_skip and pipe.dialect.syntax == "a1111" \
            and pipe.tokenizer.pad_token_id != pipe.tokenizer.eos_token_id:
        pipe.remark("clip_skip changes nothing: A1111 skips no layers of this text encoder, whose "
                    "texts are not filled up with their end")
        clip_skip = None
    calls = None if steps is None else steps * getattr(pipe.scheduler, "order", 1)
    lines = [_lines(pipe, text, clip_skip, calls) for text in positive] \
        if isinstance(positive, list) else [[(1.0, line)] for line in constants(positive)]
    composed = any(len(parts) > 1 or parts[0][0] != 1 for parts in lines)
    if composed and pipe.denoiser.time_cond_dim is not None:
        raise UsageError("prompt: this model is distilled, it has no guidance to weigh prompts "
                         "with; leave out AND and weights at the end")
    avoided = None
    if guided or composed:
        skip = clip_skip if pipe.dialect.skip_both else None
        avoided = [_lines(pipe, text, skip, calls, negative=True)[0][1] for text in negative] \
            if isinstance(negative, list) else constants(negative)
        if len(lines) % len(avoided):
            raise UsageError(f"negative_prompt_embeds has {len(avoided)} texts for {len(lines)} "
                             "prompts; give 1, or one for each")
        avoided *= len(lines) // len(avoided)
        if len({len(line.states[0]) for line in avoided}) > 1:
            raise UsageError("negative_prompt: texts of several lengths; give one for all, or "
                             "each prompt alone")
        if pipe.dialect.pad:
            lines, avoided = _padded(pipe, lines, avoided, clip_skip)
    if pipe.dialect.syntax == "comfy" and len({len(p[0][1].states[0]) for p in lines}) > 1:
        raise UsageError("prompt: texts of several lengths; give them one by one")
    lines = [parts for parts in lines for _ in range(copies)]
    avoided = None if avoided is None else [line for line in avoided for _ in range(copies)]
    return _assembled(pipe, lines, avoided)


def _assembled(pipe, lines, avoided):
    """The texts of the first step, and the guidance that the others ask for."""
    put = BACKENDS[pipe.backend].put
    first = _first([parts[0][1] for parts in lines])
    away = None if avoided is None else _first(avoided)
    changes = any(len(line.states) > 1 for parts in lines for _, line in parts) or any(
        len(line.states) > 1 for line in avoided or [])
    plain = not changes and all(len(parts) == 1 and parts[0][0] == 1 for parts in lines) and (
        away is None or away.shape == first.shape)
    make = None
    if not plain:
        most = max(map(len, lines))
        parts = [each + [(0.0, each[0][1])] * (most - len(each)) for each in lines]
        blocks = [Block([weight for weight, _ in block], [line for _, line in block])
                  for block in zip(*parts)]
        make = partial(ComposedGuidance, blocks=blocks, avoided=avoided, put=put)
    return put(first), None if away is None else put(away), make


def _first(lines):
    states = even([line.states[line.at(0)] for line in lines])
    states.flags.writeable = False
    return states


def _lines(pipe: Any, text: str, clip_skip: int | None, calls: int | None, *,
           negative: bool = False) -> list[tuple[float, Timeline]]:
    """A prompt's parts: their weights, and their vectors over the steps."""
    parts = read(pipe.dialect, pipe.tokenizer, text, calls or UNCOUNTED, negative=negative)
    if calls is None and any(len(part.spells) > 1 for part in parts):
        raise UsageError("prompt: it changes from step to step, and the steps are not counted "
                         "here; give num_inference_steps, or leave the editing out")
    return [(part.weight, _encoded(pipe, part, clip_skip)) for part in parts]


def _encoded(pipe: Any, part: Part, clip_skip: int | None) -> Timeline:
    """The vectors of the texts that a prompt's editing makes, encoded together as A1111 does."""
    texts = list(dict.fromkeys(spell.text for spell in part.spells))
    chunks = {spell.text: spell.chunks for spell in part.spells}
    counts = [sum(spell.text == text for spell in part.spells) for text in texts]
    blank, most = empty(pipe.tokenizer), max(map(len, chunks.values()))
    if len(texts) * most > MAX_ENCODED:
        raise UsageError(f"prompt: its changes make {len(texts)} texts of {most} chunks; give at "
                         f"most {MAX_ENCODED} chunks in all")
    columns = [[chunks[text][i] if i < len(chunks[text]) else blank for text in texts]
               for i in range(most)]
    encoded = [weighed(pipe, column, counts, blank, clip_skip) for column in columns]
    states = np.concatenate(encoded, axis=1)
    return Timeline([spell.end for spell in part.spells],
                    [texts.index(spell.text) for spell in part.spells], list(states))


def weighed(pipe: Any, column: Sequence[Chunk], counts: Sequence[int], blank: Chunk,
            clip_skip: int | None) -> np.ndarray:
    """Chunks that are encoded together, as vectors with their weights.   -> (N, L, D)"""
    weights = np.array([chunk.weights for chunk in column])
    z = encode(pipe, column, clip_skip)
    match pipe.dialect.emphasis:
        case "original":
            z = weighing.restored(z, weights, counts)
        case "no-norm":
            z = weighing.scaled(z, weights)
        case "lerp" if (weights != 1).any():
            z = weighing.lerp(z, weights, encode(pipe, [blank], clip_skip)[0])
    return as_array("prompt", z, pipe.denoiser.dtype)


def encode(pipe: Any, chunks: Sequence[Chunk], clip_skip: int | None) -> np.ndarray:
    """The text encoder's vectors on the host, of halves in float32.   -> (N, L, D)"""
    ids = np.array([chunk.ids for chunk in chunks], np.int64)
    z = np.asarray(on_host(stages.encode_text(pipe.text_encoder, ids, clip_skip=clip_skip)))
    return to_float32(z) if is_half(z.dtype) else z


def _padded(pipe, lines, avoided, clip_skip):
    """Both prompts with as many chunks: A1111's "Pad conds", with those of an empty prompt."""
    like = lines[0][0][1].states[0]
    blank = encode(pipe, [empty(pipe.tokenizer)], clip_skip)[0].astype(like.dtype)
    own = max(len(line.states[0]) for parts in lines for _, line in parts)
    longest = max(own, len(avoided[0].states[0]))

    def filled(line, first):
        """Its own length evened out with its last vector, then whole chunks."""
        missing = (longest - first) // len(blank)
        return line._replace(states=[
            np.concatenate([state, *[state[-1:]] * (first - len(state)), *[blank] * missing])
            for state in line.states])

    return [[(weight, filled(line, own)) for weight, line in parts] for parts in lines], \
        [filled(line, len(line.states[0])) for line in avoided]


def generators(pipe: Any, seed: Any, batch: int) -> tuple[Any, Any]:
    """Those of the first noise and those of the steps', as the pipeline's dialect has them.

    Of seeds; a generator is what it is, and goes on from the one to the other.
    """
    dialect, number = pipe.dialect, as_number(seed)
    if isinstance(number, int):
        seeds = [number + i for i in range(batch)] if dialect.own_seed else [number]
    else:
        seeds = [as_number(one) for one in seed] if isinstance(seed, (list, tuple)) else [None]
        start = as_generators(seed, pipe.make_generator, batch)
    if not all(isinstance(one, int) for one in seeds):
        if dialect.reseeds:
            pipe.remark(f"generators are given, not seeds: the steps' noise goes on with them, not "
                        f"with new ones as in {spelled(dialect)}")
        return start, start
    start = made(pipe.make_generator, seeds)
    if not dialect.reseeds:
        return start, start
    if dialect.step_rng is not None:
        return start, made(GENERATORS[dialect.step_rng], seeds)
    return start, made(pipe.make_generator, [one + dialect.step_seed for one in seeds])


def made(make: Callable, seeds: list[int]) -> Any:
    """A generator for each seed; of one seed the generator itself."""
    found = [as_generators(seed, make, 1) for seed in seeds]
    return found if len(found) > 1 else found[0]
