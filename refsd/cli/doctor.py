"""`refsd doctor`: the facts about this machine that matter here, and a few quick self-checks."""

import argparse
import hashlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from refsd import cgroups, parallel
from refsd.cli.arguments import Parser
from refsd.cli.report import one_line, result, result_json
from refsd.errors import RefsdError
from refsd.version import __version__

ABOUT = """\
Show versions, processor, threads, memory, caches, the GPU and the bundled model,
and check the noise generators against published numbers. Exit code 1 when a check
fails."""

LIBRARIES = ("numpy", "scipy", "safetensors", "tokenizers", "huggingface_hub", "pillow", "tqdm",
             "threadpoolctl", "numba")
FEATURES = ("AVX", "AVX2", "F16C", "FMA3", "AVX512F", "AVX512_SKX", "AVX512_ICL", "NEON", "SVE")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                   "NUMBA_NUM_THREADS")

# torch.randn(16) and 65,536 numbers of seed 0: pytorch issue 79703, and tests/random_streams.json.
TORCH_16 = (-1.1258, -1.1524, -0.2506, -0.4339, 0.8487, 0.6920, -0.3160, -2.1152,
            0.3223, -1.2633, 0.3500, 0.3081, 0.1198, 1.2377, 1.1168, -0.2473)
TORCH_65536 = "33e5e1492edd7110d7f1a65492cbc485924cb2dc9343099bd01121af5e47a0e7"
# torch.randn(12, device="cuda") of seed 0, published with AUTOMATIC1111's Philox.
CUDA_12 = (-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564,
           -0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497)


def parser() -> Parser:
    """The options of doctor."""
    parser = Parser("refsd doctor [--json]", ABOUT)
    return parser.answering("everything as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Show all; 0 when the checks pass, 1 when not."""
    report = {"versions": versions(), "processor": processor(), "threads": thread_pools(),
             "memory": memory(), "caches": caches(), "backends": backends(), "kernels": kernels(),
             "gpu": gpu(), "model": model(), "checks": checks()}
    report["checks"]["numba backend"] = "usable" not in report["kernels"]
    fine = all(report["checks"].values())
    if options.json:
        result_json({**report, "ok": fine})
        return 0 if fine else 1
    for title, entries in report.items():
        result(title)
        for name, value in entries.items():
            result(one_line(f"  {name:<22} {_in_words(value)}"))
    return 0 if fine else 1


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "ok" if value else "FAILED"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value)


def versions() -> dict[str, str]:
    """Of refsd, Python, the system and every library; nothing heavy is imported for it."""
    packages = {"refsd": __version__, "python": f"{platform.python_version()} ({sys.executable})",
             "system": platform.platform()}
    for name in LIBRARIES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return packages


def processor() -> dict[str, Any]:
    """Its name, the cores this process may use, and the vector extensions that decide speed."""
    from numpy._core._multiarray_umath import __cpu_features__ as features

    return {"name": parallel.processor(), "cores": os.cpu_count(),
            "usable cores": parallel.cores(), "time for (quota)": cgroups.processors(),
            "features": [feature for feature in FEATURES if features.get(feature)]}


def thread_pools() -> dict[str, Any]:
    """The settings in the environment, and the BLAS libraries that NumPy and SciPy brought."""
    import numpy  # noqa: F401
    import scipy.special  # noqa: F401

    from refsd.cli.threads import pools

    settings = {name: os.environ.get(name) for name in THREAD_SETTINGS}
    for pool in pools():
        name = Path(pool["filepath"]).parent.name.partition(".")[0]
        settings[f"{name} {pool['internal_api']}"] = (
            f"{pool['version']}, {pool['num_threads']} threads, {pool.get('architecture', '')}")
    return settings


def memory() -> dict[str, Any]:
    """What can be had without swapping."""
    from refsd.weights.memory import available_bytes

    free = available_bytes()
    return {"available": "unknown" if free is None else f"{free / 2**30:.1f} GiB"}


def caches() -> dict[str, Any]:
    """Where models of the hub lie; where compiled kernels are, `kernels` says."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    there = "" if os.path.isdir(HF_HUB_CACHE) else " (does not exist)"
    return {"models (HF_HUB_CACHE)": f"{HF_HUB_CACHE}{there}",
            "HF_HUB_OFFLINE": "yes" if HF_HUB_OFFLINE else "no",
            "REFSD_CACHE": os.environ.get("REFSD_CACHE")}


def backends() -> dict[str, Any]:
    """Who can compute the ops."""
    from refsd.backends import BACKENDS, choose_backend

    why_not = {name: backend.unavailable() for name, backend in BACKENDS.items()}
    return {"available": [name for name, why in why_not.items() if not why],
            **{f"{name} is not available": why for name, why in why_not.items() if why},
            "auto": choose_backend("auto")}


def kernels() -> dict[str, Any]:
    """What the Numba backend compiles for, where it keeps that, and on what threads it runs."""
    try:
        from refsd.numba_ops import cache, levels, simd, threads

        layer, count = threads.layer(), threads.count()
    except (ImportError, RefsdError) as problem:
        return {"usable": f"no: {problem}"}
    folder = cache.cache_folder()
    files = list(folder.rglob("*.nbc")) if folder is not None else []
    size = sum(file.stat().st_size for file in files) / 2**20
    return {"vectors": f"{simd.WIDTH} bytes: {simd.WIDTH // 4} float32, {simd.WIDTH // 8} float64",
            "bfloat16 products": f"{levels.BFLOAT16}: {levels.BFLOAT16_WHY}",
            "int8 products": f"{levels.INT8}: {levels.INT8_WHY}",
            "threading layer": layer, "threads": count,
            "cache (REFSD_CACHE)": "none: nothing is kept" if folder is None else str(folder),
            "compiled": f"{len(files)}, {size:.1f} MiB; refsd warmup compiles what drawing needs"}


def gpu() -> dict[str, Any]:
    """The GPU that the backend cuda would take, and the kernels that there are for it."""
    from refsd.gpu import Gpu, gpu, in_words, lockstep, unusable

    found = gpu()
    if not isinstance(found, Gpu):
        return {"device": f"none: {found}"}
    facts = {"device": found.name, "compute capability": str(found.capability / 10),
             "memory": f"{found.memory / 2**30:.1f} GiB",
             "driver": f"for CUDA {in_words(found.driver)}"}
    if lockstep() or (why := unusable()):
        return {**facts, "usable": "no: REFSD_CUDA=lockstep" if lockstep() else f"no: {why}"}
    from refsd.numba_ops import cuda  # noqa: F401  declares the kernels
    from refsd.numba_ops.cuda import compiler, store

    variants = store.variants(found.capability)
    kept = sum(store.kept(*variant, found.capability) for variant in variants)
    compiles = " ".join(f"{name} {number}" for name, number in compiler.versions().items())
    return {**facts, "compiler": compiles or f"none: {compiler.INSTALL}",
            "kernels": f"{len({factory.name for factory, _ in variants})}, in {len(variants)} "
                       f"variants, of which {kept} are compiled and kept"}


def model() -> dict[str, Any]:
    """The bundled model: where it is, and the hash that the PNGs name."""
    from refsd.pipelines import identity
    from refsd.pipelines.loading import bundled_model

    try:
        bundled = identity.of(None, variant=None)
    except RefsdError as error:
        return {"bundled": f"cannot be read: {error}"}
    return {"bundled": str(bundled_model()), "hash": bundled["hash"],
            **{file: f"sha256 {digest}" for file, digest in bundled["files"].items()}}


def checks() -> dict[str, bool]:
    """Each is right or wrong; all are quick."""
    import numpy as np

    from refsd.random import PhiloxGenerator, TorchGenerator
    from refsd.text import CLIPTokenizer

    noise = TorchGenerator(0).randn(65536)
    ids = CLIPTokenizer.clip()("a photo of an astronaut riding a horse on mars")[0]
    return {
        "noise as torch-cpu": np.allclose(TorchGenerator(0).randn(16), TORCH_16, rtol=0, atol=5e-5)
        and hashlib.sha256(noise.astype("<f4").tobytes()).hexdigest() == TORCH_65536,
        "noise as cuda": np.allclose(PhiloxGenerator(0).randn(12), CUDA_12, rtol=0, atol=4e-6),
        "CLIP tokenizer": ids[:12].tolist() == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558,
                                                525, 7496, 49407],
        "bundled model": _model_is_whole(),
    }


def _model_is_whole() -> bool:
    """Whether all the model's files are there, and have the tensors that its configs ask for."""
    from refsd.pipelines.loading import bundled_model
    from refsd.weights.plan import plan_whole

    try:
        plan_whole(bundled_model())
        return True
    except RefsdError:
        return False
