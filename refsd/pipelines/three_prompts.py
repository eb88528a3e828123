"""Prompts for a transformer: of two CLIPs and, or nothing, T5, and a vector of the CLIPs.

    states (B, 77 + L, D)   the CLIPs' last layers but one side by side, with zeros up to D; T5's
                            L tokens behind them, which are zeros where the model has no T5
    pooled (B, P)           the CLIPs' pooled vectors side by side
"""

import logging
from typing import Any, NamedTuple

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines.prompts import Prompts, repeated, said_to_each, say_literal
from refsd.pipelines.request import check_integer, check_prompts
from refsd.pipelines.tensors import given
from refsd.registry import use

logger = logging.getLogger(__name__)

MAX_LENGTH = 512  # tokens of T5's: diffusers takes no more


class Texts(NamedTuple):
    """What the transformer reads of B texts.   (B, L, D), (B, P)"""

    states: Any
    pooled: Any


def embed(pipe: Any, prompt: Any, negative_prompt: Any, prompt_embeds: Any,
          negative_prompt_embeds: Any, *, copies: int, clip_skip: int | None, guided: bool,
          size: tuple[int, int], steps: int | None = None, prompt_2: Any = None,
          prompt_3: Any = None, negative_prompt_2: Any = None, negative_prompt_3: Any = None,
          pooled_prompt_embeds: Any = None, negative_pooled_prompt_embeds: Any = None,
          max_sequence_length: Any = 256) -> Prompts:
    """The texts and what to keep away from, for every picture; of each encoder its own, or the
    first's.
    """
    length = check_integer("max_sequence_length", max_sequence_length, 1, MAX_LENGTH)
    check_skip(pipe, clip_skip)
    prompts = {"prompt": prompt, "prompt_2": prompt_2, "prompt_3": prompt_3}
    if prompt_embeds is None and prompt is None:
        raise UsageError("give either prompt or prompt_embeds, got neither")
    if (found := _given(pipe, prompts, prompt_embeds, pooled_prompt_embeds)) is None:
        found = encode(pipe, _each(prompts, None), clip_skip, length)
    elif clip_skip is not None:
        pipe.remark("clip_skip changes nothing: it is for prompt, and prompt_embeds is given")
    count = found.states.shape[0]
    negatives = {"negative_prompt": negative_prompt, "negative_prompt_2": negative_prompt_2,
                 "negative_prompt_3": negative_prompt_3}
    for name, text in (*prompts.items(), *negatives.items()):
        if text and name.endswith("_3") and pipe.text_encoder_3 is None:
            pipe.remark(f"{name} changes nothing: this model is without T5, which reads it")
    away = _given(pipe, negatives, negative_prompt_embeds, negative_pooled_prompt_embeds)
    if not guided:
        return _prompts(pipe, found, None, copies)
    if away is None:  # diffusers skips layers for the positive prompt only
        negatives["negative_prompt"] = "" if negative_prompt is None else negative_prompt
        away = encode(pipe, _each(negatives, count), None, length)
    if away.states.shape != found.states.shape:
        raise UsageError(f"the negative prompts have shape {tuple(away.states.shape)}, the prompts "
                         f"{tuple(found.states.shape)}; give two of one shape")
    return _prompts(pipe, found, away, copies)


def check_skip(pipe: Any, clip_skip: Any) -> None:
    """UsageError for as many layers skipped as the smaller CLIP has, or more."""
    if clip_skip is not None:
        layers = min(len(encoder.tree["encoder"]["layers"])
                     for encoder in (pipe.text_encoder, pipe.text_encoder_2))
        check_integer("clip_skip", clip_skip, 0, layers - 1)


def encode(pipe: Any, texts: dict[str, list[str]], clip_skip: int | None, length: int) -> Texts:
    """The texts of the three encoders, under the names of their arguments, as the network reads
    them.
    """
    first, second, third = texts.values()
    _say(pipe, texts, length)
    clips = [_clip(tokenizer, encoder, text, clip_skip) for tokenizer, encoder, text in (
        (pipe.tokenizer, pipe.text_encoder, first), (pipe.tokenizer_2, pipe.text_encoder_2,
                                                     second))]
    dtype, put = pipe.denoiser.dtype, BACKENDS[pipe.backend].put
    states, pooled = ([put(as_array("the text", one, dtype)) for one in each]
                      for each in zip(*clips, strict=True))
    with use(pipe.backend):
        beside = F.concat(states, axis=2)
        width = pipe.denoiser.text_width
        beside = F.pad(beside, widths=((0, 0), (0, 0), (0, width - beside.shape[2])))
        behind = put(_third(pipe, third, length))
        return Texts(F.concat([beside, behind], axis=1), F.concat(pooled, axis=1))


def _clip(tokenizer, encoder, texts, clip_skip):
    """The layer before the last but clip_skip, and the pooled vector.   -> (B, L, D), (B, P)"""
    found = encoder(tokenizer(texts), output_hidden_states=True)
    pooled = found.pooler_output if found.text_embeds is None else found.text_embeds
    return found.hidden_states[-2 - (clip_skip or 0)], pooled


def _third(pipe, texts, length):
    """T5's vectors of `length` tokens; without it zeros.   -> (B, length, D)"""
    dtype = pipe.denoiser.dtype
    if pipe.text_encoder_3 is None:
        return as_array("the text", np.zeros((len(texts), length, pipe.denoiser.text_width), "f4"),
                        dtype)
    ids = pipe.tokenizer_3(texts, max_length=length)
    return as_array("the text", pipe.text_encoder_3(ids).last_hidden_state, dtype)


def _given(pipe, prompts, states, pooled):
    """The caller's own vectors, or None; UsageError for half of them, or texts beside them."""
    name, *_ = prompts
    pooled_name = name.replace("prompt", "pooled_prompt")
    if (states is None) != (pooled is None):
        here, lacking = ("", "pooled_") if pooled is None else ("pooled_", "")
        name = name.removesuffix("prompt")
        raise UsageError(f"{name}{here}prompt_embeds is given without {name}{lacking}"
                         "prompt_embeds; give both, or neither")
    if states is None:
        return None
    if both := [key for key, value in prompts.items() if value is not None]:
        raise UsageError(f"give either {both[0]} or {name}_embeds, got both")
    states = given(pipe, f"{name}_embeds", states, ("B", "L", pipe.denoiser.text_width))
    return Texts(states, given(pipe, f"{pooled_name}_embeds", pooled,
                               (states.shape[0], pipe.denoiser.pooled_width)))


def _each(prompts, count):
    """Each encoder's texts: its own where there are some, else the first's; `count` of each."""
    (first, texts), *others = prompts.items()
    texts = check_prompts(first, texts)
    found = {first: texts, **{name: check_prompts(name, own) if own else texts
                              for name, own in others}}
    count = len(texts) if count is None else count
    for name, own in found.items():
        if len(own) != count and (len(own) != 1 or not name.startswith("negative")):
            raise UsageError(f"{name} has {len(own)} texts for {count} prompts; give as many"
                             + (", or 1" if name.startswith("negative") else ""))
    return {name: own * (count // len(own)) for name, own in found.items()}


def _say(pipe, texts, length):
    """A line for each text that is too long, and for syntax that is taken literally."""
    *clips, (name, third) = ((name.replace("_", " "), each) for name, each in texts.items())
    said_to_each(pipe, [(*each, tokenizer) for each, tokenizer in
                        zip(clips, (pipe.tokenizer, pipe.tokenizer_2), strict=True)])
    for text in dict.fromkeys(third if pipe.tokenizer_3 else ()):
        if lost := pipe.tokenizer_3.truncated(text, max_length=length):
            logger.warning("the %s is longer than the %d tokens that text_encoder_3 reads; "
                           "dropped: %r", name, length - 1, lost[:200])
        say_literal(pipe, name, text)


def _prompts(pipe, found, away, copies):
    """Each text for `copies` pictures; the pooled vectors of the negative ones come first."""
    pooled = repeated(found.pooled, copies)
    if away is not None:
        with use(pipe.backend):
            pooled = F.concat([repeated(away.pooled, copies), pooled], axis=0)
    return Prompts(repeated(found.states, copies),
                   None if away is None else repeated(away.states, copies),
                   added={"pooled_projections": pooled})
