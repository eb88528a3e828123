"""Many pictures, one after the other: `pipe.stream(prompts)`.

A mini-batch is one call of the pipeline, so weights that are read for it are read once; while the
caller has a picture, the next mini-batch is drawn in another Python thread. What is not overlapped:
the text and the decoder of one picture with the steps of another. Kernels take all processors one
at a time (numba_ops/threads.py), so there is nothing to gain.
"""

import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import replace
from itertools import repeat
from typing import Any

from refsd import parallel
from refsd.arguments import as_number, shown
from refsd.errors import UsageError
from refsd.pipelines.calling import held
from refsd.pipelines.request import MAX_PICTURES, check_flag, check_integer

TEXTS = ("prompt", "prompt_2", "prompt_3",
         "negative_prompt", "negative_prompt_2", "negative_prompt_3")


def pictures(pipe: Any, prompts: Any, *, batch: int, ahead: bool, generator: Any,
             options: dict[str, Any]) -> Iterator[Any]:
    """pipe.stream, whose docstring says more."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise UsageError(f"prompts is {shown(prompts)}; give a list of texts, or of dicts")
    batch = check_integer("batch", batch, 1, MAX_PICTURES)
    if batch > 1 and pipe.dialect.syntax != "plain":
        pipe.remark("batch changes nothing: in this dialect prompts may differ in length, and are "
                    "drawn one by one")
        batch = 1
    groups = _groups(_calls(prompts, generator, options), batch)
    return (_ahead if check_flag("ahead", ahead) else _in_turn)(pipe, groups)


def _calls(prompts, generator, options):
    """The arguments of each picture's call."""
    each = not isinstance(as_number(generator), int) and isinstance(generator, Iterable)
    generators = iter(generator) if each else repeat(generator)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, (str, Mapping)):
            raise UsageError(f"prompts[{i}] is {shown(prompt)}; give a text, or a dict of "
                             "arguments of the call")
        own = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        if "generator" not in own:
            try:
                own["generator"] = next(generators)
            except StopIteration:
                raise UsageError(f"generator has none for prompts[{i}]; give one for each "
                                 "picture") from None
        yield {**options, **own}


def _groups(calls, batch):
    """Neighbours that one call can draw, up to `batch` of them."""
    group: list[dict[str, Any]] = []
    for call in calls:
        if group and not _together(group[-1], call):
            yield group
            group = []
        group.append(call)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _together(one, other):
    """Whether two calls differ in texts and seeds alone."""
    if any(map(_alone, (one, other))) or one.keys() != other.keys():
        return False
    rest = one.keys() - {*TEXTS, "generator"}
    return (all((one[name] is None) == (other[name] is None) for name in one.keys() & {*TEXTS})
            and all(one[name] is other[name] or _plainly_equal(one[name], other[name])
                    for name in rest))


def _plainly_equal(a, b):
    return type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b


def _alone(call):
    """Whether it has what counts the pictures of a call: lists, arrays with a row for each.

    Or a mask: of a picture that several share, one generator alone draws the encoder's noise.
    """
    given = {name: value for name, value in call.items() if value is not None}
    return (not isinstance(given.get("prompt"), str)
            or not isinstance(as_number(given.get("generator", 0)), int)
            or given.get("num_images_per_prompt", 1) != 1
            or any(name in ("latents", "resume", "mask_image") or name.endswith("_embeds")
                   for name in given)
            or any(_counts(name, value) for name, value in given.items()))


def _counts(name, value):
    if isinstance(value, (list, tuple)):
        return name in TEXTS or not all(isinstance(one, (int, float, str)) for one in value)
    return getattr(value, "ndim", 0) > 3


def _draw(pipe, group):
    """What each of the calls would return, made in one."""
    if len(group) == 1:
        return [pipe(**group[0])]
    seeds = [secrets.randbits(32) if one["generator"] is None else as_number(one["generator"])
             for one in group]
    texts = {name: [one[name] for one in group] for name in TEXTS
             if group[0].get(name) is not None}
    found = pipe(**{**group[0], **texts, "generator": seeds, "return_dict": True})
    flags = found.nsfw_content_detected or [None] * len(group)
    each = [replace(found, images=found.images[i:i + 1], seed=seed,
                    nsfw_content_detected=None if flags[i] is None else [flags[i]])
            for i, seed in enumerate(seeds)]
    if group[0].get("return_dict", True):
        return each
    return [(one.images, one.nsfw_content_detected) for one in each]


def _in_turn(pipe, groups):
    for group in groups:
        yield from _draw(pipe, group)


def _ahead(pipe, groups):
    """The same, and the next group is drawn while the caller has the pictures of one."""
    closed, most = threading.Event(), parallel.limit()

    def draw(group):
        with nullcontext() if most is None else parallel.limited(most):
            return _draw(pipe, group)

    def begin_next():
        try:
            group = next(groups)
        except StopIteration:
            return None
        except Exception as problem:  # of the prompts: it comes in its picture's place
            failed: Future = Future()
            failed.set_exception(problem)
            return failed
        return pool.submit(copy_context().run, mine, draw, group)

    with held(pipe) as mine, ThreadPoolExecutor(1, "refsd-stream") as pool:
        # Python ends when its main thread has ended and no other is at work.
        pipe.stopped = lambda: closed.is_set() or not threading.main_thread().is_alive()
        try:
            drawing = begin_next()
            while drawing is not None:
                found = drawing.result()
                drawing = begin_next()
                yield from found
        finally:
            closed.set()
            pool.shutdown(cancel_futures=True)
            pipe.stopped = None
