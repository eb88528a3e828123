"""What all samplers share: options, the position in the schedule, and the arrays of a step.

A sampler's file holds its update formula; this one holds none. Scalars are float32, as
in torch, and become Python floats where they meet an array, so that any array type with + - * /
serves. What callers hand in is converted at the door (refsd.arguments). A step of halves is that of
their float32 values, its results rounded once; only noise is drawn in the half itself.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from refsd.arguments import FLOATS, as_array, as_integer, as_number, shown
from refsd.errors import ModelError, UsageError
from refsd.half import is_half, to_float32, to_half
from refsd.places import beside
from refsd.random import draw_noise
from refsd.schedulers import SCHEDULERS
from refsd.schedulers.config import Config, resolve


class Step(NamedTuple):
    """The sample at the next timestep, and x0 as seen from here where the sampler predicts it."""

    prev_sample: Any
    pred_original_sample: Any = None


class Scheduler:
    """A noise schedule and a way down it: `set_timesteps`, then `step` once a timestep.

    Options are keywords with diffusers' names; `DEFAULTS` lists them, `config` holds all of them.
    `timesteps` is a NumPy array. A sampler defines `set_timesteps`, `step` and `add_noise`; those
    trained on betas derive from DiffusionScheduler. Raises UsageError for bad options.
    """

    DEFAULTS: dict[str, Any] = {}
    CHOICES: dict[str, tuple] = {}
    order = 1  # how many of `timesteps`, each a call of the model, make a step
    draws_with_any = True  # whether for pictures, from noise, of models that other samplers draw
    has_history = False  # whether a step depends on what earlier steps read
    init_noise_sigma = 1.0  # the standard deviation that the first sample is to have

    def __init_subclass__(cls) -> None:
        wrappers = {"set_timesteps": _on_a_device, "step": _in_halves, "add_noise": _in_halves}
        for name, wrap in wrappers.items():
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    def __init__(self, **options: Any) -> None:
        self.config = resolve(type(self).__name__, self.DEFAULTS, self.CHOICES, options)
        self.num_inference_steps = None
        self._set_schedule(np.arange(self.config.num_train_timesteps)[::-1].copy())

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> "Scheduler":
        """This sampler with the options of `config`, a dict or another scheduler's config.

        As in diffusers: options that the other class left at its defaults are dropped, so that this
        class's own defaults hold; options that this class does not have are kept in `config` for
        the next one, with a warning where the config is of this very class and no other has them.
        Raises ModelError for a value in `config` that this class does not take.
        """
        if not isinstance(config, Mapping):
            raise UsageError(
                f"from_config got a {type(config).__name__}; give the dict of a "
                "scheduler_config.json or another scheduler's config"
            )
        dropped = getattr(config, "defaulted", config.get("_use_default_values"))
        dropped = dropped if isinstance(dropped, (list, tuple, frozenset)) else ()
        options = {
            key: value
            for key, value in config.items()
            if key not in dropped and not key.startswith("_")
        }
        unknown = options.keys() - cls.DEFAULTS.keys()
        if unknown and config.get("_class_name", cls.__name__) == cls.__name__:
            unknown.difference_update(*(other.DEFAULTS for other in SCHEDULERS.values()))
            if unknown:
                warnings.warn(f"{cls.__name__} ignores {', '.join(sorted(unknown))}", stacklevel=2)

        own = {key: value for key, value in options.items() if key in cls.DEFAULTS}
        try:
            scheduler = cls(**own | overrides)
        except UsageError as problem:
            if overrides:
                raise
            raise ModelError(str(problem)) from None
        scheduler.config = Config({**options, **scheduler.config}, scheduler.config.defaulted)
        return scheduler

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **options: Any) -> NoReturn:
        """UsageError with what to write: a model's files are the pipelines' concern."""
        raise UsageError(
            f"{cls.__name__}.from_pretrained: write StableDiffusionPipeline.from_pretrained("
            f"{shown(path)}, scheduler={cls.__name__}), which takes the model's options, or "
            f"{cls.__name__}.from_config(the dict of its scheduler_config.json)"
        )

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """What the model is to see of `sample`: the sample itself, in this sampler."""
        return as_array("scale_model_input: sample", sample)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at timesteps[begin_index], for image to image. set_timesteps forgets it."""
        number = as_integer(begin_index)
        if number is None or not 0 <= number < len(self.timesteps):
            raise UsageError(
                f"begin_index is {shown(begin_index)}; give an integer from 0 to "
                f"{len(self.timesteps) - 1}"
            )
        self.begin_index = number

    def index_for_timestep(self, timestep: Any) -> int:
        """Where `timestep` is in `timesteps`: the second position if there are more.

        So that a run which starts in the middle of a schedule with repeats skips no sigma.
        """
        number = as_number(timestep)
        positions = np.flatnonzero(self.timesteps == number) if number is not None else ()
        if len(positions) == 0:
            raise UsageError(
                f"timestep {shown(timestep if number is None else number)} is not in the schedule; "
                "give one of scheduler.timesteps"
            )
        return int(positions[1] if len(positions) > 1 else positions[0])

    def _set_schedule(self, timesteps):
        """A fresh run over `timesteps`; nothing of an earlier run is left."""
        self.timesteps = timesteps
        self.step_index = None
        self.begin_index = None

    def _enter(self, timestep):
        """The index of this step: looked up at a run's first step, counted from then on.

        A run that begins with the first timestep begins at 0, also where that timestep is repeated:
        diffusers takes it for the second position there, and runs out of sigmas at the end.
        """
        if self.step_index is None and self.begin_index is not None:
            self.step_index = self.begin_index
        elif self.step_index is None:
            position = self.index_for_timestep(timestep)
            self.step_index = 0 if self.timesteps[position] == self.timesteps[0] else position
        if self.step_index >= len(self.timesteps):
            raise UsageError(
                f"all {len(self.timesteps)} steps are done; call set_timesteps for another run"
            )
        return self.step_index

    def _steps_to_noise(self, timesteps, original):
        """Indices into sigmas for add_noise; after set_begin_index, of the step to come."""
        timesteps = one_each(timesteps, original)
        if self.begin_index is None:
            return [self.index_for_timestep(t) for t in timesteps]
        here = self.begin_index if self.step_index is None else self.step_index
        return [here] * len(timesteps)

    def _noisy(self, original, noise):
        """add_noise's two arrays, in the dtype of the first; halves in float32."""
        original = as_array("add_noise: original", original)
        dtype = original.dtype if str(original.dtype) in FLOATS else "float32"
        self._half = str(dtype) if is_half(dtype) else None
        original = to_float32(as_array("add_noise: original", original, dtype))
        noise = to_float32(as_array("add_noise: noise", noise, dtype))
        missing = len(original.shape) - len(noise.shape)
        if missing < 0 or any(n not in (1, m) for n, m in zip(noise.shape,
                                                              original.shape[missing:])):
            raise UsageError(f"add_noise: noise has shape {tuple(noise.shape)}; give "
                             f"{tuple(original.shape)}, that of original")
        return original, noise

    def alpha_bars_of_step(self, timestep: int) -> tuple[float, float] | None:
        """alpha_bar before and after a step along the noise: sqrt(after) x0 + sqrt(1 - after) eps.

        None for a sampler whose steps are others.
        """
        return None

    def _check_steps(self, steps, most=None):
        """`steps` as an int from 1 to T (or `most`)."""
        most = self.config.num_train_timesteps if most is None else most
        number = as_integer(steps)
        if number is None or not 1 <= number <= most:
            raise UsageError(
                f"num_inference_steps is {shown(steps)}; give an integer from 1 to {most}"
            )
        return number

    def _check_float(self, timestep):
        """An int is likely to be a counter; the timesteps of these samplers are float32."""
        if not isinstance(as_number(timestep), float):
            raise UsageError(
                f"timestep is {shown(timestep)}; give one of scheduler.timesteps, a float "
                f"({type(self).__name__} counts in fractions)"
            )

    def _pair(self, model_output, sample):
        """A step's two arrays in one dtype: float64 if either is, else float32.

        Where both are of one half, `_half` names it: that of the results.
        """
        if self.num_inference_steps is None:
            raise UsageError(f"{type(self).__name__}: call set_timesteps before step")
        arrays = {"model_output": model_output, "sample": sample}
        x, y = (as_array(f"step: {name}", value) for name, value in arrays.items())
        if x.shape != y.shape:
            raise UsageError(
                f"step: model_output has shape {x.shape}, sample {y.shape}; give two of one shape"
            )
        kinds = {str(x.dtype), str(y.dtype)}
        self._half = str(x.dtype) if len(kinds) == 1 and is_half(x.dtype) else None
        dtype = "float64" if "float64" in kinds else "float32"
        return as_array("step: model_output", x, dtype), as_array("step: sample", y, dtype)

    def _draw(self, sample, generator):
        """Noise for a step's sample, as the model's dtype has it."""
        noise = to_float32(draw_noise(sample.shape, self._half or sample.dtype, generator))
        return beside(sample, noise)


def only_one(**arguments: Any) -> str:
    """The name of the one argument that is not None; a UsageError if there is not exactly one."""
    names = [name for name, value in arguments.items() if value is not None]
    if len(names) != 1:
        raise UsageError(f"set_timesteps got {names or 'nothing'}; give one of "
                         f"{', '.join(arguments)}")
    return names[0]


def one_each(timesteps, samples):
    """The timesteps as an array: one for all of the samples, or one for each."""
    array = np.atleast_1d(to_float32(as_array("timesteps", timesteps)))
    count = samples.shape[0] if samples.shape else 1
    if array.shape not in ((1,), (count,)):
        raise UsageError(f"timesteps is {shown(timesteps)}; give one, or one for each of the "
                         f"{count} samples")
    return array


def _on_a_device(method):
    """set_timesteps with `device`, which code for diffusers passes: timesteps stay on the host."""

    @functools.wraps(method)
    def called(self, *args, **options):
        device = options.pop("device", None)
        if len(args) == 2:
            args, device = args[:1], args[1]
        if device is not None and not str(device).startswith(("cpu", "cuda")):
            raise UsageError(f"device is {shown(device)}; refsd has cpu and cuda: leave it out")
        return method(self, *args, **options)

    return called


def _in_halves(method):
    """step and add_noise with results in the half of their arrays, if they are of one.

    `return_dict`, which code for diffusers passes, is of no matter: a Step is a tuple with names.
    """

    @functools.wraps(method)
    def called(self, *args, **options):
        if method.__name__ == "step":
            options.pop("return_dict", None)
        self._half = None
        found = method(self, *args, **options)
        if self._half is None:
            return found
        if not isinstance(found, tuple):
            return to_half(found, self._half)
        return Step(*(x if x is None else to_half(x, self._half) for x in found))

    return called


def per_sample(values, like):
    """A coefficient for each of the N in `like`: a float where all agree, else (N, 1, ...)."""
    if (values == values[0]).all():
        return float(values[0])
    column = np.asarray(values, like.dtype).reshape(-1, *[1] * (len(like.shape) - 1))
    return beside(like, column)
