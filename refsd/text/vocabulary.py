"""The files a CLIP tokenizer is made of: the vocabulary, the merges, the special tokens."""

import gzip
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from refsd.errors import ModelError, damaged
from refsd.weights.files import read_foreign, read_text

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")  # the first to name a token decides
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MAX_FILE = 32 << 20  # CLIP's own vocab.json is 1 MB, a tokenizer.json 4 MB
MAX_TOKENS = 1 << 20
CLIP_LENGTH = 77


@dataclass(frozen=True)
class Vocabulary:
    """token -> id, the merges in rank order, special tokens by role, and added tokens by id."""

    tokens: dict[str, int]
    merges: list[tuple[str, str]]
    named: dict[str, dict]
    added: dict[int, dict] = field(default_factory=dict)
    length: int = CLIP_LENGTH
    source: str = "the CLIP vocabulary"


def byte_alphabet() -> list[str]:
    """256 printable characters, the first 188 standing for their own byte: in vocabulary order.

    A byte that prints as one visible Latin-1 character is that character; the others take the
    characters from U+0100 on, in byte order (the byte level encoding of GPT-2 and CLIP).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in visible] + [chr(0x100 + i) for i in range(256 - len(visible))]


def clip_vocabulary(pad: str = EOS) -> Vocabulary:
    """The 49,408 tokens of CLIP, from the merges that ship with refsd.

    Ids: 256 bytes, the same 256 ending a word, one token per merge, then bos and eos. CLIP pads
    with eos, some models with "!" (id 0). The special tokens are matched after lower-casing, as the
    tokenizer folder of Stable Diffusion 1.5 declares them.
    """
    packed = (files("refsd") / "data" / "clip_bpe_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1:-1]
    merges = [tuple(line.split(" ")) for line in lines]

    alphabet = byte_alphabet()
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), BOS, EOS]
    special = {"normalized": True, "special": True}
    named = {role: {"content": EOS, **special} for role in ("eos_token", "unk_token")}
    named |= {"bos_token": {"content": BOS, **special}, "pad_token": special_token(pad)}
    return Vocabulary({token: i for i, token in enumerate(tokens)}, merges, named)


def read_vocabulary(folder: str | Path, *, bos: str = BOS, suffix: str = "</w>") -> Vocabulary:
    """The vocabulary of a diffusers `tokenizer` folder, or of another byte-level BPE.

    bos is its token where no file names one, suffix what its tokens that end a word end in.

    Read: tokenizer.json, or vocab.json with merges.txt; tokenizer_config.json, and where that
    has no added_tokens_decoder also special_tokens_map.json and added_tokens.json, in the order
    in which transformers 5 lets one overrule the other.
    Raises ModelError for a file that is absent, damaged, too large, or not a CLIP vocabulary.
    """
    folder = Path(folder)
    config = read_optional(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        source = folder / "tokenizer.json"
        tokens, merges, listed = _read_tokenizer_json(source, suffix)
    else:
        source = folder / "vocab.json"
        tokens, merges, listed = read_foreign(source, limit=MAX_FILE), _read_merges(folder), []
    _check_tokens(tokens, source)

    named, added = special_tokens(folder, config, listed, {"bos_token": bos, **dict.fromkeys(
        NAMED[1:], EOS)})
    return Vocabulary(tokens, merges, named, added, length_of(config, folder), str(source))


def special_tokens(folder: Path, config: dict, listed: list[dict],
                   otherwise: dict[str, str]) -> tuple[dict[str, dict], dict[int, dict]]:
    """Special tokens by role, and added tokens by id.

    config is tokenizer_config.json, listed what tokenizer.json adds, otherwise the names of a kind
    of tokenizer's own.
    """
    named = {role: config[role] for role in otherwise if config.get(role) is not None}
    added = config.get("added_tokens_decoder")
    if added is None:
        overruling = read_optional(folder / "special_tokens_map.json")
        named |= {
            role: {**value, "special": True} if isinstance(value, dict) else value
            for role, value in overruling.items()
            if role in otherwise and value is not None
        }
        legacy = read_optional(folder / "added_tokens.json").items()
        added = {str(i): {"content": token} for token, i in legacy}
        added |= {str(token.get("id")): token for token in listed}
    named = {role: special_token(value, folder) for role, value in (otherwise | named).items()}
    added = _added_tokens(added, named, folder)
    by_content = {token["content"]: token for token in added.values()}
    return {role: by_content.get(token["content"], token) for role, token in named.items()}, added


def read_optional(path: Path) -> dict:
    """The JSON object of an optional file: {} where there is none."""
    content = read_foreign(path, limit=MAX_FILE) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_tokenizer_json(path: Path, suffix: str) -> tuple[dict, list, list]:
    found = read_optional(path)
    model = found.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    ending = model.get("end_of_word_suffix") if isinstance(model, dict) else None
    if kind not in (None, "BPE") or not isinstance(model, dict) or (ending or "") != suffix:
        raise ModelError(
            f"{path}: a {kind} model with word ending {ending!r}, expected BPE with {suffix!r}, as "
            f"{'CLIP' if suffix else 'GPT-2'} has it"
        )
    merges = model.get("merges", [])
    if not isinstance(merges, list):
        raise ModelError(f"{path}: merges is a {type(merges).__name__}, expected a list")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    added = found.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ModelError(f"{path}: added_tokens is {str(added)[:80]}, expected a list of objects")
    return model.get("vocab"), [_pair(p, path, i) for i, p in enumerate(pairs)], added


def _read_merges(folder: Path) -> list[tuple[str, str]]:
    path = folder / "merges.txt"
    lines = read_text(path, limit=MAX_FILE).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    lines = [(i, line.rstrip("\r")) for i, line in enumerate(lines, start=1)]
    return [_pair(s.split(" "), path, i) for i, s in lines if not s.startswith("#version")]


def _pair(parts: list, path: Path, where: int) -> tuple[str, str]:
    if not isinstance(parts, list) or [type(p) for p in parts] != [str, str] or not all(parts):
        raise ModelError(f"{path}: merge {where} is {str(parts)[:80]!r}, expected two tokens")
    return parts[0], parts[1]


def _check_tokens(tokens: object, path: Path) -> None:
    if not isinstance(tokens, dict) or not tokens:
        raise damaged(f"{path}: the vocabulary is not a JSON object of token: id")
    for token, i in tokens.items():
        if type(i) is not int or not 0 <= i < MAX_TOKENS:
            raise ModelError(
                f"{path}: token {token[:40]!r} has id {str(i)[:40]}, "
                f"expected an integer from 0 to {MAX_TOKENS - 1}"
            )
    if len(set(tokens.values())) != len(tokens):
        raise damaged(f"{path}: two tokens share one id")


def special_token(value: object, path: str | Path = "") -> dict:
    """A special token as a dict of its text and flags; a bare string is matched literally."""
    if isinstance(value, str):
        return {"content": value, "normalized": False, "special": True}
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
        raise ModelError(f"{path}: a special token is {str(value)[:80]!r}, expected its text")
    flags = {name: value[name] for name in FLAGS if name in value}
    for name, flag in flags.items():
        if type(flag) is not bool:
            raise ModelError(f"{path}: special token {content!r}: {name} is not true or false, "
                             "expected one of them")
    special = flags.get("special", False)
    return {"content": content, "normalized": not special, **flags}


def _added_tokens(added: object, named: dict[str, dict], folder: Path) -> dict[int, dict]:
    if not isinstance(added, dict):
        raise damaged(f"{folder}: added_tokens_decoder is not a JSON object of id: token")
    special = {token["content"] for token in named.values()}
    found = {}
    for i, token in added.items():
        if not (i.isascii() and i.isdigit() and len(i) < 8 and int(i) < MAX_TOKENS):
            raise ModelError(f"{folder}: an added token has id {i[:40]!r}, expected an integer")
        if isinstance(token, dict) and token.get("content") in special:
            token = {"special": True, **token}
        found[int(i)] = special_token(token, folder)
    return dict(sorted(found.items()))


def length_of(config: dict, folder: Path, otherwise: int = CLIP_LENGTH) -> int:
    """model_max_length; `otherwise` where the file does not say (transformers then writes 1e30)."""
    length = config.get("model_max_length")
    if length is None or isinstance(length, (int, float)) and length > 1e29:
        return otherwise
    length = int(length) if isinstance(length, float) and length.is_integer() else length
    if type(length) is not int or not 2 <= length <= 4096:
        raise ModelError(
            f"{folder}: model_max_length is {str(length)[:40]}, expected an integer from 2 to 4096"
        )
    return length
