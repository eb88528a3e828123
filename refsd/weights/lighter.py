"""What else could be asked for where memory is short, and how much that takes."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from refsd.half import HALVES
from refsd.weights.header import TensorInfo
from refsd.weights.memory import needed_bytes

# An option's name in Python -> on the command line, where that is not its name.
LINE = {"width": "-W", "height": "-H", "num_images_per_prompt": "-b", "vae.tiling": "--vae-tiling"}


class Choice(NamedTuple):
    """Options that change how much memory is needed, and how much it is then."""

    options: Mapping[str, Any]
    bytes: int

    def __str__(self) -> str:
        """For Python, and for the command line: weights='int8' (--weights int8)."""
        python = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{python} ({self.line})"

    @property
    def line(self) -> str:
        """As on the command line: --weights int8."""
        return " ".join(f"{LINE.get(name, f'--{name}')} {v}" for name, v in self.options.items())


# What is tried where memory is short, what changes least first: as-is changes no value.
LIGHTER: tuple[dict[str, str], ...] = (
    {"weights": "as-is"}, {"weights": "bfloat16"}, {"dtype": "bfloat16"}, {"weights": "int8"},
    {"dtype": "bfloat16", "weights": "int8"})


def lighter(tensors: Collection[TensorInfo], dtype: str | None, form: str | None,
            sizes: Collection[Collection[int]] = ()) -> Iterator[Choice]:
    """Each way of loading these tensors that takes less memory than as dtype, in a form.

    sizes: the bytes of each network's leaves, of a model whose weights may be away, which changes
    no bit.
    """
    if sizes:
        from refsd.weights.streaming import MODES, most_bytes

        yield from (Choice({"offload": mode}, most_bytes(mode, sizes)) for mode in MODES)
    asked = needed_bytes(tensors, dtype, form)
    for options in LIGHTER if dtype is not None else ():
        needed = needed_bytes(tensors, options.get("dtype", dtype), options.get("weights"))
        if needed < asked and not (dtype in HALVES and options.get("weights") in HALVES):
            yield Choice(options, needed)


def advice(choices: Iterable[Choice], available: int) -> str:
    """The first that fits, as a sentence; what takes the least, if none does."""
    choices = list(choices)
    fitting = next((choice for choice in choices if choice.bytes <= available), None)
    if fitting is not None:
        return f"With {fitting} it takes {gib(fitting.bytes)} and fits"
    least = min(choices, key=lambda choice: choice.bytes, default=None)
    return "" if least is None else f"The least is {gib(least.bytes)}, with {least}"


def gib(size: int) -> str:
    """Bytes for reading."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
