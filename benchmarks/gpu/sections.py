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
    "versions": Section(f"{HERE}.machine.section", 15, "the device, and versions of everything"),
    "intrinsics": Section(f"{HERE}.intrinsics.section", 30, "each instruction by its meaning"),
    "load": Section(f"{HERE}.variants.load", 30, "every variant of every kernel is loaded"),
    "samples": Section(f"{HERE}.variants.samples", 30, "every op on its sample calls"),
    "agreement": Section(f"{HERE}.variants.agreement", 50, "the tests of tests/cuda"),
    "step": Section(f"{HERE}.step.section", 140, "a UNet step in halves, and torch's", False),
    "ops": Section(f"{HERE}.ops.section", 45, "its largest ops, and torch's", False),
    "determinism": Section(f"{HERE}.checks.determinism", 20, "the same bits twice and alone"),
    "copies": Section(f"{HERE}.checks.copies", 15, "no copy to or from the host inside a step"),
    "launch": Section(f"{HERE}.checks.launches", 10, "what a launch costs", False),
    "sanitizer": Section(f"{HERE}.variants.sanitizer", 45, "compute-sanitizer on small shapes"),
    "float32": Section(f"{HERE}.checks.float32", 20, "float32 inside the derived bounds"),
    "picture": Section(f"{HERE}.step.picture", 20, "a picture, and the NumPy backend's"),
    "fifty": Section(f"{HERE}.step.fifty", 25, "fifty steps", False),
}
