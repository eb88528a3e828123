"""A golden tensor that is a part of one of a port's, or several of them one after the other.

    qkv[..., :128]      one of three fused projections; [..., 0::3] if they take turns
    both[:1]            the first sample of a batch
    conv_in[h w c]      the order of the axes in memory; those of one may be left out
    ["uncond", "cond"]  two passes of one sample each, as the batch that they are
"""

import math
import re
from typing import NamedTuple

import numpy as np

from refsd.errors import UsageError

CUT = re.compile(r"\s*\[([^\[\]]*)\]\s*$")
AXES = re.compile(r"[nchwl](?:\s*[nchwl])*")
# The letters of a golden tensor's axes, in its order; a port may keep tokens as rows and columns.
ORDERS = {4: "nchw", 3: "nlhwc", 2: "nlhwc", 1: "nlhwc"}
HOW = "give slices such as [..., :128], or letters such as [h w c]"


class Part(NamedTuple):
    """What of a port's tensor is meant: its name, and cuts, each a tuple of slices or letters."""

    name: str
    cuts: tuple[tuple | str, ...] = ()

    def take(self, array: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
        """The part, for a golden tensor of that shape, if one is known.   A view, or a copy.

        Raises UsageError where the tensor has no such part.
        """
        for cut in self.cuts:
            if isinstance(cut, str):
                array = _ordered(array, cut, shape)
            else:
                try:
                    array = array[cut]
                except IndexError as error:
                    raise UsageError(f"{self.name!r} has the shape {array.shape}: "
                                     f"{error}. Give another part") from None
        return array


def parse(text: str) -> Part:
    """A name with cuts in brackets behind it; UsageError for brackets that are no cuts."""
    cuts: list[tuple | str] = []
    while match := CUT.search(text):
        inside, text = match[1].strip(), text[:match.start()]
        if AXES.fullmatch(inside):
            letters = "".join(inside.split())
            if len(set(letters)) < len(letters):
                raise UsageError(f"name map: [{inside}]: an axis is there twice; {HOW}")
            cuts.insert(0, letters)
        else:
            cuts.insert(0, tuple(_slice(part.strip()) for part in inside.split(",")))
    return Part(text, tuple(cuts))


def _slice(text: str):
    if text == "...":
        return Ellipsis
    numbers = text.split(":")
    if not all(re.fullmatch(r"-?\d{1,12}|", n) for n in numbers) or len(numbers) > 3 or (
            not text or numbers[2:] == ["0"]):
        raise UsageError(f"name map: [{text[:40]}] is no part of a tensor; {HOW}")
    values = [int(n) if n else None for n in numbers]
    return values[0] if len(values) == 1 else slice(*values)


def _ordered(array, letters, shape):
    """An array whose axes are `letters`, in the order of a golden tensor's axes."""
    order = ORDERS.get(4 if shape is None else len(shape))
    if order is None or not set(letters) <= set(order):
        raise UsageError(f"[{' '.join(letters)}] is not said of a tensor of the shape "
                         f"{shape}; give letters of n c h w for images, n l c for tokens")
    if array.ndim == 1 and len(letters) > 1 and shape is not None and len(shape) == 4:
        sizes = dict(zip(order, shape))
        array = array.reshape([sizes[letter] for letter in letters]) if (
            math.prod(sizes[letter] for letter in letters) == array.size) else array
    if array.ndim != len(letters):
        raise UsageError(f"[{' '.join(letters)}] names {len(letters)} axes, and the tensor has "
                         f"the shape {array.shape}; give a letter for each")
    array = array.transpose(sorted(range(len(letters)), key=lambda i: order.index(letters[i])))
    return array if shape is None or array.size != math.prod(shape) else array.reshape(shape)


def join(pieces: list[np.ndarray]) -> np.ndarray:
    """One after the other along the first axis; UsageError for shapes that do not allow it."""
    if len(pieces) == 1:
        return pieces[0]
    try:
        return np.concatenate(pieces)
    except ValueError:
        shapes = " and ".join(str(piece.shape) for piece in pieces)
        raise UsageError(f"the tensors of the shapes {shapes} do not make a batch; give ones that "
                         "differ in the first axis only") from None


def share(shape: tuple[int, ...] | None, pieces: int) -> tuple[int, ...] | None:
    """The shape of each of some pieces of a golden tensor along its first axis."""
    if shape is None or pieces == 1 or not shape or shape[0] % pieces:
        return shape
    return shape[0] // pieces, *shape[1:]


def made_up(parts: list[Part], shapes: list[tuple[int, ...]],
            golden: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that parts of such tensors have together; raises as `take` and `join`."""
    # an array of one number in memory has the shape that the real one would
    whole = [np.broadcast_to(np.empty(()), shape) for shape in shapes]
    return join([part.take(array, share(golden, len(parts)))
                 for part, array in zip(parts, whole)]).shape
