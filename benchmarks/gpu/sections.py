"""What is measured on a GPU, the most valuable first, and how long each may take."""

from typing import NamedTuple


class Section(NamedTuple):
    """A generator of rows, by module and function; at most so many seconds."""

    function: str
    seconds: float
    what: str
    test: bool = True  # whether it is right, not only how fast


HERE = "benchmarks.gpu"
SECTIONS = {
    "versions": Section(f"{HERE}.machine.section", 20, "the device, and versions of everything"),
    "intrinsics": Section(f"{HERE}.intrinsics.section", 40, "each instruction by its meaning"),
    "load": Section(f"{HERE}.variants.load", 40, "every variant of every kernel is loaded"),
    "samples": Section(f"{HERE}.variants.samples", 40, "every op on its sample calls"),
    "agreement": Section(f"{HERE}.variants.agreement", 90, "the tests of tests/cuda"),
    "sanitizer": Section(f"{HERE}.variants.sanitizer", 60, "compute-sanitizer on small shapes"),
}
