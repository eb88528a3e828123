"""Read a golden pack with NumPy alone: import `read`, or run `python read_pack.py FOLDER [NAME]`.

Without NAME it lists the tensors; with it, it writes that one's bytes to stdout.
"""

import hashlib
import json
import os
import sys

import numpy as np


def tensors(folder):
    """The table of tensors, in the order of execution: dicts with name, op, shape and so on."""
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    if manifest["schema"] != 1:
        raise ValueError(f"schema {manifest['schema']}; this reads 1")
    return manifest["tensors"]


def read(folder, tensor):
    """One tensor as an array; `tensor` is a row of the table."""
    path = os.path.join(folder, os.path.basename(tensor["shard"]))  # never another folder
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, size)))
        start, stop = header[tensor["name"]]["data_offsets"]
        if not 0 <= start <= stop <= size - 8 - length:
            raise ValueError(f"{tensor['name']}: bytes {start} to {stop} are not in {path}")
        file.seek(8 + length + start)
        data = file.read(stop - start)
    if hashlib.sha256(data).hexdigest() != tensor["sha256"]:
        raise ValueError(f"{tensor['name']}: altered")
    return np.frombuffer(data, np.dtype(tensor["dtype"]).newbyteorder("<")).reshape(tensor["shape"])


if __name__ == "__main__":
    rows = tensors(sys.argv[1])
    if len(sys.argv) == 2:
        for row in rows:
            print(row["name"], row["dtype"], "x".join(map(str, row["shape"])) or "-")
    else:
        row = next((row for row in rows if row["name"] == sys.argv[2]), None)
        if row is None:
            sys.exit(f"{sys.argv[2]}: no such tensor in {sys.argv[1]}")
        sys.stdout.buffer.write(read(sys.argv[1], row).tobytes())
