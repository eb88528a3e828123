"""A further family is files of its own: with those in tests/added_family refsd has one more.

The package is copied as links, and the files laid beside; nothing that is there is changed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from chaos import environment

import refsd
from refsd.weights import write_safetensors

PACKAGE, ADDED = Path(refsd.__file__).parent, Path(__file__).parent / "added_family"
PICTURE = PACKAGE.parent / "docs" / "pictures" / "red-sphere-blue-cube.png"
TEXT = {"architectures": ["BlotsTextModel"], "hidden_size": 8,
        "vocab_size": tiny.TEXT_ENCODER["vocab_size"], "max_position_embeddings": tiny.LENGTH}
TRANSFORMER = {"_class_name": "BlotsTransformer2DModel", "sample_size": 4}
DRAW = ("-m", "refsd", "red cat", "--backend", "numpy", "--steps", "2", "-s", "3")
WRITE = """
import json, sys
from pathlib import Path
import tiny
from refsd.weights import write_safetensors
folder, configs = Path(sys.argv[1]), json.loads(sys.argv[2])
for part, config in configs.items():
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    (folder / part).mkdir(parents=True)
    (folder / part / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / part / f"{stem}.safetensors", tiny.tensors(part, config=config))
(folder / "scheduler").mkdir()
(folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(tiny.SCHEDULER))
tiny.write_tokenizer(folder / "tokenizer")
(folder / "model_index.json").write_text(json.dumps({"_class_name": "BlotsPipeline"}))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the package lies with the family in it."""
    root = tmp_path_factory.mktemp("added")
    for source in (PACKAGE, ADDED):
        for path in source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                place = root / "refsd" / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path)  # an error where a file is there already
    return root


@pytest.fixture(scope="module")
def model(root):
    folder = root / "model"
    ask(root, "-c", WRITE, folder, json.dumps(
        {"text_encoder": TEXT, "transformer": TRANSFORMER, "vae": tiny.VAE}))
    return folder


def ask(root, *args, code=0):
    """What Python says, with that package; its answer where that is JSON."""
    path = os.pathsep.join((str(root), str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True,
                          cwd=root, env=environment(PYTHONPATH=path))
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if "--json" in args else done.stdout + done.stderr


def test_its_files_add_what_is_not_there():
    assert {path.parent.name for path in ADDED.rglob("*.py")} == {
        "families", "networks", "models", "pipelines"}
    assert not [path for path in ADDED.rglob("*.py")
                if (PACKAGE / path.relative_to(ADDED)).exists()]


def test_its_models_are_described(root, model):
    found = ask(root, "-m", "refsd", "models", model, "--json")
    assert (found["family"], found["pipeline"]) == ("Blots", "BlotsPipeline")
    assert found["problems"] == [] and found["tokenizers"] == {"tokenizer": "its own"}
    assert {part["part"]: part["kind"] for part in found["parts"]} == {
        "text_encoder": "BlotsTextModel", "transformer": "BlotsTransformer2DModel",
        "vae": "AutoencoderKL"}


def test_they_are_planned_by_their_short_name(root):
    found = ask(root, "-m", "refsd", "plan", "-m", "blots", "--json")
    networks = {network["part"]: network["parameters"] for network in found["networks"]}
    assert networks["text_encoder"] == 49408 * 8 + 8 * 8 + 8
    assert networks["transformer"] == (4 * 9 + 1) * 16 + 17 * 16 + 9 * 16 + (16 * 9 + 1) * 4


def test_they_draw(root, model):
    """The command line chooses the class; the same picture as from Python, where it is chosen too.
    """
    program = """
import sys, refsd
pipe = refsd.AutoPipelineForText2Image.from_pretrained(sys.argv[1], backend="numpy")
assert type(pipe).__name__ == "BlotsPipeline"
pipe("red cat", num_inference_steps=2, guidance_scale=3, generator=3).images[0].save("python.png")
other = refsd.AutoPipelineForText2Image.from_pipe(pipe)
assert type(other) is type(pipe) and other.transformer is pipe.transformer
"""
    ask(root, "-c", program, model)
    ask(root, *DRAW, "-m", model, "--cfg-scale", "3", "-o", "command.png")
    from PIL import Image

    first, second = (np.asarray(Image.open(root / f"{name}.png")) for name in ("python", "command"))
    assert np.array_equal(first, second) and first.std() > 0


def test_what_it_does_not_have_is_refused_by_name(root, model):
    said = ask(root, *DRAW, "-m", model, "--init-img", PICTURE, code=3)
    assert "the model is Blots, for which refsd has no pipeline that draws from an image" in said


BARE = {key: value for key, value in TEXT.items() if key != "architectures"}


@pytest.mark.parametrize("part, config, words", [
    ("text_encoder", {"architectures": ["CLIPTextModel"]}, "tensors missing: text_model."),
    ("text_encoder", {**BARE, "num_hidden_layers": 2}, "tensors missing: text_model."),
    ("text_encoder", {"architectures": ["T5EncoderModel"]},
     "the class is 'T5EncoderModel', expected BlotsTextModel or CLIPTextModel or CLIPTextModelW"),
    ("text_encoder", {**BARE, "hidden_size": 9}, "table.weight is (518, 8), expected (518, 9)"),
    ("transformer", {"width": 20}, "blot_in.weight is (16, 4, 3, 3), expected (20, 4, 3, 3)")])
def test_the_class_in_a_config_tells_which_network_a_part_is(root, model, part, config, words):
    """One that names none is of the network that has the most of its options."""
    file = model / part / "config.json"
    before = file.read_text()
    file.write_text(json.dumps(config))
    try:
        assert words in ask(root, "-m", "refsd", "models", model, code=3)
    finally:
        file.write_text(before)


def test_networks_say_what_does_not_fit_together(root, tmp_path):
    configs = {"text_encoder": {**TEXT, "hidden_size": 9}, "transformer": TRANSFORMER,
               "vae": tiny.VAE}
    ask(root, "-c", WRITE, tmp_path / "model", json.dumps(configs))
    said = ask(root, *DRAW, "-m", tmp_path / "model", code=3)
    assert "blots read text of width 8, the text encoder gives 9" in said


def test_a_file_is_recognised_by_its_marks(root, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"blots.time.bias": np.zeros(16, "f4")})
    assert "x.safetensors: Blots" in ask(root, "-m", "refsd", "info", tmp_path / "x.safetensors")


AGAIN = """from dataclasses import replace
from refsd.families.blots import BLOTS
MORE = replace(BLOTS, text_width=9)
"""
OTHERWISE = """from dataclasses import replace
from refsd.networks.blots import PARTS
PARTS = {"vae": replace(PARTS["transformer"], word="thing")}
"""


@pytest.mark.parametrize("place, text, words", [
    ("families/again.py", AGAIN, "refsd.families.again: there is another Blots"),
    ("networks/otherwise.py", OTHERWISE, "refsd.networks.vae: vae is ('VAE',")])
def test_what_two_files_say_differently_is_an_error(root, place, text, words):
    (root / "refsd" / place).write_text(text)
    try:
        assert words in ask(root, "-c", "import refsd.families, refsd.networks", code=1)
    finally:
        (root / "refsd" / place).unlink()
