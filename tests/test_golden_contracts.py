"""Contracts as JSON, as tests for a port, and as a C header: true, complete, and working."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import test_contracts
import tiny

from refsd import contracts, registry
from refsd.__main__ import main
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.golden.porting.contracts import describe, describe_ops, refusals
from refsd.golden.porting.contracts_calls import calls, numbers
from refsd.golden.porting.contracts_stages import describe_all
from refsd.golden.recording.plan import plan_model
from refsd.pipelines import stages
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

OPS = registry.ops()


@pytest.fixture(scope="module")
def described():
    return describe_ops()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What `refsd export contracts` writes."""
    folder = tmp_path_factory.mktemp("contracts") / "out"
    assert main(["export", "contracts", "-o", str(folder)]) == 0
    return folder


def test_every_op_is_there_with_worked_calls(described):
    assert described.keys() == OPS.keys()
    for name, found in described.items():
        assert found["examples"] and found["refuses"], name
        assert [*found["inputs"], *found["options"]] == list(OPS[name].signature.parameters)
        assert found["formula"] == inspect.getdoc(OPS[name].definition).partition("\n")[0]
    json.dumps(described, allow_nan=False)


# -- shapes as letters


def bind(letters, shape, known):
    """Bind the plain letters of a shape to its sizes; `...` stands for any number of axes."""
    if letters.count("...") > 1:
        return
    if "..." in letters:
        at = letters.index("...")
        assert len(shape) >= len(letters) - 1
        after = len(letters) - at - 1
        letters = letters[:at] + letters[at + 1:]
        shape = [*shape[:at], *shape[len(shape) - after:]]
    assert len(letters) == len(shape), (letters, shape)
    for letter, size in zip(letters, shape):
        if letter.isidentifier():
            assert known.setdefault(letter, size) == size, (letter, size, known)


def expressions(letters, shape):
    """The sizes that are written as products, sums or quotients, where their place is certain."""
    return [(letter, size) for letter, size in zip(letters, shape)
            if len(letters) == len(shape) and "..." not in letters]


@pytest.mark.parametrize("name", sorted(OPS))
def test_letters_fit_the_worked_calls(name, described):
    found = described[name]
    for example in found["examples"]:
        tensors = [(found[part][key]["shape"], value["shape"]) for part in ("inputs", "options")
                   for key, value in example[part].items()
                   if isinstance(value, dict) and key != "mask"]  # which is broadcast to its shape
        result = found["output"]["shape"]
        if result == "the same":
            assert example["output"]["shape"] == tensors[0][1]
        known = {key: n for key, n in example["options"].items() if isinstance(n, int)}
        tensors.append((result, example["output"]["shape"]))
        tensors = [(letters, shape) for letters, shape in tensors if isinstance(letters, list)]
        # one pixel an image is the other form of to_image, which its docstring names after it
        if name == "to_image" and len(tensors[0][1]) == 2:
            continue
        for letters, shape in tensors:
            bind(letters, shape, known)
        for letters, shape in tensors:
            for text, size in expressions(letters, shape):
                code = re.sub(r"(\w) (?=\w)", r"\1 * ", text).replace("/", "//")
                if set(re.findall(r"[A-Za-z]+", code)) <= known.keys() and "'" not in code:
                    assert eval(code, {}, dict(known)) == size, (text, size, known)


def test_letters_are_found_where_there_are_some(described):
    assert described["conv2d"]["inputs"]["weight"]["shape"] == ["O", "C / groups", "kH", "kW"]
    assert described["conv2d"]["output"]["shape"] == ["N", "O", "H'", "W'"]
    assert described["matmul"]["inputs"]["b"]["shape"] == ["...", "K", "N"]
    assert described["attention"]["options"]["mask"]["shape"] == ["N", "heads", "L", "S"]
    assert described["rope"]["inputs"]["positions"]["shape"] == ["L"]
    assert described["concat"]["inputs"]["arrays"]["shape"] == [["...", "A", "..."],
                                                                ["...", "B", "..."]]
    without = {name for name, found in described.items()
               if all(value["shape"] == "any" for value in found["inputs"].values())}
    assert without == {"silu", "quick_gelu", "gelu", "gelu_tanh", "softmax", "exp", "sqrt",
                       "clamp", "add", "sub", "mul", "div"}


# -- what is taken and refused


def test_types_and_ranges_are_those_of_the_contracts(described):
    conv = described["conv2d"]["options"]
    assert conv["algorithm"]["choices"] == ["auto", "im2col", "fft", "winograd2", "winograd4"]
    assert conv["padding"]["types"] == ["integer", "pair", "pairs"]
    assert (conv["stride"]["minimum"], conv["padding"]["minimum"]) == (1, 0)
    assert described["group_norm"]["options"]["eps"]["above"] == 0
    softmax = described["softmax"]["options"]["axis"]
    assert (softmax["minimum"], softmax["maximum"]) == (-3, 2)
    assert described["attention"]["options"]["causal"]["types"] == ["boolean"]
    assert described["transpose"]["options"]["axes"]["types"] == ["one an axis"]
    assert described["pad"]["options"]["widths"]["types"] == ["pair an axis"]
    assert described["linear"]["inputs"]["bias"]["required"] is False
    assert described["div"]["inputs"]["b"]["kind"] == "tensor or number"
    for name, found in described.items():
        for value in found["inputs"].values():
            ids = "int64" in value["dtypes"] and name != "timestep_embedding"
            assert ("float32" in value["dtypes"]) != ids, name
        for option in found["options"].values():
            assert option["types"], name


def test_examples_cost_what_the_contract_says(described):
    example = described["linear"]["examples"][0]
    assert example["flops"] == 2 * 3 * 5 * 8 * 2
    assert example["bytes"] == 4 * (2 * 3 * 8 + 5 * 8 + 5 + 2 * 3 * 5)


@pytest.mark.parametrize("name", sorted(OPS))
def test_refusals_are_refused_in_these_words(name):
    for call, message in refusals(OPS[name]):
        with pytest.raises(UsageError) as error:
            OPS[name].contract(*call.inputs.values(), **call.options)
        assert str(error.value) == message and message.startswith(f"{name}: ")


def test_made_refusals_reach_every_check(monkeypatch):
    """A new check in a contract is met by one of the wrong calls that are made."""
    met = set()

    def recording(condition, op, message):
        if not condition:
            caller = sys._getframe(1)
            met.add((Path(caller.f_code.co_filename).name, caller.f_lineno))
            raise UsageError(f"{op}: {message}")

    for module in [contracts] + [inspect.getmodule(op.contract) for op in OPS.values()]:
        if hasattr(module, "need"):
            monkeypatch.setattr(module, "need", recording)
    for op in OPS.values():
        refusals(op)
    missed = sorted(set(test_contracts.needs()) - met)
    lines = {file: (Path(contracts.__file__).parent / file).read_text().splitlines()
             if file == "contracts.py" else
             (Path(contracts.__file__).parent / "ops" / file).read_text().splitlines()
             for file, _ in missed}
    words = [lines[file][line - 1].strip() for file, line in missed]
    assert words == [], "\n".join(words)



# -- tests for a port

PORT = '''
from refsd.functional import *
from refsd import functional as F
FORMAT, REFUSES, WINOGRAD = "float32", True, False
'''
BROKEN = PORT + '''
def gelu(x):
    return F.gelu_tanh(x)

def group_norm(x, weight, bias, *, groups, eps):
    return F.group_norm(x, weight, bias, groups=groups, eps=1e-3)

def linear(x, weight, bias=None):
    return F.linear(x, weight)

def to_tokens(x):
    return x.reshape(x.shape[0], -1, x.shape[1])

def softmax(x, *, axis):
    x += 1.0
    return F.softmax(x, axis=axis)

def attention(q, k, v, *, heads, mask=None, causal=False):
    return F.attention(q, k, v, heads=heads, mask=mask)

def clamp(x, *, low, high):
    return x.clip(low, high)
'''


def results(folder, adapters, monkeypatch):
    """Outcome by test of a run of the generated file, from its JUnit XML."""
    (folder / "adapters.py").write_text(adapters)
    monkeypatch.setenv("PYTHONPATH", str(Path(registry.__file__).parents[1]))
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                    "--junitxml=out.xml", "test_contracts.py"], cwd=folder, capture_output=True,
                   check=False)
    outcomes = {}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        kinds = [child.tag for child in case]
        outcomes[case.get("name")] = kinds[0] if kinds else "passed"
    return outcomes


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "tests"))


def test_refsds_own_ops_pass(folder, monkeypatch):
    found = results(folder, PORT, monkeypatch)
    assert len(found) == sum(len(calls(name)) + len(refusals(op)) for name, op in OPS.items())
    assert set(found.values()) == {"passed"}


def test_a_broken_port_fails_where_it_is_broken(folder, monkeypatch):
    found = results(folder, BROKEN, monkeypatch)
    failed = {name for name, outcome in found.items() if outcome != "passed"}
    wrong = {re.match(r"test_result\[(\w+)-", name)[1] for name in failed if "result" in name}
    assert wrong == {"gelu", "group_norm", "linear", "to_tokens", "softmax", "attention"}
    # of attention only the causal call, of linear only the one with a bias
    assert "test_result[attention-0]" not in failed and "test_result[attention-1]" in failed
    assert "test_result[linear-0]" in failed and "test_result[linear-1]" not in failed
    lenient = {re.match(r"test_refuses\[(\w+)-", name)[1] for name in failed if "refuses" in name}
    assert {"clamp", "to_tokens", "linear"} <= lenient <= wrong | {"clamp"}


def test_what_is_not_filled_in_is_skipped(exported, folder, monkeypatch):
    found = results(folder, (exported / "adapters.py").read_text(), monkeypatch)
    assert set(found.values()) == {"skipped"}


def test_a_port_in_half_precision_is_judged_as_one(folder, monkeypatch):
    """Rounding inputs and results to float16 fails float32's bounds and passes float16's."""
    halved = PORT.replace("True", "False") + '''
import numpy as np

def halve(value):
    if isinstance(value, (list, dict)):
        return [halve(item) for item in value] if isinstance(value, list) else {
            key: halve(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype("float16").astype("float32")
    return value

def half(function):
    def rounded(**arguments):
        # training steps are no activations: a sine of 999 radians needs them whole
        steps = {key: value for key, value in arguments.items() if key == "timesteps"}
        return halve(function(**halve(arguments) | steps))
    return rounded

globals().update({name: half(function) for name, function in vars(F).items()
                  if hasattr(function, "__wrapped__")})
'''
    found = results(folder, halved, monkeypatch)
    assert {outcome for name, outcome in found.items() if "refuses" in name} == {"skipped"}
    failed = [name for name, outcome in found.items() if outcome == "failure"]
    assert len(failed) > 20 and all(name.startswith("test_result") for name in failed)
    found = results(folder, halved.replace('"float32", ', '"float16", '), monkeypatch)
    assert {outcome for name, outcome in found.items() if "result" in name} == {"passed"}


def test_adapters_have_the_ops_signatures(exported):
    space = {}
    exec((exported / "adapters.py").read_text(), space)
    for name, op in OPS.items():
        assert inspect.signature(space[name]) == op.signature
        assert inspect.getdoc(space[name]) == inspect.getdoc(op.definition)


def test_numbers_keep_what_ops_ask_for():
    for name in OPS:
        for k, call in enumerate(calls(name)):
            made = numbers(name, call, k)
            with np.errstate(all="raise"):
                y = OPS[name].definition(**made.inputs, **made.options)
            assert np.isfinite(y).all(), name


# -- the C header


def test_the_header_compiles_as_c(exported, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    (tmp_path / "use.c").write_text('''
#include "refsd.h"
#include <stdio.h>
#define ROW(name, rank, ...) { name, rank, { __VA_ARGS__ } },
static const refsd_weight weights[] = { REFSD_UNET_WEIGHTS(ROW) };
static const refsd_unet_config unet = REFSD_UNET_CONFIG;
static const refsd_text_encoder_config text = REFSD_TEXT_ENCODER_CONFIG;
static const int64_t picture[] = REFSD_DECODE_OUTPUT_SHAPE;
int main(void) {
    refsd_conv2d_options options = { .stride = {1, 1}, .padding = {{1, 1}, {1, 1}},
                                     .algorithm = REFSD_CONV2D_ALGORITHM_AUTO };
    refsd_status (*conv)(const refsd_tensor *, const refsd_tensor *, const refsd_tensor *,
                         const refsd_conv2d_options *, refsd_tensor *) = NULL;
    (void)conv;
    printf("%zu %s %d %d %d %s %d\\n", sizeof weights / sizeof *weights, weights[0].name,
           (int)weights[0].shape[0], (int)unet.heads[0], (int)picture[1], text.activation,
           (int)options.padding[1][1] + REFSD_TOKENIZE_OUTPUT_MAX);
    return 0;
}
''')
    program = tmp_path / "use"
    subprocess.run([compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
                    f"-I{exported}", "-o", str(program), str(tmp_path / "use.c")], check=True)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert said == "686 conv_in.weight 320 8 512 quick_gelu 49408\n"


def test_the_header_has_every_op_and_a_readable_width(exported):
    text = (exported / "refsd.h").read_text()
    assert set(re.findall(r"^refsd_status refsd_(\w+)\(", text, re.MULTILINE)) == OPS.keys()
    assert max(map(len, text.splitlines())) <= 100
    assert "'?'" not in text and "required; an axis: from -n to n - 1 for n of them */" in text


# -- stages and models


def test_stages_do_what_their_contracts_say(tmp_path):
    """A tiny model's stages, run, against shapes, dtypes and ranges that were only planned."""
    place = tiny.write_model(tmp_path / "tiny")
    found = describe_all(str(place))["stages"]
    pipe = StableDiffusionPipeline.from_pretrained(place, backend="numpy")

    def check(array, contract):
        assert list(array.shape) == contract["shape"] and str(array.dtype) == contract["dtype"]
        if contract["range"] is not None:
            assert contract["range"][0] <= array.min() <= array.max() <= contract["range"][1]

    ids = stages.tokenize(pipe.tokenizer, ["a red cat"])
    check(ids, found["tokenize"]["output"])
    text = stages.encode_text(pipe.text_encoder, ids)
    check(text, found["encode_text"]["output"])
    steps = stages.make_schedule(pipe.scheduler, 3)
    schedule = found["make_schedule"]["output"]
    check(steps, {**schedule, "shape": [len(steps)]})
    start = np.random.default_rng(0).standard_normal(found["denoise"]["inputs"]["latents"]["shape"])
    *_, last = stages.denoise(pipe.unet, pipe.scheduler, start.astype("float32"), text, text,
                              guidance_scale=3.0)
    check(last.latents, found["denoise"]["output"])
    pictures = stages.decode(pipe.vae, last.latents)
    check(pictures, found["decode"]["output"])
    check(stages.to_bytes(pictures), found["to_bytes"]["output"])


def test_the_model_has_every_weight_and_setting():
    found = describe_all()["model"]
    assert found["unet"]["weights"]["conv_in.weight"] == [320, 4, 3, 3]
    assert [found[part]["parameters"] for part in ("text_encoder", "unet", "vae")] == [
        123_060_480, 859_520_964, 83_653_863]
    assert found["unet"]["reads"]["heads"] == (8, 8, 8, 8)
    assert found["scheduler"]["config"]["_class_name"] == "PNDMScheduler"
    assert found["scheduler"]["config"]["prediction_type"] == "epsilon"  # a default, spelled out


def test_all_calls_of_the_model_are_listed():
    calls = describe_all()["calls"]
    for part, planned in plan_model().items():
        for quantity in ("flops", "bytes"):
            counted = sum(call[quantity] * call["count"].get(part, 0)
                          for found in calls.values() for call in found)
            assert counted == sum(getattr(p.output, quantity) for p in planned)
    assert sum(call["count"].get("unet", 0) for call in calls["conv2d"]) == 98
    most = calls["conv2d"][0]
    assert most["inputs"]["weight"]["shape"][2:] == [3, 3] and most["options"]["padding"] == 1
    texts = [json.dumps([call["inputs"], call["options"]]) for call in calls["conv2d"]]
    assert len(set(texts)) == len(texts)


def test_a_folder_that_is_not_empty_is_left_alone(exported, capsys):
    before = sorted(path.name for path in exported.iterdir())
    assert main(["export", "contracts", "-o", str(exported), "--json"]) == 2
    assert "is not empty" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert sorted(path.name for path in exported.iterdir()) == before


def test_an_op_can_be_described_alone():
    assert describe(OPS["silu"])["inputs"] == {"x": {
        "kind": "tensor", "required": True, "shape": "any", "dtypes": ["float32", "float64"]}}
    assert isinstance(calls("silu")[0].inputs["x"], Spec)
