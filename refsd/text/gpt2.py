"""The tokenizer of GPT-2: bytes, merged in pairs within words, a space being part of its word."""

import json
from collections.abc import Iterable
from pathlib import Path

from refsd.errors import ModelError
from refsd.text.tokenizer import Piece, add_tokens, as_text, library_reads
from refsd.text.vocabulary import EOS, MAX_FILE, Vocabulary, read_optional, read_vocabulary
from refsd.weights.files import read_text

# The classes that transformers builds of vocabulary and merges alone, whatever else a file says.
OWN = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


class GPT2Tokenizer:
    """text -> ids, and back; the ids are those of transformers 5 for the same files.

    Nothing is lost on the way: each byte has a token. Special tokens are found in the text.
    """

    def __init__(self, tokenizer, named: dict[str, int | None], source: str, *,
                 framed: tuple[bool, bool] = (False, False)):
        """framed: whether bos comes before every text, and eos after it."""
        self._tokenizer, self.source = tokenizer, source
        self.bos_token_id, self.eos_token_id = named["bos_token"], named["eos_token"]
        self._before = [self.bos_token_id] * framed[0]
        self._after = [self.eos_token_id] * framed[1]

    @classmethod
    def from_folder(cls, path: str | Path) -> "GPT2Tokenizer":
        """The tokenizer of a model's folder: tokenizer.json, or vocab.json with merges.txt.

        tokenizer_config.json may name another class than GPT-2's: then tokenizer.json is taken as
        it is. Of GPT-2's, vocabulary, merges, special tokens and what frames a text are taken; for
        the latter vocab.json has add_bos_token and add_eos_token of tokenizer_config.json. Raises
        ModelError for a file that is absent, damaged, or of another kind.
        """
        folder = Path(path)
        config = read_optional(folder / "tokenizer_config.json")
        framed = (False, False)
        if config.get("tokenizer_class") in OWN:
            vocabulary = read_vocabulary(folder, bos=EOS, suffix="")
            made = _byte_level(vocabulary, config.get("add_prefix_space") is True)
            names = {role: token["content"] for role, token in vocabulary.named.items()}
            source = vocabulary.source
            if source.endswith("tokenizer.json"):
                _frame(made, source)
            else:
                framed = tuple(config.get(f"add_{end}_token") is True for end in ("bos", "eos"))
        else:
            source = str(folder / "tokenizer.json")
            made, names = _as_it_is(source), {}
            for role in ("bos_token", "eos_token"):
                value = config.get(role)
                names[role] = value.get("content") if isinstance(value, dict) else value or EOS
        ids = {role: made.token_to_id(str(name)) for role, name in names.items()}
        return cls(made, ids, source, framed=framed)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text. UsageError for what is no text: another type, a lone surrogate."""
        ids = self._tokenizer.encode(as_text(text)).ids
        return [*self._before, *ids, *self._after]

    def pieces(self, text: str) -> list[Piece]:
        """Every token of the text, with what it stands for; of what frames it that is nothing."""
        encoding = self._tokenizer.encode(as_text(text))
        spans = [(i, start, end) for i, (start, end) in zip(encoding.ids, encoding.offsets)]
        ids = [*((i, 0, 0) for i in self._before), *spans, *((i, 0, 0) for i in self._after)]
        return [Piece(i, self._tokenizer.id_to_token(i), text[start:end])
                for i, start, end in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens; what is no UTF-8 is U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def require_rows(self, rows: int) -> None:
        """Check that a model of so many embeddings takes our ids."""
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= rows:
            raise ModelError(f"tokenizer: ids go up to {largest}, the model has {rows} embeddings "
                             f"({self.source}). Give those of one model")


def _byte_level(vocabulary: Vocabulary, space_first: bool):
    """The tokenizers library's pipeline; it is imported where it is used."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    with library_reads(vocabulary.source):
        made = Tokenizer(models.BPE(vocab=vocabulary.tokens, merges=vocabulary.merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space_first)
    made.decoder = decoders.ByteLevel()
    add_tokens(made, vocabulary.added, vocabulary.source)
    for token in vocabulary.named.values():
        made.add_tokens([AddedToken(**token)])
    return made


def _frame(made, path: str) -> None:
    """Put a tokenizer.json's post-processor, which frames texts, on another of its vocabulary."""
    found = read_optional(Path(path)).get("post_processor")
    if found is not None:
        empty = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "post_processor": found}
        made.post_processor = _as_it_is(path, json.dumps(empty)).post_processor


def _as_it_is(path: str, text: str | None = None):
    from tokenizers import Tokenizer

    text = read_text(path, limit=MAX_FILE) if text is None else text
    with library_reads(path, "tokenizer"):
        return Tokenizer.from_str(text)
