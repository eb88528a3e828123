"""Which of a candidate's names is meant by a golden one."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.dumps_index import parse_foreign
from refsd.golden.comparing.parts import Part, parse
from refsd.weights.files import read_bytes

MAX_MAP = 16 << 20


class NameMap:
    """Golden name -> candidate's name, in which * stands for the same text on both sides.

    A candidate's name may have a part of the tensor behind it, or be a list of names (`parts`).
    """

    def __init__(self, pairs: dict[str, str | list[str]]):
        pairs = {golden: tuple([mine] if isinstance(mine, str) else mine)
                 for golden, mine in pairs.items()}
        self._exact = {golden: mine for golden, mine in pairs.items() if "*" not in golden}
        # The more of a pattern is spelled out, the more certainly it is the one that is meant.
        patterns = sorted(((golden, mine) for golden, mine in pairs.items() if "*" in golden),
                          key=lambda pair: -len(pair[0].replace("*", "")))
        self._patterns = [(re.compile("(.*)".join(map(re.escape, golden.split("*"))), re.DOTALL),
                           [text.split("*") for text in mine], golden) for golden, mine in patterns]

    @classmethod
    def of(cls, source: dict[str, str | list[str]] | str | Path | None) -> "NameMap":
        """A map out of a dict or a JSON file; UsageError when it is no object of names."""
        pairs = source or {}
        if not isinstance(pairs, dict):
            try:
                pairs = parse_foreign(read_bytes(pairs, limit=MAX_MAP), pairs)
            except ModelError as error:
                raise UsageError(f"name map: {error}") from None
        for golden, mine in pairs.items():
            each = mine if isinstance(mine, list) else [mine]
            if not isinstance(golden, str) or not each or any(
                    not isinstance(one, str) or one.count("*") > golden.count("*")
                    for one in each):
                raise UsageError(f"name map: {golden!r} -> {mine!r}: give two names, or a name and "
                                 "a list of them, with no more * in the second than in the first")
            for one in each:
                parse(one)
        return cls(pairs)

    def names(self, golden: str) -> Iterator[tuple[str, ...]]:
        """What a golden name may be called, the most specific entry's answer first.

        Several names are tensors that make it up, one after the other.
        """
        return (mine for _, mine in self._entries(golden))

    def _entries(self, golden: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each entry that fits, as it is written, and the names that it leads to."""
        if golden in self._exact:
            yield golden, self._exact[golden]
        for pattern, each, written in self._patterns:
            if match := pattern.fullmatch(golden):
                yield written, tuple(
                    parts[0] + "".join(f"{text}{part}" for text, part in
                                       zip(match.groups(), parts[1:])) for parts in each)

    def remarks(self, names: Iterable[str], known: "Names") -> list[str]:
        """Entries that do nothing: no golden name fits, or none of the names they lead to is there.

        Each is a sentence, in no special order.
        """
        leads: dict[str, str] = {}  # an entry -> the first name it leads to; "" once one is there
        for golden in names:
            for written, mine in self._entries(golden):
                absent = next((one for one in mine if not known.fitting(one)), "")
                if leads.setdefault(written, absent) and not absent:
                    leads[written] = ""
        entries = [*self._exact, *(written for _, _, written in self._patterns)]
        return [f"name map: {written!r} fits no name of the pack" if written not in leads else
                f"name map: {written!r} leads to {leads[written]!r}, which is not there"
                for written in entries if leads.get(written, True)]


class Names:
    """The candidate's names, found as they are or loosely."""

    def __init__(self, names: Iterable[str]):
        self._known = set(names)
        self._loose: dict[str, list[str]] = {}
        for name in self._known:
            self._loose.setdefault(loosely(name), []).append(name)

    def fitting(self, name: str) -> list[Part]:
        """The name itself if it is there, else all that are the same loosely.

        Else its part of those that it names before its brackets.
        """
        if name in self._known:
            return [Part(name)]
        loose = sorted(self._loose.get(loosely(name), []))
        if loose or not name.rstrip().endswith("]"):
            return [Part(one) for one in loose]
        base, cuts = parse(name)
        return [Part(one.name, cuts) for one in self.fitting(base)] if cuts else []


def loosely(name: str) -> str:
    """A name with one separator and without leading zeros: unet__003.conv_in -> unet.3.conv_in"""
    name = re.sub(r"[/:.\\]+|__+", ".", name.strip("./"))
    return re.sub(r"(?<![^.])0+(?=\d+(?:\.|$))", "", name).lower()
