"""A text that is written token by token: what of it is certain, and where it stops."""

from collections.abc import Sequence
from typing import Any

from refsd.arguments import shown
from refsd.errors import UsageError

INCOMPLETE = "\ufffd"  # what decoding gives for a character of which bytes are missing


class Writing:
    """Ids in, and the pieces of their text that no later id changes.

    A character may take several tokens, and a text of `stop`, before which all ends, may begin in
    one token and end in another: until that is decided the piece waits.
    """

    def __init__(self, tokenizer: Any, stop: str | Sequence[str] = ()):
        self.tokenizer, self.ids, self.said, self.text = tokenizer, [], 0, ""
        self.stop = tuple(stop) if isinstance(stop, (list, tuple)) else (stop,)
        for one in self.stop:
            if not isinstance(one, str) or not one:
                raise UsageError(f"stop has {shown(one)}; give texts of at least one character")

    def add(self, token: int) -> tuple[str, bool]:
        """The piece of text that is certain with one more id, and whether it stops here."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        places = [place for one in self.stop if (place := text.find(one)) >= 0]
        self.text = text[:min(places)] if places else text
        if places:
            return self.rest(), True
        whole = text.rstrip(INCOMPLETE)
        return self._up_to(len(whole) - self._begun(whole)), False

    def rest(self) -> str:
        """What waits still, when no more ids come."""
        return self._up_to(len(self.text))

    def _up_to(self, end):
        piece, self.said = self.text[self.said:end], max(self.said, end)
        return piece

    def _begun(self, text):
        """How many characters at the end may be the beginning of a stop text"""
        longest = max(map(len, self.stop), default=1) - 1
        return next((n for n in range(min(longest, len(text)), 0, -1)
                     if any(one.startswith(text[-n:]) for one in self.stop)), 0)
