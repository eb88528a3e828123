"""`refsd info FILE` of a model's file: which networks it holds, stored in which types."""

from collections import Counter
from typing import Any

from refsd.cli.report import one_line, result, result_json

ENDINGS = (".gguf", ".safetensors")


def show(path: str, *, as_json: bool) -> int:
    """Say what the file is, from its header alone; ModelError for a damaged one."""
    from refsd.weights.header import read_header

    found = {"path": path, **describe(read_header(path))}
    if as_json:
        result_json(found)
        return 0
    result(one_line(f"{path}: {found['kind']}" + (f": {', '.join(found['networks'])}"
                                                  if found["networks"] else "")))
    for dtype, row in found["types"].items():
        result(f"{dtype:<8} {row['tensors']:>5} tensors {row['numbers']:>14,} numbers "
               f"{row['bytes'] / 2**20:>9.1f} MiB")
    for key, value in found["metadata"].items():
        result(one_line(f"{key}: {value}"))
    return 0


def _named(family: Any, tensors: Any) -> str:
    """The family's name, and what its UNet reads beside latents."""
    from refsd.families import INPUTS, input_of

    first = next((info for name, info in tensors.items()
                  if name.endswith(("input_blocks.0.0.weight", "unet.conv_in.weight"))), None)
    kind = None if first is None or len(first.shape) != 4 else input_of(first.shape[1], 4)
    return family.name if kind in (None, "latents") else f"{family.name}, {INPUTS[kind][0]}"


def describe(header: Any) -> dict[str, Any]:
    """What a header says: the family, or what else it is, its networks, types and metadata."""
    from refsd.families import other_family
    from refsd.networks import NETWORKS
    from refsd.weights.single import contents

    family, parts, outer = contents(header)
    tensors = {name.removeprefix(outer): info for name, info in header.tensors.items()}
    tensors_of, numbers, size = Counter(), Counter(), Counter()
    for info in tensors.values():
        tensors_of[info.dtype] += 1
        numbers[info.dtype] += info.count
        size[info.dtype] += info.stop - info.start
    other = other_family(tensors)
    return {"kind": other or _named(family, tensors),
            "networks": [] if other else [NETWORKS[part].word for part in parts],
            "types": {dtype: {"tensors": tensors_of[dtype], "numbers": numbers[dtype],
                              "bytes": size[dtype]}
                      for dtype, _ in size.most_common()},
            "metadata": header.metadata}
