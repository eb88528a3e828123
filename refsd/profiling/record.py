"""Drawing one picture while every op is timed, and knowing which layer called it."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from refsd.backends import find_backend
from refsd.contracts import Spec
from refsd.leaf import Away, layer_of
from refsd.registry import watch
from refsd.tree import flatten

READER = "refsd weights"  # the thread of refsd.weights.streaming
STAGES = ("text", "denoise", "decode")


class Span(NamedTuple):
    """Something that took time: nanoseconds of time.perf_counter_ns."""

    name: str
    begun: int
    ended: int

    @property
    def nanoseconds(self) -> int:
        return self.ended - self.begun


class Read(NamedTuple):
    """Weights that were read while they are used: their first layer, and their bytes."""

    layer: str
    bytes: int
    begun: int
    ended: int
    ahead: bool  # beside the kernels, on a thread of its own


@dataclass(slots=True)
class Call:
    """One call of an op, its arrays as Specs.

    `begun` to `ended` (nanoseconds of time.perf_counter_ns) is the kernel alone; `watched` is what
    listening to it cost afterwards. `layer` is the checkpoint's path of the parameters that it was
    given, or of the last ones before it: a SiLU belongs to the norm that it follows. It is empty
    where a stage or a step has had none yet. `stage` is the name of the step or the stage. `copies`
    counts arrays that it copied for no other reason than how they lay in memory (numba only).
    """

    op: str
    layer: str
    stage: str
    begun: int
    ended: int
    inputs: dict[str, Any]
    options: dict[str, Any]
    watched: int = 0
    copies: int = 0

    @property
    def nanoseconds(self) -> int:
        return self.ended - self.begun


@dataclass
class Profile:
    """What a Recorder heard. `images` is what the pipeline gave, `reads` what was read meanwhile.
    """

    backend: str
    exact: bool
    stages: list[Span] = field(default_factory=list)
    steps: list[Span] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    images: Any = None

    @property
    def nanoseconds(self) -> int:
        """From the beginning of the first stage to the end of the last."""
        return self.stages[-1].ended - self.stages[0].begun


class Recorder:
    """A timed listener: give it to refsd.watch(recorder, timed=True)."""

    def __init__(self, *, backend: str, exact: bool = False):
        self.profile = Profile(backend, exact)
        self._stage, self._layer = "", ""
        self._count = find_backend(backend).layout_copies
        self._copies = self._count() or 0

    def __call__(self, op: str, inputs: dict, options: dict, output: Any, begun: int,
                 ended: int) -> None:
        layer = layer_of(inputs)
        if layer is not None:
            self._layer = layer.replace(".text_model.", ".")
        call = Call(op, self._layer, self._stage, begun, ended,
                    {name: _spec(value) for name, value in inputs.items()},
                    {name: _spec(value) for name, value in options.items()})
        self.profile.calls.append(call)
        count = self._count() or 0
        call.copies, self._copies = count - self._copies, count
        call.watched = time.perf_counter_ns() - ended

    def read(self, layer: str, size: int, begun: int, ended: int) -> None:
        """Weights were read: a listener of refsd.weights.streaming.Streamer."""
        ahead = threading.current_thread().name == READER
        self.profile.reads.append(Read(layer, size, begun, ended, ahead))

    @contextmanager
    def reading(self, pipe: Any) -> Iterator[None]:
        """Within the block it hears of what is read of a pipeline's weights."""
        sources = {leaf.source for network in pipe.networks.values()
                   for leaf in flatten(network.tree).values() if isinstance(leaf, Away)}
        for source in sources:
            source.listener = self.read
        yield
        for source in sources:
            source.listener = None

    @contextmanager
    def stage(self, name: str, *, stepwise: bool = False) -> Iterator[None]:
        """Everything inside belongs to this stage; `stepwise` if `step` is called in it."""
        self._stage, self._layer = "step 1" if stepwise else name, ""
        begun = time.perf_counter_ns()
        yield
        self.profile.stages.append(Span(name, begun, time.perf_counter_ns()))

    def step(self, *_: Any) -> None:
        """A step is done: a callback_on_step_end, which changes nothing.

        The first begins with its first op; each other where the one before has ended.
        """
        now, steps = time.perf_counter_ns(), self.profile.steps
        first = next((call.begun for call in self.profile.calls if call.stage == "step 1"), now)
        begun = steps[-1].ended if steps else first
        steps.append(Span(f"step {len(steps) + 1}", begun, now))
        self._stage, self._layer = f"step {len(steps) + 1}", ""


def profile(pipe: Any, prompt: str, *, num_inference_steps: int = 50, generator: Any = 0,
            output_type: str = "np", **options: Any) -> Profile:
    """Draw with a pipeline of text to image, timing every op; arguments as in calling it.

    One step is drawn and decoded before, so that neither compiling nor packing weights is counted.
    generator: an int or a list of ints, from which the noise is made anew.
    """
    options |= {"generator": generator, "output_type": "latent"}
    _draw(pipe, Silence(), prompt, output_type, {**options, "num_inference_steps": 1})

    recorder = Recorder(backend=pipe.backend, exact=pipe.exact)
    with watch(recorder, timed=True), recorder.reading(pipe):
        images = _draw(pipe, recorder, prompt, output_type,
                       {**options, "num_inference_steps": num_inference_steps})
    recorder.profile.images = images
    return recorder.profile


class Silence:
    """Stands in for a Recorder while kernels warm up."""

    @contextmanager
    def stage(self, name: str, *, stepwise: bool = False) -> Iterator[None]:
        yield

    def step(self, *_: Any) -> None:
        """Nothing to note."""


def _draw(pipe, recorder, prompt, output_type, options):
    """The same as pipe(prompt, ...), taken apart where the stages meet."""
    shadow, denoising = type(pipe).from_pipe(pipe), ExitStack()
    shadow._said = pipe._said  # what the warm-up warned of is not said again
    embed = shadow.embed

    def timed(*texts: Any, **how: Any) -> Any:
        with recorder.stage("text"):
            prompts = embed(*texts, **how)
        denoising.enter_context(recorder.stage("denoise", stepwise=True))
        return prompts

    shadow.embed = timed
    with denoising:
        latents = shadow(prompt, callback_on_step_end=recorder.step, **options).images
    with recorder.stage("decode"):
        return shadow.to_output(latents, output_type)


def _spec(value: Any) -> Any:
    """Arrays as Specs, alone or in a list; everything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)([_spec(element) for element in value])
    return Spec(tuple(value.shape), str(value.dtype)) if getattr(value, "shape", ()) else value
