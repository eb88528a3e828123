"""A prompt as chunks, each as long as the text encoder reads: bos, 75 tokens, eos, with weights."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from refsd.dialects import emphasis
from refsd.dialects.emphasis import Fragment
from refsd.errors import UsageError

MAX_CHUNKS = 32  # 2,400 tokens: more keys than that would outgrow the picture's own
COMMA = ",</w>"
BACKTRACK = 20  # tokens after a comma that move on with what follows them
LONG_WORD = 8  # tokens: ComfyUI keeps what is shorter within one chunk


class Token(NamedTuple):
    """A token of a prompt: its id, the weight of its vector, and the text it stands for."""

    id: int
    weight: float
    text: str


class Chunk(NamedTuple):
    """What the text encoder reads at once: ids and weights, bos, eos and padding included.

    `texts` are those of the words alone, from the second id on.
    """

    ids: list[int]
    weights: list[float]
    texts: list[str]


def whole(tokenizer: Any, text: str) -> list[Chunk]:
    """The prompt as diffusers reads it: one chunk of what fits, all of one weight."""
    tokens = [Token(piece.id, 1.0, piece.text) for piece in tokenizer.pieces(text)]
    return [_framed(tokenizer, tokens[:_room(tokenizer)])]


def of_fragments(tokenizer: Any, fragments: Iterable[Fragment]) -> list[Chunk]:
    """A1111's chunks: each fragment's tokens alone, and commas where a chunk may end early.

    Where a chunk is full and a comma among its last 20 tokens, what follows the comma moves to the
    next one; an embedding's vectors stay together; BREAK ends a chunk. Source:
    modules/sd_hijack_clip.py, tokenize_line.
    """
    room, comma = _room(tokenizer), tokenizer.find(COMMA)
    chunks: list[list[Token]] = []
    chunk: list[Token] = []
    last_comma = -1
    for text, weight in fragments:
        if (text, weight) == (emphasis.BREAK, -1):
            chunks.append(chunk)
            chunk, last_comma = [], -1
            continue
        for piece in tokenizer.pieces(text):
            if piece.id == comma:
                last_comma = len(chunk)
            elif len(chunk) == room and last_comma >= 0 and room - last_comma <= BACKTRACK:
                chunks.append(chunk[:last_comma + 1])
                chunk, last_comma = chunk[last_comma + 1:], -1
            vectors = tokenizer.embedding(piece.token).count(" ") + 1
            if len(chunk) == room or len(chunk) + vectors > room >= vectors:
                chunks.append(chunk)
                chunk, last_comma = [], -1
            chunk.append(Token(piece.id, weight, piece.text))
    if chunk or not chunks:
        chunks.append(chunk)
    return _checked(tokenizer, chunks)


def of_words(tokenizer: Any, words: Iterable[Fragment]) -> list[Chunk]:
    """ComfyUI's chunks: words of fewer than 8 tokens, or of fewer than fit, are not parted.

    A word is a whole run of text of one weight. Source: comfy/sd1_clip.py, tokenize_with_weights.
    """
    room = _room(tokenizer)
    chunks: list[list[Token]] = [[]]
    for text, weight in words:
        word = [Token(piece.id, weight, piece.text) for piece in tokenizer.pieces(text)]
        long = len(word) >= LONG_WORD or len(word) > room
        while word:
            left = room - len(chunks[-1])
            if len(word) <= left:
                chunks[-1] += word
                break
            if long:
                chunks[-1] += word[:left]
                word = word[left:]
            chunks.append([])
    return _checked(tokenizer, chunks)


def empty(tokenizer: Any) -> Chunk:
    """The chunk of a prompt without words."""
    return _framed(tokenizer, [])


def _room(tokenizer):
    return tokenizer.model_max_length - 2


def _checked(tokenizer, chunks):
    if len(chunks) > MAX_CHUNKS:
        raise UsageError(f"prompt: {len(chunks)} chunks of {_room(tokenizer)} tokens; give at most "
                         f"{MAX_CHUNKS}")
    return [_framed(tokenizer, chunk) for chunk in chunks]


def _framed(tokenizer, tokens):
    """bos, the tokens, eos, and the padding, which may be eos again."""
    padding = _room(tokenizer) - len(tokens)
    ids = [tokenizer.bos_token_id, *(token.id for token in tokens), tokenizer.eos_token_id,
           *[tokenizer.pad_token_id] * padding]
    weights = [1.0, *(token.weight for token in tokens), 1.0, *[1.0] * padding]
    return Chunk(ids, weights, [token.text for token in tokens])
