"""What a golden pack says of itself: manifest.json, checked key by key when it is read.

Anyone may have written a pack. So every key is known, every value has a rule, and sizes are only
believed after the shards' own headers and the files' sizes have said the same (packs.pack).
golden/README.md is the page of the format.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from refsd.contracts import itemsize
from refsd.errors import ModelError, damaged
from refsd.golden.packs.rules import ENTRY_RULES, MANIFEST_RULES, SCHEMA, shown
from refsd.rules import check, check_schema
from refsd.weights.files import parse_object

MAX_MANIFEST = 128 << 20  # over 100,000 tensors


@dataclass(frozen=True)
class Entry:
    """One tensor of a pack: what it is, where it is, and what a port may differ by.

    `op` is a registry op, a pipeline op such as "guide", "block", or None. `inputs` maps the op's
    parameters to references: "tensor:NAME", "weight:PART.PATH", a number, None, or a list of those.
    `index` is its place in the order of execution; `sha256` that of its little-endian bytes in C
    order; `stats` those of the stored values, over the finite ones (docs: golden/README.md).
    """

    name: str
    op: str | None
    stage: str
    step: int | None
    shape: tuple[int, ...]
    dtype: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    index: int
    shard: str
    sha256: str
    stats: dict[str, Any]
    tolerance: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def sources(self) -> list[str]:
        """The names of the pack's tensors that the op was given."""
        return [name.removeprefix("tensor:") for value in self.inputs.values()
                for name in references(value) if name.startswith("tensor:")]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor."""
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Manifest:
    """All that a pack says of itself; `tensors` are in the order of execution."""

    kind: str
    title: str
    recipe: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str]
    files: dict[str, dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    invariants: list[dict[str, Any]]
    tensors: list[Entry]
    schema: int = SCHEMA


def write_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON: sorted keys, one tensor a line. The same values give the same bytes.

    Raises ModelError for values that `read_manifest` would refuse.
    """
    values = dict(vars(manifest))
    entries = values.pop("tensors")
    lines = [f"{_json(key)}: {_json(values[key])}" for key in sorted(values)]
    tensors = ",\n".join(_json(as_dict(entry)) for entry in entries)
    data = ("{\n" + ",\n".join(lines) + ',\n"tensors": [\n' + tensors + "\n]}\n").encode("ascii")
    read_manifest(data)
    return data


def as_dict(entry: Entry) -> dict[str, Any]:
    """An entry as `read_entry` takes it."""
    return dict(vars(entry))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def read_manifest(data: bytes, where: str = "manifest.json") -> Manifest:
    """The checked manifest. Raises ModelError for all that the format page does not allow."""
    if len(data) > MAX_MANIFEST:
        raise ModelError(f"{where}: {len(data):,} bytes, at most {MAX_MANIFEST:,} are allowed")
    values = parse_object(data, where)
    check_schema(values.get("schema"), SCHEMA, where, "the golden pack")
    check(values, MANIFEST_RULES, where)
    entries = [read_entry(entry, f"{where}: tensor {i}")
               for i, entry in enumerate(values.pop("tensors"))]
    manifest = Manifest(**values, tensors=entries)
    _check_whole(manifest, where)
    return manifest


def read_entry(values: Any, where: str) -> Entry:
    """One checked entry of the table of tensors, from its JSON object."""
    if isinstance(values, dict) and isinstance(values.get("name"), str):
        where = f"{where}, {shown(values['name'])}"
    check(values, ENTRY_RULES, where)
    return Entry(**{**values, "shape": tuple(values["shape"])})


def _check_whole(manifest: Manifest, where: str) -> None:
    """What no entry can know alone: order, unique names, references and shards that exist."""
    names = {entry.name for entry in manifest.tensors}
    seen: set[str] = set()
    for index, entry in enumerate(manifest.tensors):
        here = f"{where}: tensor {shown(entry.name)}"
        if entry.name in seen:
            raise damaged(f"{here} appears twice")
        seen.add(entry.name)
        if entry.index != index:
            raise damaged(f"{here} has index {entry.index} and is number {index}")
        if entry.shard not in manifest.files:
            raise damaged(f"{here} is in {entry.shard}, which is not one of the files")
        for name in entry.sources:
            if name not in names:
                raise damaged(f"{here} has the input {shown(name)}, which is not in the pack")
    for kind in ("checkpoints", "invariants"):
        for mark in getattr(manifest, kind):
            if mark["tensor"] is not None and mark["tensor"] not in names:
                raise damaged(f"{where}: {kind} name the tensor {shown(mark['tensor'])}, which "
                              "is not in the pack")


def references(value: Any) -> Iterator[str]:
    """Every reference in the value of an input: "tensor:NAME", "weight:PART.PATH"."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, str):
        yield value
