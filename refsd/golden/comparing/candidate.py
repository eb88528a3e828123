"""A candidate: the tensors that a port wrote, found under the names of a golden pack."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.comparing.dumps import (
    DTYPES,
    Dump,
    Listing,
    Reader,
    Trouble,
    dtype_name,
    same_axes,
)
from refsd.golden.comparing.dumps_folder import tensors_in
from refsd.golden.comparing.dumps_index import as_said
from refsd.golden.comparing.layouts import from_layout, layout
from refsd.golden.comparing.name_map import NameMap, Names
from refsd.golden.comparing.parts import Part, join, made_up, share


class Candidate:
    """Reads a port's tensors one at a time, under golden names. Use it in a `with` block.

    troubles: what cannot be read, and why; it grows while tensors are read. Whatever is in
    trouble is as good as missing, and does not keep the rest from being read.
    """

    def __init__(self, listing: Listing, where: str, name_map: NameMap, layout: str | None):
        self.where, self._dumps, self._map, self._layout = where, listing.dumps, name_map, layout
        self.troubles = listing.troubles
        self._bad = {trouble.name: trouble.why for trouble in listing.troubles if trouble.name}
        self._unfit: dict[str, str] = {}  # golden names whose parts are not there, and why
        self._names = Names([*self._dumps, *self._bad])
        self._reader = Reader()

    @classmethod
    def open(cls, path: str | Path, *, name_map: dict[str, str] | str | Path | None = None,
             dtype: str | None = None, layout: str | None = None) -> "Candidate":
        """The tensors of a folder (npy, npz, safetensors, raw) or of one such file. None is read.

        A folder's .npy and raw files are named by their path in it without the ending; archives
        and safetensors by the names inside. Raw files have an index.json beside them, or end in
        their type (.f32, .bf16), or are of `dtype` (float32 without it). name_map (or a JSON file
        of it) gives the candidate's name of a golden one; * in both stands for any text. layout is
        that of every tensor, unless an index says another.

        Raises ModelError where nothing can be read, because it is damaged or not safe; UsageError
        where there is nothing, and for a layout, dtype or map that makes no sense.
        """
        path, name_map = Path(path), NameMap.of(name_map)
        dtype, kept = dtype and dtype_name(dtype), layout and _layout_name(layout)
        return cls(tensors_in(path, dtype), str(path), name_map, kept)

    def __enter__(self) -> "Candidate":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close what reading left open."""
        self._reader.close()

    def names(self) -> list[str]:
        """The candidate's own names that can be read, in no special order."""
        return list(self._dumps)

    def find(self, name: str) -> str | None:
        """The candidate's name of a golden tensor: one of the map's, the same, or loosely one.

        Of the map's names the first that is there, beginning with that of the most specific entry.
        Loosely: `.`, `/`, `:` and `__` between the parts are alike, as are 3 and 003. None too
        where several fit loosely (`trouble` says which).
        """
        parts = self._parts(name)
        return parts[0].name if parts else None

    def _fitting(self, name: str) -> list[list[Part]]:
        """For each piece of a golden tensor all that it may be; none where one piece is missing."""
        for mine in (*self._map.names(name), (name,)):
            pieces = [self._names.fitting(one) for one in mine]
            if all(pieces):
                return pieces
        return []

    def _parts(self, name: str) -> list[Part]:
        """What makes a golden tensor up, if it is there, and clear which is meant."""
        pieces = self._fitting(name)
        return [fits[0] for fits in pieces] if all(len(fits) == 1 for fits in pieces) else []

    def trouble(self, name: str) -> str:
        """Why a golden tensor's counterpart cannot be read; empty if it can, or is not there."""
        for fits in self._fitting(name):
            if len(fits) > 1:
                return (f"{self.where}: {fits[0].name!r} and {fits[1].name!r} could both be "
                        f"{name!r}. Say which with a name map")
            if why := self._unfit.get(name) or self._bad.get(fits[0].name):
                return why
        return ""

    def extra(self, names: Iterable[str]) -> list[str]:
        """The candidate's names that none of the golden names leads to."""
        used = {part.name for name in names for fits in self._fitting(name) for part in fits}
        return [name for name in self._dumps if name not in used]

    def remarks(self, names: Iterable[str]) -> list[str]:
        """What the name map says in vain: entries that fit no golden name, names not there."""
        return self._map.remarks(names, self._names)

    def info(self, name: str, shape: tuple[int, ...] | None = None) -> Dump | None:
        """Shape, dtype and size in bytes of a golden tensor's counterpart; None if there is none.

        shape: the golden tensor's, to tell what the shape in an index means. Nothing is read.
        """
        parts = self._parts(name)
        dumps = [self._dumps.get(part.name) for part in parts]
        if not dumps or None in dumps or name in self._unfit:
            return None
        if len(parts) > 1 or parts[0].cuts:
            return self._made_up(name, parts, dumps, shape)
        return dumps[0] if shape is None else as_said(dumps[0], shape)

    def _made_up(self, name: str, parts: list[Part], dumps: list[Dump],
                 shape: tuple[int, ...] | None) -> Dump | None:
        """The dump of a tensor that is parts of others; None, and a trouble, where it cannot be."""
        item = np.dtype(DTYPES.get(dumps[0].dtype, "u1")).itemsize
        shapes = [(d.bytes // item,) if d.shape is None else d.shape for d in dumps]
        try:
            made = made_up(parts, shapes, shape)
        except UsageError as error:
            self._unfit[name] = f"{self.where}: the name map's {name!r}: {error}"
            self.troubles.append(Trouble(dumps[0].file, parts[0].name, self._unfit[name]))
            return None
        return dumps[0]._replace(shape=made, bytes=math.prod(made) * item, said=None)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
        """The counterpart of a golden tensor of that name and shape.

        None if there is none, or it cannot be read (`trouble` says why). With a shape, the
        candidate's layout is undone and a raw file without an index takes the shape, where the
        number of elements allows. Otherwise the array is as it was written. Its dtype is the
        candidate's (bfloat16 comes as float32).
        """
        dump = self.info(name, shape)
        if dump is None:
            return None
        parts, pieces = self._parts(name), []
        for part in parts:
            own = dump if parts == [Part(part.name)] else self._dumps[part.name]
            try:
                pieces.append(part.take(self._reader.read(own), share(shape, len(parts))))
            except (ModelError, ResourceError) as error:
                self._give_up(part.name, own, str(error))
                return None
        data = join(pieces)
        if any(isinstance(cut, str) for part in parts for cut in part.cuts):
            return data
        if shape is None or data.shape == tuple(shape) and not (dump.layout or self._layout):
            return data
        kept = dump.layout or self._layout or "NCHW"
        physical = layout(kept).physical(tuple(shape))
        flat = data.ndim == 1 and data.size == math.prod(physical)
        # an array that keeps its axes must keep them as the layout does, but for axes of one
        if flat or same_axes(data.shape, physical):
            return from_layout(data, shape, kept)
        return data

    def _give_up(self, own: str, dump: Dump, why: str) -> None:
        """What turned out to be damaged while it was read is in trouble from now on."""
        self._dumps.pop(own)
        self._bad[own] = why
        self.troubles.append(Trouble(dump.file, own, why))


def _layout_name(name: str) -> str:
    layout(name)  # raises for one there is not
    return name.upper()
