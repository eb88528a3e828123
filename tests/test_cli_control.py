"""ControlNets, embeddings and tiny autoencoders on the command line, in recipes and in repro."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import test_controlnet
import test_taesd
from PIL import Image

import refsd
from refsd.__main__ import main
from refsd.cli import control, embeddings
from refsd.weights import write_safetensors


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A ControlNet, what it reads, an embedding, a tiny autoencoder."""
    root = tmp_path_factory.mktemp("files")
    for name, config, tensors in (("net", test_controlnet.CONFIG, test_controlnet.tensors()),
                                  ("tae", test_taesd.CONFIG, test_taesd.tensors())):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        write_safetensors(root / name / "diffusion_pytorch_model.safetensors", tensors)
    (root / "words").mkdir()
    for seed, word in enumerate(("mine", "other")):
        vectors = np.random.default_rng(seed).standard_normal((2, 16)).astype("f4")
        write_safetensors(root / "words" / f"{word}.safetensors", {"emb_params": vectors})
    levels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype="uint8")
    Image.fromarray(levels).save(root / "edges.png")
    return root


@pytest.fixture
def run(model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        model_of = () if args[0] == "info" else ("-m", model, "--backend", "numpy")
        code = main([*map(str, args), *model_of])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def recipe(path):
    with Image.open(path) as image:
        return json.loads(image.text["refsd"]), image.text["parameters"], np.asarray(image)


CONTROLLED = ("--control-net", "net", "--control-image", "edges.png")


def at(files, *names):
    return [files / name if name in ("net", "tae", "edges.png", "words") else name
            for name in names]


def test_it_is_the_picture_of_the_python_api(run, model, files):
    code, _, err = run("a cat", "--steps", 3, "-s", 3, "-o", "x.png", "--control-end", 0.5,
                       *at(files, *CONTROLLED), "--control-guess")
    assert code == 0, err
    net = refsd.ControlNet.from_pretrained(files / "net", backend="numpy")
    pipe = refsd.StableDiffusionControlNetPipeline.from_pretrained(model, controlnet=net,
                                                                   backend="numpy")
    wanted = pipe("a cat", Image.open(files / "edges.png"), num_inference_steps=3, generator=3,
                  guidance_scale=7.0, controlnet_conditioning_scale=0.9, guess_mode=True,
                  control_guidance_end=0.5).images[0]
    found, infotext, pixels = recipe("x.png")
    assert np.array_equal(pixels, wanted) and (found["width"], found["height"]) == (48, 40)
    assert "ControlNet 0: \"Module: none, Model: net [" in infotext
    assert found["control"]["nets"][0]["strength"] == 0.9 and not control.RULE(found["control"])
    found["control"]["nets"][0]["image"]["file"] = "../edges.png"  # repro looks beside the picture
    assert control.RULE(found["control"])


def test_a_second_pass_reads_the_picture_in_its_own_size(run, files, monkeypatch):
    from refsd.pipelines.controlnet import ControlNet

    read, embed = [], ControlNet.embed
    monkeypatch.setattr(ControlNet, "embed",
                        lambda net, picture: read.append(picture.shape) or embed(net, picture))
    code, _, err = run("a cat", "--steps", 2, "-s", 3, "-o", "x.png", "--hires-scale", 2,
                       *at(files, *CONTROLLED))
    assert code == 0, err
    assert read == [(1, 3, 40, 48), (1, 3, 80, 96)] and recipe("x.png")[2].shape == (80, 96, 3)


def test_repro_asks_for_the_files_and_knows_them(run, files, tmp_path):
    (tmp_path / "edges.png").write_bytes((files / "edges.png").read_bytes())
    run("a mine cat", "--steps", 2, "-s", 3, "-o", "x.png", *at(files, *CONTROLLED),
        *at(files, "--embd-dir", "words"))
    code, out, err = run("repro", "x.png", *at(files, "--control-net", "net", "--embd-dir",
                                               "words"))
    assert (code, out[:9]) == (0, "identical"), err
    _, out, _ = run("info", "x.png")
    assert "net 0.9 of edges.png" in out and "mine (mine.safetensors)" in out
    Image.new("RGB", (50, 40)).save(tmp_path / "edges.png")
    for options, message in (
            (("--embd-dir", "words"), "Say with --control-net"),
            (("--control-net", "net", "--embd-dir", "words"), "not the file that the picture was"),
            (("--control-net", "tae", "--control-image", "edges.png", "--embd-dir", "words"),
             "not the ControlNet")):
        code, _, err = run("repro", "x.png", *at(files, *options))
        assert code == 2 and message in err and err.count("\n") == 1, err
    code, _, err = run("repro", "x.png", *at(files, *CONTROLLED))
    assert code == 2 and "mine.safetensors (SHA-256" in err


def test_repro_reads_a_control_net_once_and_fetches_it_where_it_may(run, files, monkeypatch):
    run("a cat", "--steps", 1, "-s", 3, "-o", "x.png", *at(files, *CONTROLLED))
    asked, digest = [], control.digest
    monkeypatch.setattr(control, "digest", lambda place, *, download=False:
                        asked.append(download) or digest(place))
    code, _, err = run("repro", "x.png", "--download", *at(files, *CONTROLLED))
    assert code == 0 and asked == [True], err


def test_embeddings_are_those_that_the_prompts_call(run, files, tmp_path):
    run("a Mine cat", "-n", "OTHER", "--steps", 1, "-s", 1, "-o", "x.png",
        *at(files, "--embd-dir", "words"))
    found, infotext, _ = recipe("x.png")
    assert [one["word"] for one in found["embeddings"]] == ["mine", "other"]
    assert "TI hashes: \"mine: " in infotext and not embeddings.RULE(found["embeddings"])
    run("a cat", "--steps", 1, "-s", 1, "-o", "y.png", *at(files, "--embd-dir", "words"),
        "--embedding", files / "words" / "mine.safetensors")
    assert recipe("y.png")[0]["embeddings"] == []
    same, copy = files / "words/../words/mine.safetensors", tmp_path / "mine.safetensors"
    one = ("a mine cat", "--steps", 1, "--embedding", same, *at(files, "--embd-dir", "words"))
    assert run(*one)[0] == 0  # one file, by two names
    copy.write_bytes(same.read_bytes())
    code, _, err = run(*one, "--embedding", copy)
    assert code == 2 and f"{copy}: there is an embedding of the word 'mine' already" in err


def test_words_of_a_folder_are_called_by_themselves(run, files, tmp_path):
    """As in A1111; and a picture of many is the one that is drawn alone, in whichever order."""
    (tmp_path / "lines.txt").write_text("an examined cat\na (mine) cat\nanother cat\n")
    folder = at(files, "--embd-dir", "words")
    code, out, err = run("--prompts", "lines.txt", "--steps", 1, *folder)
    assert code == 0, err
    said = [json.loads(line) for line in out.splitlines()]
    assert [[one["word"] for one in recipe(picture["path"])[0]["embeddings"]]
            for picture in said] == [[], ["mine"], []]
    for picture, options in zip(said, ((), folder, ())):
        run(picture["prompt"], "--steps", 1, "-s", 0, "-o", "x.png", *options)
        assert np.array_equal(recipe("x.png")[2], recipe(picture["path"])[2]), picture


@pytest.mark.parametrize("said, word, by_itself", [
    ("a mine, red", "Mine", True), ("mine's", "mine", True), ("(mine:1.2)", "mine", True),
    ("mine2", "mine", True), ("embedding:mine", "mine", True), ("a 3d-art2d", "3d-art", True),
    ("mines", "mine", False), ("examined", "mine", False), ("\u00e9mine", "mine", False),
    ("bigart", "art", False), ("x<cat-toy>y", "<cat-toy>", True), ("a.b", "a b", False)])
def test_a_word_by_itself(said, word, by_itself):
    assert embeddings._says(said, word) is by_itself
    assert embeddings._says(said, word, within=True) is (word.lower() in said)


def test_a_tiny_autoencoder_for_pictures_or_for_previews(run, files):
    one = ("a cat", "--steps", 2, "-s", 1)
    run(*one, "-o", "plain.png")
    code, _, err = run(*one, "-o", "x.png", *at(files, "--taesd", "tae"), "--preview", 1)
    assert code == 0, err
    run(*one, "-o", "y.png", *at(files, "--vae", "tae"))
    run(*one, "-o", "z.png", *at(files, "--taesd", "tae"), "--taesd-preview-only", "--preview", 1)
    assert np.array_equal(recipe("x.png")[2], recipe("y.png")[2])
    assert np.array_equal(recipe("z.png")[2], recipe("plain.png")[2])
    assert not np.array_equal(recipe("x.png")[2], recipe("plain.png")[2])
    assert recipe("x.png")[0]["model"]["vae"] == "tae"


@pytest.mark.parametrize("more", [
    ("--init-img", "edges.png", "--strength", 1), ("--hires-scale", 2)], ids=str)
def test_previews_of_every_pass_are_the_tiny_autoencoder_s(run, files, monkeypatch, more):
    from refsd.pipelines import preview

    decoders, decode = [], preview.stages.decode
    monkeypatch.setattr(preview, "stages", SimpleNamespace(
        to_bytes=preview.stages.to_bytes,
        decode=lambda vae, z: decoders.append(type(vae).__name__) or decode(vae, z)))
    code, _, err = run("a cat", "--steps", 2, "-W", 48, "-H", 40, "-o", "x.png", "--preview", 1,
                       *at(files, "--taesd", "tae", "--taesd-preview-only", *more))
    assert code == 0 and decoders and set(decoders) == {"TinyVAE"}, (err, decoders)


@pytest.mark.parametrize("options, code, message", [
    (("--control-net", "net"), 2, "1 --control-net and 0 --control-image"),
    (("--control-image", "edges.png"), 2, "--control-image is for ControlNets"),
    ((*CONTROLLED, "-i", "edges.png", "--mask", "edges.png", "--mask-padding", 4), 2, "a part of"),
    ((*CONTROLLED, "--control-end", 1.5), 2, "--control-end is 1.5"),
    ((*CONTROLLED, "--control-start", 0.5, "--control-end", 0.5), 2, "before the end"),
    ((*CONTROLLED, *["--control-strength", 1] * 3), 2, "given 3 times for 1"),
    (("--control-net", "net", "--control-image", "net"), 2, "a folder"),
    (("--control-net", "tae", "--control-image", "edges.png"), 3, "the class is"),
    (("--embedding", "nowhere"), 2, "no such file"), (("--embd-dir", "nowhere"), 2, "no such fold"),
    (("--embedding", "words"), 2, "a folder"), (("--embedding", "edges.png"), 3, "edges.png"),
    (("--taesd", "tae", "--vae", "x"), 2, "both replace"),
    (("--taesd", "tae", "--vae-tiling", "exact"), 2, "--vae-tiling exact: a tiny autoencoder"),
    (("--control-net", "x.gguf", "--control-image", "edges.png"), 2, "'x.gguf': no such file"),
    (("--taesd", "x.safetensors"), 2, "'x.safetensors': no such file"),
    (("--taesd", "net"), 3, "net"), (("--taesd-preview-only",), 2, "--preview N")], ids=str)
def test_what_is_refused(run, files, options, code, message):
    found, out, err = run("a", "--steps", 1, "-o", "x.png", *at(files, *options))
    assert found == code and message in err.splitlines()[-1], err
    assert err.count("refsd: error") == 1 and not out


@pytest.mark.parametrize("option", ["--control-net", "--embedding", "--taesd", "--vae"])
@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"\x80\x02pickle",
                                     b"<!doctype html>", None], ids=str)
def test_damaged_files_are_one_line(run, files, tmp_path, option, content):
    """Empty, cut short, a pickle, a web page, half of the tensors' bytes: exit code 3."""
    path = tmp_path / "x.safetensors"
    if content is None:
        whole = files / ("net" if option == "--control-net" else "tae")
        source = (files / "words" / "mine.safetensors" if option == "--embedding" else
                  whole / "diffusion_pytorch_model.safetensors")
        content = source.read_bytes()
        content = content[:len(content) // 2 + len(content) // 4]
    path.write_bytes(content)
    more = ("--control-image", files / "edges.png") if option == "--control-net" else ()
    code, out, err = run("a", "--steps", 1, "-o", "y.png", option, path, *more)
    assert code == 3 and not out and not (tmp_path / "y.png").exists()
    assert err.count("refsd: error") == 1 and "x.safetensors" in err.splitlines()[-1], err
