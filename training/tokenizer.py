"""CLIP's tokenizer, cut down to the merges that our captions use.

The cut is closed: a word of ours becomes the tokens it would become with the full vocabulary, and
any other text still becomes bytes and whatever short merges are left.
"""

import gzip
import json
from pathlib import Path

import numpy as np

from training.captions import all_words

MERGES = Path(__file__).parents[1] / "refsd" / "data" / "clip_bpe_merges.txt.gz"
LENGTH = 40
START, END = "<|startoftext|>", "<|endoftext|>"


def _byte_symbols():
    """The 256 printable characters that stand for bytes in CLIP's vocabulary, in its order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def _all_merges():
    with gzip.open(MERGES, "rt", encoding="utf-8") as lines:
        pairs = [tuple(line.split()) for line in lines.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    return [pair for pair in pairs if len(pair) == 2]


def _merge(word, ranks):
    """(tokens of a word, merges used), by always taking the merge of the lowest rank."""
    parts, used = [*word[:-1], word[-1] + "</w>"], set()
    while len(parts) > 1:
        pairs = set(zip(parts, parts[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.add(best)
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == best:
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            i += 1
    return parts, used


def small_vocabulary(words=None):
    """(vocab: token -> id, merges in CLIP's order) that suffice for `words`."""
    merges = _all_merges()
    ranks = {pair: i for i, pair in enumerate(merges)}
    used = set()
    for word in words or all_words():
        used |= _merge(word, ranks)[1]
    kept = [pair for pair in merges if pair in used]
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in kept), START, END]
    return {token: i for i, token in enumerate(tokens)}, kept


def write_tokenizer(folder):
    """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = small_vocabulary()
    text = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder):
    """transformers' CLIPTokenizer over the files that write_tokenizer wrote."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def tokens(tokenizer, texts):
    """(len(texts), LENGTH) token ids, as a pipeline makes them."""
    ids = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    return np.array(ids)
