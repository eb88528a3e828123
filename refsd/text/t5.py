"""T5's tokenizer: words split into the pieces of the largest probability, </s> behind them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refsd.arguments import as_integer, shown
from refsd.errors import ModelError, UsageError, damaged
from refsd.text.tokenizer import (
    PromptTokenizer,
    add_tokens,
    as_prompts,
    as_text,
    library_reads,
)
from refsd.text.unigram import UNKNOWN, Unigram, read_unigram


class T5Tokenizer(PromptTokenizer):
    """prompt -> ids: [at most max_length - 1 pieces, </s>, pad ...].   -> (B, L) int64

    The ids are those of transformers 5 (`T5Tokenizer`) for the same files: characters in the forms
    of the file's table, words at white space, and of each word the pieces whose probabilities have
    the largest product (Kudo 2018, arXiv:1804.10959). Capitals count. What has no piece is <unk>.
    """

    def __init__(self, unigram: Unigram):
        self.source, self.model_max_length = unigram.source, unigram.length
        self._tokenizer = _build(unigram)
        self.eos_token_id, self.unk_token_id, self.pad_token_id = (
            self.find(unigram.named[role]["content"])  # _build adds it where no piece is it
            for role in ("eos_token", "unk_token", "pad_token"))

    @classmethod
    def from_folder(cls, path: str | Path) -> "T5Tokenizer":
        """The tokenizer of a `tokenizer_3` folder; ModelError says what is wrong in it."""
        return cls(read_unigram(path))

    def __call__(self, prompt: str | Sequence[str], max_length: int | None = None) -> np.ndarray:
        """Ids of one prompt or several, cut and padded to max_length.   -> (B, L) int64

        max_length is model_max_length where it is None; there are no positions that end. Raises
        UsageError for what is not text: another type, or a lone surrogate.
        """
        prompts, length = as_prompts(prompt), self._length(max_length)
        ids = np.full((len(prompts), length), self.pad_token_id, np.int64)
        for row, text in zip(ids, prompts):
            kept = self._encode(text)[1].ids[:length - 1]
            row[:len(kept) + 1] = [*kept, self.eos_token_id]
        return ids

    def truncated(self, prompt: str, max_length: int | None = None) -> str:
        """The end of the prompt that does not fit, in the prompt's own spelling; "" if it fits."""
        prompt, encoding = self._encode(prompt)
        offsets = encoding.offsets[self._length(max_length) - 1:]
        return prompt[offsets[0][0]:] if offsets else ""

    def require_rows(self, rows: int) -> None:
        """Check that a text encoder of `rows` embeddings takes our ids."""
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= rows:
            raise ModelError(f"tokenizer_3: ids go up to {largest}, the text encoder has {rows} "
                             f"embeddings ({self.source}). Give those of one model")

    def _length(self, wanted):
        length = self.model_max_length if wanted is None else as_integer(wanted)
        if length is None or not 1 <= length <= 4096:
            raise UsageError(f"max_length is {shown(wanted)}; give an integer from 1 to 4096")
        return length

    def _encode(self, prompt):
        prompt = as_text(prompt)
        try:
            return prompt, self._tokenizer.encode(prompt, add_special_tokens=False)
        except BaseException as error:  # of Rust's, where a table points outside of itself
            if type(error).__name__ != "PanicException":
                raise
            raise damaged(f"{self.source}: precompiled_charsmap is no table of characters"
                          ) from None


def _build(unigram):
    """The pieces as a pipeline of the tokenizers library, imported where it is used."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    with library_reads(unigram.source):
        tokenizer = Tokenizer(models.Unigram(unigram.pieces, unk_id=UNKNOWN, byte_fallback=False))
        if unigram.charsmap:
            tokenizer.normalizer = normalizers.Precompiled(unigram.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)])

    add_tokens(tokenizer, unigram.added, unigram.source)
    known = {token["content"] for token in unigram.added.values()}
    for token in (*unigram.named.values(), *unigram.extra):
        if token["content"] not in known:
            tokenizer.add_tokens([AddedToken(**token)])
            known.add(token["content"])
    return tokenizer
