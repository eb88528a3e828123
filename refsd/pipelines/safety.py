"""A safety checker that the caller brings: refsd ships none. What it flags comes out black."""

import inspect
from typing import Any

import numpy as np

from refsd.arguments import as_array, shown
from refsd.errors import UsageError


def checked_output(pipe: Any, latents: Any, output_type: str) -> tuple[Any, list[bool]]:
    """Pictures of latents ("pil" or "np") as pipe.safety_checker lets them pass, and its flags.

    pipe.safety_checker(images) is given (B, H, W, 3), float32 in [0, 1], and gives a flag for each
    picture; or, as one written for diffusers, the pictures and the flags. Raises UsageError.
    """
    images = pipe.to_output(latents, "np")
    takes = inspect.signature(pipe.safety_checker).parameters
    more = {"clip_input": None} if "clip_input" in takes else {}
    found = pipe.safety_checker(images.copy(), **more)
    passed = images
    if isinstance(found, tuple) and len(found) == 2 and np.ndim(found[0]) == 4:
        passed, found = as_array("safety_checker: images", found[0], "float32"), found[1]
    flags = [found] * len(images) if isinstance(found, bool) else _plain(found)
    if passed.shape != images.shape or len(flags) != len(images) \
            or not all(isinstance(flag, bool) for flag in flags):
        raise UsageError(f"pipe.safety_checker gave {shown(found)} for {len(images)} pictures; "
                         "return True or False for each")
    black = np.array(flags).reshape(-1, 1, 1, 1)
    passed = np.where(black, np.float32(0), passed)
    if output_type == "np":
        return passed, flags
    from PIL import Image

    return [Image.fromarray(image) for image in pipe.to_bytes(passed)], flags


def _plain(found):
    """A list of what an array, a list or a tuple holds; anything else is none."""
    found = found.tolist() if hasattr(found, "tolist") else found
    return list(found) if isinstance(found, (list, tuple)) else []
