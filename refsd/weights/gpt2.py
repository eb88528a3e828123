"""GPT-2 found in a folder or a file, and checked, before any tensor is read.

Files have the names of transformers' GPT2LMHeadModel, or those of its GPT2Model, without the
"transformer." before them. Its Conv1D keeps a weight as (in, out): it is turned as it is read.
"""

import re
from pathlib import Path

from refsd.errors import ModelError, UsageError
from refsd.families import Location
from refsd.networks import NETWORKS, validate
from refsd.weights.files import read_foreign_object
from refsd.weights.folder import component_weights
from refsd.weights.header import read_header
from refsd.weights.plan import Plan, Source, checked

NAME = "gpt2"
# Buffers of causal masks, which old files carry: of no use, and no weights.
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")


def plan_gpt2(path: Path, *, variant: str | None = None) -> Plan:
    """A GPT-2 of a folder, or of a .safetensors file with its config.json beside it.

    A head of its own in the file is taken, whatever the config says: it may be the only one of a
    tied pair that was saved. Raises ModelError, UsageError.
    """
    if path.is_dir():
        folder, (headers, taken) = path, component_weights(path, NAME, variant)
    elif path.is_file():
        folder, headers, taken = path.parent, [read_header(path)], None
    else:
        raise UsageError(f"{str(path)[:200]}: no such file or folder. Give one that there is")
    file = folder / "config.json"
    config = validate(NAME, read_foreign_object(file), str(file))

    sources = {}
    for header in headers:
        for name in header.tensors:
            ours = name.removeprefix("transformer.")
            if MASKS.fullmatch(ours) is None:
                turned = CONV1D.fullmatch(ours) is not None
                sources[ours] = Source(header, Location(name, transposed=turned))
    if "lm_head.weight" in sources:
        sources.setdefault("wte.weight", sources["lm_head.weight"])
        config["tie_word_embeddings"] = False
    return checked(NAME, config, sources, str(path), variant=taken)


def is_gpt2(path: Path) -> bool:
    """Whether a folder's own config.json, or a file's tensors, are such a network's."""
    network = NETWORKS[NAME]
    if not path.is_dir():
        return any(mark in read_header(path).tensors for mark in network.landmarks)
    try:
        config = read_foreign_object(path / "config.json")
    except ModelError:
        return False
    said = config.get("architectures")
    return config.get("model_type") == NAME or isinstance(said, list) and any(
        name in network.classes for name in said)
