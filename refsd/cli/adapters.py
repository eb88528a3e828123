"""--lora, --lora-dir and <lora:name:0.8> in prompts: which adapters a picture is drawn with."""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refsd.arguments import shown
from refsd.cli.arguments import Parser
from refsd.errors import ModelError, UsageError
from refsd.rules import Rule, each, matching, number, record, text

LARGEST = 100  # of a weight
# A1111's: the name, then the text encoder's weight, then the UNet's; or te=, unet=.
TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")
HEX = {length: re.compile(f"[0-9a-f]{{{length}}}") for length in (12, 64)}
FIELDS = {
    "file": text(255), "sha256": matching(HEX[64], "64 hexadecimal digits"),
    "short": matching(HEX[12], "12 hexadecimal digits"),
    "unet": number(-LARGEST, LARGEST), "text_encoder": number(-LARGEST, LARGEST),
}
RULE: Rule = each(record(FIELDS), 0, 100)


def add_options(parser: Parser) -> None:
    """The options of adapters."""
    add = parser.add_argument_group("adapters").add_argument
    add("--lora", metavar="PATH[:X]", action="append", default=[],
        help="a LoRA, LoHa, LoKr or DoRA (.safetensors) and its weight (1); may be repeated")
    add("--lora-dir", metavar="DIR",
        help="where <lora:NAME:X> in the prompt finds NAME.safetensors, as in A1111; the tag is "
        "taken out of the prompt")
    add("--lora-partial", action="store_true",
        help="leave out tensors of a LoRA that have no place in the model")


def chosen(options: argparse.Namespace, prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without its tags; path and weights of each adapter asked for.

    Without --lora-dir tags stay in the prompt. `options.adapters`, where there are any, were chosen
    before. Raises UsageError for what is not there.
    """
    found = [*getattr(options, "adapters", ()),
             *({"path": path, **dict.fromkeys(("unet", "text_encoder"), weight)}
               for path, weight in map(_argument, options.lora))]
    if options.lora_dir is not None:
        _require_folder(options.lora_dir)
        prompt, tagged = of_tags(prompt, lambda name, tag: find(name, options.lora_dir, tag))
        found += tagged
    paths = [os.path.realpath(one["path"]) for one in found]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path}: the adapter is given twice; give it once")
    return prompt, found


def of_tags(prompt: str, find: Callable[[str, str], str]) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without its tags; path and weights of each, of find(name, tag)."""
    found = [_of_tag(tag[0], tag[1], find) for tag in TAG.finditer(prompt)]
    return TAG.sub("", prompt).strip() if found else prompt, found


def _argument(given: str) -> tuple[str, float]:
    """PATH or PATH:WEIGHT. A path may have colons, as C:\\loras\\a.safetensors has one."""
    path, colon, weight = given.rpartition(":")
    if os.path.exists(given) or not colon or "/" in weight or "\\" in weight:
        path, weight = given, "1"
    if os.path.isdir(path):
        raise UsageError(f"--lora {path}: a folder; give the file in it, or --lora-dir")
    if not os.path.isfile(path):
        raise UsageError(f"--lora {path or given}: no such file; give the path of one, and :X "
                         "after it for its weight")
    return path, _weight(weight, f"--lora {given}")


def _weight(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not -LARGEST <= value <= LARGEST:
        raise UsageError(f"{where}: the weight is {shown(word)}; give a number from -{LARGEST} to "
                         f"{LARGEST}")
    return value


def _of_tag(tag: str, inside: str, find: Callable[[str, str], str]) -> dict[str, Any]:
    name, *words = [word.strip() for word in inside.split(":")]
    named = dict(word.split("=", 1) for word in words if "=" in word)
    numbers = [word for word in words if "=" not in word]
    if len(numbers) > 2 or set(named) - {"te", "unet"}:
        raise UsageError(f"{shown(tag)}: give <lora:NAME:X>, <lora:NAME:TE:UNET>, or te= and "
                         "unet=; a part of the rank (dyn) is not computed")
    text_encoder = _weight(named.get("te", numbers[0] if numbers else "1"), shown(tag))
    unet = _weight(named["unet"], shown(tag)) if "unet" in named else (
        _weight(numbers[1], shown(tag)) if numbers[1:] else text_encoder)
    return {"path": find(name, tag), "unet": unet, "text_encoder": text_encoder}


def find(name: str, folder: str, tag: str) -> str:
    """The file of a tag's name, in a folder or below it: by its own name, or by the one that kohya
    wrote into it (ss_output_name), as in A1111. UsageError where there is none, or several."""
    files = [*_files(folder)]
    found = [path for path in files if name in (path.stem, path.name)]
    if not found:
        found = [path for path in files if _alias(path) == name]
    if len(found) != 1:
        near = ", ".join(sorted(str(path.relative_to(folder)) for path in found)[:3])
        raise UsageError(f"{shown(tag)}: " + (
            f"{len(found)} files of this name in {folder} ({near}); name one with --lora" if found
            else f"no {name[:100]}.safetensors in {folder}; put it there, or take the tag out"))
    return str(found[0])


def _require_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise UsageError(f"--lora-dir {folder}: no such folder; name one")


def files_in(folder: str) -> list[Path]:
    """The adapters in a folder and below it, sorted; UsageError where there is no such folder."""
    _require_folder(folder)
    return [*_files(folder)]


def _files(folder: str) -> Iterator[Path]:
    return (path for path in sorted(Path(folder).rglob("*.safetensors")) if path.is_file())


def _alias(path: Path) -> str | None:
    from refsd.weights.header import read_header

    try:
        return read_header(path).metadata.get("ss_output_name")
    except ModelError:
        return None  # damaged: another one's problem


class Adapters:
    """The adapters of the pictures of one run: read once, and put in as each recipe says."""

    def __init__(self, *, strict: bool = True):
        self.strict = strict
        self.places: dict[str, str] = {}  # the SHA-256 of a file -> where it is
        self._known: dict[str, tuple[str, str]] = {}  # where -> its SHA-256 and the short one

    def recorded(self, asked: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What a recipe says of these: the file's name and hashes, and the weights."""
        found = []
        for one in asked:
            sha256, short = self.hashes(one["path"])
            found.append({"file": os.path.basename(one["path"]), "sha256": sha256, "short": short,
                          "unet": one["unet"], "text_encoder": one["text_encoder"]})
        return found

    def hashes(self, path: str) -> tuple[str, str]:
        """The SHA-256 of a file, and the first 12 digits of that of its tensors, which A1111 shows.

        As kohya writes it into the file (sshs_model_hash), else as A1111 counts it.
        """
        from refsd.pipelines.identity import sha256
        from refsd.weights.header import read_header

        if path not in self._known:
            header = read_header(path)
            short = header.metadata.get("sshs_model_hash", "")[:12]
            if not HEX[12].fullmatch(short):
                short = sha256(Path(path), start=header.data)[:12]
            self._known[path] = sha256(Path(path)), short
            self.places[self._known[path][0]] = path
        return self._known[path]

    def put_in(self, pipe: Any, wanted: list[dict[str, Any]]) -> None:
        """Have these adapters, of a recipe, in the pipeline's networks, and no others."""
        from refsd.adapters import file, loaded

        there = loaded.adapters(pipe)
        for one in wanted:
            if one["sha256"] not in there:
                source = file.open_source(self.places[one["sha256"]])
                loaded.load(pipe, source, one["sha256"], strict=self.strict)
        loaded.show(pipe, {network: {one["sha256"]: one[_kind(network)] for one in wanted}
                           for network in loaded.applied(pipe)})


def _kind(network):
    """Under which of its two words a recipe has a network's weight: all text encoders have one."""
    return "text_encoder" if network.startswith("text_encoder") else "unet"


def of_recipe(wanted: list[dict[str, Any]], options: argparse.Namespace, where: str) -> Adapters:
    """The adapters of a recipe, wherever --lora and --lora-dir have files of these hashes.

    UsageError that names those that are not there.
    """
    found = Adapters(strict=False)
    if not wanted:
        return found
    names = {one["file"] for one in wanted}
    files = [_argument(given)[0] for given in options.lora]
    if options.lora_dir is not None:
        _require_folder(options.lora_dir)
        inside = sorted(_files(options.lora_dir), key=lambda path: path.name not in names)
        files += map(str, inside)
    missing = {one["sha256"]: one["file"] for one in wanted}
    for path in files:
        if missing:
            try:
                missing.pop(found.hashes(path)[0], None)
            except ModelError:
                continue  # a damaged file is not the one that is wanted
    if missing:
        told = ", ".join(f"{name} (SHA-256 {sha256[:12]}...)" for sha256, name in missing.items())
        raise UsageError(f"{where}: drawn with {told}, which the recipe does not hold. Say with "
                         "--lora or --lora-dir where such files are")
    return found


def tags(adapters: list[dict[str, Any]]) -> str:
    """What A1111 writes into a prompt for them."""
    return "".join(f" <lora:{_stem(one)}:{one['text_encoder']:g}"
                   + (f":{one['unet']:g}" if one["unet"] != one["text_encoder"] else "") + ">"
                   for one in adapters)


def settings(adapters: list[dict[str, Any]]) -> dict[str, str]:
    """What A1111's line says of them."""
    listed = ", ".join(f"{re.sub('[:,]', '', _stem(one))}: {one['short']}" for one in adapters)
    return {"Lora hashes": listed} if adapters else {}


def in_words(adapters: list[dict[str, Any]]) -> str:
    """For reading."""
    return ", ".join(f"{one['file']} {one['unet']:g}" + (
        f" (text encoder {one['text_encoder']:g})" if one["unet"] != one["text_encoder"] else "")
        for one in adapters)


def _stem(one: Mapping[str, Any]) -> str:
    return one["file"].removesuffix(".safetensors")
