"""Pictures that a pipeline is given, as the arrays that it reads; sizes and filters as diffusers'.

A picture is PIL's image of any mode, numbers in [0, 1] (or bytes), or a list of either. Tensors of
torch have their channels first; NumPy's arrays last, or first, whichever axis has 3. Pillow's
images are resized by its Lanczos filter, numbers to their nearest neighbours.
"""

from typing import Any

import numpy as np

from refsd.arguments import as_array, shown
from refsd.errors import UsageError
from refsd.pipelines.request import MAX_SIDE
from refsd.pipelines.tensors import require_finite
from refsd.places import on_host

LANCZOS = 1  # PIL.Image.Resampling.LANCZOS, without importing Pillow
Box = tuple[int, int, int, int]  # left, top, right, below


def as_image(name: str, image: Any, factor: int, *, latent_channels: int, height: int | None = None,
             width: int | None = None, crop: Box | None = None) -> np.ndarray:
    """What the VAE encodes, (B, 3, H, W) in [-1, 1]; latents, (B, latent_channels, h, w), as such.

    H and W are what is asked for, else the picture's own, rounded down to a multiple of `factor`.
    Of a `crop` the proportions are kept: what is missing at the sides is filled from its edges.
    Numbers below 0 mean that the picture already is in [-1, 1]. UsageError for what is no picture.
    """
    found = _images(name, image)
    if found is None:
        numbers = _numbers(name, image, (3, latent_channels))
        if numbers.shape[1] == latent_channels:
            return numbers
        numbers = nearest(numbers, *_size(name, numbers.shape[2:], height, width, factor))
    else:
        size = _size(name, found[0].size[::-1], height, width, factor)
        numbers = _stacked(name, [_resized(rgb(one), size, crop) for one in found])
    return numbers if numbers.min() < 0 else 2 * numbers - 1


def as_pixels(name: str, image: Any, factor: int, *, height: int | None = None,
              width: int | None = None) -> np.ndarray:
    """The same picture in [0, 1], as a ControlNet reads it.   -> (B, 3, H, W)"""
    found = _images(name, image)
    if found is None:
        numbers = _numbers(name, image, (3,))
        return nearest(numbers, *_size(name, numbers.shape[2:], height, width, factor))
    size = _size(name, found[0].size[::-1], height, width, factor)
    return _stacked(name, [rgb(_resized(one, size)) for one in found])


def as_mask(name: str, mask: Any, factor: int, *, height: int, width: int,
            crop: Box | None = None) -> np.ndarray:
    """Where to paint (1) and what to keep (0): grey of at least 0.5 is 1.   -> (B, 1, H, W)"""
    found = _images(name, mask)
    if found is None:
        numbers = _numbers(name, mask, (1,))
        numbers = nearest(numbers, *_size(name, numbers.shape[2:], height, width, factor))
    else:
        resized = [_resized(_eight_bits(one), (height, width), crop) for one in found]
        numbers = _stacked(name, [one.convert("L") for one in resized])
    if numbers.min() < 0:
        raise UsageError(f"{name} holds numbers down to {numbers.min():g}; give 0 to keep a pixel, "
                         "1 to paint it")
    return (numbers >= 0.5).astype(numbers.dtype)


def crop_region(mask: Any, *, width: int, height: int, padding: int) -> Box:
    """The part of a picture around what its mask paints, in the proportions of width x height.

    Raises UsageError for a mask that paints nothing.
    """
    painted = np.asarray(_eight_bits(mask).convert("L")) != 0
    if not painted.any():
        raise UsageError("mask_image is black all over, and padding_mask_crop looks for what it "
                         "paints; make it white there")
    sides = []
    for axis in (0, 1):
        where = np.flatnonzero(painted.any(axis=axis))
        most = painted.shape[1 - axis]
        sides.append([max(int(where[0]) - padding, 0), min(int(where[-1]) + 1 + padding, most)])
    (left, right), (top, below) = sides
    if (right - left) / (below - top) > width / height:
        grown = int((right - left) / (width / height) - (below - top))
        top, below = _widened(top, below, grown, painted.shape[0])
    else:
        grown = int((below - top) * (width / height) - (right - left))
        left, right = _widened(left, right, grown, painted.shape[1])
    return left, top, right, below


def _widened(low, high, by, most):
    """A range made longer by `by`, pushed back into 0 to most, and cut where it is too long."""
    low, high = low - by // 2, high + by - by // 2
    back = max(high - most, 0)
    low, high = low - back, high - back
    return (low, high) if low >= 0 else (0, min(high - low, most))


def overlay(mask: Any, original: Any, painted: Any, crop: Box) -> Any:
    """The original picture with what was painted, of its part `crop`, where the mask is white.

    All are PIL's, the mask as large as the original.
    """
    from PIL import Image, ImageOps

    left, top, right, below = crop
    kept = Image.new("RGBa", original.size)
    kept.paste(_eight_bits(original).convert("RGBA").convert("RGBa"),
               mask=ImageOps.invert(_eight_bits(mask).convert("L")))
    under = Image.new("RGBA", original.size)
    under.paste(_covering(painted, right - left, below - top), (left, top))
    under = under.convert("RGB").convert("RGBA")
    under.alpha_composite(kept.convert("RGBA"))
    return under.convert("RGB")


def is_pil(value: Any) -> bool:
    """Whether this is an image of Pillow's."""
    return hasattr(value, "getbands") and hasattr(value, "resize")


def _images(name, value):
    """PIL's images in a list; None where there are numbers."""
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    if not found:
        raise UsageError(f"{name} is an empty list; give at least one picture")
    if not any(is_pil(one) for one in found):
        return None
    for i, one in enumerate(found):
        if not is_pil(one):
            raise UsageError(f"{name}[{i}] is a {type(one).__name__} beside images; give all in "
                             "one form")
    return found


def _numbers(name, value, channels):
    """Numbers as (B, C, H, W) with C among `channels`, floats; bytes are 1 at 255."""
    if value is None or isinstance(value, (str, bytes)):
        raise UsageError(f"{name} is {shown(value)}; give PIL's image, an array, or a list of them")
    first = hasattr(value, "detach")
    if isinstance(value, (list, tuple)):
        first = hasattr(value[0], "detach")
        parts = [_array(name, one) for one in value]
        if any(part.shape != parts[0].shape for part in parts):
            raise UsageError(f"{name} has pictures of {parts[0].shape} and others; give all of one "
                             "size")
        array = np.concatenate(parts) if parts[0].ndim == 4 else np.stack(parts)
    else:
        array = _array(name, value)
    found = _channels_first(array, channels, first)
    if found is None or not found.size:
        known = " or ".join(f"(B, {c}, H, W)" for c in channels)
        raise UsageError(f"{name} has shape {array.shape}; give {known}, or with the channels last")
    if found.dtype.kind in "iu":
        found = found.astype("float32") / (255 if found.max() > 1 else 1)
    require_finite(name, found)
    if found.shape[1] in (1, 3) and found.max() > 2:
        raise UsageError(f"{name} holds numbers up to {found.max():g}; give 0 to 1, or bytes")
    return found


def _array(name, value):
    if str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        value = (value.detach() if hasattr(value, "detach") else value) * np.uint8(1)
    found = as_array(name, on_host(value))
    if found.dtype.kind in "iu" and found.size and not 0 <= found.min() <= found.max() <= 255:
        raise UsageError(f"{name} holds {found.dtype} from {found.min()} to {found.max()}; give "
                         "bytes, or numbers from 0 to 1")
    return found


def _channels_first(array, channels, first):
    """(H, W), (B, H, W) of one channel, (H, W, C), (C, H, W) or batches -> (B, C, H, W) or None"""
    grey = channels == (1,)
    if grey and array.ndim == 2:
        return array[None, None]
    if grey and array.ndim == 3 and array.shape[-1] not in (3, 4):
        return np.moveaxis(array, -1, 0)[None] if array.shape[-1] == 1 and not first else (
            array[:, None])
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4:
        return None
    last = array.shape[3] == channels[0] and not first
    if not last and array.shape[1] not in channels:
        return None
    return array.transpose(0, 3, 1, 2) if last else array


def _size(name, own, height, width, factor):
    """(H, W), each rounded down to a multiple of `factor`."""
    size = tuple(n if asked is None else asked for n, asked in zip(own, (height, width)))
    rounded = tuple(n - n % factor for n in size)
    if not all(factor <= n <= MAX_SIDE for n in rounded):
        raise UsageError(f"{name} is {size[1]} x {size[0]}; give {factor} to {MAX_SIDE} pixels a "
                         "side")
    return rounded


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixel at floor(i n / m), n / m in float32 as in torch.   -> (B, C, height, width)"""
    for axis, size in ((2, height), (3, width)):
        own = array.shape[axis]
        if own != size:
            places = np.arange(size, dtype=np.float32) * (np.float32(own) / np.float32(size))
            array = array.take(np.minimum(places.astype(np.int64), own - 1), axis=axis)
    return array


def _resized(image, size, crop=None):
    height, width = size
    if crop is None:
        return image.resize((width, height), LANCZOS)
    return _filled(image.crop(crop), width, height)


def _stacked(name, images):
    """(H, W) or (H, W, 3) bytes each -> (B, C, H, W) in [0, 1]"""
    arrays = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    return arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2)


def rgb(image: Any) -> Any:
    """PIL's image in the mode RGB; transparency is not looked at."""
    return image if image.mode == "RGB" else _eight_bits(image).convert("RGB")


def _eight_bits(image):
    """Pillow cuts greys of more than 8 bits at 255: the nearest of 256 levels in their place."""
    if image.mode in ("I", "F"):
        raise UsageError(f"a picture of the mode {image.mode} has no range of its own; give RGB")
    if not image.mode.startswith("I;16"):
        return image
    from PIL import Image

    levels = np.asarray(image).astype(np.int64)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _filled(image, width, height):
    """The whole image within width x height, its edges drawn out over what is left free."""
    from PIL import Image

    wide = width / height < image.width / image.height
    w = width if wide else image.width * height // image.height
    h = image.height * width // image.width if wide else height
    image = image.resize((w, h), LANCZOS)
    left, top = width // 2 - w // 2, height // 2 - h // 2
    found = Image.new("RGB", (width, height))
    found.paste(image, (left, top))
    if wide and top > 0:
        found.paste(image.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        found.paste(image.resize((width, top), box=(0, h, width, h)), (0, top + h))
    elif not wide and left > 0:
        found.paste(image.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        found.paste(image.resize((left, height), box=(w, 0, w, height)), (left + w, 0))
    return found


def _covering(image, width, height):
    """The middle of an image, scaled to cover width x height."""
    from PIL import Image

    wide = width / height > image.width / image.height
    w = width if wide else image.width * height // image.height
    h = image.height * width // image.width if wide else height
    found = Image.new("RGB", (width, height))
    found.paste(image.resize((w, h), LANCZOS), (width // 2 - w // 2, height // 2 - h // 2))
    return found
