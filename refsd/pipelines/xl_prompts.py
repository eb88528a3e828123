"""What Stable Diffusion XL's UNet reads of prompts: states, a vector, and numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array, shown
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines import stages
from refsd.pipelines.prompts import Prompts, repeated, said_to_each
from refsd.pipelines.request import check_integer, check_number, check_prompts
from refsd.pipelines.tensors import given
from refsd.places import on_host
from refsd.registry import use

MAX_SIZE = 2**16
SCORES = (6.0, 2.5)  # diffusers' aesthetic scores of what is wanted and what is not


class Sizes(NamedTuple):
    """The sizes of a call, (height, width) or (top, left) each; None is what is not said."""

    original: tuple[float, float] | None
    crop: tuple[float, float]
    target: tuple[float, float] | None
    away_original: tuple[float, float] | None
    away_crop: tuple[float, float]
    away_target: tuple[float, float] | None

    @classmethod
    def of(cls, *given: Any) -> Self:
        """As the calls take them, in this order; UsageError for what are no two numbers."""
        names = ("original_size", "crops_coords_top_left", "target_size", "negative_original_size",
                 "negative_crops_coords_top_left", "negative_target_size")
        return cls(*(_pair(name, value, optional=not name.endswith("left"))
                     for name, value in zip(names, given, strict=True)))


def _pair(name, value, *, optional):
    if value is None and optional:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UsageError(f"{name} is {shown(value)}; give two numbers, the one along the height "
                         "first")
    return tuple(check_number(f"{name}[{i}]", one, 0, MAX_SIZE) for i, one in enumerate(value))


def ids_of_texts(sizes: Sizes, pipe: Any, size: tuple[int, int], count: float, batch: int, *,
                 guided: bool) -> np.ndarray:
    """The numbers beside each text of a batch, as text to image has them.   (B, 6), guided (2 B, 6)

    diffusers tiles the negative's and the positive's row, so that of several pictures the rows are
    of the one and the other in turns, not of all negative texts first.
    """
    if count != 6:
        raise UsageError(f"this model reads {count:g} numbers beside its text, text to image gives "
                         "6: a refiner draws from a picture, take StableDiffusionXLImg2ImgPipeline")
    towards = (*(sizes.original or size), *sizes.crop, *(sizes.target or size))
    away = towards
    if sizes.away_original and sizes.away_target:
        away = (*sizes.away_original, *sizes.away_crop, *sizes.away_target)
    elif sizes.away_original or sizes.away_target or any(sizes.away_crop):
        pipe.remark("the negative sizes change nothing: text to image takes them only with both "
                    "negative_original_size and negative_target_size")
    if guided and batch > 1 and away != towards:
        pipe.remark("of several pictures the sizes and the negative ones are read in turns, as in "
                    "diffusers: draw them one by one for sizes that are each text's own")
    return np.tile(np.array([away, towards] if guided else [towards]), (batch, 1))


def ids_of_pictures(sizes: Sizes, scores: tuple[float, float], pipe: Any, size: tuple[int, int],
                    count: float, batch: int, *, guided: bool) -> np.ndarray:
    """The numbers beside each text of a batch, as drawing from a picture has them.

    (B, 5), guided (2 B, 5), with the scores, for models that were trained with them, else six,
    where the negative text has the crop of the other, as in diffusers.
    """
    original, target = sizes.original or size, sizes.target or size
    if count == 5:
        towards = (*original, *sizes.crop, scores[0])
        away = (*(sizes.away_original or original), *sizes.away_crop, scores[1])
        if sizes.target or sizes.away_target:
            pipe.remark("target_size changes nothing: this model reads a score in its place")
    elif count == 6:
        towards = (*original, *sizes.crop, *target)
        away = (*(sizes.away_original or original), *sizes.crop, *(sizes.away_target or target))
        if scores != SCORES:
            pipe.remark("aesthetic_score changes nothing: this model reads none")
        if any(sizes.away_crop):
            pipe.remark("negative_crops_coords_top_left changes nothing: this model reads the crop "
                        "of the prompt for both texts, as in diffusers")
    else:
        raise UsageError(f"this model reads {count:g} numbers beside its text; refsd knows 6, "
                         "sizes and a crop, or 5 with a score: take another model")
    return np.repeat(np.array([away, towards] if guided else [towards]), batch, axis=0)


def embed(pipe: Any, prompt: Any, negative_prompt: Any, prompt_embeds: Any,
          negative_prompt_embeds: Any, *, copies: int, clip_skip: int | None, guided: bool,
          size: tuple[int, int], ids: Callable, prompt_2: Any = None,
          negative_prompt_2: Any = None, pooled_prompt_embeds: Any = None,
          negative_pooled_prompt_embeds: Any = None, steps: int | None = None) -> Prompts:
    """The texts of every picture, and what the UNet reads besides, as refsd.pipelines.prompts has.

    ids(pipe, size, count, batch, guided=) are the numbers beside the texts of a batch.
    """
    _exclusive("prompt", prompt, prompt_2, prompt_embeds, pooled_prompt_embeds)
    _exclusive("negative_prompt", negative_prompt, negative_prompt_2, negative_prompt_embeds,
               negative_pooled_prompt_embeds)
    if prompt is None and prompt_embeds is None:
        raise UsageError("give either prompt or prompt_embeds, got neither")
    if prompt_embeds is None:
        states, vector = _encoded(pipe, "prompt", prompt, prompt_2, clip_skip)
        vector = vector if pooled_prompt_embeds is None else _pooled(
            pipe, "pooled_prompt_embeds", pooled_prompt_embeds, len(states))
    else:
        states, vector = _given(pipe, "prompt", prompt_embeds, pooled_prompt_embeds)
        if clip_skip is not None:
            pipe.remark("clip_skip changes nothing: it is for prompt, and prompt_embeds is given")
    away = None
    if guided:
        away = _avoided(pipe, states, vector, negative_prompt, negative_prompt_2,
                        negative_prompt_embeds, negative_pooled_prompt_embeds)
    vectors = [one for one in (away and away[1], vector) if one is not None]
    batch = len(states) * copies
    rows = ids(pipe, size, _count(pipe, vector), batch, guided=guided)
    put = BACKENDS[pipe.backend].put
    with use(pipe.backend, exact=pipe.exact):
        text_embeds = F.concat([repeated(one, copies) for one in vectors], axis=0)
    added = {"text_embeds": text_embeds,
             "time_ids": put(as_array("time_ids", rows, pipe.denoiser.dtype))}
    return Prompts(repeated(states, copies), away and repeated(away[0], copies), None, added)


def _count(pipe, vector):
    """How many numbers the UNet reads beside a vector of the text."""
    unet = pipe.denoiser
    return (unet.added_width - vector.shape[1]) / unet.config.addition_time_embed_dim


def _exclusive(name, text, text_2, states, vector):
    """UsageError for a text beside its vectors, and for states without the vector."""
    for key, one in ((name, text), (f"{name}_2", text_2)):
        if one is not None and states is not None:
            raise UsageError(f"give either {key} or {name}_embeds, got both")
    if states is not None and vector is None:
        pooled = name.replace("prompt", "pooled_prompt_embeds")
        raise UsageError(f"{name}_embeds without {pooled}: give both, of one text")


def _avoided(pipe, states, vector, text, text_2, given_states, given_vector):
    """The states and the vectors to keep away from."""
    count = len(states)
    if given_states is not None:
        away = _given(pipe, "negative_prompt", given_states, given_vector)
    elif text is None and pipe.force_zeros_for_empty_prompt:
        for name, one in (("negative_prompt_2", text_2),
                          ("negative_pooled_prompt_embeds", given_vector)):
            if one is not None:
                pipe.remark(f"{name} changes nothing: without negative_prompt all of it is zeros "
                            "for this model")
        return tuple(BACKENDS[pipe.backend].put(np.zeros(one.shape, one.dtype))
                     for one in (states, vector))
    else:
        text = "" if text is None else text
        away = _encoded(pipe, "negative prompt", text, text_2, None, count=count)
        if given_vector is not None:
            away = away[0], _pooled(pipe, "negative_pooled_prompt_embeds", given_vector, count)
    for name, one, other in zip(("", "pooled_"), away, (states, vector)):
        if one.shape != other.shape:
            raise UsageError(f"negative_{name}prompt_embeds has shape {tuple(one.shape)}, "
                             f"{name}prompt_embeds {tuple(other.shape)}; give two of one shape")
    return away


def _given(pipe, name, states, vector):
    states = given(pipe, f"{name}_embeds", states, ("B", "L", pipe.denoiser.text_width))
    return states, _pooled(pipe, name.replace("prompt", "pooled_prompt_embeds"), vector,
                           len(states))


def _pooled(pipe, name, vector, count):
    width = pipe.text_encoder_2.tree["text_projection"]["weight"].shape[0]
    return given(pipe, name, vector, (count, width))


def _encoded(pipe, name, text, text_2, clip_skip, *, count=None):
    """Texts as states side by side and as the last encoder's vectors.   -> (B, L, D), (B, P)"""
    option = name.replace(" ", "_")
    texts = check_prompts(option, text)
    second = check_prompts(f"{option}_2", text_2) if text_2 else texts
    encoders = [(pipe.tokenizer, pipe.text_encoder, texts),
                (pipe.tokenizer_2, pipe.text_encoder_2, second)]
    if pipe.text_encoder is None:
        if text_2:
            pipe.remark(f"{option}_2 changes nothing: the refiner reads {option}")
        encoders = [(pipe.tokenizer_2, pipe.text_encoder_2, texts)]
    count = count or len(texts)
    layers = min(len(encoder.tree["encoder"]["layers"]) for _, encoder, _ in encoders)
    skip = 0 if clip_skip is None else check_integer("clip_skip", clip_skip, 0, layers - 1)
    found, put = [], BACKENDS[pipe.backend].put
    for number, (_, _, prompts) in enumerate(encoders):
        if len(prompts) not in (1, count):
            raise UsageError(f"{option}{'_2' * number} has {len(prompts)} texts; give 1, or one "
                             f"for each of the {count} prompts")
    said_to_each(pipe, [(name + " 2" * number, prompts, tokenizer)
                        for number, (tokenizer, _, prompts) in enumerate(encoders)])
    for tokenizer, encoder, prompts in encoders:
        ids = stages.tokenize(tokenizer, prompts * (count // len(prompts)))
        output = encoder(ids, output_hidden_states=True)
        # An encoder of another pipeline has a dtype and a place of its own.
        found.append(put(as_array(name, output.hidden_states[-2 - skip], pipe.denoiser.dtype)))
    with use(pipe.backend, exact=pipe.exact):
        states = F.concat(found, axis=2)
    return states, put(as_array(name, on_host(output.text_embeds), pipe.denoiser.dtype))
