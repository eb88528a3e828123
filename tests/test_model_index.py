"""Which class reads a part of a folder; labels and parts that are not drawn with decide nothing."""

import json
import shutil

import numpy as np
import pytest
import tiny
from weights_samples import refused

import refsd
from refsd import schedulers
from refsd.cli import draw, sampler_names
from refsd.errors import ModelError, UsageError
from refsd.golden.recording.request import load_truth
from refsd.pipelines import loading

PARTS = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "m")
    return tmp_path / "m"


def write(folder, file="model_index.json", **changes):
    path = folder / file
    found = PARTS if file == "model_index.json" else json.loads(path.read_text())
    path.write_text(json.dumps({**found, **changes}))


def load(folder, **options):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy", **options)


def latents(pipe):
    return pipe("cat", num_inference_steps=2, generator=1, output_type="latent").images


LABELS = [
    "DiffusionPipeline", "StableDiffusionControlNetPipeline", ["pipeline", "MyPipeline"], 7, None,
]  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_the_name_of_the_pipeline_is_a_label(folder, whole, label, caplog):
    write(folder, _class_name=label)
    assert np.array_equal(latents(load(folder)), latents(load(whole)))
    assert len(caplog.records) == (label is not None)
    assert label is None or str(label)[:20] in caplog.text


def test_parts_that_are_not_drawn_with_may_be_absent_or_broken(folder, caplog):
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{")
    (folder / "feature_extractor").write_text("no folder")
    write(folder, _class_name="StableDiffusionPipeline", requires_safety_checker=None,
          safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
          feature_extractor=[None, None], image_encoder=None, _name_or_path="x")
    load(folder)
    assert not caplog.records
    write(folder, controlnet=["diffusers", "ControlNetModel"], adapter=[None, None])
    load(folder)
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == ["not used: controlnet"]


@pytest.mark.parametrize("part, named", [
    ("unet", "UNet2DConditionModel"),
    ("vae", "AutoencoderKL"),
    ("text_encoder", "CLIPTextModelWithProjection"),
])
def test_the_index_decides_over_the_label_of_a_part(folder, part, named):
    label = "architectures" if part == "text_encoder" else "_class_name"
    other = ["Other"] if part == "text_encoder" else "Other"
    write(folder, f"{part}/config.json", **{label: other})
    write(folder, **{part: ["anything", named]})
    load(folder)
    write(folder, **{part: ["diffusers", "Other"]})
    refused(lambda: load(folder), "model_index.json", "the class is 'Other'")
    (folder / "model_index.json").unlink()
    refused(lambda: load(folder), "config.json", "'Other'")


@pytest.mark.parametrize("entry", [[None, None], None, "UNet2DConditionModel", ["a"], ["a", 1], {}])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_what_is_left_out_or_odd_in_the_index_is_refused(folder, part, entry):
    write(folder, **{part: entry})
    refused(lambda: load(folder), "model_index.json", part)


def test_the_index_decides_which_sampler_reads_the_scheduler(folder, caplog):
    write(folder, "scheduler/scheduler_config.json", _class_name="DPMSolverMultistepScheduler",
          solver_order=3, algorithm_type="sde-dpmsolver++")
    write(folder, scheduler=["diffusers", "EulerDiscreteScheduler"])
    found = load(folder).scheduler
    assert type(found) is schedulers.EulerDiscreteScheduler
    assert found.config.beta_schedule == "scaled_linear"
    assert "which model_index.json says to read as 'EulerDiscreteScheduler'" in caplog.text


UNKNOWN = {"_class_name": "RePaintScheduler", "solver_type": "logrho", "solver_order": 2,
           "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def unknown(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(UNKNOWN))
    return folder


def test_a_sampler_that_is_not_there_is_answered_with_those_that_would_do(folder):
    place = str(unknown(folder) / "scheduler" / "scheduler_config.json")
    refused(lambda: load(folder), place, "RePaintScheduler", "DDIMScheduler", "would do",
            "scheduler=refsd.schedulers.DDIMScheduler")
    with pytest.raises(ModelError, match="--sampler ddim or ddpm or .* would do"):
        sampler_names.of_model(None, UNKNOWN)
    with pytest.raises(ModelError, match="no other sampler"):
        sampler_names.of_model(None, {"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"})


@pytest.mark.parametrize("broken", ["{", "[]", '{"_class_name": "RePaintScheduler"}', None])
def test_a_scheduler_that_is_replaced_is_not_read(folder, whole, broken):
    path = folder / "scheduler" / "scheduler_config.json"
    shutil.rmtree(folder / "scheduler") if broken is None else path.write_text(broken)
    write(folder, scheduler=[None, None])
    own = schedulers.from_config(tiny.SCHEDULER)
    pipe = load(folder, scheduler=own)
    assert pipe.scheduler is own
    assert np.array_equal(latents(pipe), latents(load(whole)))


@pytest.mark.parametrize("name", sampler_names.SAMPLERS)
def test_every_sampler_replaces_one_that_is_not_there(folder, name, recwarn):
    cls = schedulers.SCHEDULERS[sampler_names.SAMPLERS[name].scheduler]
    for made in (cls, lambda config: sampler_names.of_model(name, config)):
        found = load(unknown(folder), scheduler=made).scheduler
        assert type(found) is cls and found.config.beta_end == 0.012
    assert not recwarn.list
    assert np.isfinite(load_truth(folder, scheduler=lambda c: sampler_names.own_or(name, c))
                       .scheduler.alphas_cumprod).all()


def test_the_command_draws_with_a_sampler_in_place_of_the_models(folder, tmp_path, capsys):
    options = ["cat", "-m", str(unknown(folder)), "--steps", "1", "-o", str(tmp_path / "a.png"),
               "--backend", "numpy", "-q"]
    with pytest.raises(ModelError, match="--sampler ddim or"):
        draw.run(draw.parser().parse_args(options))
    assert draw.run(draw.parser().parse_args([*options, "--sampler", "ddim"])) == 0


def test_what_is_no_scheduler_is_refused(whole):
    for wrong in ("ddim", 3, {"_class_name": "DDIMScheduler"}):
        with pytest.raises(UsageError, match="scheduler is .*give a scheduler, or a class"):
            load(whole, scheduler=wrong)


def test_a_folder_as_diffusers_saves_dpm_solvers_draws(folder):
    config = {**tiny.SCHEDULER, "_class_name": "DPMSolverMultistepScheduler",
              "lambda_min_clipped": -np.inf}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    found = load(folder)
    assert np.isfinite(latents(found)).all()
    assert "lambda_min_clipped" not in found.scheduler.config.plain()


OLD = {
    "DDIMScheduler": {"steps_offset": 1, "clip_sample": False},
    "DDPMScheduler": {"steps_offset": 1, "clip_sample": False},
    "PNDMScheduler": {"steps_offset": 1},
    "EulerDiscreteScheduler": {"steps_offset": 1, "timestep_spacing": "leading"},
    "EulerAncestralDiscreteScheduler": {"steps_offset": 1, "timestep_spacing": "leading"},
    "DPMSolverMultistepScheduler": {"steps_offset": 1, "timestep_spacing": "leading"},
}


@pytest.mark.parametrize("old", [{}, {"steps_offset": 0, "clip_sample": True}])
@pytest.mark.parametrize("name", OLD)
def test_outdated_options_of_a_scheduler_are_put_right_as_in_diffusers(folder, name, old, caplog):
    """Its StableDiffusionPipeline draws with offset 1 and without clipping, whatever is saved."""
    path = folder / "scheduler" / "scheduler_config.json"
    spacing = {k: v for k, v in OLD[name].items() if k == "timestep_spacing"}
    old = {k: v for k, v in old.items() if k in OLD[name]}
    path.write_text(json.dumps({"_class_name": name, **spacing, **old}))
    found = loading.load_scheduler(folder).config
    assert {key: found[key] for key in OLD[name]} == OLD[name]
    assert len(caplog.records) == 1 and "steps_offset is taken as 1" in caplog.text
    assert ("steps_offset" in found.defaulted) == (not old)
    replaced = loading.load_scheduler(folder, schedulers.DDIMScheduler).config
    assert replaced["steps_offset"] == (1 if old else 0)


def test_a_part_and_an_index_are_told_from_a_model(folder, whole):
    for part in ("unet", "vae", "text_encoder"):
        refused(lambda part=part: load(folder / part), f"{part}: one part of a model", "holds all")
    assert np.array_equal(latents(load(folder / "model_index.json")), latents(load(whole)))
