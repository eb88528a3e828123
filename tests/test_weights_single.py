"""Single files as their many writers write them: parts, prefixes, markers, and parts replaced."""

import json

import numpy as np
import pytest
from weights_samples import STEM, TINY, refused, tiny_tensors, write_folder

from refsd.errors import UsageError
from refsd.families import SD1
from refsd.networks import shapes_of
from refsd.weights import load_checkpoint, write_safetensors
from refsd.weights.header import read_header
from refsd.weights.ldm import ema_name, to_ldm
from refsd.weights.single import evidence


def whole(*components, seed=0):
    """The tiny model's tensors under the names of the latent diffusion code."""
    found = {}
    for component in components or TINY:
        found |= to_ldm(component, tiny_tensors(component, seed=seed), TINY[component])
    return found


def bare(component, seed=0):
    """One network as A1111's .vae.safetensors and ComfyUI's own folders hold it: no prefix."""
    prefix = SD1.layouts[component].prefix
    return {n.removeprefix(prefix): t for n, t in whole(component, seed=seed).items()}


def assert_part(found, component, seed=0):
    for name, array in tiny_tensors(component, seed=seed).items():
        assert (found[component].tensors[name] == array).all(), name


WRITERS = {
    "published": lambda t: t,
    "state_dict. before all": lambda t: {f"state_dict.{n}": a for n, a in t.items()},
    "the VAE as vae.": lambda t: {n.replace("first_stage_model.", "vae."): a for n, a in t.items()},
    "ComfyUI's clip_l": lambda t: {n.replace(SD1.layouts["text_encoder"].prefix,
                                             "text_encoders.clip_l.transformer."): a
                                   for n, a in t.items()},
    "diffusers' names, a prefix a part": lambda t: {
        f"{part}.{n}": a for part in TINY for n, a in tiny_tensors(part).items()},
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_writers_prefixes_are_read(tmp_path, caplog, writer):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, writer(whole()))
    found = load_checkpoint(file, configs=TINY)
    for component in TINY:
        assert_part(found, component)
    assert not caplog.records


OF_TRAINING = {
    **{name: np.ones(1000, "f4") for name in (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
        "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
        "lvlb_weights", "logvar")},
    "global_step": np.ones((), "i8"), "first_stage_model.loss.logvar": np.ones((), "f4"),
    "first_stage_model.loss.discriminator.main.0.weight": np.ones(2, "f4"),
    "cond_stage_model.logit_scale": np.ones((), "f4"),
}  # fmt: skip
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.mark.parametrize("dtype", ["i8", "i4", "f4", "f2", "u1"])
def test_what_is_of_training_is_left_out_without_a_word(tmp_path, caplog, dtype):
    file = tmp_path / "x.safetensors"
    positions = np.arange(8).astype(dtype)[None]
    write_safetensors(file, {**whole(), **OF_TRAINING, POSITIONS: positions})
    assert_part(load_checkpoint(file, configs=TINY), "text_encoder")
    assert not caplog.records


def test_what_may_be_of_the_picture_is_said(tmp_path, caplog):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {**whole(), "adapter.body.0.weight": np.ones(2, "f4"),
                             "model.diffusion_model.label_emb.0.0.weight": np.ones(2, "f4")})
    load_checkpoint(file, configs=TINY)
    assert "ignoring 1 tensors of no part: adapter.body.0.weight" in caplog.text
    assert "ignoring 1 tensor unexpected: model.diffusion_model.label_emb" in caplog.text


def test_moving_averages_are_said_and_may_be_all_that_there_is(tmp_path, caplog):
    file = tmp_path / "x.safetensors"
    averages = {ema_name(n): a for n, a in whole("unet", seed=1).items()}
    write_safetensors(file, {**whole(), **averages})
    assert_part(load_checkpoint(file, configs=TINY), "unet", seed=0)
    assert "ema=True (--ema)" in caplog.text
    write_safetensors(file, {**whole("vae", "text_encoder"), **averages})
    assert_part(load_checkpoint(file, configs=TINY, ema=True), "unet", seed=1)


def test_lcm_and_no_middle_block_are_seen_in_the_file(tmp_path):
    file = tmp_path / "x.safetensors"
    config = {**TINY["unet"], "time_cond_proj_dim": 6, "mid_block_type": None}
    shapes = shapes_of("unet", config)
    tensors = {name: np.full(shape, i, "f4") for i, (name, shape) in enumerate(shapes.items())}
    write_safetensors(file, {**whole("vae", "text_encoder"), **to_ldm("unet", tensors, config)})
    found = load_checkpoint(file, configs=TINY)["unet"]
    assert found.config["time_cond_proj_dim"] == 6 and found.config["mid_block_type"] is None
    assert found.tensors.keys() == tensors.keys()
    assert all((found.tensors[name] == array).all() for name, array in tensors.items())
    assert evidence(read_header(file)).lcm


MARKERS = {
    "nothing": ({}, {}, "epsilon", False),
    "v_pred, as ComfyUI and NoobAI": ({"v_pred": np.zeros(0, "f4")}, {}, "v_prediction", False),
    "both": ({"v_pred": np.zeros(0, "f4"), "ztsnr": np.zeros(0, "f4")}, {}, "v_prediction", True),
    "under state_dict.": ({"state_dict.v_pred": np.zeros(0, "f4")}, {}, "v_prediction", False),
    "modelspec": ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
    "modelspec, epsilon": ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
    "ComfyUI's metadata": ({}, {"modelspec.predict_key": "v"}, "v_prediction", False),
    "sd-scripts": ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"},
                   "v_prediction", True),
    "an unknown word": ({}, {"modelspec.prediction_type": "flow"}, "epsilon", False),
    "a marker before metadata": ({"v_pred": np.zeros(0, "f4")},
                                 {"modelspec.prediction_type": "epsilon"}, "v_prediction", False),
}  # fmt: skip


@pytest.mark.parametrize("markers, metadata, prediction, zero", MARKERS.values(), ids=MARKERS)
def test_markers_decide_what_is_predicted(tmp_path, markers, metadata, prediction, zero):
    file, tensors = tmp_path / "x.safetensors", whole()
    if any(name.startswith("state_dict.") for name in markers):
        tensors = {f"state_dict.{name}": array for name, array in tensors.items()}
    write_safetensors(file, {**tensors, **markers}, metadata)
    found = evidence(read_header(file))
    assert (found.prediction, found.zero_snr, found.lcm) == (prediction, zero, False)


def test_noise_that_is_not_computed_is_refused(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {**whole(), "edm_mean": np.zeros(4, "f4")})
    refused(lambda: evidence(read_header(tmp_path / "x.safetensors")), "edm_mean", "EDM")


# Parts that the caller names.


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
@pytest.mark.parametrize("form", ["bare", "prefixed", "diffusers", "beside a config", "component",
                                  "model", "whole file"])  # fmt: skip
def test_a_part_is_taken_from_where_it_is_named(tmp_path, component, form):
    """The model has the part too, and it is broken: that does not matter."""
    model, place = write_folder(tmp_path / "model"), tmp_path / "other.safetensors"
    (model / component / f"{STEM[component]}.safetensors").write_bytes(b"broken")
    if form == "bare":
        write_safetensors(place, {**bare(component, seed=1), "loss.logvar": np.ones(1, "f4")})
    elif form == "prefixed":
        write_safetensors(place, whole(component, seed=1))
    elif form == "diffusers":
        write_safetensors(place, tiny_tensors(component, seed=1))
    elif form == "whole file":
        write_safetensors(place, whole(seed=1))
    else:
        place = write_folder(tmp_path / "other", **{component: tiny_tensors(component, seed=1)})
        (model / component / "config.json").write_text("{broken")
        if form != "model":
            place = place / component
        if form == "beside a config":
            place = place / f"{STEM[component]}.safetensors"
    found = load_checkpoint(model, replaced={component: place})
    assert_part(found, component, seed=1)
    assert_part(found, "unet")


def test_a_file_of_the_unet_alone_draws_with_parts_of_others(tmp_path):
    file, others = tmp_path / "unet.safetensors", write_folder(tmp_path / "others")
    write_safetensors(file, bare("unet", seed=1))
    refused(lambda: load_checkpoint(file, configs=TINY), "no VAE", "only the UNet", "--vae PATH")
    found = load_checkpoint(file, configs=TINY, replaced=dict.fromkeys(("vae", "text_encoder"),
                                                                       others))  # fmt: skip
    assert_part(found, "unet", seed=1)
    assert_part(found, "vae")
    assert set(load_checkpoint(file, configs=TINY, replaced={"vae": None, "text_encoder": others})
               ) == {"unet", "text_encoder"}  # fmt: skip


def test_parts_that_cannot_be_had_are_refused_by_name(tmp_path):
    model = write_folder(tmp_path / "model")
    refused(lambda: load_checkpoint(model, replaced={"vae": tmp_path / "none"}), "vae: ", "no such",
            error=UsageError)  # fmt: skip
    wrong = tmp_path / "wrong.safetensors"
    write_safetensors(wrong, bare("text_encoder"))
    refused(lambda: load_checkpoint(model, replaced={"vae": wrong}), "no VAE in it", "text encoder")
    pickled = tmp_path / "x.vae.pt"
    pickled.write_bytes(b"")
    refused(lambda: load_checkpoint(model, replaced={"vae": pickled}), "x.vae.pt", "can run any")
    for file in (model / "vae").iterdir():
        file.unlink()
    (model / "vae").rmdir()
    refused(lambda: load_checkpoint(model), "no VAE in it", "--vae PATH")


def test_the_text_half_of_a_whole_clip_is_taken(tmp_path, caplog):
    model, clip = write_folder(tmp_path / "model"), tmp_path / "clip"
    clip.mkdir()
    inner = {k: v for k, v in TINY["text_encoder"].items() if k != "architectures"}
    (clip / "config.json").write_text(json.dumps(
        {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": inner}))  # fmt: skip
    more = ("logit_scale", "text_projection.weight", "vision_model.x", "visual_projection.weight")
    write_safetensors(clip / "model.safetensors", {
        **tiny_tensors("text_encoder", seed=1), **{name: np.ones(2, "f4") for name in more}})
    assert_part(load_checkpoint(model, replaced={"text_encoder": clip}), "text_encoder", seed=1)
    assert not caplog.records
