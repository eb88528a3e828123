"""In which formats a port computes: one for the whole run, or others by stage and by op."""

import fnmatch
from collections.abc import Iterable, Mapping

import numpy as np

from refsd.errors import UsageError
from refsd.golden.packs.manifest import Entry
from refsd.golden.tolerances.formats import Format, format_named, uncertainty


class Formats:
    """What the ops of a port compute in, from "bf16" or ["bf16", "denoise/*=float32"].

    PATTERN=NAME is a format for the entries whose name or op fits (fnmatch); the last that fits
    decides. What fits none is in the format that stands alone, float32 if there is none. Raises
    UsageError for a format that does not exist, two alone, or a pattern that fits no entry.
    """

    def __init__(self, requested: str | Iterable[str], entries: Mapping[str, Entry]):
        alone, rules = [], []
        for text in [requested] if isinstance(requested, str) else requested:
            pattern, _, name = text.rpartition("=")
            (rules if pattern else alone).append((pattern, format_named(name)))
        if len(alone) > 1:
            raise UsageError(f"format is {alone[0][1].name} and {alone[1][1].name}; give one, and "
                             "others as PATTERN=NAME, such as 'denoise/*=float32'")
        self.default = alone[0][1] if alone else format_named("float32")
        self._of = {name: self.default for name in entries}
        for pattern, format in rules:
            fits = [name for name, entry in entries.items() if _fits(entry, pattern)]
            if not fits:
                raise UsageError(f"format {pattern}={format.name}: no tensor or op of the pack "
                                 f"fits {pattern!r}. See refsd golden info")
            self._of.update(dict.fromkeys(fits, format))
        self._up_to, self._casts = self._coarsest(entries), self._readers(entries)
        self.name = ", ".join([self.default.name, *(f"{p}={f.name}" for p, f in rules)])

    def of(self, entry: Entry) -> Format:
        """What the op of an entry computes in."""
        return self._of[entry.name]

    def up_to(self, entry: Entry) -> Format:
        """The coarsest format up to an entry: the one whose errors it may have inherited."""
        return self._up_to[entry.name]

    def casts(self, entry: Entry) -> list[Format]:
        """Coarser formats of ops that read it: the port may keep what it hands to them in those.

        What nothing in the pack reads, an op that was not recorded may: one in any of the formats.
        """
        if entry.name in self._casts:
            return self._casts[entry.name]
        return [f for f in self.all() if tensors(f).unit > tensors(self.of(entry)).unit]

    def kept(self, entry: Entry, got: np.ndarray) -> tuple[Format, Format]:
        """What a port keeps a tensor in (its op's format, or a reader's if all its numbers are of
        that), and the coarsest up to there, that one included."""
        own, up_to = self.of(entry), self.up_to(entry)
        for coarser in self.casts(entry) if got.dtype.kind == "f" else ():
            if not np.any(uncertainty(got, coarser)):
                own = coarser
        return own, max(up_to, own, key=lambda format: format.unit)

    def all(self) -> list[Format]:
        """Every format that occurs, once."""
        return list(dict.fromkeys([self.default, *self._of.values()]))

    def _coarsest(self, entries):
        up_to, coarsest = {}, None
        for name in entries:
            here = self._of[name]
            coarsest = here if coarsest is None or here.unit > coarsest.unit else coarsest
            up_to[name] = coarsest
        return up_to

    def _readers(self, entries):
        readers: dict[str, list[Format]] = {}
        for name, entry in entries.items():
            for source in entry.sources:
                here, kept = readers.setdefault(source, []), tensors(self._of[name])
                if kept.unit > tensors(self._of[source]).unit and kept not in here:
                    here.append(kept)
        return readers


def tensors(format: Format) -> Format:
    """What a port in a format keeps activations in: int8 is a format of weights alone."""
    return format_named("float32") if format.name == "int8" else format


def _fits(entry: Entry, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for text in (entry.name, entry.op or ""))
