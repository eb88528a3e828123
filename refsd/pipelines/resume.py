"""A drawing saved after a step, and resumed by the same call with the very bits of a whole one.

    pipe("a red cube", generator=7, callback_on_step_end=SaveState("half.safetensors", 10))
    pipe("a red cube", generator=7, resume="half.safetensors")

The file is a safetensors file: the latents, what the sampler remembers and the generators' states
as tensors; the step, the request's fingerprint and the caller's notes as JSON in its metadata. The
call makes all else anew (texts, masks, hints), and is refused where the fingerprint differs.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.arguments import shown
from refsd.backends import BACKENDS
from refsd.dialects.names import spelled
from refsd.errors import UsageError, damaged
from refsd.half import to_float32, to_half
from refsd.pipelines.request import check_integer
from refsd.places import on_host
from refsd.random import TorchGenerator
from refsd.random.borrowed import BorrowedGenerator, is_torch_generator
from refsd.rules import anything, check, check_schema, each, integer, only, table, that
from refsd.schedulers.state import get_state, set_state
from refsd.weights import write_safetensors
from refsd.weights.files import parse_object
from refsd.weights.header import read_header
from refsd.weights.reader import read_tensors

SCHEMA = 1
KEY, SUM = "refsd_state", "sha256"  # in the file's metadata
MAX_FILE = 2 << 30
TEXT = that(lambda value: type(value) is str, "a text")
OBJECT = table(anything, "an object")
RULES = {"schema": only(SCHEMA), "step": integer(1, 10**6), "request": OBJECT,
         "scheduler": OBJECT, "generators": integer(1, 10**6),
         "bfloat16": each(TEXT), "notes": OBJECT}


class State(NamedTuple):
    """A saved drawing: `about` as RULES say, the tensors by name, and where it was read."""

    about: dict[str, Any]
    tensors: dict[str, np.ndarray]
    path: str


class SaveState:
    """A callback_on_step_end that writes the drawing to a file after step `at`, and lets it go on.

    `notes`, an object for JSON, go into the file. Raises UsageError for a step that there is not.
    """

    tensor_inputs = ("latents",)

    def __init__(self, path: str | Path, at: int, *, notes: dict[str, Any] | None = None):
        self.path, self.at, self.notes = path, check_integer("at", at, 1, 10**6), notes or {}

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        """One more step is done."""
        if self.at >= pipe.num_timesteps:
            raise UsageError(f"SaveState: step {self.at} of {pipe.num_timesteps} has none after "
                             f"it; give 1 to {pipe.num_timesteps - 1}")
        if index + 1 == self.at:
            save(self.path, pipe.drawing, self.at, tensors["latents"], self.notes)


def save(path: str | Path, drawing: Any, step: int, latents: Any, notes: dict[str, Any]) -> None:
    """Write where a drawing is after `step` steps."""
    values, arrays = get_state(drawing.pipe.scheduler)
    generators = as_list(drawing.step_generator)
    tensors = {"latents": np.asarray(on_host(latents)),
               **{f"scheduler.{name}": array for name, array in arrays.items()}}
    for number, generator in enumerate(generators):
        if not hasattr(generator, "get_state"):
            raise UsageError(f"generator is a {type(generator).__name__}, whose state cannot be "
                             "had; give a seed or a generator of refsd.random")
        tensors[f"generator.{number}"] = np.array(generator.get_state())
    halves = [name for name, array in tensors.items() if array.dtype.name == "bfloat16"]
    tensors |= {name: to_float32(tensors[name]) for name in halves}  # safetensors' NumPy has none
    about = json.dumps({"schema": SCHEMA, "step": step, "request": fingerprint(drawing),
                        "scheduler": values, "generators": len(generators), "bfloat16": halves,
                        "notes": notes})
    write_safetensors(path, tensors, {KEY: about, SUM: _sum(about, tensors)})


def read_state(path: str | Path) -> State:
    """A file of `save`. Raises ModelError for what is none or is damaged, UsageError for another.
    """
    header = read_header(path)
    if KEY not in header.metadata:
        raise UsageError(f"{path}: not a saved drawing; give a file that SaveState or --save-state "
                         "wrote")
    size = sum(info.stop - info.start for info in header.tensors.values())
    if size > MAX_FILE:
        raise UsageError(f"{path}: {size:,} bytes, at most {MAX_FILE:,} are read; save fewer "
                         "pictures at once")
    about = parse_object(header.metadata[KEY].encode(), f"{path}: its state")
    check_schema(about.get("schema"), SCHEMA, str(path), "it", error=UsageError)
    check(about, RULES, f"{path}: its state")
    tensors = read_tensors(header)
    if header.metadata.get(SUM) != _sum(header.metadata[KEY], tensors):
        raise damaged(f"{path}: its bytes are not those that were saved")
    halves = {name: to_half(tensors[name], "bfloat16") for name in about["bfloat16"]
              if name in tensors}
    return State(about, tensors | halves, str(path))


def resumed(call: Callable, pipe: Any, *args: Any, resume: Any, **options: Any) -> Any:
    """A pipeline's call that goes on where an earlier one was saved; None is one from the start."""
    pipe.resumed = None if resume is None else partial(restore, state=read_state(resume))
    try:
        return call(pipe, *args, **options)
    finally:
        pipe.resumed = None


def restore(drawing: Any, state: State) -> tuple[Any, int]:
    """Put the sampler and the generators where they were; the latents, and how many steps are done.

    Raises UsageError for the state of another request.
    """
    there, here = state.about["request"], fingerprint(drawing)
    for name in [*here, *(there.keys() - here.keys())]:
        if here.get(name) != there.get(name):
            values = f": {shown(here.get(name))} here and {shown(there.get(name))} there" \
                if name not in HASHES else ""
            raise UsageError(f"{state.path}: saved by another request, {HASHES.get(name, name)} "
                             f"differs{values}; resume with what it was saved with")
    generators, put = as_list(drawing.step_generator), BACKENDS[drawing.pipe.backend].put
    if len(generators) != state.about["generators"]:
        raise UsageError(f"{state.path}: saved with {state.about['generators']} generators, got "
                         f"{len(generators)}; give as many")
    try:
        arrays = {name.removeprefix("scheduler."): array for name, array in state.tensors.items()
                  if name.startswith("scheduler.")}
        set_state(drawing.pipe.scheduler, state.about["scheduler"], arrays, put)
        for number, generator in enumerate(generators):
            set_generator(generator, state.tensors[f"generator.{number}"])
        return put(state.tensors["latents"]), state.about["step"]
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged(f"{state.path}: its state does not fit together") from None


# What a fingerprint has as a hash, in words.
HASHES = {"texts": "the prompt, the negative prompt or the text encoder",
          "timesteps": "the schedule", "first": "what it began with (seed, size, picture, "
          "strength)", "inputs": "a mask or another input of the model"}


def fingerprint(drawing: Any) -> dict[str, Any]:
    """What decides how a drawing goes on, as JSON; arrays as hashes."""
    pipe, config = drawing.pipe, drawing.pipe.scheduler.config
    return {"pipeline": type(pipe).__name__, "dtype": str(pipe.denoiser.dtype),
            "scheduler": type(pipe.scheduler).__name__,
            **{f"scheduler {key}": repr(value) for key, value in config.items()}, **drawing.numbers,
            "dialect": spelled(pipe.dialect),
            "texts": _hash(*drawing.callback.texts(), *drawing.later_texts(),
                           *drawing.added.values()),
            "first": _hash(drawing.first),
            "timesteps": _hash(pipe.scheduler.timesteps),
            "inputs": _hash(*(array for value in drawing.inputs.values() for array in (
                value.arrays() if hasattr(value, "arrays") else [value])))}


def as_list(generator: Any) -> list[Any]:
    """The generators of a drawing, of which there may be one; torch's own, where one is drawn from.
    """
    every = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    return [one.theirs if isinstance(one, BorrowedGenerator) else one for one in every]


def set_generator(generator: Any, state: np.ndarray) -> None:
    """Put a generator where it was; torch's takes a tensor, whose memory is an array's."""
    if is_torch_generator(generator):
        there = generator.get_state()
        np.asarray(there)[:] = TorchGenerator(0).set_state(state).get_state()
        state = there
    generator.set_state(state)


def _hash(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        if hasattr(array, "dtype"):
            array = np.ascontiguousarray(on_host(array))
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        else:
            digest.update(type(array).__name__.encode())
    return digest.hexdigest()


def _sum(about: str, tensors: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(about.encode() + _hash(*(tensors[name] for name in sorted(tensors)))
                          .encode()).hexdigest()
