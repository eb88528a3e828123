"""What may be requested of a pipeline, checked before anything is computed."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from refsd.arguments import as_integer, as_number, nearest, shown
from refsd.backends import BACKENDS
from refsd.errors import ResourceError, UsageError
from refsd.rules import integer, number

MAX_SIDE = 4096
MAX_PICTURES = 1000
OUTPUT_TYPES = ("pil", "np", "latent")
# The limits of whatever model; a multiple of what, and how many layers, the model says.
NUMBERS = {
    "width": integer(1, MAX_SIDE),
    "height": integer(1, MAX_SIDE),
    "steps": integer(1, 1000),
    "cfg_scale": number(-1000, 1000),
    "guidance_rescale": number(0, 1),
    "eta": number(0, 1),
    "clip_skip": integer(0, 63),
    "seed": integer(0, 2**64 - 1),
    "threads": integer(1, 1024),
}


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """A number from low to high, as a float; UsageError names the field and the range."""
    checked = as_number(value)
    if checked is None or not low <= checked <= high:
        raise UsageError(f"{name} is {shown(value)}; give a number from {low:g} to {high:g}")
    return float(checked)


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from low to high; UsageError names the field and the range."""
    checked = as_integer(value)
    if checked is None or not low <= checked <= high:
        raise UsageError(f"{name} is {shown(value)}; give an integer from {low} to {high}")
    return checked


def check_numbers(values: Mapping[str, Any], name: Callable[[str], str] = str) -> None:
    """UsageError for the first number out of range; `name` says what the user calls a field.

    None passes where the model decides.
    """
    for key, rule in NUMBERS.items():
        if values.get(key) is not None and (wanted := rule(values[key])):
            raise UsageError(f"{name(key)} is {shown(values[key])}; give {wanted}")


def check_steps(value: Any, *, own: bool) -> int | None:
    """A number of steps; None passes beside the caller's own timesteps or sigmas."""
    if value is None and own:
        return None
    return check_integer("num_inference_steps", value, 1, 1000)


def check_side(name: str, value: Any, factor: int) -> int:
    """A width or height in pixels: a multiple of the VAE's downscale, up to MAX_SIDE."""
    checked = as_integer(value)
    if checked is None or not factor <= checked <= MAX_SIDE or checked % factor:
        near = "" if checked is None else nearest_sides(checked, factor)
        raise UsageError(f"{name} is {shown(value)}; give a multiple of {factor} from {factor} to "
                         f"{MAX_SIDE}{near}")
    return checked


def nearest_sides(value: int, factor: int) -> str:
    """The multiples around a side that is none, in words."""
    below = value // factor * factor
    inside = factor <= below and below + factor <= MAX_SIDE
    return f", such as {below} or {below + factor}" if inside and value != below else ""


def check_flag(name: str, value: Any) -> bool:
    """True or False, Python's or NumPy's."""
    flag = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    if not isinstance(flag, bool):
        raise UsageError(f"{name} is {shown(value)}; give True or False")
    return flag


def check_prompts(name: str, value: Any) -> list[str]:
    """One prompt or several, as a list: a string, or a list, tuple or array of them."""
    prompts = value.tolist() if hasattr(value, "tolist") else value
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, (list, tuple)):
        raise UsageError(f"{name} is a {type(value).__name__}; give a string or a list of strings")
    if not prompts:
        raise UsageError(f"{name} is an empty list; give at least one text (\"\" is one)")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UsageError(f"{name}[{i}] is a {type(prompt).__name__}; give a string or a list "
                             "of strings")
    return [str(prompt) for prompt in prompts]


def check_output_type(value: Any) -> str:
    """pil, np or latent"""
    if isinstance(value, str) and value == "pt":
        raise UsageError("output_type is 'pt'; give 'np', and torch.from_numpy(images)"
                         ".permute(0, 3, 1, 2) is what diffusers gives")
    return check_choice("output_type", value, OUTPUT_TYPES)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """One of the choices, else a UsageError that suggests the nearest."""
    if not isinstance(value, str) or value not in choices:
        hint = nearest(str(value).lower(), choices)
        raise UsageError(f"{name} is {shown(value)}; {hint and hint + ' '}give one of "
                         + ", ".join(choices))
    return value


def is_guided(pipe: Any, guidance_scale: float) -> bool:
    """Whether the model predicts twice a step: above 1, unless it takes the scale as an input."""
    return pipe.dialect.guides(guidance_scale) and pipe.denoiser.time_cond_dim is None


def idle(pipe: Any, *, guidance_scale: float, guidance_rescale: float = 0.0, eta: float = 0.0,
         negative: Any = "", scheduler: Any = None) -> dict[str, str]:
    """The options that change nothing with this model, sampler and scale, and why.

    negative: the text to keep away from, or vectors of it; none is None, or empty. The sampler is
    the pipeline's own, or `scheduler`.
    """
    without_effect, scheduler = {}, pipe.scheduler if scheduler is None else scheduler
    if not is_guided(pipe, guidance_scale):
        why = (f"at a guidance scale of {guidance_scale:g} the model is asked once, without it"
               if pipe.denoiser.time_cond_dim is None else
               "this model is distilled: it is asked once, and takes the scale as an input")
        without_effect |= {"guidance_rescale": why} if guidance_rescale else {}
        empty = negative is None or isinstance(negative, str) and not negative
        without_effect |= {} if empty else {"negative_prompt": why}
    if eta and "eta" not in inspect.signature(scheduler.step).parameters:
        without_effect["eta"] = f"{type(scheduler).__name__} takes none"
    return without_effect


def check_memory(backend: str, needed: int, what: str, drawing: tuple | None = None) -> None:
    """Refuse what cannot fit where a backend computes; unknown available memory passes.

    drawing: a pipeline, width, height and number of pictures, of which it says what else would fit.
    """
    available = free_bytes(backend)
    if available is not None and needed > available:
        from refsd.pipelines.lighter import lighter, offloaded
        from refsd.weights.lighter import advice, gib

        hint, choices = "", [*lighter(*drawing)] if drawing else []
        if drawing and (way := offloaded(drawing[0], needed, available)):
            hint = f". Loaded with {way} it takes {gib(way.bytes)} less and fits"
            choices = [choice for choice in choices if choice.bytes <= available]
        if also := advice(choices, available):
            hint += f". {also}"
        raise ResourceError(
            f"{what} needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free: "
            f"ask for smaller or fewer pictures{hint}")


def free_bytes(backend: str) -> int | None:
    """The memory that is free where a backend computes; None where nobody knows."""
    from refsd.weights import memory  # here: a page of help needs no NumPy

    available = BACKENDS[backend].free_memory()
    return memory.available_bytes() if available is None else available
