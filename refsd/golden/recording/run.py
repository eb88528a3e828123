"""A whole image, from the tokens to the pixels, with every tensor handed to a recorder."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.recording.pipeline_ops import initial_latents
from refsd.golden.recording.record import BLOCK, Recorder
from refsd.golden.recording.request import Request
from refsd.pipelines import stages
from refsd.places import beside
from refsd.random import draw_noise
from refsd.random.by_name import GENERATORS
from refsd.registry import use, watch
from refsd.schedulers import from_config


def run(pipe: Any, request: Request, recorder: Recorder,
        on_step: Callable | None = None) -> np.ndarray:
    """Draw the request's image and record every tensor.   -> (H, W, 3) uint8

    The noise is the float32 stream whatever pipe's dtype is, and the initial latents are rounded to
    float32, so that a port in float32 begins with the same bits. on_step(index) follows each step.
    """
    with watch(recorder), use(pipe.backend, exact=pipe.exact):
        texts = [request.prompt]
        if request.cfg_scale > 1 and pipe.unet.time_cond_dim is None:
            texts.append(request.negative_prompt)
        # diffusers skips layers for the positive prompt only.
        embeds = [_encode(pipe, recorder, i, text, request.clip_skip if i == 0 else None)
                  for i, text in enumerate(texts)]
        latents = _denoise(pipe, request, recorder, on_step, *embeds)
        return _decode(pipe, recorder, latents)


def _encode(pipe, recorder, number, text, clip_skip):
    ids = stages.tokenize(pipe.tokenizer, [text])
    pieces = " ".join(piece.token for piece in pipe.tokenizer.pieces(text))
    recorder.tensor("tokens", number, "ids", ids, level=0, note=pieces[:2000])
    with recorder.stage("text", number):
        states = stages.encode_text(pipe.text_encoder, ids, clip_skip=clip_skip)
    recorder.tensor("text", number, "last_hidden_state", states, level=0, op=BLOCK,
                    inputs={"output": states})
    return states


def _denoise(pipe, request, recorder, on_step, positive, negative=None):
    scheduler = from_config(request.scheduler)
    if "noise_sampler_seed" in scheduler.config:
        raise UsageError(f"{type(scheduler).__name__} has noise of a Brownian path, which packs do "
                         "not record; give another sampler")
    timesteps = stages.make_schedule(scheduler, request.steps)
    recorder.tensor("schedule", None, "timesteps", timesteps, level=1)
    if hasattr(scheduler, "alphas_cumprod"):
        alpha_bar = scheduler.alphas_cumprod
        recorder.tensor("schedule", None, "alphas_cumprod", alpha_bar, level=1)
        recorder.worst.schedule(alpha_bar, recorder.held(alpha_bar))
    if hasattr(scheduler, "sigmas"):
        recorder.tensor("schedule", None, "sigmas", scheduler.sigmas, level=1)

    generator = Noise(GENERATORS[request.rng](request.seed))
    factor = pipe.vae.config.downscale
    shape = (1, pipe.vae.config.latent_channels, request.height // factor, request.width // factor)
    noise = draw_noise(shape, pipe.unet.dtype, generator)
    recorder.tensor("denoise", None, "noise", noise, level=1)
    options = {"init_noise_sigma": float(scheduler.init_noise_sigma)}
    latents = beside(positive, initial_latents(noise, **options))
    recorder.tensor("denoise", None, "initial", latents, level=1, op="initial_latents",
                    inputs={"noise": noise}, options=options)

    recorder.enter("denoise")
    recorded = RecordedScheduler(scheduler, request, recorder, generator)
    unet = RecordedUNet(pipe.unet, recorded)
    states = () if negative is None else (negative,)
    for step in stages.denoise(unet, recorded, latents, positive, *states,
                               guidance_scale=request.cfg_scale, eta=request.eta,
                               guidance_rescale=request.guidance_rescale, generator=generator):
        latents = step.latents
        if on_step is not None:
            on_step(step.index)
    recorder.checkpoints(len(timesteps))
    recorder.tensor("denoise", None, "final", latents, level=0, op=BLOCK,
                    inputs={"output": latents})
    return latents


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
    """A generator that always draws float32 values, and keeps what it has drawn last."""

    def __init__(self, generator: Any):
        self._generator, self.drawn = generator, None

    def randn(self, shape: tuple[int, ...], dtype: Any = "float32") -> np.ndarray:
        """Normal values of float32, in the dtype that is wanted."""
        self.drawn = self._generator.randn(shape, "float32").astype(dtype)
        return self.drawn


class RecordedScheduler:
    """A scheduler whose steps are recorded. `index` is that of the step it is in."""

    def __init__(self, scheduler: Any, request: Request, recorder: Recorder, generator: Noise):
        self._scheduler, self.request, self.recorder = scheduler, request, recorder
        self._generator = generator
        self._history: tuple[list, list] = ([], [])
        self.index = -1
        self.predictions: dict[str, Any] = {}  # with each text, in this step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """The first thing that a step does."""
        self.index += 1
        self.recorder.enter("denoise", self.index)
        # A view of its own, also where the scheduler gives the sample itself: another name.
        scaled = self._scheduler.scale_model_input(sample, timestep)[:]
        self._record("scaled", scaled, "scale_model_input", {"sample": sample}, self._position())
        return scaled

    @property
    def step(self) -> Any:
        """The scheduler's own, with its signature, which the pipeline reads."""

        @functools.wraps(self._scheduler.step)
        def step(model_output, timestep, sample, **options):
            if self.predictions:
                self._record("guided", model_output, "guide", self.predictions, {
                    "scale": self.request.cfg_scale, "rescale": self.request.guidance_rescale})
            self.predictions, self._generator.drawn = {}, None
            stepped = self._scheduler.step(model_output, timestep, sample, **options)
            inputs = {"model_output": model_output, "sample": sample}
            if self._scheduler.has_history:
                inputs = {key: self._remember(key == "sample", value)
                          for key, value in inputs.items()}
            if self._generator.drawn is not None:
                inputs["noise"] = self._generator.drawn
                self.recorder.tensor("denoise", self.index, "noise", inputs["noise"], level=1)
            eta = {"eta": self.request.eta} if "eta" in options and self.request.eta else {}
            self._record("latents", stepped.prev_sample, "scheduler_step", inputs,
                       {**self._position(), **eta})
            return stepped

        return step

    def _remember(self, which, value):
        self._history[which].append(value)
        return list(self._history[which])

    def _position(self):
        return {"scheduler": self.request.scheduler, "steps": self.request.steps,
                "index": self.index}

    def _record(self, path, array, op, inputs, options):
        self.recorder.tensor("denoise", self.index, path, array, level=1, op=op, inputs=inputs,
                             options=options)


class RecordedUNet:
    """A UNet whose prediction with each text is recorded."""

    def __init__(self, unet: Any, scheduler: RecordedScheduler):
        self._unet, self._scheduler = unet, scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: Any, *args: Any, **options: Any) -> Any:
        """Its answer; with two texts the first half is the negative one's."""
        recorder, index = self._scheduler.recorder, self._scheduler.index
        with recorder.stage("unet", index):
            output = self._unet(sample, *args, **options)
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


class RecordedVAE:
    """A VAE whose input is recorded; `decoded` is its output."""

    def __init__(self, vae: Any, recorder: Recorder, latents: Any):
        self._vae, self._recorder, self._latents = vae, recorder, latents
        self.decoded = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode(self, latents: Any) -> Any:
        """(N, 4, h, w) -> (N, 3, H, W)"""
        config = self._vae.config
        shift = {"shift_factor": config.shift_factor} if config.shift_factor else {}
        self._recorder.tensor("decode", None, "latents", latents, level=1, op="unscale_latents",
                              inputs={"latents": self._latents},
                              options={"scaling_factor": config.scaling_factor, **shift})
        with self._recorder.stage("decode"):
            self.decoded = self._vae.decode(latents)
        return self.decoded
