"""What the calls of all pipelines have in common, whatever their arguments, and many of them."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from refsd.errors import UsageError

_held: dict[int, object] = {}  # pipelines and samplers that a stream draws with -> the stream
_stream: ContextVar[object] = ContextVar("refsd_stream", default=None)


class Called:
    """What gives pipelines `stream`."""

    stopped: Any = None  # a function that says whether the run at hand is no longer wanted

    def stream(self, prompts: Iterable[Any], *, batch: int = 1, ahead: bool = True,
               generator: Any = None, **options: Any) -> Iterator[Any]:
        """Yield what pipe(prompt, generator=..., **options) returns for each of the prompts.

        A prompt is a text, or a dict of arguments of the call that hold for its picture alone.
        `generator` is that of every call, or a list or another iterable with one for each. Up to
        `batch` neighbours of equal options are drawn in one call: on the numba backend with the
        bits of single ones; weights that are read while they are used are read once for all of
        them, and they take more memory. With `ahead` the next call is at work while the caller has
        a picture; until the generator is used up or closed, which stops it after a step, the
        pipeline is not to be called or changed. Raises UsageError; what a call raises comes in its
        picture's place.
        """
        from refsd.pipelines.stream import pictures

        return pictures(self, prompts, batch=batch, ahead=ahead, generator=generator,
                        options=options)


def with_more(call: Callable) -> Callable:
    """A pipeline's call that takes resume=FILE and cross_attention_kwargs={"scale": x}.

    And that is refused while a stream draws with the pipeline or its sampler in another thread.
    """

    @functools.wraps(call)
    def scaled(pipe, *args, **options):
        _require_free(pipe)
        if "resume" in options:
            from refsd.pipelines.resume import resumed
            return resumed(scaled, pipe, *args, **options)
        if not isinstance(wanted := options.get("cross_attention_kwargs"), Mapping):
            return call(pipe, *args, **options)
        del options["cross_attention_kwargs"]
        with pipe.lora_scaled(wanted):
            return call(pipe, *args, **options)

    return scaled


@contextmanager
def held(pipe: Any) -> Iterator[Callable]:
    """Within the block only `mine(function, ...)`, which the block is given, calls the pipeline."""
    _require_free(pipe)
    stream, things = object(), (id(pipe), id(pipe.scheduler))

    def mine(function, *args):
        _stream.set(stream)  # of the context of the thread that draws
        return function(*args)

    _held.update(dict.fromkeys(things, stream))
    try:
        yield mine
    finally:
        for thing in things:
            del _held[thing]


def _require_free(pipe):
    for thing, what in ((pipe, "this pipeline"), (pipe.scheduler, "this pipeline's sampler")):
        if _held.get(id(thing), _stream.get()) is not _stream.get():
            raise UsageError(f"{what} is at work on the next picture of a stream; close() the "
                             "stream, or give it ahead=False")
