"""What callers give as the generator of noise, as generators of refsd's."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from refsd.arguments import as_number, is_array, shown
from refsd.errors import UsageError
from refsd.random.borrowed import BorrowedGenerator, is_torch_generator

NO_GENERATORS = (type, ModuleType)  # torch.Generator itself, np.random: they have a randn too


def as_generators(generator: Any, make: Any, count: int) -> Any:
    """What the caller gave as `generator`, as one generator or a list of `count` of them.

    A seed, of any integer type, becomes make(seed); a torch.Generator is drawn from. Raises
    UsageError for a list of another length or another type.
    """
    if is_array(generator):
        generator = generator.tolist()
    if isinstance(generator, Sequence) and not isinstance(generator, (str, bytes)):
        if len(generator) != count:
            raise UsageError(f"generator is a list of {len(generator)}; give one for each of the "
                             f"{count} pictures, or a single one")
        return [as_generators(one, make, 1) for one in generator]
    if is_torch_generator(generator) and not isinstance(generator, NO_GENERATORS):
        return BorrowedGenerator(generator)
    numpys = type(generator).__module__.startswith("numpy.random")
    if hasattr(generator, "randn") and not numpys and not isinstance(generator, NO_GENERATORS):
        return generator
    seed = as_number(generator)
    if not isinstance(seed, int):
        raise UsageError(f"generator is {shown(generator)}; give an integer seed, a generator of "
                         "refsd.random or of torch on the CPU, or a list with one a picture"
                         + ("; or the noise itself, as latents" if numpys else ""))
    return make(seed)
