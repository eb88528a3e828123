"""Who may import whom, and how long a file may be: read from the source with ast."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import refsd

PACKAGE = Path(refsd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Part of the package -> the parts it may import. Arrows point one way:
# cli -> pipelines -> models -> functional -> registry <- ops.
ALLOWED = {
    "version": set(),
    "errors": set(),
    "arguments": {"errors", "half", "places"},
    "rules": {"arguments", "errors"},
    "atomic": {"errors"},
    "tree": {"errors"},
    "kinds": set(),
    "places": set(),
    "half": {"places"},
    "options": set(),
    "shapes": {"errors"},
    "contracts": {"errors", "options", "shapes"},
    "cgroups": set(),
    "dense": set(),
    "leaf": {"dense", "registry"},
    "quantized": {"half", "leaf"},
    "parallel": {"arguments", "cgroups", "errors"},
    # each declaration names its package, which it imports when it is used
    "gpu": set(),
    "memory_models": set(),
    "backends": {"contracts", "errors", "gpu", "memory_models", "numba_ops", "ops", "parallel",
                 "registry"},
    "registry": {"backends", "contracts", "dense", "errors", "half", "kinds",
                 "places"},
    "ops": {"contracts", "kinds", "options", "registry"},
    "examples": {"contracts", "kinds", "registry"},
    "functional": {"ops", "registry"},
    "numba_ops": {"atomic", "contracts", "dense", "errors", "gpu", "half", "leaf", "ops",
                  "parallel", "quantized", "registry", "rules"},
    "algorithms": {"backends", "contracts", "errors", "half", "numba_ops", "ops", "registry"},
    "bands": {"backends", "contracts", "dense", "errors", "functional", "half", "memory_models",
              "ops", "registry"},
    "planning": {"contracts", "leaf", "memory_models", "registry"},
    "graph": {"arguments", "atomic", "backends", "contracts", "errors", "functional", "half",
              "kinds", "leaf", "memory_models", "ops", "planning", "registry", "rules", "weights"},
    "models": {"functional", "contracts", "leaf", "options"},
    "schedulers": {"arguments", "errors", "half", "places", "random", "rules"},
    "random": {"arguments", "errors", "half"},
    "families": {"arguments", "errors", "tree"},
    "networks": {"arguments", "errors", "rules", "tree"},
    "weights": {"arguments", "atomic", "cgroups", "errors", "families", "half", "leaf", "networks",
                "quantized", "rules", "tree"},
    "text": {"arguments", "errors", "weights"},
    "adapters": {"arguments", "backends", "errors", "families", "half", "leaf", "places",
                 "quantized", "rules", "tree", "weights"},
    "dialects": {"errors"},
    "pipelines": {"adapters", "arguments", "atomic", "backends", "bands", "contracts", "dialects",
                  "errors", "families", "functional", "graph", "half", "leaf", "memory_models",
                  "models", "networks", "parallel", "places", "planning", "quantized", "random",
                  "registry", "rules", "schedulers", "text", "tree", "version", "weights"},
    "profiling": {"algorithms", "backends", "contracts", "dense", "half", "leaf", "pipelines",
                  "registry", "tree", "weights"},
    "notebook": {"errors", "pipelines"},
    # records, replays and judges whole generations: it stands above the pipelines
    "golden": {"algorithms", "arguments", "atomic", "contracts", "dense", "errors", "examples",
               "families", "functional", "graph", "half", "kinds", "leaf", "models", "networks",
               "ops", "parallel", "pipelines", "places", "planning", "random", "registry", "rules",
               "schedulers", "shapes", "text", "version", "weights"},
    # deals units and has them done without knowing what they are of; what does them is found by
    # the kind's name, so that the arrow from cli is the only one
    "farm": {"atomic", "errors"},
    "cli": {"adapters", "algorithms", "arguments", "atomic", "backends", "cgroups", "contracts",
            "dialects", "errors", "families", "farm", "golden", "gpu", "graph", "models",
            "networks", "numba_ops", "parallel", "pipelines", "profiling", "random", "registry",
            "rules", "schedulers", "text", "version", "weights"},
    # what refsd draw does with a command line, it does with requests; nobody imports it, it is
    # found by its name alone
    "serve": {"arguments", "atomic", "cli", "errors", "families", "pipelines", "registry", "rules",
              "schedulers", "version", "weights"},
    "__main__": {"cli", "errors"},
    "__init__": {"functional", "parallel", "pipelines", "registry", "version"},
}
OUTSIDE_OF_OPS = {"math", "typing", "numpy", "numpy.lib.stride_tricks", "scipy.special.erf",
                  "scipy.fft"}
OUTSIDE_OF_MODELS = {"collections.abc", "dataclasses", "typing", "weakref"}
NEVER = {"torch", "diffusers", "transformers", "accelerate", "tensorflow", "jax"}


def part(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@cache
def imports(path):
    """Every module imported anywhere in a file; `from a import b` counts as a.b as well as a."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += ((node.module, f"{node.module}.{alias.name}") for alias in node.names)
    return found


def named(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_arrows_point_one_way(path):
    here = part(path)
    assert here in ALLOWED, f"{named(path)}: a new part of the package needs a place in ALLOWED"
    for module, full in imports(path):
        if module == "refsd":
            there = full.split(".")[1]
        elif module.startswith("refsd."):
            there = module.split(".")[1]
        else:
            continue
        there = "version" if there == "__version__" else there
        assert there == here or there in ALLOWED[here], f"{named(path)} imports {full}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nobody_needs_torch_and_only_numba_ops_numba(path):
    roots = {module.split(".")[0] for module, _ in imports(path)}
    assert not roots & NEVER
    assert "numba" not in roots or part(path) == "numba_ops"


def test_numba_is_imported_after_its_settings_were_looked_at():
    """cpu/ does it once, for the folder."""
    folder = PACKAGE / "numba_ops"
    for path in [*folder.glob("*.py"), folder / "cpu" / "__init__.py",
                 *(folder / "cuda").glob("*.py")]:
        names = [module for module, _ in imports(path)]
        numba = [i for i, name in enumerate(names) if name.split(".")[0] == "numba"]
        if (numba or path.parent.name == "cpu") and path.name != "settings.py":
            first = names.index("refsd.numba_ops.settings")
            assert first < min(numba, default=len(names)), named(path)
            assert path.parent.name != "cpu" or first == 0


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").glob("*.py")), ids=named)
def test_ops_know_numpy_and_two_corners_of_scipy(path):
    for module, full in imports(path):
        if not module.startswith("refsd"):
            assert {module, full} & OUTSIDE_OF_OPS, f"{named(path)} imports {full}"


# What makes whole numbers: positions, the end of a text, T5's buckets of distances.
COUNTS = {"clip.py": {"arange", "argmax"}, "gpt2.py": {"arange"},
          "t5.py": {"abs", "arange", "float32", "float64", "int64", "log", "maximum", "minimum",
                    "where"}}


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=named)
def test_models_compose_ops_and_nothing_else(path):
    for module, full in imports(path):
        counts = path.name in COUNTS and module == "numpy"
        assert module.startswith("refsd") or module in OUTSIDE_OF_MODELS or counts, full
    attributes = {node.attr for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                  and node.value.id == "np"}
    assert attributes == COUNTS.get(path.name, set())


@pytest.mark.parametrize("statement, absent", [
    ("import refsd", ("numpy", "scipy", "numba", "PIL", "safetensors", "tokenizers")),
    ("import refsd; refsd.use, refsd.watch, refsd.__version__", ("numpy", "scipy", "numba")),
    ("import refsd; refsd.F.silu", ("numba", "PIL", "tokenizers")),
])
def test_importing_refsd_is_cheap(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_an_image_on_numpy_imports_what_it_needs(model):
    """No kernels, golden packs or command line, and of the samplers one; a ceiling on the rest."""
    code = ("import sys, refsd\npipe = refsd.StableDiffusionPipeline.from_pretrained("
            f"{str(model)!r}, backend='numpy')\npipe('a', 32, 32, num_inference_steps=1)\n"
            "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'refsd'))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=PACKAGE.parent, check=True)
    files = [Path(file) for file in done.stdout.split()]
    parts = {part(file) for file in files}
    assert not parts & {"numba_ops", "golden", "cli", "profiling", "examples"}
    samplers = {file.name for file in files if part(file) == "schedulers"}
    assert samplers == {"__init__.py", "config.py", "scheduler.py", "diffusion.py",
                        "noise_schedule.py", "prediction.py", "ddim.py"}
    # each further one of these is a file more
    files = [file for file in files if part(file) not in ("families", "networks")]
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert len(files) <= 100 and lines <= 11400, (len(files), lines)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_fit_a_reader(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300, f"{named(path)} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{named(path)}: {node.name} has {lines} lines"


def test_files_are_named_after_what_they_hold():
    for path in FILES:
        parts = set(path.relative_to(PACKAGE).with_suffix("").parts)
        assert not parts & {"utils", "util", "base", "core", "common", "helpers", "misc"}, path
