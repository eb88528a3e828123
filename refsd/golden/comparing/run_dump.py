"""One run of a port: the tensors of its dump, what each is, and their order."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import ModelError
from refsd.golden.comparing.dumps import Reader, same_axes
from refsd.golden.comparing.dumps_folder import tensors_in
from refsd.golden.comparing.dumps_index import as_said
from refsd.golden.comparing.layouts import from_layout, layout
from refsd.golden.comparing.name_map import NameMap, Names
from refsd.golden.packs.manifest import Entry

SORTED = (".npy", ".safetensors")


class Place(NamedTuple):
    """What a tensor of a dump is: its golden name and entry, if it is one whole golden tensor,
    else its own name; and its place in the order."""

    name: str
    entry: Entry | None
    index: tuple[float, int]
    own: str


class Run:
    """One dump: its tensors by what they are called in all runs."""

    def __init__(self, path: str | Path, pack: Any, name_map: NameMap, dtype: str | None):
        self.path, self.map, self.reader = str(path), name_map, Reader()
        self.listing = tensors_in(Path(path), dtype)
        self.bad = {trouble.name: trouble.why for trouble in self.listing.troubles if trouble.name}
        own = [*self.listing.dumps, *self.bad]
        entries = () if pack is None else pack.entries.values()
        golden, self.leads = _golden(own, entries, name_map)
        # Archives and indices keep the order of writing; the others are sorted by name.
        self.is_ordered = all(dump.member or dump.shape is not None and Path(
            dump.file).suffix not in SORTED for dump in self.listing.dumps.values())
        self.places: dict[tuple[bool, str], Place] = {}
        last = -1.0 if self.is_ordered else math.inf
        for number, name in enumerate(own):
            place = golden.get(name) or Place(name, None, (last, 0), name)
            last = place.index[0] if self.is_ordered else last
            place = place._replace(index=(place.index[0], number))
            self.places[place.entry is not None, place.name] = place

    def order(self) -> list[str]:
        """What "the first" means, where it is not the first in the network's order."""
        aside = sum(place.entry is None for place in self.places.values())
        if not aside:
            return []
        which = "the tensors" if aside == len(self.places) else f"{aside:,} are not in the pack and"
        how = "stand in the order of their writing" if self.is_ordered else "are sorted by name"
        more = "" if self.leads else ": --pack PACK knows the network's order"
        return [f"order: {which} {how}{more}"]

    def read(self, place: Place) -> np.ndarray:
        """The tensor in its logical layout; raises ModelError or ResourceError."""
        if problem := self.bad.get(place.own):
            raise ModelError(problem)
        dump, wanted = self.listing.dumps[place.own], place.entry and place.entry.shape
        dump = dump if wanted is None else as_said(dump, wanted)
        array = self.reader.read(dump)
        logical = dump.said if wanted is None else wanted
        if dump.layout and logical is not None and (
                tuple(layout(dump.layout).physical(tuple(logical))) == array.shape):
            return from_layout(array, tuple(logical), dump.layout)
        flat = dump.shape is None and wanted is not None and array.size == math.prod(wanted)
        return array.reshape(wanted) if flat or wanted and same_axes(array.shape, wanted) else array

    def dtype(self, place: Place) -> str:
        """The type that the numbers were written in."""
        return self.listing.dumps[place.own].dtype


def _golden(own: list[str], entries: Collection[Entry], name_map: NameMap) -> tuple[
        dict[str, Place], dict[str, list[str]]]:
    """Which tensors of a dump golden names lead to, whole or as a part of them, and back: the own
    names that each golden one leads to."""
    known, found, leads = Names(own), {}, {}
    for entry in entries:
        for mine in (*name_map.names(entry.name), (entry.name,)):
            pieces = [known.fitting(one) for one in mine]
            if all(pieces):
                break
        else:
            continue
        parts = [part for fits in pieces for part in fits]
        leads[entry.name] = [part.name for part in parts]
        whole = len(parts) == 1 and not parts[0].cuts
        for part in parts:
            found.setdefault(part.name, Place(entry.name if whole else part.name,
                                              entry if whole else None, (entry.index, 0),
                                              part.name))
    twins = {entry.sha256: leads[entry.name] for entry in entries if entry.name in leads}
    for entry in entries:  # a block is its last op's result
        if entry.sha256 in twins and entry.op == "block":
            leads.setdefault(entry.name, twins[entry.sha256])
    return found, leads
