"""A folder for bringing Stable Diffusion up elsewhere: in which order, with which tests and packs.

The order and the shares of the work come from the model's plan, which needs no weights.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from refsd.errors import UsageError
from refsd.golden.porting.contracts_header import header
from refsd.golden.porting.contracts_pytest import contract_tests
from refsd.golden.porting.contracts_stages import describe_all
from refsd.golden.porting.export import encode, write_folder
from refsd.golden.recording.names import DENOISERS, block_of, is_alone, stage_of
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import plan_model
from refsd.planning import Planned
from refsd.registry import ops

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}")
NOT_NEEDED = ("encode",)  # by text to image


def new(name: str, folder: str | Path, *, model: str | None = None) -> Path:
    """Write the folder of a port: README.md, status.json, contracts/, results/.

    model is a path, a hub id or a short name; None is Stable Diffusion 1.5. Raises UsageError for
    a name that is not plain, and a folder that is not empty.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"the name is {name[:80]!r}; give letters, digits, spaces and . _ + - "
                         "(up to 80)")
    status = plan(name, model)
    contracts = describe_all(model)
    tests = {**contract_tests(contracts), "refsd.h": header(contracts).encode("utf-8")}
    return write_folder(folder, {
        "README.md": readme(status, contracts["stages"]).encode("utf-8"),
        "status.json": encode(status),
        "results/README.md": RESULTS.encode("utf-8"),
        **{f"contracts/{file}": data for file, data in tests.items()},
    })


def plan(name: str, model: str | None = None) -> dict[str, Any]:
    """What there is to do: ops, blocks and stages, each in the order in which a picture needs it.

    Every entry has what it costs in FLOPs, and its share of all the model's.
    """
    found = outline(model)
    if found.scheduler is None:
        raise UsageError(f"{model}: {found.family.name} draws no pictures, and the order of a port "
                         "is that of a picture; give a model that draws")
    plans = {stage_of(name): planned for name, planned in plan_model(found.configs).items()
             if name not in NOT_NEEDED}
    steps = [(stage, planned) for stage, plan in plans.items() for planned in plan]
    total = sum(planned.output.flops for _, planned in steps)
    texts = [stage for stage in plans if stage.startswith("text")]
    unused = [op for op in ops() if op not in {planned.op for _, planned in steps}]
    return {
        "schema": SCHEMA, "name": name, "model": model or "Stable Diffusion 1.5",
        "flops": total,
        "ops": [*_costs(((planned.op, stage, planned) for stage, planned in steps), total),
                *({"name": op, "calls": 0, "flops": 0, "share": 0.0, "first": None}
                  for op in unused)],
        "blocks": list(_costs(chain.from_iterable(
            _of_blocks(stage, plan) for stage, plan in plans.items()), total)),
        "stages": [*(stage.replace("text", "tokens") for stage in texts), *texts, "schedule",
                   *(stage for stage in plans if not stage.startswith(("text", "decode"))),
                   "denoise", "decode", "picture"],
    }


def _costs(named: Iterable[tuple[str, str, Planned]], total: int) -> Iterable[dict[str, Any]]:
    """One entry a name, in the order of first use: calls, FLOPs, share, where it is first used."""
    entries: dict[str, dict[str, Any]] = {}
    for name, stage, planned in named:
        entry = entries.setdefault(name, {
            "name": name, "calls": 0, "flops": 0, "share": 0.0,
            "first": f"{stage}/{planned.path}" if planned.path else stage})
        entry["calls"] += 1
        entry["flops"] += planned.output.flops
        entry["share"] = round(entry["flops"] / max(total, 1), 6)
    return entries.values()


def _of_blocks(stage: str, plan: list[Planned]) -> Iterable[tuple[str, str, Planned]]:
    """Each op with the kind of block that it is in; an op without weights is in the one before."""
    kind = None
    for planned in plan:
        kind = kind_of(f"{stage}/{planned.path}") if planned.path else kind
        if kind:
            yield kind, stage, planned


def kind_of(name: str) -> str | None:
    """The kind of block of a layer, or of a block: its golden name without step and numbers.

    unet/000/down_blocks.0.resnets.1 -> unet/down_blocks.*.resnets.*; None outside of all blocks.
    """
    stage, *_, path = name.split("/")
    block = path if is_alone(path) else block_of(f"{path}.op")
    return None if block is None else f"{stage}/" + ".".join(
        "*" if word.isdigit() else word for word in block.split("."))


def readme(status: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    """README.md of a port's folder."""
    used = [op for op in status["ops"] if op["calls"]]
    heavy = sorted(used, key=lambda op: -op["flops"])[:3]
    most = ", ".join(f"{op['name']} {op['share']:.1%}" for op in heavy)
    unused = ", ".join(op["name"] for op in status["ops"] if not op["calls"])
    denoiser, layer = next(names for names in (e["name"].split("/") for e in status["blocks"])
                           if names[0] in DENOISERS and is_alone(names[1]))
    template = files("refsd") / "data" / "port.md"
    return template.read_text(encoding="utf-8").format(
        name=status["name"], model=status["model"], giga=status["flops"] / 1e9, most=most,
        unused=unused, denoiser=denoiser, layer=layer,
        ops=_table(used), blocks=_table(status["blocks"]),
        stages="\n".join(_stage_row(name, stage) for name, stage in stages.items()))


def _table(entries: Iterable[Mapping[str, Any]]) -> str:
    rows = ["| | name | calls | GFLOP | share | first used |", "|---|---|---|---|---|---|"]
    rows += [f"| {k} | `{e['name']}` | {e['calls']} | {e['flops'] / 1e9:,.3f} | {e['share']:.2%} | "
             f"`{e['first']}` |" for k, e in enumerate(entries, 1)]
    return "\n".join(rows)


def _stage_row(name: str, stage: Mapping[str, Any]) -> str:
    takes = "; ".join(f"{key} {_written(value)}" for key, value in stage["inputs"].items())
    return f"| `{name}` | {takes} | {_written(stage['output'])} |"


def _written(tensor: Any) -> str:
    if isinstance(tensor, str):
        return tensor
    limits = tensor["range"]
    return (f"{tensor['dtype']} ({', '.join(map(str, tensor['shape']))})"
            + (f" in [{limits[0]}, {limits[1]}]" if limits else ""))


RESULTS = """\
# Results

Lay here what the tools wrote; `refsd port status ..` reads all of it, the newest last.

* `*.xml`: JUnit of the contract tests (`--junitxml`)
* `*.json`: `refsd golden compare PACK MINE --report results/NAME.json`, or
  `refsd golden bisect PACK MINE --json > results/NAME.json`
"""
