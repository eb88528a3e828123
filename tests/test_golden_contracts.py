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

from refsd import registry
from refsd.__main__ import main
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.examples import calls, with_values
from refsd.families import short_names
from refsd.golden.porting.contracts import describe, describe_ops, refusals, refused
from refsd.golden.porting.contracts_header import header
from refsd.golden.porting.contracts_stages import describe_all, describe_model, describe_stages
from refsd.options import Number
from refsd.pipelines import stages
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import plan_model
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


def test_letters_are_those_of_the_declarations(described):
    assert described["conv2d"]["inputs"]["weight"]["shape"] == ["O", "C//groups", "kH", "kW"]
    assert described["conv2d"]["output"]["shape"] == ["N", "O", "Ho", "Wo"]
    assert described["matmul"]["inputs"]["b"]["shape"] == ["...", "K", "N"]
    assert described["attention"]["options"]["mask"]["shape"] == ["N", "heads", "L", "S"]
    assert described["rope"]["inputs"]["positions"]["shape"] == ["L"]
    assert described["silu"]["inputs"]["x"]["shape"] == ["..."]
    assert described["conv2d"]["requires"]["O % groups == 0"].startswith("{O} output channels")


# -- what is taken and refused


def test_types_and_ranges_are_those_of_the_contracts(described):
    conv = described["conv2d"]["options"]
    assert conv["algorithm"]["choices"] == ["auto", "im2col", "fft", "winograd2", "winograd4"]
    assert conv["padding"]["types"] == ["integer", "pair", "pairs"]
    assert (conv["stride"]["minimum"], conv["padding"]["minimum"]) == (1, 0)
    assert described["group_norm"]["options"]["eps"]["above"] == 0
    assert described["softmax"]["options"]["axis"]["axis_of"] == "x"
    assert described["attention"]["options"]["causal"]["types"] == ["boolean"]
    assert described["transpose"]["options"]["axes"]["types"] == ["one an axis"]
    assert described["reshape"]["options"]["shape"]["types"] == ["sizes"]
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


def test_made_refusals_reach_every_check():
    """A new rule of a contract is broken by one of the wrong calls that are made."""
    for name, op in OPS.items():
        broken = {refused(op, call).check[:2] for call, _ in refusals(op)}
        assert set(test_contracts.checks(op.contract)) <= broken, name
        assert {("option", option) for option in op.contract.options} <= broken, name
        assert {("array", t.name) for t in op.contract.tensors
                if op.signature.parameters[t.name].default is not None} <= broken, name


def test_an_op_of_the_users_is_left_out_with_a_word(own_ops, capfd, tmp_path):
    @registry.op("x (... 2*K), weight (K) -> (... K)", flops="3 * size", gain=Number(above=0))
    def glu(x, weight, *, gain):
        """weight gain h sigmoid(g) where x = [h | g].   (..., 2 K), (K) -> (..., K)"""
        hidden, gate = np.split(x, 2, axis=-1)
        return weight * gain * hidden / (1 + np.exp(-gate))

    assert main(["export", "contracts", "-o", str(tmp_path / "out")]) == 0
    assert "left out, since no bound is derived for them: glu" in capfd.readouterr().err
    assert "refsd_glu(" not in (tmp_path / "out" / "refsd.h").read_text()
    x = np.ones((2, 6), "float32")
    y = registry.dispatch("glu", (x, np.ones(3, "float32")), {"gain": 2.0})
    assert y.shape == (2, 3)
    with pytest.raises(UsageError, match=r"glu: weight has shape \(4,\), wanted \(K\) where K = 3"):
        registry.dispatch("glu", (x, np.ones(4, "float32")), {"gain": 2.0})


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


def test_refsds_own_ops_pass_and_what_is_not_filled_in_is_skipped(folder, monkeypatch):
    found = results(folder, PORT + "def silu(x):\n    raise NotImplementedError\n", monkeypatch)
    assert len(found) == sum(len(calls(op)) + len(refusals(op)) for op in OPS.values())
    for name, outcome in found.items():
        assert outcome == ("skipped" if "[silu-" in name else "passed"), name


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
        with pytest.raises(NotImplementedError, match=f"^{name}$"):
            space[name](**dict.fromkeys(op.signature.parameters))


def test_numbers_keep_what_ops_ask_for():
    for op in OPS.values():
        for k, call in enumerate(calls(op)):
            made = with_values(op, call, k)
            with np.errstate(all="raise"):
                y = op.definition(**made.inputs, **made.options)
            assert np.isfinite(y).all(), op.name


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
    assert "'?'" not in text and "required; an axis of x */" in text


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


@pytest.mark.parametrize("name", short_names())
def test_contracts_of_every_published_model(name):
    """Stages by the parts, every part's table; what a denoiser reads beside the text is named."""
    found = outline(name)
    stages_of = describe_stages(found.configs, found.scheduler)
    model = describe_model(found.configs, found.scheduler)
    assert {"scheduler", *found.configs} == model.keys() | {"scheduler"}
    if found.scheduler is None:
        assert stages_of["read"]["inputs"]["ids"]["shape"] == [1, 1024]
        layers = found.configs["gpt2"].get("n_layer", 12)
        assert stages_of["token"]["inputs"]["past"]["shape"][:4] == [layers, 2, 1, 1023]
        return
    encoders = [part for part in found.configs if part.startswith("text_encoder")]
    numbers = [part.removeprefix("text_encoder") for part in encoders]
    assert list(stages_of) == [f"{stage}{number}" for number in numbers for stage in (
        "tokenize", "encode_text")] + ["make_schedule", "denoise", "decode", "to_bytes"]
    beside = stages_of["denoise"]["inputs"].keys() - {"latents", "prompt_embeds",
                                                      "negative_prompt_embeds"}
    assert beside == ({"text_embeds", "time_ids"} if name.startswith("sdxl") else
                      {"pooled_projections"} if name.startswith("sd3") else set())
    header({"ops": {}, "stages": stages_of, "model": model})  # nothing that C cannot say


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
        "kind": "tensor", "required": True, "shape": ["..."],
        "dtypes": ["bfloat16", "float16", "float32", "float64"]}}
    assert isinstance(calls(OPS["silu"])[0].inputs["x"], Spec)
