"""--lora and <lora:...>: the picture, its recipe, A1111's words for it, and drawing it again."""

import argparse
import hashlib
import json

import adapter_samples as samples
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from refsd.__main__ import main
from refsd.cli import adapters
from refsd.cli.infotext import parse_infotext
from refsd.cli.recipe import parse_recipe
from refsd.errors import UsageError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

HASH = "0123456789ab"


def tensors(seed):
    found = {}
    for module, name, shape in ((samples.ATTENTION, "unet", (8, 8)),
                                (samples.TEXT, "text_encoder", (16, 16))):
        low, high = samples.lora(shape, 2, seed)
        found |= {f"{name}.{module}.lora_A.weight": 3 * low,
                  f"{name}.{module}.lora_B.weight": 3 * high}
    return found


@pytest.fixture
def loras(tmp_path):
    """A folder of adapters: a, b (below it, called "style" by its trainer), and a damaged one."""
    folder = tmp_path / "loras"
    (folder / "below").mkdir(parents=True)
    save_file(tensors(0), folder / "a.safetensors")
    save_file(tensors(5), folder / "below" / "b.safetensors",
              {"ss_output_name": "style", "sshs_model_hash": HASH * 5 + "0123"})
    (folder / "broken.safetensors").write_bytes(b"nothing of the kind")
    return folder


@pytest.fixture
def run(model, tmp_path, monkeypatch, capfd):
    """A command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = main([str(arg) for arg in args])
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def draw(run, model):
    return lambda *args: run("-m", model, "--steps", "1", "-s", "5", "--backend", "numpy", *args)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def recipe(path):
    with Image.open(path) as image:
        return parse_recipe(image.text["refsd"], "x"), parse_infotext(image.text["parameters"])


def test_the_picture_of_options_and_tags_is_that_of_the_api(draw, loras, model):
    b = loras / "below" / "b.safetensors"
    code, _, err = draw("a <lora:a:0.5:-2>cat", "--lora-dir", loras, "--lora", f"{b}:0.75",
                        "-o", "x.png")
    assert code == 0, err
    pipe = StableDiffusionPipeline.from_pretrained(model, backend="numpy")
    pipe.load_lora_weights(loras / "a.safetensors", adapter_name="a")
    pipe.load_lora_weights(b, adapter_name="b")
    pipe.set_adapters(["b", "a"], [0.75, {"text_encoder": 0.5, "unet": -2}])
    image = pipe("a cat", num_inference_steps=1, generator=5, guidance_scale=7).images[0]
    assert np.array_equal(pixels("x.png"), np.asarray(image))
    assert draw("a cat", "-o", "plain.png")[0] == 0
    assert not np.array_equal(pixels("plain.png"), pixels("x.png"))


def test_what_the_picture_says_of_it(draw, run, loras):
    assert draw("a <lora:a:0.5:-2>cat", "--lora-dir", loras, "--lora",
                loras / "below" / "b.safetensors", "-o", "x.png")[0] == 0
    found, infotext = recipe("x.png")
    assert found.prompt == "a cat"
    data = (loras / "a.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    short = hashlib.sha256(data[header:]).hexdigest()[:12]  # A1111's, where kohya wrote none
    assert found.adapters == [
        {"file": "b.safetensors", "short": HASH, "unet": 1.0, "text_encoder": 1.0,
         "sha256": hashlib.sha256((loras / "below/b.safetensors").read_bytes()).hexdigest()},
        {"file": "a.safetensors", "short": short, "unet": -2.0, "text_encoder": 0.5,
         "sha256": hashlib.sha256(data).hexdigest()}]
    assert infotext.prompt == "a cat <lora:b:1> <lora:a:0.5:-2>"
    assert infotext.settings["Lora hashes"] == f"b: {HASH}, a: {short}"
    code, out, _ = run("info", "x.png")
    assert code == 0 and "b.safetensors 1, a.safetensors -2 (text encoder 0.5)" in out
    assert draw("<lora:a:1>", "--lora-dir", loras, "-o", "y.png")[0] == 0
    with Image.open("y.png") as image:  # nothing to escape: A1111 does not read \\u0020
        assert image.text["parameters"].startswith("<lora:a:1>\n")
    assert draw("a cat", "-o", "plain.png")[0] == 0
    assert recipe("plain.png")[0].adapters == []
    assert "Lora hashes" not in recipe("plain.png")[1].settings


def test_drawing_it_again(draw, run, loras, model):
    assert draw("a cat <lora:style:1>", "--lora-dir", loras, "-o", "x.png")[0] == 0
    again = ("repro", "x.png", "-m", model)
    (loras / "renamed.safetensors").write_bytes((loras / "below/b.safetensors").read_bytes())
    for places in (("--lora-dir", loras), ("--lora", loras / "renamed.safetensors"),
                   ("--lora", loras / "a.safetensors", "--lora-dir", loras)):
        code, out, err = run(*again, *places)
        assert code == 0 and "identical" in out, err
    for places in ((), ("--lora", loras / "a.safetensors")):
        code, _, err = run(*again, *places)
        assert code == 2 and "drawn with b.safetensors (SHA-256 " in err and "--lora-dir" in err


@pytest.mark.parametrize("prompt, left, weights", [
    ("<lora:a:0.8>", "", [(0.8, 0.8)]), ("<lora:a>", "", [(1, 1)]),
    ("x <lyco:a:.5> y", "x  y", [(0.5, 0.5)]), ("<lora:a:0.5:1>", "", [(1, 0.5)]),
    ("<lora:a:te=0.5:unet=2>", "", [(2, 0.5)]), ("<lora:a:0.5:unet=2>", "", [(2, 0.5)]),
    ("<lora:a:-1> b <lora:b:2>", "b", [(-1, -1), (2, 2)]), ("<lora: a : 1 >", "", [(1, 1)]),
    ("<lora:a.safetensors:1>", "", [(1, 1)]), ("<lora:style:1>", "", [(1, 1)]),
    (" a <b> <hypernet:a:1>", " a <b> <hypernet:a:1>", []),
])
def test_tags(loras, prompt, left, weights):
    options = argparse.Namespace(lora=[], lora_dir=str(loras))
    text, found = adapters.chosen(options, prompt)
    assert text == left and [(one["unet"], one["text_encoder"]) for one in found] == weights
    assert adapters.chosen(argparse.Namespace(lora=[], lora_dir=None), prompt) == (prompt, [])


@pytest.mark.parametrize("given, path, weight", [
    ("a.safetensors", "a.safetensors", 1), ("a.safetensors:0.5", "a.safetensors", 0.5),
    ("a.safetensors:-1e-1", "a.safetensors", -0.1), ("odd:0.5", "odd:0.5", 1),
    ("odd:0.5:2", "odd:0.5", 2), ("below/b.safetensors:2", "below/b.safetensors", 2),
])
def test_a_path_and_its_weight(loras, monkeypatch, given, path, weight):
    monkeypatch.chdir(loras)
    (loras / "odd:0.5").write_bytes(b"")
    assert adapters._argument(given) == (path, weight)


def test_a_drive_of_windows_is_no_weight(monkeypatch):
    monkeypatch.setattr(adapters.os.path, "isfile", lambda path: path == "C:\\loras\\a.safetensors")
    monkeypatch.setattr(adapters.os.path, "exists", lambda path: path == "C:\\loras\\a.safetensors")
    assert adapters._argument("C:\\loras\\a.safetensors") == ("C:\\loras\\a.safetensors", 1)
    assert adapters._argument("C:\\loras\\a.safetensors:0.5") == ("C:\\loras\\a.safetensors", 0.5)
    with pytest.raises(UsageError, match="no such file"):
        adapters._argument("C:\\loras\\b.safetensors")


@pytest.mark.parametrize("args, code, words", [
    (("a <lora:c:1>", "--lora-dir", "loras"), 2, "no c.safetensors in loras"),
    (("a <lora:a:x>", "--lora-dir", "loras"), 2, "the weight is 'x'"),
    (("a <lora:a:nan>", "--lora-dir", "loras"), 2, "the weight is 'nan'"),
    (("a <lora:a:1:1:8>", "--lora-dir", "loras"), 2, "dyn) is not computed"),
    (("a <lora:a:dyn=8>", "--lora-dir", "loras"), 2, "dyn) is not computed"),
    (("a <lora:a:1><lora:a:1>", "--lora-dir", "loras"), 2, "given twice"),
    (("a <lora:a:1>", "--lora", "loras/a.safetensors", "--lora-dir", "loras"), 2, "given twice"),
    (("a <lora:two:1>", "--lora-dir", "loras"), 2, "2 files of this name"),
    (("a", "--lora-dir", "nowhere"), 2, "--lora-dir nowhere: no such folder"),
    (("a", "--lora", "nowhere.safetensors:1"), 2, "no such file"),
    (("a", "--lora", "loras:0.5"), 2, "--lora loras: a folder; give the file in it"),
    (("a", "--lora", "loras/a.safetensors:101"), 2, "the weight is '101'"),
    (("a", "--lora", "loras/broken.safetensors"), 3, "not a safetensors file"),
    (("a", "--lora", "loras/alien.safetensors"), 3, "2 of its 6 tensors have no place"),
])
def test_what_cannot_be_drawn(draw, loras, args, code, words):
    for place in ("two.safetensors", "below/two.safetensors"):
        save_file(tensors(1), loras / place)
    save_file(tensors(0) | {f"unet.x.lora_{part}.weight": np.ones((2, 2), "f4") for part in "AB"},
              loras / "alien.safetensors")
    found, out, err = draw(*args, "-o", "x.png")
    assert found == code and words in err and err.count("refsd: error") == 1 and not out, err
    assert not (loras.parent / "x.png").exists()


def test_what_has_no_place_can_be_left_out(draw, run, loras, model):
    save_file(tensors(0) | {"unet.x.alpha": np.array(1, "f4")}, loras / "more.safetensors")
    code, _, err = draw("a", "--lora", loras / "more.safetensors", "--lora-partial", "-o", "x.png")
    assert code == 0 and "1 tensors without a place in this model are left out" in err
    assert run("repro", "x.png", "-m", model, "--lora", loras / "more.safetensors")[0] == 0


def test_a_tag_without_a_folder_is_said_to_be_literal(draw, loras):
    code, _, err = draw("a <lora:a:1>", "-o", "x.png")
    assert code == 0 and "'<lora:a:1>': taken literally" in err and "--lora-dir" in err
    assert recipe("x.png")[0].prompt == "a <lora:a:1>"


def test_each_line_of_a_file_of_prompts_has_its_own(draw, loras, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "lines.txt").write_text("a cat <lora:a:1>\na cat\na cat <lora:style:1><lora:a:2>\n")
    code, out, err = draw("--prompts", "lines.txt", "--lora-dir", loras, "-o", "out")
    assert code == 0, err
    first, second, third = (json.loads(line)["path"] for line in out.splitlines())
    assert draw("a cat", "-o", "plain.png")[0] == 0
    assert np.array_equal(pixels(second), pixels("plain.png"))
    assert draw("a cat", "--lora", loras / "a.safetensors", "-o", "a.png")[0] == 0
    assert np.array_equal(pixels(first), pixels("a.png"))
    assert len({pixels(path).tobytes() for path in (first, second, third)}) == 3
    (loras / "a.safetensors").rename(loras / "other.safetensors")  # its name is not the picture
    (tmp_path / "lines.txt").write_text("a cat <lora:other:1>\n")
    again = json.loads(draw("--prompts", "lines.txt", "--lora-dir", loras, "-o", "out")[1])
    assert again["path"] == first and not again["drawn"]


@pytest.mark.parametrize("change", [
    {"unet": "1"}, {"unet": 101}, {"sha256": "x"}, {"short": HASH.upper()}, {"more": 1},
    {"file": 3}, None])
def test_a_forged_recipe_is_refused(draw, loras, change):
    assert draw("a", "--lora", loras / "a.safetensors", "-o", "x.png")[0] == 0
    with Image.open("x.png") as image:
        found = json.loads(image.text["refsd"])
    found["adapters"] = "all" if change is None else [{**found["adapters"][0], **change}]
    with pytest.raises(UsageError, match="adapters is "):
        parse_recipe(json.dumps(found), "x")


# refsd lora inspect.

def test_inspect(run, loras, model):
    code, out, err = run("lora", "inspect", loras / "below" / "b.safetensors", "-m", model)
    assert code == 0 and not err
    for words in ("LoRA of 2 layers", f"fits: {model}", "ranks: 2 (2 layers)",
                  "scales: 1 (2 layers)",
                  "unet down_blocks.attentions.transformer_blocks.attn1.to_q",
                  "ss_output_name: style", "1 more entries of metadata"):
        assert words in out, out
    found = json.loads(run("lora", "inspect", loras / "a.safetensors", "--json")[1])
    assert found["model"] is None and found["kinds"] == {"LoRA": 2}
    assert "is for a weight of 16 x 16" in found["why_not"]["Stable Diffusion 1.x"]


def test_inspect_at_published_sizes(run, tmp_path):
    """A kohya file for Stable Diffusion 2, with an alpha, a DoRA, and a name without a place."""
    low, high = samples.lora((320, 1024), 4)
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{base}.lora_down.weight": low, f"{base}.lora_up.weight": high,
               f"{base}.alpha": np.array(2, "f4"), f"{base}.dora_scale": np.ones((320, 1), "f4"),
               "lora_unet_nowhere.alpha": np.array(1, "f4")}, tmp_path / "x.safetensors",
              {"ss_network_dim": "4"})
    found = json.loads(run("lora", "inspect", "x.safetensors", "--json")[1])
    assert found["model"] == "Stable Diffusion 2.x" and found["kinds"] == {"LoRA DoRA": 1}
    assert found["ranks"] == {"4": 1} and found["alphas"] == {"2": 1}
    assert found["scales"] == {"0.5": 1} and found["ignored"] == ["lora_unet_nowhere.alpha"]
    assert found["metadata"] == {"ss_network_dim": "4"}


def test_inspect_what_is_for_another_family(run, tmp_path, loras):
    save_file({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.ones((2, 4))},
              tmp_path / "xl.safetensors")
    code, out, _ = run("lora", "inspect", "xl.safetensors")
    assert code == 0 and "fits: nothing that refsd has; such names are of SDXL" in out
    assert run("lora", "inspect", loras / "broken.safetensors")[0] == 3
    assert run("lora", "inspect", "nowhere")[0] == 3
