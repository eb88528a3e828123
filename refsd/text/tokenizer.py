"""The CLIP tokenizer: lower-case, split into words, merge byte pairs, frame with bos and eos."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import ModelError, UsageError, damaged
from refsd.text.vocabulary import EOS, Vocabulary, clip_vocabulary, read_vocabulary

# A word is a special token, an English contraction, a run of letters, one digit, or a run of
# anything else that is not space: the pattern OpenAI published with CLIP.
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Piece(NamedTuple):
    """One token of a prompt: its id, its name in the vocabulary, and the text it stands for."""

    id: int
    token: str
    text: str


def as_prompts(prompt: str | Sequence[str]) -> Sequence[str]:
    """One prompt or several as several; UsageError for what is neither."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not prompts:
        kind = "an empty list" if isinstance(prompts, Sequence) else type(prompts).__name__
        raise UsageError(f"prompt: got {kind}, expected a string or a list of strings")
    return prompts


def as_text(prompt: str) -> str:
    """The prompt, if it is text that can be encoded: no lone surrogates."""
    if not isinstance(prompt, str):
        raise UsageError(f"prompt: got {type(prompt).__name__}, expected a string")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"prompt: character {error.start} is the lone surrogate "
            f"U+{ord(prompt[error.start]):04X}, which is no text. Remove it"
        ) from None
    return prompt


@contextmanager
def library_reads(source: str, what: str = "vocabulary") -> Iterator[None]:
    """ModelError for what the tokenizers library does not make a tokenizer of."""
    try:
        yield
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise damaged(f"{source}: not a usable {what}: {reason}") from None


def add_tokens(tokenizer: Any, added: Mapping[int, dict], source: str) -> None:
    """Let the library's tokenizer find these in texts; ModelError where an id is not its place."""
    from tokenizers import AddedToken

    for i, token in added.items():
        tokenizer.add_tokens([AddedToken(**token)])
        if (found := tokenizer.token_to_id(token["content"])) != i:
            raise damaged(f"{source}: added token {token['content'][:80]!r} claims id {i}, its "
                          f"place is {found}")


class PromptTokenizer:
    """What tokenizers of prompts share, of the library's `_tokenizer` and their own `_encode`."""

    def pieces(self, prompt: str) -> list[Piece]:
        """Every token of the prompt, without those that frame it or fill it up, before the cut."""
        prompt, encoding = self._encode(prompt)
        spans = zip(encoding.ids, encoding.tokens, encoding.offsets)
        return [Piece(i, token, prompt[start:end]) for i, token, (start, end) in spans]

    def find(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary; None where there is none."""
        return self._tokenizer.token_to_id(token)


class CLIPTokenizer(PromptTokenizer):
    """prompt -> ids: [bos, at most model_max_length - 2 tokens, eos, pad ...].   -> (B, L) int64

    The ids are those of transformers 5 (`CLIPTokenizer`) for the same files: NFC, white space
    runs to one space, lower case, then byte pair encoding of each word. There is no ftfy repair
    and no HTML unescaping, unlike OpenAI's original; docs/tokenizer.md lists the differences.

    >>> tok = CLIPTokenizer.clip()
    >>> tok("a photo of an astronaut").shape
    (1, 77)
    >>> tok("a photo of an astronaut")[0, :8]
    array([49406,   320,  1125,   539,   550, 18376, 49407, 49407])
    >>> tok.truncated("red" + " red" * 76)  # what does not fit
    'red red'
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary, self._own = vocabulary, vocabulary
        self._embeddings: dict[str, str] = {}
        self.model_max_length = vocabulary.length
        self._tokenizer = _build(vocabulary)
        names = {role: token["content"] for role, token in vocabulary.named.items()}
        self.bos_token_id = self._id(names["bos_token"])
        self.eos_token_id = self._id(names["eos_token"])
        self.pad_token_id = self._id(names["pad_token"])

    @classmethod
    def clip(cls, *, pad: str = EOS) -> "CLIPTokenizer":
        """CLIP's own tokenizer, from the vocabulary that ships here; pad fills up a prompt."""
        return cls(clip_vocabulary(pad))

    @classmethod
    def from_folder(cls, path: str | Path) -> "CLIPTokenizer":
        """The tokenizer of a diffusers `tokenizer` folder; ModelError says what is wrong in it."""
        return cls(read_vocabulary(path))

    def __call__(self, prompt: str | Sequence[str]) -> np.ndarray:
        """Ids of one prompt or several, cut and padded to model_max_length.   -> (B, L) int64

        Raises UsageError for what is not text: another type, or a lone surrogate.
        """
        prompts = as_prompts(prompt)
        ids = np.full((len(prompts), self.model_max_length), self.pad_token_id, np.int64)
        for row, text in zip(ids, prompts):
            kept = self._encode(text)[1].ids[: self.model_max_length - 2]
            row[: len(kept) + 2] = [self.bos_token_id, *kept, self.eos_token_id]
        return ids

    def truncated(self, prompt: str) -> str:
        """The end of the prompt that does not fit, in the prompt's own spelling; "" if it fits."""
        prompt, encoding = self._encode(prompt)
        offsets = encoding.offsets[self.model_max_length - 2 :]
        return prompt[offsets[0][0] :] if offsets else ""

    def learn(self, counts: Mapping[str, int]) -> dict[str, list[int]]:
        """Take words as tokens of so many vectors each, forgetting those of before; word -> ids.

        A word of n vectors is n tokens: WORD, WORD_1, .. WORD_n-1. In a prompt it becomes all of
        them, as diffusers' maybe_convert_prompt does it, but whatever its capitals: diffusers takes
        the first vector alone of a word that has some. UsageError for a word that is one already.
        """
        known = self._own.tokens.keys() | {token["content"] for token in self._own.added.values()}
        free = max(*self._own.tokens.values(), *self._own.added) + 1
        added, ids, texts = {}, {}, {}
        for word, count in counts.items():
            names = [word, *(f"{word}_{i}" for i in range(1, count))]
            if taken := [name for name in names if name in known]:
                raise UsageError(f"the tokenizer has a token {taken[0][:80]!r} already; give the "
                                 "embedding another word, with token=")
            known |= set(names)
            ids[word] = [free + len(added) + i for i in range(count)]
            added |= {i: {"content": name, "normalized": True, "special": False}
                      for i, name in zip(ids[word], names)}
            texts[word] = " ".join(names)
        vocabulary = replace(self._own, added={**self._own.added, **added}) if added else self._own
        self._tokenizer, self.vocabulary, self._embeddings = _build(vocabulary), vocabulary, texts
        return ids

    def embedding(self, name: str) -> str:
        """The text whose tokens stand for the vectors of an embedding; "" where none is of a name.

        Names are found whatever their capitals, as the tokenizer reads prompts.
        """
        return self._embeddings.get(name) or next(
            (text for word, text in self._embeddings.items() if word.lower() == name.lower()), "")

    def require_rows(self, rows: int, positions: int) -> None:
        """Check that a text encoder of `rows` and `positions` embeddings takes our ids."""
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= rows:
            raise ModelError(
                f"tokenizer: ids go up to {largest}, the text encoder has {rows} embeddings "
                f"({self.vocabulary.source}). Give those of one model"
            )
        if self.model_max_length > positions:
            raise ModelError(
                f"tokenizer: model_max_length is {self.model_max_length}, the text encoder has "
                f"{positions} positions ({self.vocabulary.source}). Give those of one model"
            )

    def _encode(self, prompt: str):
        prompt = as_text(prompt)
        encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        met = {token.lower() for token in encoding.tokens} if self._embeddings else ()
        named = [word for word, text in self._embeddings.items()
                 if " " in text and word.lower() in met]
        if named:
            for word in named:
                text = self._embeddings[word]
                prompt = re.sub(re.escape(word), lambda _, t=text: t, prompt, flags=re.IGNORECASE)
            encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        return prompt, encoding

    def _id(self, token: str) -> int:
        number = self.find(token)
        if number is None:
            raise damaged(f"{self.vocabulary.source}: no token {token[:80]!r} in the "
                          "vocabulary")
        return number


def _build(vocabulary: Vocabulary):
    """The vocabulary as a pipeline of the tokenizers library, imported where it is used."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    unknown = vocabulary.named["unk_token"]["content"]
    if unknown not in vocabulary.tokens:
        raise damaged(f"{vocabulary.source}: the unknown token {unknown[:80]!r} is not in it")
    with library_reads(vocabulary.source):
        tokenizer = Tokenizer(models.BPE(
            vocab=vocabulary.tokens,
            merges=vocabulary.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=unknown,
        ))

    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )

    add_tokens(tokenizer, vocabulary.added, vocabulary.source)
    for token in vocabulary.named.values():
        if token["content"] in vocabulary.tokens:
            tokenizer.add_tokens([AddedToken(**token)])
    return tokenizer
