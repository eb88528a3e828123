"""Prompts as vectors, and what is reported of them: words dropped, and syntax of other tools."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines import stages
from refsd.pipelines.loading import BUNDLED
from refsd.pipelines.request import check_prompts
from refsd.pipelines.tensors import given

logger = logging.getLogger(__name__)

# A1111's syntax, where it cannot be meant as text: "(word:1.2)", "[from:to:0.5]", "<lora:name:1>".
# A ratio such as (16:9) has a digit before its colon, and no decimal point. Before each, the
# dialects that read it.
_SYNTAX = (
    (("a1111", "comfy"), re.compile(r"(?<!\\)\([^()]*(?::\s*\d*\.\d+|[^\d\s()]\s*:\s*\d)\s*\)"),
     "a weight in the prompt is taken literally, it weighs nothing; --compat a1111 reads it"),
    (("a1111",), re.compile(r"(?<!\\)\[[^\[\]]*:[^\[\]]*:\s*\d*\.?\d+\s*\]"),
     "a change of prompt between steps is taken literally, it changes nothing; --compat a1111 "
     "reads it"),
    (("a1111",), re.compile(r"(?<!\\)\[[^\[\]:|]+:\s*\d*\.?\d+\s*\]"),
     "a word that comes in at a later step is taken literally; --compat a1111 reads it"),
    (("a1111",), re.compile(r"(?<!\\)[\[{][^\[\]{}]*\|[^\[\]{}]*[\]}]"),
     "alternatives are taken literally, none is chosen; --compat a1111 takes [a|b] in turns"),
    (("a1111",), re.compile(r"(?<=[^\sA-Z]\s)(?:BREAK|AND)(?=\s+[^\sA-Z])"),
     "the prompt is one: this is taken for a word and parts nothing; --compat a1111 reads it"),
    (("comfy",), re.compile(r"\bembedding:[\w.-]+"),
     "taken literally: an embedding that is loaded is called by its word alone"),
    ((), re.compile(r"<(?:lora|lyco):[^<>]+>"),
     "taken literally and not applied: --lora-dir says where such files are, and in Python "
     "load_lora_weights reads one"),
    ((), re.compile(r"<hypernet:[^<>]+>"),
     "refsd has no hypernetworks: this is taken literally and not applied"),
)


def dropped(tokenizer: Any, text: str, name: str = "prompt") -> str:
    """A line that says which words a text is too long for, or nothing."""
    lost = tokenizer.truncated(text)
    if not lost:
        return ""
    cut = repr(lost[:200]) + (" ..." if len(lost) > 200 else "")
    return f"the {name} is longer than {tokenizer.model_max_length - 2} tokens; dropped: {cut}"


def literal(text: str, syntax: str = "plain", *,
            negative: bool = False) -> Iterator[tuple[str, str]]:
    """Syntax of tools in a text that the dialect's does not read, and what becomes of it."""
    for readers, pattern, meaning in _SYNTAX:
        if syntax not in readers and (match := pattern.search(text)):
            if not readers and negative:  # where A1111 reads no tags, and neither does refsd
                meaning = "taken literally and not applied: tags are for the prompt"
            elif not readers and syntax == "a1111":  # it takes them out whatever they name
                meaning = meaning.replace("taken literally", "left out")
            yield match[0][:80], meaning


class Prompts(NamedTuple):
    """Texts as a network reads them.   (B, L, D) and, for guided images, (B, L, D)

    Read-only: what replaces them is returned by a callback, so that the steps read it. composed:
    what makes the prediction object, where Guidance is not enough. added: further inputs of the
    network, arrays with a row for each text, the negative ones first.
    """

    positive: Any
    negative: Any
    composed: Callable | None = None
    added: Mapping[str, Any] = MappingProxyType({})


def embed(pipe: Any, prompt: Any, negative_prompt: Any, prompt_embeds: Any,
          negative_prompt_embeds: Any, *, copies: int, clip_skip: int | None, guided: bool,
          steps: int | None = None) -> Prompts:
    """The text and what to keep away from, for every image.

    In a dialect the two are those of the first of `steps` steps, and may differ in length.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise UsageError("give either prompt or prompt_embeds, got "
                         + ("neither" if prompt is None else "both"))
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise UsageError("give either negative_prompt or negative_prompt_embeds, got both")
    if prompt_embeds is None:
        positive = said(pipe, "prompt", check_prompts("prompt", prompt), pipe.tokenizer)
    else:
        positive = given(pipe, "prompt_embeds", prompt_embeds, ("B", "L", pipe.denoiser.text_width))
        if clip_skip is not None:
            pipe.remark("clip_skip changes nothing: it is for prompt, and prompt_embeds is given")
    count = len(positive)
    negative = check_prompts("negative_prompt", "" if negative_prompt is None else negative_prompt)
    if negative_prompt_embeds is not None:
        negative = given(pipe, "negative_prompt_embeds", negative_prompt_embeds,
                         ("B", "L", pipe.denoiser.text_width))
    elif guided:
        if len(negative) not in (1, count):
            raise UsageError(f"negative_prompt has {len(negative)} texts; give 1, or one for each "
                             f"of the {count} prompts")
        negative = said(pipe, "negative prompt", negative, pipe.tokenizer)
    if pipe.dialect.syntax != "plain":
        from refsd.pipelines.spoken import guidance_of

        return Prompts(*guidance_of(pipe, positive, negative, copies=copies, clip_skip=clip_skip,
                                    guided=guided, steps=steps))
    if isinstance(positive, list):
        positive = _encode(pipe, "prompt", positive, clip_skip)
    if not guided and isinstance(negative, list):
        return Prompts(repeated(positive, copies), None)
    if isinstance(negative, list):  # diffusers skips layers for the positive prompt only
        negative = _encode(pipe, "negative prompt", negative * (count // len(negative)), None)
        if negative.shape != positive.shape:
            raise UsageError(f"prompt_embeds has shape {positive.shape}, the negative prompt "
                             f"{negative.shape}; give negative_prompt_embeds of the same shape")
    elif negative.shape != positive.shape:
        raise UsageError(f"negative_prompt_embeds has shape {negative.shape}, prompt_embeds "
                         f"{positive.shape}; give two of one shape")
    return Prompts(repeated(positive, copies), repeated(negative, copies) if guided else None)


def repeated(array: Any, copies: int) -> Any:
    """Each text `copies` times, read-only.   (B, ...) -> (B copies, ...)"""
    copied = array.repeat(copies, axis=0)
    copied.flags.writeable = False
    return copied


def said(pipe: Any, name: str, texts: list[str], tokenizer: Any) -> list[str]:
    """The texts, after a line on what will not be read in them as it may be meant."""
    for text in texts:
        plain = pipe.dialect.syntax == "plain"
        if plain and (line := dropped(tokenizer, text, name)):
            logger.warning("%s", line)
        say_literal(pipe, name, text)
        if plain and pipe.name == BUNDLED:
            from refsd.text import words

            if line := words.remark(text):
                pipe.remark(line)
    return texts


def say_literal(pipe: Any, name: str, text: str) -> None:
    """A line for each kind of syntax in a text that the dialect takes literally."""
    for syntax, meaning in literal(text, pipe.dialect.syntax, negative=name.startswith("negative")):
        pipe.remark(f"{syntax!r}: {meaning}", meaning)


def said_to_each(pipe: Any, readers: Iterable[tuple[str, list[str], Any]]) -> None:
    """`said` of the name, the texts and the tokenizer of encoders whose tokens lie side by side.

    Once of a text that several read: they cut it at the same length.
    """
    before: set[str] = set()
    for name, texts, tokenizer in readers:
        said(pipe, name, [text for text in dict.fromkeys(texts) if text not in before], tokenizer)
        before.update(texts)


def _encode(pipe, name, texts, clip_skip):
    ids = stages.tokenize(pipe.tokenizer, texts)
    vectors = stages.encode_text(pipe.text_encoder, ids, clip_skip=clip_skip)
    # An encoder of another pipeline has a dtype and a place of its own.
    return BACKENDS[pipe.backend].put(as_array(name, vectors, pipe.denoiser.dtype))
