"""A whole image, from the tokens to the pixels, with every tensor handed to a recorder.

The pipeline draws it itself, with parts that record in the place of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.recording.names import stage_of
from refsd.golden.recording.pipeline_ops import initial_latents
from refsd.golden.recording.record import BLOCK, Recorder
from refsd.golden.recording.request import Request
from refsd.golden.recording.texts import RecordedTexts, Wrapped
from refsd.pipelines import stages
from refsd.places import beside
from refsd.random.by_name import GENERATORS
from refsd.registry import use, watch
from refsd.schedulers import from_config


def run(pipe: Any, request: Request, recorder: Recorder,
        on_step: Callable | None = None) -> np.ndarray:
    """Draw the request's image and record every tensor.   -> (H, W, 3) uint8

    The noise is the float32 stream whatever pipe's dtype is, and the initial latents are rounded to
    float32, so that a port in float32 begins with the same bits. on_step(index) follows each step.
    """
    scheduler = from_config(request.scheduler)
    if "noise_sampler_seed" in scheduler.config:
        raise UsageError(f"{type(scheduler).__name__} has noise of a Brownian path, which packs do "
                         "not record; give another sampler")
    with watch(recorder), use(pipe.backend, exact=pipe.exact):
        latents = _denoise(pipe, request, recorder, scheduler, on_step)
        return _decode(pipe, recorder, latents)


def _denoise(pipe, request, recorder, scheduler, on_step):
    """The pipeline's own call, up to the last latents."""
    noise = Noise(GENERATORS[request.rng](request.seed))
    recorded = RecordedScheduler(scheduler, request, recorder, noise)
    denoiser = RecordedDenoiser(pipe.denoises, pipe.denoiser, recorded)
    texts = RecordedTexts(pipe, recorder)
    noise.start = lambda drawn: recorded.start(drawn, texts.positive)
    shadow = type(pipe).from_pipe(
        pipe, scheduler=recorded, **{pipe.denoises: denoiser}, **texts.parts)
    shadow.embed = texts.embedding(shadow.embed)
    shadow._said = pipe._said  # what a run warns of is not said again by the next

    def step_end(shadow: Any, index: int, timestep: Any, tensors: Any) -> None:
        if on_step is not None:
            on_step(index)

    shadow(request.prompt, height=request.height, width=request.width,
           num_inference_steps=request.steps, guidance_scale=request.cfg_scale,
           negative_prompt=request.negative_prompt, eta=request.eta, generator=noise,
           output_type="latent", clip_skip=request.clip_skip,
           guidance_rescale=request.guidance_rescale, callback_on_step_end=step_end)
    recorder.checkpoints(len(scheduler.timesteps))
    recorder.tensor("denoise", None, "final", recorded.latents, level=0, op=BLOCK,
                    inputs={"output": recorded.latents})
    return recorded.latents


def _decode(pipe, recorder, latents):
    recorded = RecordedVAE(pipe.vae, recorder, latents)
    images = stages.decode(recorded, latents)
    recorder.tensor("picture", None, "image", images, level=0, op="to_picture",
                    inputs={"x": recorded.decoded})
    pixels = stages.to_bytes(images)
    recorder.tensor("picture", None, "pixels", pixels, level=0, op="to_bytes",
                    inputs={"x": images})
    return pixels[0]


class Noise:
    """A generator that always draws float32 values, and keeps what it has drawn last.

    start(noise), which comes before the first step, gives what a run starts from of the first.
    """

    start: Callable | None = None

    def __init__(self, generator: Any):
        self._generator, self.drawn = generator, None

    def randn(self, shape: tuple[int, ...], dtype: Any = "float32") -> np.ndarray:
        """Normal values of float32, in the dtype that is wanted."""
        self.drawn = self._generator.randn(shape, "float32").astype(dtype)
        if self.start is None:
            return self.drawn
        start, self.start = self.start, None
        return start(self.drawn)


class RecordedScheduler(Wrapped):
    """A scheduler whose steps are recorded. `index` is that of the step it is in.

    The first step takes the rounded latents that `start` made in the place of the pipeline's.
    """

    init_noise_sigma = 1.0  # `start` has scaled the noise

    def __init__(self, scheduler: Any, request: Request, recorder: Recorder, generator: Noise):
        super().__init__(scheduler)
        self.request, self.recorder = request, recorder
        self._generator = generator
        self._history: tuple[list, list] = ([], [])
        self._shift: dict[str, float] = {}  # of a run's sigmas
        self.index = -1
        self.latents: Any = None  # where the run is
        self.predictions: dict[str, Any] = {}  # with each text, in this step

    @property
    def set_timesteps(self) -> Any:
        """The scheduler's own, with its signature, which the pipeline reads; records them."""

        @functools.wraps(self._wrapped.set_timesteps)
        def set_timesteps(*args, **options):
            self._wrapped.set_timesteps(*args, **options)
            self._shift = {"mu": options["mu"]} if options.get("mu") is not None else {}
            self._record_schedule()

        return set_timesteps

    def _record_schedule(self):
        scheduler, recorder = self._wrapped, self.recorder
        recorder.tensor("schedule", None, "timesteps", scheduler.timesteps, level=1)
        if hasattr(scheduler, "alphas_cumprod"):
            alpha_bar = scheduler.alphas_cumprod
            recorder.tensor("schedule", None, "alphas_cumprod", alpha_bar, level=1)
            recorder.worst.schedule(alpha_bar, recorder.held(alpha_bar))
        if hasattr(scheduler, "sigmas"):
            recorder.tensor("schedule", None, "sigmas", scheduler.sigmas, level=1)

    def start(self, noise: np.ndarray, text: Any) -> np.ndarray:
        """What the run begins with, of its first noise; its own copy lies where the text does."""
        self.recorder.tensor("denoise", None, "noise", noise, level=1)
        options = {"init_noise_sigma": float(self._wrapped.init_noise_sigma)}
        initial = initial_latents(noise, **options)
        self.latents = beside(text, initial)
        self.recorder.tensor("denoise", None, "initial", self.latents, level=1,
                             op="initial_latents", inputs={"noise": noise}, options=options)
        self.recorder.enter("denoise")
        return initial

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """The first thing that a step does."""
        self.index += 1
        self.recorder.enter("denoise", self.index)
        # A view of its own, also where the scheduler gives the sample itself: another name.
        scaled = self._wrapped.scale_model_input(self.latents, timestep)[:]
        self._record("scaled", scaled, "scale_model_input", {"sample": self.latents},
                     self._position())
        return scaled

    @property
    def step(self) -> Any:
        """The scheduler's own, with its signature, which the pipeline reads."""

        @functools.wraps(self._wrapped.step)
        def step(model_output, timestep, sample, **options):
            if self.predictions:
                self._record("guided", model_output, "guide", self.predictions, {
                    "scale": self.request.cfg_scale, "rescale": self.request.guidance_rescale})
            self.predictions, self._generator.drawn = {}, None
            stepped = self._wrapped.step(model_output, timestep, self.latents, **options)
            inputs = {"model_output": model_output, "sample": self.latents}
            if self._wrapped.has_history:
                inputs = {key: self._remember(key == "sample", value)
                          for key, value in inputs.items()}
            if self._generator.drawn is not None:
                inputs["noise"] = self._generator.drawn
                self.recorder.tensor("denoise", self.index, "noise", inputs["noise"], level=1)
            eta = {"eta": self.request.eta} if "eta" in options and self.request.eta else {}
            self.latents = stepped.prev_sample
            self._record("latents", self.latents, "scheduler_step", inputs,
                       {**self._position(), **eta})
            return stepped

        return step

    def _remember(self, which, value):
        self._history[which].append(value)
        return list(self._history[which])

    def _position(self):
        return {"scheduler": self.request.scheduler, "steps": self.request.steps,
                "index": self.index, **self._shift}

    def _record(self, path, array, op, inputs, options):
        self.recorder.tensor("denoise", self.index, path, array, level=1, op=op, inputs=inputs,
                             options=options)


class RecordedDenoiser(Wrapped):
    """The network that predicts: what it says of each text is recorded."""

    def __init__(self, part: str, denoiser: Any, scheduler: RecordedScheduler):
        super().__init__(denoiser)
        self._stage, self._scheduler = stage_of(part), scheduler

    def __call__(self, sample: Any, *args: Any, **options: Any) -> Any:
        """Its answer; with two texts the first half is the negative one's."""
        recorder, index = self._scheduler.recorder, self._scheduler.index
        with recorder.stage(self._stage, index):
            output = self._wrapped(sample, *args, **options)
        half = len(output) // 2
        if not half:
            recorder.tensor("denoise", index, "eps_cond", output, level=1, op=BLOCK,
                            inputs={"output": output})
            return output
        for path, start in (("uncond", 0), ("cond", half)):
            part = output[start:start + half]
            self._scheduler.predictions[path] = part
            position = {"axis": 0, "start": start, "stop": start + half}
            known = recorder.held(output) is not None
            recorder.tensor("denoise", index, f"eps_{path}", part, level=1,
                            op="slice" if known else BLOCK,
                            **({"inputs": {"x": output}, "options": position} if known else {}))
        return output


class RecordedVAE(Wrapped):
    """A VAE whose input is recorded; `decoded` is its output."""

    def __init__(self, vae: Any, recorder: Recorder, latents: Any):
        super().__init__(vae)
        self._recorder, self._latents = recorder, latents
        self.decoded = None

    def decode(self, latents: Any) -> Any:
        """(N, 4, h, w) -> (N, 3, H, W)"""
        config = self._wrapped.config
        shift = {"shift_factor": config.shift_factor} if config.shift_factor else {}
        self._recorder.tensor("decode", None, "latents", latents, level=1, op="unscale_latents",
                              inputs={"latents": self._latents},
                              options={"scaling_factor": config.scaling_factor, **shift})
        with self._recorder.stage("decode"):
            self.decoded = self._wrapped.decode(latents)
        return self.decoded
