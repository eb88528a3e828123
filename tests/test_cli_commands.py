"""info, repro, tokenize and doctor."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image, PngImagePlugin

import refsd.cli
from refsd.__main__ import main
from refsd.cli import actions, doctor
from refsd.cli.commands import COMMANDS, MODULES
from refsd.text import CLIPTokenizer
from refsd.weights import write_safetensors


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    """A picture with everything in its recipe that differs from the defaults."""
    path = tmp_path_factory.mktemp("drawn") / "x.png"
    args = ["a red\ncat", "-n", "dog", "-m", model, "-s", "9", "--steps", "2", "--sampler",
            "euler_a", "--eta", "0.5", "--clip-skip", "1", "--rng", "cuda", "--guidance-rescale",
            "0.5", "--cfg-scale", "3", "-W", "40", "-t", "1", "--dtype", "float64"]
    assert main([*args, "-o", str(path)]) == 0
    return str(path)


def edited(path, to, *, change=lambda pixels: None, texts=lambda texts: texts):
    """The picture with other pixels or other texts."""
    with Image.open(path) as image:
        pixels, kept = np.array(image), texts(dict(image.text))
    change(pixels)
    info = PngImagePlugin.PngInfo()
    for key, value in kept.items():
        info.add_text(key, value)
    Image.fromarray(pixels).save(to, pnginfo=info)
    return str(to)


def run(capfd, *args):
    capfd.readouterr()
    code = main(list(args))
    said = capfd.readouterr()
    return code, said.out, said.err


def test_info_shows_the_recipe(drawn, capfd):
    code, out, err = run(capfd, "info", drawn)
    assert (code, err) == (0, "")
    fields = dict(line.split(":", 1) for line in out.splitlines()[1:] if ":" in line)
    assert fields["prompt"].strip() == "a red\\ncat"
    assert fields["seed"].strip() == "9"
    assert "EulerAncestralDiscreteScheduler" in fields["scheduler"]
    assert "the pixels are those that were drawn" in out

    found = json.loads(run(capfd, "info", drawn, "--json")[1])
    assert found["recipe"]["prompt"] == found["infotext"]["prompt"] == "a red\ncat"
    assert found["infotext"]["settings"]["Clip skip"] == "2"
    assert found["pixels_unchanged"] is True
    assert (found["width"], found["height"]) == (40, 32)


def test_info_sees_a_changed_picture(drawn, tmp_path, capfd):
    def one(pixels):
        pixels[0, 0, 0] ^= 1

    path = edited(drawn, tmp_path / "x.png", change=one)
    assert "not those that were drawn" in run(capfd, "info", path)[1]
    assert json.loads(run(capfd, "info", path, "--json")[1])["pixels_unchanged"] is False


def test_info_of_others_pictures(drawn, tmp_path, capfd):
    theirs = {"parameters": "a cat\x1b[31m\nNegative prompt: dog\nSteps: 20, Seed: 5, Size: 8x8"}
    path = edited(drawn, tmp_path / "a.png", texts=lambda _: theirs)
    code, out, _ = run(capfd, "info", path)
    assert code == 0 and "a cat\\x1b[31m" in out and "Seed:" in out and "\x1b" not in out
    path = edited(drawn, tmp_path / "b.png", texts=lambda _: {"Comment": "hello"})
    assert "does not say how it was made (its texts: Comment)" in run(capfd, "info", path)[1]
    path = edited(drawn, tmp_path / "c.png", texts=lambda _: {})
    assert json.loads(run(capfd, "info", path, "--json")[1])["recipe"] is None


def test_info_of_a_broken_recipe(drawn, tmp_path, capfd):
    path = edited(drawn, tmp_path / "x.png", texts=lambda texts: {"refsd": texts["refsd"][:-9]})
    code, out, err = run(capfd, "info", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"refsd: error: {path}: the recipe: not valid JSON")
    assert err.count("\n") == 1


@pytest.mark.parametrize("recipe", ["x", "[]", '{"schema": 2}', "{}"])
def test_info_of_a_broken_recipe_beside_an_infotext(drawn, tmp_path, capfd, recipe):
    """What cannot be read does not hide what can; repro needs the recipe."""
    path = edited(drawn, tmp_path / "x.png", texts=lambda texts: {**texts, "refsd": recipe})
    code, out, err = run(capfd, "info", path)
    assert code == 0 and "Seed:" in out
    assert err.startswith(f"refsd: warning: {path}: the recipe") and err.count("\n") == 1
    found = json.loads(run(capfd, "info", path, "--json")[1])
    assert found["recipe"] is None and len(found["warnings"]) == 1
    assert run(capfd, "repro", path)[0] == 2


def test_repro_finds_the_same_picture(drawn, model, tmp_path, capfd):
    again = str(tmp_path / "again.png")
    code, out, err = run(capfd, "repro", drawn, "-m", model, "-o", again)
    assert (code, out) == (0, "identical: all 1,280 pixels are the same\n")
    assert "seed 9" in err
    with open(drawn, "rb") as one, open(again, "rb") as two:
        assert one.read() == two.read()


def test_repro_counts_the_differences(drawn, model, tmp_path, capfd):
    def three(pixels):
        pixels[0, 0, 0] ^= 1
        pixels[5, 5] ^= 16
        pixels[31, 39, 2] ^= 4

    path = edited(drawn, tmp_path / "x.png", change=three)
    code, out, _ = run(capfd, "repro", path, "-m", model, "-q")
    assert code == 1
    assert "different: 3 of 1,280 pixels (0.23 %), by up to 16 of 255 grey levels" in out
    assert "the new picture is the recorded one: the file was changed since" in out
    code, out, err = run(capfd, "repro", path, "-m", model, "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert (found["same"], found["differing"], found["largest"]) == (False, 3, 16)
    assert (found["redrawn_as_recorded"], found["file_as_recorded"]) == (True, False)


def test_repro_tells_other_versions(drawn, model, tmp_path, capfd):
    def older(texts):
        recipe = json.loads(texts["refsd"])
        recipe["versions"]["numpy"], recipe["seed"] = "1.26.0", 10
        return {"refsd": json.dumps(recipe)}

    code, out, _ = run(capfd, "repro", edited(drawn, tmp_path / "x.png", texts=older), "-m", model)
    assert code == 1
    assert f"numpy was 1.26.0 then, is {np.__version__} now" in out


def changed_recipe(**values):
    return lambda texts: {"refsd": json.dumps({**json.loads(texts["refsd"]), **values})}


@pytest.mark.parametrize("texts, code, words", [
    (lambda texts: {}, 2, "does not say how it was made"),
    (changed_recipe(width=48), 2, "40 x 32 pixels, its recipe says 48 x 32"),
    (changed_recipe(backend="abacus"), 2, "backend 'abacus' is not one of"),
    (changed_recipe(scheduler={}), 3, "_class_name is None"),
    (changed_recipe(scheduler={"_class_name": "DDIMScheduler", "beta_end": 7}), 3, "beta_end is 7"),
    (changed_recipe(model={"files": {"x": "y"}}), 3, "not the one that drew this picture"),
    (changed_recipe(model={"variant": 7}), 2, "expected an object of strings (wrong: 'variant')"),
    (changed_recipe(model={"files": [[]]}), 2, "model is {'files': [[]]}"),
    (changed_recipe(model={"variant": "../x"}), 2, "variant: got '../x'"),
], ids=["nothing", "cropped", "backend", "scheduler", "option", "model", "number",
        "list", "variant"])
def test_repro_refuses(drawn, model, tmp_path, capfd, texts, code, words):
    path = edited(drawn, tmp_path / "x.png", texts=texts)
    got, out, err = run(capfd, "repro", path, "-m", model, "-q")
    assert (got, out) == (code, "")
    assert err.startswith("refsd: error: ") and words in err and err.count("\n") == 1


def test_repro_needs_the_model_that_drew(drawn, model, tmp_path, capfd):
    code, _, err = run(capfd, "repro", drawn)
    assert code == 2 and "the model 'tiny' from a local path" in err and "-m" in err
    other = str(tiny.write_model(tmp_path / "other", seed=1))
    code, _, err = run(capfd, "repro", drawn, "-m", other)
    assert code == 3 and "not the one that drew this picture" in err
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    assert run(capfd, "repro", drawn, "-m", str(moved))[0] == 0


def test_a_model_keeps_its_path_to_itself(drawn, model):
    with open(drawn, "rb") as file:
        assert model.encode() not in file.read()


def test_tokenize(model, capfd):
    code, out, err = run(capfd, "tokenize", "A red  cat\x07!", "-m", model)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == ["   320  a</w>                'A'",
                                    "   513  red</w>              'red'",
                                    "   515  cat</w>              'cat'"]
    assert "'\\x07'" in out and "\x07" not in out
    assert out.splitlines()[-1] == "5 tokens of 14"


def test_tokenize_as_json_and_with_clip(capfd):
    text = "a photo of an astronaut " + "cat " * 80
    found = json.loads(run(capfd, "tokenize", text, "--clip", "--json")[1])
    assert found["ids"] == CLIPTokenizer.clip()(text)[0].tolist()
    assert found["ids"][:7] == [49406, 320, 1125, 539, 550, 18376, 2368]
    assert len(found["tokens"]) == 85
    assert found["tokens"][4] == {"id": 18376, "token": "astronaut</w>", "text": "astronaut"}
    assert found["truncated"] == "cat " * 9 + "cat "
    assert "this does not fit and is dropped: 'cat cat" in run(
        capfd, "tokenize", text, "--clip")[1]


@pytest.mark.parametrize("args, code, words", [
    (["--clip", "-m", "x"], 2, "exclude each other"),
    (["-m", "no/such/thing"], 2, "no/such/thing"),
    ([], 0, ""),
])
def test_tokenize_options(capfd, args, code, words):
    assert run(capfd, "tokenize", "a cat", *args)[0] == code
    assert words in run(capfd, "tokenize", "a cat", *args)[2]
    assert run(capfd, "tokenize", "a\udcff", "--clip")[0] == 2


def test_doctor(capfd):
    code, out, err = run(capfd, "doctor")
    assert (code, err) == (0, "")
    found = json.loads(run(capfd, "doctor", "--json")[1])
    assert found["ok"] is True
    assert all(found["checks"].values()) and len(found["checks"]) == 5
    assert found["versions"]["numpy"] == np.__version__
    assert found["backends"]["available"][0] == found["backends"]["auto"]
    assert len(found["model"]["hash"]) == 64
    for title in found.keys() - {"ok"}:
        assert f"\n{title}\n" in f"\n{out}"


@pytest.mark.parametrize("what, name", [
    ("TORCH_65536", "noise as torch-cpu"), ("TORCH_16", "noise as torch-cpu"),
    ("CUDA_12", "noise as cuda"),
])
def test_doctor_sees_wrong_noise(capfd, monkeypatch, what, name):
    wrong = getattr(doctor, what)
    wrong = wrong[::-1]
    monkeypatch.setattr(doctor, what, wrong)
    code, out, _ = run(capfd, "doctor", "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert [check for check, fine in found["checks"].items() if not fine] == [name]


def test_doctor_without_the_model(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("refsd.pipelines.loading.bundled_model", lambda: tmp_path)
    monkeypatch.setattr("refsd.pipelines.identity.bundled_model", lambda: tmp_path)
    code, out, _ = run(capfd, "doctor")
    assert code == 1
    assert "bundled model          FAILED" in out and "cannot be read" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_refuses_what_it_does_not_know(capfd, name):
    code, out, _ = run(capfd, name, "--help")
    assert code == 0 and out.startswith(f"usage: refsd {name}")
    code, _, err = run(capfd, name, "x", "--jso")
    assert code == 2 and "did you mean --json?" in err and f"refsd {name} --help" in err


def test_every_command_is_on_one_screen_of_help(capfd):
    """What is a command is read from the sources: a file with parser() and run()."""
    code, page, err = run(capfd, "--help")
    assert (code, err) == (0, "") and page == run(capfd, "help")[1] == run(capfd, "-h")[1]
    lines = page.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 88
    files = {path.stem: {node.name for node in ast.parse(path.read_text()).body
                         if isinstance(node, ast.FunctionDef)}
             for path in Path(refsd.cli.__file__).parent.glob("*.py")}
    found = {name for name, functions in files.items() if {"parser", "run"} <= functions}
    found |= set(MODULES)
    acts = {f"{name}_{act}" for name, all_of in actions.FAMILIES.items() for act in all_of}
    assert found - acts == set(COMMANDS) - set(actions.FAMILIES) and acts <= found
    for name in COMMANDS:
        [at] = [i for i, line in enumerate(lines) if re.match(rf"  {name}\b", line)]
        if name in actions.FAMILIES:  # a single action stands in the command's own line
            alone = len(actions.FAMILIES[name]) == 1
            shown = lines[at].split()[1] if alone else lines[at + 1].strip()
            assert shown == ", ".join(actions.FAMILIES[name])


def test_help_of_a_command(capfd):
    assert run(capfd, "help", "info")[1] == run(capfd, "info", "--help")[1]
    code, _, err = run(capfd, "help", "inf")
    assert code == 2 and "did you mean info?" in err


def test_a_command_as_a_prompt(model, tmp_path, capfd):
    args = ["-p", "info", "-m", model, "--steps", "1", "-o", str(tmp_path / "x.png")]
    assert run(capfd, *args)[0] == 0


def test_info_of_a_models_file(tmp_path, capfd):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {
        "first_stage_model.decoder.mid.block_1.conv1.weight": np.zeros((4, 4, 3, 3), "f2"),
        "first_stage_model.decoder.conv_in.bias": np.zeros(4, "f4")}, {"modelspec.title": "a\nb"})
    code, out, err = run(capfd, "info", str(path))
    assert code == 0 and not err
    assert "Stable Diffusion 1.x: VAE\nF16          1 tensors            144 numbers" in out
    assert out.endswith("modelspec.title: a\\nb\n")
    found = json.loads(run(capfd, "info", str(path), "--json")[1])
    assert found["types"]["F32"] == {"tensors": 1, "numbers": 4, "bytes": 16}
    write_safetensors(path, {"lora_unet_x.weight": np.zeros(1, "f4")})
    assert ": a LoRA, not a whole model\n" in run(capfd, "info", str(path))[1]
    path.write_bytes(b"GGUF\1")
    assert run(capfd, "info", str(path))[0] == 3
