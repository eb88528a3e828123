"""Small T5 tokenizers as files: of tokenizers and of SentencePiece, with a table of characters."""

import base64
import json
import struct

SPECIAL = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
WORDS = ["▁", "▁a", "▁red", "▁sphere", "▁cube", "s", "▁re", "d", "sp", "here", "cu", "be", ",",
         "left", "▁of", "▁left", *"abcdefghijklmnopqrstuvwxyzRC0123456789'.!"]
# Scores that float32 holds, so that both kinds of file say the same.
PIECES = SPECIAL + [(word, -2.0 - i / 16 + len(word) / 4) for i, word in enumerate(
    dict.fromkeys(WORDS))]
SENTINELS = [f"<extra_id_{i}>" for i in range(100)]
FORMS = {"ﬁ": "fi", "Ａ": "A", "①": "1", "\t": " ", "é": "e", "\u200b": " "}


def charsmap(forms):
    """SentencePiece's table of other forms: a double array over their bytes, and the forms.

    A node's children lie in a block of 256 of its own, at its base with the byte; at the base
    itself is where the form begins.
    """
    tree, texts = {}, b""
    for text, form in forms.items():
        node = tree
        for byte in text.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += form.encode() + b"\0"
    units, waiting = [0], [(0, tree)]
    while waiting:
        place, node = waiting.pop()
        base = (len(units) + 255) // 256 * 256
        units += [0] * (base + 256 - len(units))
        units[place] |= (0 in node) << 8 | (place ^ base) << 10
        for byte, child in node.items():
            units[base ^ byte] = byte or child | 1 << 31
            if byte:
                waiting.append((base ^ byte, child))
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + texts


def tokenizer_json(pieces, table=b"", added=()):
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added),
            "normalizer": normalizer if table else None, "pre_tokenizer": None,
            "post_processor": None, "decoder": None,
            "model": {"type": "Unigram", "unk_id": 2, "vocab": [list(pair) for pair in pieces],
                      "byte_fallback": False}}


def added(content, i, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


def with_sentinels(pieces):
    return [*pieces, *((token, 0.0) for token in reversed(SENTINELS))]


def spiece_model(pieces, table=b""):
    """The protocol buffer, with fields of other kinds around those that are read."""
    def field(number, data):
        size, length = len(data), b""
        while True:
            length += bytes([size % 128 + 128 * (size > 127)])
            size //= 128
            if not size:
                return bytes([number << 3 | 2]) + length + data

    found = b""
    for i, (text, score) in enumerate(pieces):
        kind = bytes([3 << 3, 2 if i == 2 else 3]) if i < 3 else b""
        found += field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + kind)
    trainer = b"\x18\x01" + field(1, b"text.txt") + b"\x51" + bytes(8)
    return found + field(2, trainer) + field(3, field(1, b"nmt_nfkc") + field(2, table))


def write(folder, *, pieces=None, table=None, config=None, spiece=False):
    """A tokenizer folder."""
    folder.mkdir(exist_ok=True)
    table = charsmap(FORMS) if table is None else table
    if spiece:
        (folder / "spiece.model").write_bytes(spiece_model(pieces or PIECES, table))
    else:
        found = tokenizer_json(with_sentinels(pieces or PIECES), table)
        (folder / "tokenizer.json").write_text(json.dumps(found))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
