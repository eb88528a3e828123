"""A folder of compiled kernels and wheels, for a machine without a compiler and a registry.

    cubins/   every variant that a card may be given, and the probes, as refsd's own store has them
    wheels/   what such a machine may lack; what is there already is not replaced
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOM = 60 << 20  # bytes of all
WHEELS = {  # a package, and what it is imported as
    "greenlet": "greenlet", "ml-dtypes": "ml_dtypes", "cuda-core": "cuda.core",
    "cuda-bindings": "cuda.bindings", "cuda-pathfinder": "cuda.pathfinder"}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64",
             "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def prepare(folder: Path, capabilities: list[int], python: str) -> int:
    """Make the folder; the exit code is 1 if it is larger than ROOM or a kernel is missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["REFSD_CACHE"] = str(folder)
    missing = compile_all(capabilities)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
                    *platforms, "-d", str(folder / "wheels"), *WHEELS], check=True)
    sizes = {part: sum(path.stat().st_size for path in (folder / part).rglob("*") if path.is_file())
             for part in ("cubins", "wheels")}
    total = sum(sizes.values())
    print(f"{folder}: " + ", ".join(f"{part} {size / 2**20:.1f} MiB"
                                    for part, size in sizes.items())
          + f"; at most {ROOM >> 20} MiB together")
    for name, why in missing.items():
        print(f"{name}: {why}")
    return int(bool(missing) or total > ROOM)


def compile_all(capabilities: list[int]) -> dict[str, str]:
    """Every variant and every probe into the store; those that do not compile, and why."""
    from benchmarks.gpu import probes
    from benchmarks.gpu.variants import variants
    from refsd.numba_ops.cuda import store

    begun, count, missing = time.monotonic(), 0, {}
    for capability in capabilities:
        found = [*variants(capability), *((f"probe {constants[0]}", factory, constants)
                                          for factory, constants in probes.factories()
                                          if factory.serves(capability))]
        for name, factory, constants in found:
            try:
                store.cubin(factory, constants, capability)
                count += 1
            except Exception as problem:  # the others shall still be carried
                missing[f"{name} for {capability}"] = " ".join(str(problem).split())[:300]
    print(f"{count} kernels in {time.monotonic() - begun:.0f} s")
    return missing


def unpack(carried: Path, folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """What children need in their environment to find the kernels and the wheels."""
    site, store = folder / "site", folder / "store" / "cubins"
    wheels = [next((carried / "wheels").glob(f"{package.replace('-', '_')}-*.whl"))
              for package, module in WHEELS.items() if not _importable(module, environment)]
    for wheel in wheels:  # pip would replace the folder `cuda` of one by that of another
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
    environment = environment | {"PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{site}"}
    shutil.copytree(carried / "cubins", store)
    for path in (store, store.parent):
        path.chmod(0o700)
    adopt(store, compiler_here(environment))
    return {"PYTHONPATH": environment["PYTHONPATH"], "REFSD_CACHE": str(store.parent)}


def adopt(store: Path, tag: str) -> None:
    """Let kernels of another compiler pass for those of the one here.

    A store's file name ends in a hash of the compiler's versions, so that another one compiles
    anew; here what was tested where it was compiled is what shall run.
    """
    for path in store.glob("*.cubin"):
        path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{tag}.cubin"))


def compiler_here(environment: dict[str, str]) -> str:
    """The hash of the compiler that children will see; any where there is none."""
    said = subprocess.run(
        [sys.executable, "-c", "import json; from refsd.numba_ops.cuda import compiler; "
                               "print(json.dumps(compiler.versions()))"],
        env=environment, capture_output=True, text=True)
    return tag_of(json.loads(said.stdout) if said.returncode == 0 else {})


def tag_of(versions: dict[str, str]) -> str:
    """As the store has it at the end of a file's name."""
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:8]


def _importable(module: str, environment: dict[str, str]) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], env=environment,
                          capture_output=True).returncode == 0

