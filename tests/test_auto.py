"""Which class a model is drawn with."""

import json
from dataclasses import replace

import pytest

import refsd
from refsd.errors import ModelError, UsageError
from refsd.families import DEFAULT
from refsd.pipelines.auto import class_of, family_of_model

TASKS = {"AutoPipelineForText2Image": "text", "AutoPipelineForImage2Image": "image",
         "AutoPipelineForInpainting": "mask"}


@pytest.mark.parametrize("name, task", TASKS.items())
def test_the_class_is_the_familys_for_the_task(name, task, model):
    auto = getattr(refsd, name)
    pipe = auto.from_pretrained(model, backend="numpy")
    assert type(pipe) is class_of(DEFAULT, task)
    assert type(pipe).__name__ == DEFAULT.pipelines[task]
    for other, wanted in TASKS.items():
        shared = getattr(refsd, other).from_pipe(pipe)
        assert type(shared) is class_of(DEFAULT, wanted) and shared.unet is pipe.unet


def test_it_is_found_by_the_index_itself_and_without_a_path(model):
    assert family_of_model(f"{model}/model_index.json") is DEFAULT
    assert family_of_model(None) is DEFAULT


@pytest.mark.parametrize("width, name", [
    (1024, "Stable Diffusion 2.x"), (768, "Stable Diffusion 1.x"), (32, "Stable Diffusion 1.x"),
    (None, "Stable Diffusion 1.x")])
def test_of_families_with_the_same_parts_the_width_of_the_text_tells(tmp_path, width, name):
    for part in DEFAULT.networks:
        (tmp_path / part).mkdir()
    (tmp_path / "unet" / "config.json").write_text(
        "damaged" if width is None else json.dumps({"cross_attention_dim": width}))
    assert family_of_model(tmp_path).name == name


def test_a_family_that_nothing_draws_with_is_refused_by_name(model, monkeypatch):
    """For every task; its networks are read all the same."""
    family = replace(DEFAULT, name="Nameless", pipelines=dict.fromkeys(DEFAULT.pipelines, "None_"))
    monkeypatch.setattr("refsd.pipelines.auto.family_of_model", lambda *args, **options: family)
    for name in TASKS:
        with pytest.raises(ModelError, match="the model is Nameless, for which refsd has no None_"):
            getattr(refsd, name).from_pretrained(model, backend="numpy")


def test_options_go_to_the_class(model):
    auto = refsd.AutoPipelineForText2Image
    assert auto.from_single_file(model, backend="numpy", dtype="float64").denoiser.dtype == (
        "float64")
    with pytest.raises(UsageError, match="from_pretrained"):
        auto.from_pretrained(model, backend="numpy", nonsense=1)
    with pytest.raises(UsageError, match="no such file"):
        auto.from_pretrained(f"{model}/none.safetensors")


def test_a_hub_id_that_may_be_fetched_is(monkeypatch):
    """local_files_only=False is download=True, also where the family is looked up."""
    asked = []
    monkeypatch.setattr("refsd.pipelines.auto.resolve",
                        lambda path, **options: asked.append(options) or 1 / 0)
    for options, wanted in (({"local_files_only": False}, True), ({"download": True}, True),
                            ({}, False), ({"local_files_only": True}, False)):
        with pytest.raises(ZeroDivisionError):
            refsd.AutoPipelineForText2Image.from_pretrained("a/b", revision="c", **options)
        assert asked.pop() == {"download": wanted, "variant": None, "parts": (),
                               "revision": "c"}
    for options, words in (({"download": True, "local_files_only": True}, "exclude each other"),
                           ({"local_files_only": "no"}, "local_files_only is 'no'")):
        with pytest.raises(UsageError, match=words):
            refsd.AutoPipelineForText2Image.from_pretrained("a/b", **options)
    assert not asked


def test_it_makes_nothing_itself(model):
    with pytest.raises(UsageError, match=r"write AutoPipelineForText2Image.from_pretrained\(PATH"):
        refsd.AutoPipelineForText2Image()
    with pytest.raises(UsageError, match="from_pipe got a int; give a pipeline"):
        refsd.AutoPipelineForText2Image.from_pipe(3)
