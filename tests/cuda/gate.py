"""What can be known of a kernel without a GPU: its registers, its memory, its instructions.

    python tests/cuda/gate.py                 every variant for every capability, as a table
    python tests/cuda/gate.py linear --write  those of linear.py; what is found becomes what is held

PTX by libNVVM, machine code by nvJitLink, its text by nvdisasm, all of them from wheels: the extra
`cuda-compile`. gate.json is what test_gate.py holds the kernels to; where two changes of it meet,
take either and write it anew.
"""

import argparse
import collections
import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from refsd.numba_ops import cuda  # noqa: F401  declares the factories
from refsd.numba_ops.cuda.plan import FACTORIES, Factory, Plan

TABLE = Path(__file__).with_name("gate.json")
# Compute capabilities, and whose PTX is assembled for them.
TARGETS = {"75": "75", "80": "80", "86": "80", "89": "80", "90": "90", "90a": "90a"}
# Memory of one multiprocessor that a block may have, in bytes.
SHARED = {"75": 64 << 10, "80": 163 << 10, "86": 99 << 10, "89": 99 << 10, "90": 227 << 10,
          "90a": 227 << 10}
REGISTERS = 1 << 16
PRODUCTS = sorted(name for name in FACTORIES if name.startswith(("attention", "conv", "linear")))
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "LDG.E.128", "STG.E.128", "LDS.128", "STS.128",
           "SHFL", "BAR", "MUFU", "FFMA", "DFMA", "LDL", "STL")


class Report(NamedTuple):
    """A variant for one capability. shared: static and dynamic together; counts: of instructions"""

    registers: int
    spilled: int
    shared: int
    float64: bool
    counts: dict[str, int]


def variants(words: list[str] | None = None) -> list[tuple[Factory, tuple]]:
    """All of all factories, or of those whose name begins with one of the words."""
    return [(factory, constants) for name, factory in sorted(FACTORIES.items())
            if not words or name.startswith(tuple(words)) for constants in factory.each]


def targets_of(factory: Factory) -> list[str]:
    """The capabilities that a factory is for."""
    if factory.only:
        return [f"{factory.since}{factory.only}"]
    return [t for t in TARGETS if t.isdigit() and int(t) >= factory.since]


def inspect(factory: Factory, constants: tuple, target: str) -> Report:
    """Compile and assemble one variant, and read what became of it."""
    plan, ptx = compiled(factory, constants, target)
    cubin, log = _assembled(ptx, target)
    return Report(said(r"Used (\d+) registers", log), said(r"(\d+) bytes spill stores", log),
                  _shared(ptx) + plan.shared, ".f64" in ptx, _counts(cubin))


def said(pattern: str, log: str) -> int:
    """A number of the one kernel that the assembler speaks of."""
    (found,) = re.findall(pattern, log)
    return int(found)


def _shared(ptx):
    """Bytes of the static arrays: the assembler checks each by itself and not all say their sum."""
    return sum(map(int, re.findall(r"\.shared \.align \d+ \.b8 \w+\[(\d+)\]", ptx)))


_kept: dict[tuple, tuple[Plan, str]] = {}
_counted: dict[tuple[bytes, ...], dict[str, int]] = {}


def forget() -> None:
    """Let go of what more than one target has: PTX, and instructions."""
    _kept.clear()
    _counted.clear()


def compiled(factory: Factory, constants: tuple, target: str) -> tuple[Plan, str]:
    """A variant's plan, and the PTX that is assembled for a capability."""
    from refsd.numba_ops.cuda import front

    source = TARGETS[target]
    key = factory.name, constants, source
    if key not in _kept:
        plan = factory(front, *constants)
        capability = (int(source[0]), int(source[1]), *source[2:])
        _kept[key] = plan, front.compile_ptx(plan.kernel, plan.signature, capability,
                                             (plan.threads, plan.blocks))
    return _kept[key]


def _assembled(ptx, target):
    from cuda.core import Linker, LinkerOptions, ObjectCode

    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(
        arch=f"sm_{target}", ptxas_options=["-v"]))
    return bytes(linker.link("cubin").code), linker.get_info_log()


def _counts(cubin):
    """Those of 8.6 are those of 8.9 as a rule, and taking them apart takes as long as the rest."""
    key = _instructions(cubin)
    if key not in _counted:
        _counted[key] = _disassembled(cubin)
    return _counted[key]


def _instructions(cubin):
    """The sections of an ELF file (64 bits, see elf(5)) that have code."""
    at, (size, count, names) = struct.unpack_from("<Q", cubin, 40)[0], struct.unpack_from(
        "<3H", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, at + i * size) for i in range(count)]
    code = [cubin[start:start + length] for name, _, _, _, start, length in sections
            if cubin.startswith(b".text.", sections[names][4] + name)]
    assert code, "a file without code"
    return tuple(code)


def _disassembled(cubin):
    from cuda import pathfinder

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([pathfinder.find_nvidia_binary_utility("nvdisasm"), "-c", file.name],
                              capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.M)
    assert "EXIT" in found, f"nvdisasm says nothing that is understood: {text[:500]}"
    counts = collections.Counter(
        {name: sum(_is(name, x) for x in found) for name in COUNTED})
    return {name: count for name, count in counts.items() if count}


def _is(name, instruction):
    if name in ("LDG.E.128", "STG.E.128"):
        return instruction.startswith(name[:5]) and ".128" in instruction
    if name in ("LDS.128", "STS.128"):
        return instruction.startswith(name[:3]) and ".128" in instruction
    return instruction == name or instruction.startswith(f"{name}.")


def key_of(factory: Factory, constants: tuple) -> str:
    """How the table names a variant."""
    return f"{factory.name}({', '.join(map(str, constants))})"


def faults(plan_threads: int, blocks: int, target: str, report: Report, float64: bool) -> list[str]:
    """What no kernel may do, whatever the table says."""
    found = []
    if report.spilled or report.counts.get("LDL") or report.counts.get("STL"):
        found.append(f"spills {report.spilled} bytes, {report.counts.get('LDL', 0)} loads")
    if report.registers * plan_threads * blocks > REGISTERS:
        found.append(f"{report.registers} registers of {plan_threads} threads, {blocks} blocks, "
                     f"are more than {REGISTERS}")
    if report.shared > SHARED[target]:
        found.append(f"{report.shared} bytes of shared memory, {SHARED[target]} are there")
    if report.float64 and not float64:
        found.append("float64 arithmetic where none belongs")
    return found


def main() -> None:
    """The command above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="families, or factories: linear, norm.layer_norm")
    parser.add_argument("--write", action="store_true", help="keep what is found in gate.json")
    parser.add_argument("--targets", help="such as 80,90a")
    options = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    known = {key_of(*variant) for variant in variants()}
    for factory, constants in variants(options.names):
        targets, before = targets_of(factory), table.get(key_of(factory, constants), {})
        rows = table[key_of(factory, constants)] = {t: before[t] for t in targets if t in before}
        for target in targets:
            if options.targets and target not in options.targets.split(","):
                continue
            report = inspect(factory, constants, target)
            plan, _ = compiled(factory, constants, target)
            rows[target] = {"registers": report.registers, "shared": report.shared,
                            **report.counts}
            bad = faults(plan.threads, plan.blocks, target, report, "float64" in constants)
            print(f"{key_of(factory, constants):56} sm_{target:3} {report.registers:3} registers "
                  f"{report.shared:6} shared "
                  + " ".join(f"{k}:{v}" for k, v in report.counts.items())
                  + "".join(f"  WRONG: {fault}" for fault in bad), flush=True)
        forget()
    if options.write:
        kept = {key: table[key] for key in sorted(table) if key in known}
        lines = (f"{json.dumps(key)}: {{\n" + ",\n".join(
            f"  {json.dumps(t)}: {json.dumps(row)}" for t, row in rows.items()) + "}"
            for key, rows in kept.items())
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
