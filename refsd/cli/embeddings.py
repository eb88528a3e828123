"""--embedding and --embd-dir: words of prompts with vectors of their own (textual inversion)."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from refsd.cli.arguments import Parser
from refsd.errors import UsageError
from refsd.rules import Rule, each, matching, record, text

HEX = re.compile("[0-9a-f]{64}")
RULE: Rule = each(record({"word": text(255), "file": text(255),
                          "sha256": matching(HEX, "64 hexadecimal digits")}), 0, 1000)


def add_options(parser: Parser) -> None:
    """The options of textual inversion."""
    add = parser.add_argument_group("textual inversion").add_argument
    add("--embedding", metavar="PATH", action="append", default=[],
        help="an embedding (.safetensors), whose word the prompts then know: diffusers' own, or "
        "the file's name; may be repeated")
    add("--embd-dir", "--embeddings-dir", metavar="DIR",
        help="where words of the prompts find WORD.safetensors, as in A1111")


class Embeddings:
    """The embeddings of a run: the files it may take them from, and those that are loaded."""

    def __init__(self, files: list[str], folder: str | None):
        self.files, self.folder = files, folder
        self._named = {os.path.realpath(path) for path in files}  # by the user, one by one
        self._known: dict[str, dict[str, str]] = {}  # where -> what a recipe says of it

    def recorded(self, pipe: Any, *texts: str) -> list[dict[str, str]]:
        """Load what these prompts call; what the recipe says of it.

        A word of the folder is called by itself, as in A1111; one of --embedding, which diffusers'
        tokenizer finds everywhere, within another word too.
        """
        said = " ".join(texts).lower()
        for path in self.files:
            self._load(pipe, path, None)
        for path in self._in_folder(said):
            self._load(pipe, str(path), path.stem)
        return [one for place, one in self._known.items() if _says(
            said, one["word"], within=place in self._named)]

    def put_on(self, pipe: Any, recipe: Any) -> None:
        """Have the pipeline know the folder's words that a recipe has, not those of other prompts.
        """
        own = {one["word"]: place for place, one in self._known.items()
               if place not in self._named}
        if not own:
            return
        from refsd.pipelines.textual_inversion import load, unload, words

        there, wanted = words(pipe), {one["word"] for one in recipe.embeddings}
        if others := [word for word in own if word in there and word not in wanted]:
            unload(pipe, others)
        for word in own.keys() & wanted - there.keys():
            load(pipe, own[word], word)

    def _in_folder(self, said):
        if self.folder is None:
            return []
        return [path for path in sorted(Path(self.folder).rglob("*.safetensors"))
                if _says(said, path.stem) and path.is_file()]

    def _load(self, pipe, path, word):
        from refsd.pipelines.identity import sha256
        from refsd.pipelines.textual_inversion import load, words

        place = os.path.realpath(path)
        if place in self._known:
            return
        before = words(pipe)
        try:
            load(pipe, path, word)
        except UsageError as error:
            raise UsageError(str(error) if path in str(error) else f"{path}: {error}") from None
        word = next(one for one in words(pipe) if one not in before)
        self._known[place] = {"word": word, "file": os.path.basename(path),
                             "sha256": sha256(Path(path))}

    def put_in(self, pipe: Any, wanted: list[dict[str, str]], where: str) -> None:
        """Load those of a recipe, under its words, from files of the same SHA-256.

        UsageError that names those that are not there.
        """
        from refsd.pipelines.identity import sha256

        missing = {one["sha256"]: one for one in wanted}
        names = {one["file"] for one in wanted}
        files = [Path(path) for path in self.files]
        if self.folder is not None:
            files += sorted(Path(self.folder).rglob("*.safetensors"),
                            key=lambda path: path.name not in names)
        for path in files:
            if missing and path.is_file() and (one := missing.pop(sha256(path), None)):
                pipe.load_textual_inversion(str(path), token=one["word"])
        if missing:
            told = ", ".join(f"{one['file']} (SHA-256 {one['sha256'][:12]}...)"
                             for one in missing.values())
            raise UsageError(f"{where}: drawn with {told}, which the recipe does not hold. Say "
                             "with --embedding or --embd-dir where such files are")


def chosen(options: argparse.Namespace) -> Embeddings:
    """Where a run takes them from; UsageError for what is not there."""
    files, folder = options.embedding, options.embd_dir
    for path in files:
        if not os.path.exists(path):
            raise UsageError(f"--embedding {path}: no such file; give the path of one")
        if os.path.isdir(path):
            raise UsageError(f"--embedding {path}: a folder; give the file in it, or --embd-dir")
    if folder is not None and not os.path.isdir(folder):
        raise UsageError(f"--embd-dir {folder}: no such folder; name one")
    return Embeddings(files, folder)


def _says(said: str, word: str, *, within: bool = False) -> bool:
    """Whether a text has a word, by itself or anywhere: CLIP's tokens join letters, and no more."""
    word, letter = word.lower(), r"[^\W\d_]"
    if within:
        return word in said
    first = f"(?<!{letter})" if word[0].isalpha() else ""
    last = f"(?!{letter})" if word[-1].isalpha() else ""
    return re.search(first + re.escape(word) + last, said) is not None


def settings(embeddings: list[dict[str, str]]) -> dict[str, str]:
    """What A1111's line says of them."""
    listed = ", ".join(f"{re.sub('[:,]', '', one['word'])}: {one['sha256'][:12]}"
                       for one in embeddings)
    return {"TI hashes": listed} if embeddings else {}


def in_words(embeddings: list[dict[str, str]]) -> str:
    """For reading."""
    return ", ".join(f"{one['word']} ({one['file']})" for one in embeddings)
