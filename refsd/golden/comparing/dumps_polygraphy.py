"""What Polygraphy saves: RunResults of `--save-outputs`, or the inputs of `--save-inputs`, as JSON.

Each array is there as the base64 of a .npy file. Only the text around them is held in memory, and
an array is decoded when it is read. Truth: polygraphy/json/serde.py and comparator/struct.py of
Polygraphy 0.53.
"""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from refsd.errors import ModelError, RefsdError, damaged
from refsd.golden.comparing.base64_file import Base64File, decoded_size
from refsd.golden.comparing.dumps import Dump, Listing, header, shown
from refsd.golden.comparing.dumps_index import Twice, unique_pairs
from refsd.weights.files import open_file, parse_foreign

ENDING = ".json"
MAX_TEXT = 64 << 20  # bytes of such a file without its arrays: a name and some 150 bytes for each
MAX_NPY_HEADER = 1 << 16
# No other text of JSON looks like this: inside one the quotes have a backslash before them.
PAYLOAD = re.compile(rb'(?<!\\)"(?:array|tensor)"\s{0,64}:\s{0,64}"')
PIECE, TAIL = 1 << 20, 256  # bytes that are looked through at once; more than PAYLOAD can match
# Near an end of such a file, also of one that was cut short: b"\x93NUMPY" is k05VTVBZ in base64.
MARKS = (b'"polygraphy_class"', b"polygraphy_serialized_json_type", b'"k05VTVBZ')
NEAR = 4096
TIME = re.compile(r"-\d\d/\d\d/\d\d-\d\d:\d\d:\d\d")  # which Polygraphy puts behind a runner's name
NAMED_BY_NUMBER = re.compile(r"\d{10}")  # a file of one of several iterations


def is_polygraphy(path: Path) -> bool:
    """Whether a .json file looks like one that Polygraphy saved; many others lie in folders."""
    try:
        with open_file(path) as file:
            near = file.read(NEAR) or b""
            file.seek(max(0, os.fstat(file.fileno()).st_size - NEAR))
            near += file.read(NEAR) or b""
    except RefsdError:
        return False
    return any(mark in near for mark in MARKS)


def polygraphy(path: Path, listing: Listing) -> None:
    """The arrays of a file, under the names of its outputs (or inputs).

    Of several iterations they are NNN/NAME, of several runners RUNNER/NAME or RUNNER/NNN/NAME, the
    runner without the time that Polygraphy puts behind it. A folder of iterations is numbered by
    its files. Raises ModelError for a file that is none of Polygraphy's.
    """
    with open_file(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise damaged(f"{path}: empty, expected JSON that Polygraphy saved")
        text, payloads = _apart(file, path)
    runs = _runs(parse_foreign(text, path, pairs=unique_pairs), path)
    runners = _short([runner for runner, _ in runs])
    first, several = _number(path)
    for runner, (_, iterations) in zip(runners, runs, strict=True):
        before = f"{runner}/" if len(runs) > 1 else ""
        for i, arrays in enumerate(iterations):
            numbered = f"{before}{first + i:03d}/" if several or len(iterations) > 1 else before
            for name, entry in arrays.items():
                with listing.noting(path, numbered + name):
                    listing.add(numbered + name, _dump(path, numbered + name, entry, payloads))


def _apart(file: BinaryIO, path: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The JSON with its number in place of every array's base64, and where these lie."""
    text, payloads = bytearray(), []
    ahead, at = b"", 0  # what is not done with yet, and where it begins in the file
    start = None  # of the base64 that it lies in

    def done(count, keep):
        nonlocal ahead, at
        text.extend(ahead[:count] if keep else b"")
        ahead, at = ahead[count:], at + count
        if len(text) > MAX_TEXT:
            raise ModelError(f"{path}: {len(text):,} bytes besides its arrays, at most "
                             f"{MAX_TEXT:,} are allowed in JSON that Polygraphy saved")

    while piece := file.read(PIECE):
        ahead += piece
        while start is not None or (match := PAYLOAD.search(ahead)):
            if start is None:
                done(match.end(), keep=True)
                text.extend(b"%d" % len(payloads))
                start = at
            stop = ahead.find(b'"')
            done(len(ahead) if stop < 0 else stop, keep=False)
            if stop < 0:
                break
            payloads.append((start, at - start))
            start = None
        done(max(0, len(ahead) - TAIL), keep=True)
    if start is not None:  # cut short: it ends inside the text, JSON says so
        payloads.append((start, at - start))
    done(len(ahead), keep=True)
    return bytes(text), payloads


def _runs(found: Any, path: Path) -> list[tuple[str, list[dict]]]:
    """Runners, and the arrays of each one's iterations."""
    if isinstance(found, dict) and isinstance(found.get("lst"), list):
        runs = [(run[0], run[1]) for run in found["lst"]
                if isinstance(run, list) and len(run) == 2 and isinstance(run[0], str)
                and isinstance(run[1], list)]
        if len(runs) == len(found["lst"]):
            return [(name, [_outputs(one, path) for one in iterations])
                    for name, iterations in runs]
    elif isinstance(found, list):
        return [("", [_outputs(one, path) for one in found])]
    elif isinstance(found, dict):
        return [("", [_outputs(found, path)])]
    raise _strange(path)


def _outputs(iteration: Any, path: Path) -> dict[str, Any]:
    """Arrays by name: of an IterationResult, or a dict of inputs."""
    if isinstance(iteration, dict) and isinstance(iteration.get("runner_name"), str):
        iteration = iteration.get("outputs")
    if not isinstance(iteration, dict):
        raise _strange(path)
    return {name: entry for name, entry in iteration.items() if not isinstance(entry, str)}


def _strange(path: Path) -> ModelError:
    return ModelError(f"{path}: expected Polygraphy's RunResults, as --save-outputs writes it, or "
                      "a list of inputs, as --save-inputs does")


def _short(runners: list[str]) -> list[str]:
    """Runners without the times behind them, where they are still different."""
    short = [TIME.sub("", runner) for runner in runners]
    return short if len(set(short)) == len(short) else runners


def _number(path: Path) -> tuple[int, bool]:
    """Which iteration a file is by its name, and whether it is one of several."""
    if not NAMED_BY_NUMBER.fullmatch(path.stem):
        return 0, False
    others: Iterator[Path] = path.parent.glob(f"*{ENDING}")
    return int(path.stem), any(NAMED_BY_NUMBER.fullmatch(other.stem) and other != path
                               for other in others)


def _dump(path: Path, name: str, entry: Any, payloads: list[tuple[int, int]]) -> Dump:
    where = f"{path}: tensor {shown(name)}"
    if isinstance(entry, Twice):
        raise ModelError(f"{where} is there twice. Leave one out")
    if isinstance(entry, dict) and isinstance(entry.get("values"), dict):
        entry = entry["values"]
    entry = entry if isinstance(entry, dict) else {}
    if "tensor" in entry:
        raise ModelError(f"{where} is a torch.Tensor, which Polygraphy pickles, and loading one "
                         "can run any code. Save it as an array: tensor.float().numpy()")
    if not isinstance(entry.get("array"), str) or not entry["array"].isdecimal() or (
            int(entry["array"]) >= len(payloads)):
        raise ModelError(f"{where}: expected \"array\" with the base64 of a .npy file, got "
                         f"{shown(str(entry))}")
    start, length = payloads[int(entry["array"])]
    with open_file(path) as file:
        begin = io.BytesIO(Base64File(file, start, length).read(MAX_NPY_HEADER))
        size = decoded_size(file, start, length)
    return header(begin, Dump(str(path), name, 0, (), "", size, coded=(start, length)))
