"""GPT-2 as a callable that works alone: it continues a text, token by token."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array, shown
from refsd.backends import BACKENDS, choose_backend, find_backend
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.half import to_float32
from refsd.models import gpt2
from refsd.models.gpt2 import GPT2Config
from refsd.pipelines import from_diffusers
from refsd.pipelines.generators import as_generators
from refsd.pipelines.request import check_flag, check_integer
from refsd.pipelines.sampling import Sampling
from refsd.pipelines.writing import Writing
from refsd.places import on_host
from refsd.random import TorchGenerator
from refsd.registry import make_ready, use
from refsd.text.gpt2 import GPT2Tokenizer
from refsd.weights.checkpoint import Component

TOKENS = 50  # where nobody says how many


class GPT2Output(NamedTuple):
    """The scores of what comes after each token (N, L, V), and the past of a next call."""

    logits: Any
    past: list[tuple[Any, Any]]


class Token(NamedTuple):
    """One more token: its id, and the part of the text that is certain with it.

    The parts of all tokens are the continuation. One is empty while a character is incomplete, or
    what stands there may become a stop text. scores (V,): what it was chosen by. stopped: why it is
    the last one: "end" by a stop id, which this is; "stop" by a stop text, which is cut off;
    "length" by max_new_tokens; else empty.
    """

    id: int
    text: str
    scores: np.ndarray
    stopped: str = ""


@dataclass
class Continuation:
    """A prompt and what follows it: `text` of both, `ids` of what follows.

    stopped: the last token's. seed: what the tokens were drawn with, if it is a number.
    """

    prompt: str
    continuation: str = ""
    ids: list[int] = field(default_factory=list)
    stopped: str = ""
    seed: int | None = None

    @property
    def text(self) -> str:
        """The prompt and its continuation."""
        return self.prompt + self.continuation


class GPT2:
    """The network (N, L) -> logits (N, L, V), its tokenizer, and texts by both.

    `from_pretrained` without a path gives the small model that ships with refsd, which completes
    prompts for the bundled picture model. stop_ids end a text.
    """

    def __init__(self, tree: dict, config: GPT2Config, tokenizer: GPT2Tokenizer | None,
                 stop_ids: Sequence[int], backend: str, exact: bool = False):
        self.tree, self.config, self.tokenizer = tree, config, tokenizer
        self.stop_ids, self.backend, self.exact = tuple(stop_ids), backend, exact
        self.dtype = str(tree["wte"]["weight"].dtype)
        self.vocabulary = tree["wte"]["weight"].shape[0]
        if tokenizer is not None:
            tokenizer.require_rows(self.vocabulary)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, *, backend: str = "auto",
                        dtype: Any = "float32", weights: str | None = None, download: bool = False,
                        variant: str | None = None, force: bool = False, exact: bool = False,
                        torch_dtype: Any = None, local_files_only: bool | None = None,
                        **others: Any) -> Self:
        """Load a folder, a .safetensors file in one, or a hub id from the local cache.

        The options are those of a pipeline's from_pretrained; the model that ships is so small
        that "auto" is NumPy for it. Raises ModelError, ResourceError, UsageError.
        """
        from refsd.pipelines.gpt2_loading import load_gpt2

        for name, value in {"force": force, "exact": exact}.items():
            check_flag(name, value)
        dtype, download, hub = from_diffusers.loading(
            cls.from_pretrained, others, dtype=dtype, torch_dtype=torch_dtype, download=download,
            local_files_only=local_files_only)
        backend = choose_backend("numpy" if path is None and backend == "auto" else backend)
        part, tokenizer, stop_ids = load_gpt2(path, dtype=dtype, weights=weights, download=download,
                                              variant=variant, force=force, hub=hub)
        find_backend(backend).place(part.tensors)
        find_backend(backend).release()  # the memory that weights lay in before
        return cls(part.tree, GPT2Config.from_json(part.config), tokenizer, stop_ids, backend,
                   exact)

    @classmethod
    def of(cls, part: Component, backend: str, exact: bool) -> Self:
        """The network of a loaded checkpoint alone: of ids, for it has no tokenizer."""
        return cls(part.tree, GPT2Config.from_json(part.config), None, (), backend, exact)

    def calls(self, part: str, asked: Any, texts: Any) -> dict[str, partial]:
        """What a text computes of it (refsd.planning): as long a one as it takes, read; and the
        last token that there is room for, after all others.
        """
        most, width = self.config.max_length, self.tree["wte"]["weight"].shape[1]
        kept = Spec((1, most - 1, width), self.dtype)
        past = [(kept, kept)] * len(self.tree["h"])
        return {"read": partial(self._next, Spec((1, most), "int64"), None),
                "token": partial(self._next, Spec((1, 1), "int64"), past)}

    def _next(self, ids, past):
        """The scores of what comes next, and what is kept.   (N, L), past -> (N, 1, V), past"""
        hidden, past = self._hidden(ids, past, None)
        return self.logits(hidden, last=True), past

    def __call__(self, input_ids: Any, past: Any = None) -> GPT2Output:
        """What comes after each token.   ids (N, L) -> logits (N, L, V), past

        past: that of a call with the tokens before these. Raises UsageError for ids that are not
        integers (N, L) below the vocabulary's size, or more tokens than the model has positions.
        """
        hidden, past = self.read(input_ids, past)
        return GPT2Output(self.logits(hidden), past)

    def generate(self, prompt: str = "", *, max_new_tokens: int | None = None,
                 temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
                 repetition_penalty: float = 1.0, stop: str | Sequence[str] = (),
                 stop_ids: Sequence[int] | None = None, generator: Any = None) -> Continuation:
        """The prompt continued: see `stream`, whose tokens this puts together."""
        if generator is None and temperature:
            generator = secrets.randbits(32)
        found = Continuation(prompt, seed=generator if isinstance(generator, int) else None)
        for token in self.stream(prompt, max_new_tokens=max_new_tokens, temperature=temperature,
                                 top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty,
                                 stop=stop, stop_ids=stop_ids, generator=generator):
            found.ids.append(token.id)
            found.continuation += token.text
            found.stopped = token.stopped
        return found

    def stream(self, prompt: str = "", *, max_new_tokens: int | None = None,
               temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
               repetition_penalty: float = 1.0, stop: str | Sequence[str] = (),
               stop_ids: Sequence[int] | None = None, generator: Any = None) -> Iterator[Token]:
        """One token after the other, as they are chosen; all is checked before the first.

        temperature 0 takes the likeliest; else tokens are drawn (see Sampling), from a seed or a
        generator, and are those of transformers' generate(do_sample=True) after
        torch.manual_seed(seed). It ends at a text of `stop`, at one of stop_ids (the model's), or
        after max_new_tokens (50, or what there is room for). An empty prompt is the beginning of a
        text. Raises UsageError.
        """
        sampling = Sampling.of(temperature=temperature, top_k=top_k, top_p=top_p,
                               repetition_penalty=repetition_penalty)
        ids = self._prompt(prompt)
        count = self._count(max_new_tokens, len(ids))
        ends = self.stop_ids if stop_ids is None else tuple(
            check_integer("stop_ids", one, 0, self.vocabulary - 1)
            for one in (stop_ids if isinstance(stop_ids, (list, tuple)) else [stop_ids]))
        writing = Writing(self.tokenizer, stop)
        if sampling.draws:
            seed = secrets.randbits(32) if generator is None else generator
            generator = as_generators(seed, TorchGenerator, 1)
            if not hasattr(generator, "exponential"):
                raise UsageError(f"generator is {shown(generator)}, which draws no tokens; give a "
                                 "seed, a TorchGenerator, or one of torch's on the CPU")
        elif generator is not None:
            raise UsageError("generator is given, and temperature is 0, which draws nothing; give "
                             "a temperature such as 1, or leave it out")
        make_ready(self.backend, self.dtype)
        return self._continued(ids, count, sampling, generator, ends, writing)

    def _continued(self, ids, count, sampling, generator, ends, writing):
        """The tokens of `stream`, for which everything was checked"""
        past, new, stopped = None, ids, ""
        while not stopped:
            hidden, past = self.read([new], past)
            logits = to_float32(on_host(self.logits(hidden, last=True)))
            scores = sampling.scores(logits[0, 0], np.array(ids))
            chosen = sampling.choose(scores, generator)
            text, found = writing.add(chosen)
            ids, new, count = [*ids, chosen], [chosen], count - 1
            stopped = ("stop" if found else "end" if chosen in ends else
                       "" if count else "length")
            yield Token(chosen, text + (writing.rest() if stopped else ""), scores, stopped)

    def _prompt(self, prompt):
        """Its ids, at least one: an empty prompt is the token that begins texts."""
        ids = self.tokenizer(prompt)
        if not ids and self.tokenizer.bos_token_id is None:
            raise UsageError("prompt is empty, and the tokenizer has no token that begins texts; "
                             "give some words")
        return ids or [self.tokenizer.bos_token_id]

    def _count(self, wanted, before):
        """How many tokens, by what there is room for after the prompt's."""
        room = self.config.max_length - before
        if room < 1:
            raise UsageError(f"prompt has {before} tokens, the model has {self.config.max_length} "
                             f"positions; give one of at most {self.config.max_length - 1}")
        if wanted is None:
            return min(TOKENS, room)
        count = check_integer("max_new_tokens", wanted, 1, 2**31)
        if count > room:
            raise UsageError(f"max_new_tokens is {count}, after the prompt's {before} tokens the "
                             f"model has room for {room}; give at most that")
        return count

    def read(self, input_ids: Any, past: Any = None) -> tuple[Any, list[tuple[Any, Any]]]:
        """The network without its head.   ids (N, L) -> (N, L, D), past; raises as a call"""
        ids = as_array("gpt2: ids", on_host(input_ids))
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
            raise UsageError(f"gpt2: ids are {ids.dtype} {ids.shape}; give integers (N, L)")
        if not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise UsageError(f"gpt2: ids run from {ids.min()} to {ids.max()}; the vocabulary has 0 "
                             f"to {self.vocabulary - 1}")
        count, before = ids.shape[1], past[0][0].shape[1] if past else 0
        if before + count > self.config.max_length:
            raise UsageError(f"gpt2: {before} + {count} tokens, the model has "
                             f"{self.config.max_length} positions; give fewer")
        mask = None
        if before and count > 1:
            seen = np.tri(count, before + count, before)
            mask = as_array("gpt2: mask", np.where(seen, 0, -np.inf), self.dtype)
        return self._hidden(ids, past, BACKENDS[self.backend].put(mask))

    def _hidden(self, ids, past, mask):
        trunk = {name: part for name, part in self.tree.items() if name != "lm_head"}
        with use(self.backend, exact=self.exact):
            return gpt2.gpt2(ids, past, mask, **trunk, config=self.config)

    def logits(self, hidden: Any, *, last: bool = False) -> Any:
        """The head, for all tokens or the last ones.   (N, L, D) -> (N, L or 1, V)"""
        with use(self.backend, exact=self.exact):
            if last:
                hidden = F.slice(hidden, axis=1, start=hidden.shape[1] - 1, stop=hidden.shape[1])
            return gpt2.logits(hidden, wte=self.tree["wte"], lm_head=self.tree.get("lm_head"))
