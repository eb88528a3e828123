"""A1111's bodies: what each field becomes, and what is refused by name."""

import base64
import io

import pytest
import tiny_three
import tiny_xl
from PIL import Image

from refsd.errors import UsageError
from refsd.serve import a1111_bodies, a1111_fields, a1111_pictures, a1111_samplers, asked
from refsd.serve.a1111_settings import CHECKPOINT, Settings
from refsd.serve.asked import Limits
from refsd.serve.models import Model, find_models

MODELS = {"one": Model("one", None, "Stable Diffusion 1.x", 128, 128, 8),
          "two": Model("two", "/models/two", "Stable Diffusion 1.x", 512, 512, 8),
          "edits": Model("edits", "/models/edits", "Stable Diffusion 1.x", 512, 512, 8, "image"),
          "three": Model("three", "/models/three", "Stable Diffusion 3", 1024, 1024, 16, "latents",
                         frozenset({"dialect"}), True)}
ALWAYS = {"prompt": "", "count": 1, "model": "one", "rng": "cuda", "clip_skip": None, "preview": 1,
          "compat": "a1111"}


def png(width=64, height=64, mode="RGB", colour="white"):
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def read(kind="txt2img", **body):
    return a1111_fields.read(kind, body, Settings(MODELS).values, MODELS)


def img2img(**body):
    return read("img2img", **{"init_images": [png()], **body})


def more(wanted):
    """The fields that not every body has."""
    return {name: value for name, value in wanted.fields.items()
            if name not in ALWAYS or ALWAYS[name] != value}


def asked_of(wanted):
    """As the routes ask, whose errors have A1111's names."""
    try:
        return asked.read(wanted.fields, MODELS, {}, Limits())
    except UsageError as problem:
        raise UsageError(a1111_fields.in_fields(str(problem))) from None


# What webuiapi's txt2img() and img2img() send where nothing is set, and SillyTavern.
WEBUIAPI = {
    "prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0,
    "seed_resize_from_h": 0, "seed_resize_from_w": 0, "batch_size": 1, "n_iter": 1, "steps": 20,
    "cfg_scale": 7.0, "width": 512, "height": 512, "restore_faces": False, "tiling": False,
    "do_not_save_samples": False, "do_not_save_grid": False, "negative_prompt": "", "eta": 1.0,
    "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
    "override_settings_restore_afterwards": True, "sampler_name": "Euler a",
    "scheduler": "automatic", "sampler_index": "Euler a", "script_name": None, "script_args": [],
    "send_images": True, "save_images": False, "alwayson_scripts": {}}
WEBUIAPI_TEXT = WEBUIAPI | {
    "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0,
    "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None, "hr_sampler_name": None,
    "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "", "denoising_strength": 0.7,
    "firstphase_width": 0, "firstphase_height": 0}
WEBUIAPI_IMAGE = WEBUIAPI | {
    "init_images": ["data:image/png;base64," + png()], "resize_mode": 0, "denoising_strength": 0.75,
    "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0, "initial_noise_multiplier": 1, "image_cfg_scale": 1.5,
    "include_init_images": False}
SILLYTAVERN = {
    "prompt": "a fox", "negative_prompt": "", "sampler_name": "DPM++ 2M", "scheduler": "Karras",
    "steps": 20, "cfg_scale": 7, "width": 512, "height": 512, "restore_faces": False,
    "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "hr_additional_modules": [],
    "denoising_strength": 0.7, "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True,
    "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
    "url": "http://localhost:7860", "auth": ""}
OPEN_WEBUI = {"prompt": "a fox", "batch_size": 1, "width": 512, "height": 512, "steps": 50,
              "negative_prompt": "blue", "cfg_scale": 7.5, "sampler_name": "Euler",
              "scheduler": "Simple"}
USUAL = {"seed": -1, "steps": 20, "width": 512, "height": 512, "cfg_scale": 7.0,
         "negative_prompt": "", "sampler": "euler_a"}


# The fields of A1111 1.10's two bodies.
A1111 = {*WEBUIAPI, "s_min_uncond", "refiner_checkpoint", "refiner_switch_at", "infotext",
         "disable_extra_networks", "comments", "force_task_id", "denoising_strength"}
A1111_TEXT = {*WEBUIAPI_TEXT, "firstpass_image"}
A1111_IMAGE = {*WEBUIAPI_IMAGE, "mask", "mask_blur_x", "mask_blur_y", "mask_round", "latent_mask"}


def test_the_defaults_of_clients_are_taken():
    assert more(read(**WEBUIAPI_TEXT)) == USUAL
    found = read("img2img", **WEBUIAPI_IMAGE)
    assert more(found) == {**USUAL, "strength": 0.75,
                           "init_image": WEBUIAPI_IMAGE["init_images"][0]}
    assert found.without_effect == []
    found = read(**SILLYTAVERN)
    assert more(found) == {"prompt": "a fox", "negative_prompt": "", "sampler": "dpm++2m_karras",
                           "steps": 20, "cfg_scale": 7, "width": 512, "height": 512}
    assert asked_of(found).options.sampler == "dpm++2m_karras"
    assert asked_of(read(**{**OPEN_WEBUI, "scheduler": "Automatic"})).options.steps == 50
    assert more(read()) == {}
    assert asked_of(read(prompt="a")).options.width is None


@pytest.mark.parametrize("body, fields", [
    ({"prompt": "7", "negative_prompt": "8"}, {"prompt": "7", "negative_prompt": "8"}),
    ({"seed": "12345678901234567890", "steps": "3", "width": "64", "cfg_scale": "2.5"},
     {"seed": 12345678901234567890, "steps": 3, "width": 64, "cfg_scale": 2.5}),
    ({"batch_size": 2, "n_iter": 3}, {"count": 6}),
    ({"batch_size": "2", "n_iter": 2.0}, {"count": 4}),
    ({"subseed": 5}, {}), ({"subseed_strength": 0.5, "subseed": 5},
                           {"variation_strength": 0.5, "variation_seed": 5}),
    ({"subseed_strength": 0.5}, {"variation_strength": 0.5, "variation_seed": -1}),
    ({"seed_resize_from_w": 48, "seed_resize_from_h": 64}, {"seed_resize_from": "48x64"}),
    ({"seed_resize_from_w": -1, "seed_resize_from_h": 0}, {}),
    ({"clip_skip": 2}, {"clip_skip": 1}), ({"clip_skip": 0}, {}),
    ({"override_settings": {"CLIP_stop_at_last_layers": 3, "randn_source": "CPU",
                            CHECKPOINT: "two.safetensors [0123456789]", "sd_vae": "None",
                            "show_progress_every_n_steps": -1}},
     {"clip_skip": 2, "rng": "torch-cpu", "model": "two", "preview": 0}),
    ({"override_settings": {"emphasis": "No norm", "eta_noise_seed_delta": 31337,
                            "pad_cond_uncond": True, "use_old_scheduling": True}},
     {"compat": "a1111,emphasis=no-norm,ensd=31337,pad=yes,old-editing=yes"}),
    ({"enable_hr": True}, {"hires_scale": 2.0, "hires_upscaler": "latent"}),
    ({"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent (nearest-exact)",
      "hr_second_pass_steps": 4, "denoising_strength": 0.5, "prompt": "a", "hr_prompt": "a",
      "sampler_name": "Euler", "hr_sampler_name": "Euler", "hr_scheduler": "Use same scheduler"},
     {"prompt": "a", "sampler": "euler", "hires_scale": 1.5, "hires_steps": 4,
      "hires_denoising": 0.5, "hires_upscaler": "latent-nearest-exact"}),
    ({"enable_hr": True, "hr_upscaler": "None"},
     {"hires_scale": 2.0, "hires_upscaler": "lanczos"}),
    ({"enable_hr": False, "hr_scale": 0, "hr_upscaler": "none", "hr_resize_x": 9}, {}),
])
def test_what_each_field_of_txt2img_becomes(body, fields):
    found = read(**body)
    assert more(found) == fields and found.without_effect == []
    if "model" not in fields:
        asked_of(found)


@pytest.mark.parametrize("name, schedule, sampler", [
    ("DPM++ 2M Karras", None, "dpm++2m_karras"), ("DPM++ 2M", None, "dpm++2m_karras"),
    ("DPM++ 2M", "Automatic", "dpm++2m_karras"), ("DPM++ 2M", "Uniform", "dpm++2m"),
    ("DPM++ 2M", "normal", "dpm++2m"), ("DPM++ 2M", "Exponential", "dpm++2m_exponential"),
    ("DPM++ 2M Karras", "Exponential", "dpm++2m_karras"),
    ("DPM++ 2M SDE", "", "dpm++2m_sde_exponential"), ("DPM2 a", "automatic", "dpm2_a_karras"),
    ("k_dpmpp_2m", "karras", "dpm++2m_karras"), ("Euler", "beta", "euler_beta"),
    ("Euler a", "Automatic", "euler_a"), ("LMS", "Karras", "lms_karras"), ("PLMS", None, "pndm"),
    ("DDIM", "Karras", "ddim"), ("UniPC", "Exponential", "unipc"), ("DDIM", "Uniform", "ddim"),
])
def test_samplers_are_a1111s(name, schedule, sampler):
    for where in ("sampler_name", "sampler_index"):
        found = read(**{where: name, "scheduler": schedule})
        assert found.fields["sampler"] == sampler
        assert bool(found.without_effect) == (name in ("DDIM", "UniPC")
                                              and schedule != "Uniform")
    assert asked_of(found).options.sampler == sampler
    assert read(sampler_name="Euler", sampler_index=name).fields["sampler"] == "euler"


def test_models_that_read_prompts_as_diffusers_do_and_have_schedules_of_their_own():
    said = {"override_settings": {CHECKPOINT: "three", "randn_source": None}}
    found = read(**said, sampler_name="DPM++ 2M", scheduler="Automatic")
    assert more(found) == {"model": "three", "compat": "diffusers", "sampler": "dpm++2m"}
    assert found.without_effect == ["prompt: three reads it as diffusers does, without weights and "
                                    "editing"]
    found = read(**said, sampler_name="DPM++ 2M", scheduler="Karras")  # refused when it is drawn
    assert found.fields["sampler"] == "dpm++2m_karras"


def test_every_sampler_of_the_list_is_taken_with_its_schedules():
    listed = a1111_samplers.samplers()
    assert {"name": "DPM++ 2M", "aliases": ["dpm++2m", "dpmpp_2m"],
            "options": {"scheduler": "karras"}} in listed
    for one in listed:
        names = {read(sampler_name=name).fields["sampler"] for name in (one["name"],
                                                                        *one["aliases"])}
        assert len(names) == 1 and asked_of(read(sampler_name=one["name"]))
    for one in a1111_samplers.schedules():
        for name in (one["name"], one["label"]):
            assert read(sampler_name="Euler", scheduler=name).fields["sampler"].startswith("euler")


def test_eta_is_that_of_ddim():
    assert read(sampler_name="DDIM", eta=0.5).fields["eta"] == 0.5
    assert read(sampler_name="DDIM").fields["eta"] == 0.0
    said = {"override_settings": {"eta_ddim": 0.25}}
    assert read(sampler_name="DDIM", **said).fields["eta"] == 0.25
    assert "eta" not in read(sampler_name="Euler", eta=0.5).fields
    assert "eta" not in read(sampler_name="Euler a", eta=1.0).fields
    assert "eta" not in read(eta=1.0).fields


@pytest.mark.parametrize("body, message", [
    ({"promt": "a"}, "txt2img has no field 'promt'; did you mean prompt?"),
    ({"init_images": [png()]}, "txt2img has no field 'init_images'; "),
    ({"batch_size": 0}, "batch_size is 0; give an integer from 1 to 1000"),
    ({"n_iter": "two"}, "n_iter is 'two'; give an integer"),
    ({"batch_size": True}, "batch_size is True"), ({"n_iter": 1.5}, "n_iter is 1.5"),
    ({"subseed_strength": 2}, "subseed_strength is 2; give a number from 0 to 1"),
    ({"subseed": "x", "subseed_strength": 1}, "subseed is 'x'"),
    ({"seed_resize_from_w": 64}, "seed_resize_from_w is 64 and seed_resize_from_h 0; give both"),
    ({"sampler_name": "Restart"}, "sampler_name: got 'Restart'"),
    ({"sampler_name": "DPM++ 2S a"}, "sampler_name: 'DPM++ 2S a' adds noise in two calls"),
    ({"sampler_name": 5}, "sampler_name is 5; give a text"),
    ({"sampler_name": "Euler", "scheduler": "SGM Uniform"}, "scheduler is 'SGM Uniform', which "
     "refsd does not have; give Automatic, Uniform, Normal, Karras, Exponential, Beta"),
    ({"sampler_name": "Euler a", "scheduler": "Karras"}, "sampler_name: euler_a has no"),
    ({"scheduler": "Karras"}, "scheduler is 'Karras', which is of a sampler; give sampler_name"),
    ({"sampler_name": "Euler a", "eta": 0.5}, "eta is 0.5: euler_a adds all of its noise"),
    ({"restore_faces": True}, "restore_faces is True: refsd restores no faces; leave it out, or "
     "give False"),
    ({"tiling": True}, "tiling is True"), ({"styles": ["x"]}, "styles is ['x']"),
    ({"s_churn": 0.5}, "s_churn is 0.5"), ({"s_tmin": 1}, "s_tmin is 1"),
    ({"s_tmax": 9}, "s_tmax is 9"), ({"s_noise": 1.003}, "s_noise is 1.003"),
    ({"s_min_uncond": 1}, "s_min_uncond is 1"), ({"script_name": "X/Y/Z plot"}, "script_name is"),
    ({"refiner_checkpoint": "x"}, "refiner_checkpoint is 'x': refsd has no refiner"),
    ({"disable_extra_networks": True}, "disable_extra_networks is True"),
    ({"infotext": "a\nSteps: 5"}, "infotext is"),
    ({"firstpass_image": "aaa"}, "firstpass_image is 'aaa': refsd draws both passes; leave it out"),
    ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "x"}]}}},
     "alwayson_scripts: refsd has no 'ControlNet'"),
    ({"alwayson_scripts": {"x": 5}}, "alwayson_scripts: refsd has no 'x'"),
    ({"alwayson_scripts": []}, "alwayson_scripts is []; give an object"),
    ({"override_settings": {"sd_vae": "x.pt"}}, "override_settings: sd_vae is 'x.pt', which refsd "
     "cannot change; leave it out, or give 'Automatic'"),
    ({"override_settings": {"sd_model_chekpoint": "one"}},
     "no setting 'sd_model_chekpoint'; did you mean sd_model_checkpoint?"),
    ({"override_settings": {CHECKPOINT: "four"}}, f"{CHECKPOINT} is 'four', which this server was"),
    ({"override_settings": {CHECKPOINT: 5}}, f"{CHECKPOINT} is 5"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, "CLIP_stop_at_last_layers is 0"),
    ({"override_settings": 5}, "override_settings is 5; give an object"),
    ({"override_settings_restore_afterwards": "no"}, "override_settings_restore_afterwards is"),
    ({"send_images": "yes"}, "send_images is 'yes'"), ({"clip_skip": 99}, "clip_skip is 99"),
    ({"enable_hr": "x"}, "enable_hr is 'x'"),
    ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "hr_upscaler is 'ESRGAN'; give 'Latent' or"),
    ({"enable_hr": True, "hr_resize_x": 512}, "hr_resize_x is 512: hr_scale says how large"),
    ({"enable_hr": True, "hr_resize_y": 512}, "hr_resize_y is 512"),
    ({"enable_hr": True, "firstphase_width": 64}, "firstphase_width is 64"),
    ({"enable_hr": True, "firstphase_height": 64}, "firstphase_height is 64"),
    ({"enable_hr": True, "hr_prompt": "b"}, "hr_prompt is 'b': both passes have one prompt"),
    ({"enable_hr": True, "hr_negative_prompt": "b"}, "hr_negative_prompt is 'b'"),
    ({"enable_hr": True, "hr_checkpoint_name": "b"}, "hr_checkpoint_name is 'b'"),
    ({"enable_hr": True, "hr_sampler_name": "Heun"}, "hr_sampler_name is 'Heun'"),
    ({"enable_hr": True, "hr_scheduler": "Karras"}, "hr_scheduler is 'Karras'"),
    ({"enable_hr": True, "hr_additional_modules": ["x"]}, "hr_additional_modules is ['x']"),
    ({"enable_hr": True, "hr_scale": 9}, "hr_scale is 9"),
    ({"enable_hr": True, "hr_second_pass_steps": -1}, "hr_second_pass_steps is -1"),
    # what refsd.serve.asked refuses is called as A1111 calls it
    ({"batch_size": 3, "n_iter": 3}, "batch_size * n_iter is 9; give an integer from 1 to 8"),
    ({"steps": 500}, "steps is 500"), ({"width": 100}, "width is 100"),
    ({"prompt": 5}, "prompt is 5; give a text"), ({"cfg_scale": "x"}, "cfg_scale is 'x'"),
    ({"enable_hr": True, "denoising_strength": 0}, "denoising_strength is 0"),
    ({"enable_hr": True, "hr_scale": 8, "width": 1024, "height": 1024}, "hr_scale: a picture of"),
])
def test_what_txt2img_refuses_is_named(body, message):
    with pytest.raises(UsageError) as caught:
        asked_of(read(**body))
    assert message in str(caught.value) and "--" not in str(caught.value)


def test_every_field_of_a1111_is_known():
    """Those that have no effect here have a reason."""
    assert {*A1111, *A1111_TEXT} <= {*a1111_fields.FIELDS["txt2img"]}
    assert {*A1111, *A1111_IMAGE} <= {*a1111_fields.FIELDS["img2img"]}
    for kind, fields in a1111_fields.FIELDS.items():
        assert len(set(fields)) == len(fields), kind
    assert all(a1111_fields.IDLE.values())
    for name in a1111_fields.IDLE:
        assert more(read(**{name: "anything"})) == {}


def test_pictures():
    found = img2img(denoising_strength="0.5", width=72, height=64)
    assert more(found) == {"init_image": png(), "strength": 0.5, "width": 72, "height": 64}
    assert asked_of(found).options.pictures.recorded["strength"] == 0.5
    assert more(img2img(image_cfg_scale=2)) == {"init_image": png()}
    for mode in (1, 2):
        assert more(img2img(resize_mode=mode, width=64)) == {"init_image": png(), "width": 64}
    assert img2img(include_init_images=True).include_init_images
    assert not img2img().include_init_images


def test_instruct_pix2pix_has_its_own_scale():
    said = {"override_settings": {CHECKPOINT: "edits"}}
    found = img2img(image_cfg_scale=2, denoising_strength=0.75, **said)
    assert more(found) == {"init_image": png(), "model": "edits", "img_cfg_scale": 2}
    assert found.without_effect == ["denoising_strength: edits begins with noise alone"]


def test_a_mask_with_the_defaults_of_clients():
    mask = png(mode="L")
    found = img2img(mask=mask, mask_blur=4, inpainting_fill=0)
    assert more(found) == {"init_image": png(), "mask": mask, "mask_padding": 0}
    assert [line.partition(":")[0] for line in found.without_effect] == ["mask_blur",
                                                                         "inpainting_fill"]
    assert img2img(mask=mask).without_effect == found.without_effect
    found = img2img(mask=mask, mask_blur_x=0, mask_blur_y=4, inpainting_fill=1)
    assert len(found.without_effect) == 1
    assert not img2img(mask=mask, mask_blur_x=0, mask_blur_y=0, inpainting_fill=1).without_effect
    found = img2img(mask=mask, mask_blur=0, inpainting_fill=1, inpaint_full_res=0)
    assert more(found) == {"init_image": png(), "mask": mask} and found.without_effect == []
    assert more(img2img(mask=mask, inpaint_full_res_padding=32))["mask_padding"] == 32
    assert asked_of(found).options.pictures.images["mask"].size == (64, 64)
    assert more(img2img(mask_blur=99, inpainting_fill=3)) == {"init_image": png()}  # without a mask


@pytest.mark.parametrize("mask, inverted, level", [
    (png(mode="L", colour=0), True, 255), (png(mode="L", colour=255), True, 0),
    (png(mode="RGBA", colour=(0, 0, 0, 200)), False, 255),
    (png(mode="RGBA", colour=(255, 255, 255, 100)), False, 0),
    (png(mode="RGBA", colour=(255, 255, 255, 100)), True, 255),
    (png(mode="RGBA", colour=(0, 0, 0, 255)), True, 255),
])
def test_masks_are_as_a1111_sees_them(mask, inverted, level):
    found = a1111_pictures.painted("data:image/png;base64," + mask, inverted)
    assert asked.read_picture("mask", found).upright().getextrema() == (level, level)
    body = img2img(mask=mask, inpainting_mask_invert=int(inverted))
    assert asked_of(body).options.pictures.images["mask"].getextrema() == (level, level)


def test_a_mask_that_is_white_where_it_is_to_be_drawn_stays_as_it_is():
    for mask in (png(mode="L"), png(mode="RGBA", colour=(255, 255, 255, 255)), png()):
        said = "data:image/png;base64," + mask
        assert a1111_pictures.painted(said, False) == said


@pytest.mark.parametrize("body, message", [
    ({"init_images": None}, "init_images: 0 pictures; give a list of one"),
    ({"init_images": []}, "init_images: 0 pictures"),
    ({"init_images": [png()] * 2}, "init_images: 2 pictures"),
    ({"init_images": "aaa"}, "init_images: 0 pictures"),
    ({"init_images": ["http://169.254.169.254/"]}, "init_images[0] is 'http://169"),
    ({"init_images": [5]}, "init_images[0] is 5; give a text"),
    ({"init_images": [5], "resize_mode": 1}, "init_images[0] is 5; give a text"),
    ({"denoising_strength": 2}, "denoising_strength is 2"),
    ({"resize_mode": 1, "width": 32}, "resize_mode is 1, and init_images[0] is 64 x 64; give 0"),
    ({"resize_mode": 2, "height": 32}, "resize_mode is 2"), ({"resize_mode": 3}, "resize_mode is"),
    ({"resize_mode": 4}, "resize_mode is 4; give an integer from 0 to 3"),
    ({"initial_noise_multiplier": 1.1}, "initial_noise_multiplier is 1.1"),
    ({"latent_mask": png()}, "latent_mask is"), ({"mask": 5}, "mask is 5; give a text"),
    ({"mask": "aGVsbG8="}, "mask: not a PNG"),
    ({"mask": png(), "mask_blur": 8}, "mask_blur is 8: refsd blurs no masks"),
    ({"mask": png(), "mask_blur_x": 8}, "mask_blur_x is 8"),
    ({"mask": png(), "mask_blur_y": 8}, "mask_blur_y is 8"),
    ({"mask": png(), "mask_round": False}, "mask_round is False"),
    ({"mask": png(), "inpainting_fill": 2}, "inpainting_fill is 2: refsd draws over what"),
    ({"mask": png(), "inpainting_mask_invert": 2}, "inpainting_mask_invert is 2; give True or"),
    ({"mask": png(), "inpaint_full_res": "x"}, "inpaint_full_res is 'x'"),
    ({"mask": png(), "inpaint_full_res_padding": -1}, "inpaint_full_res_padding is -1"),
    ({"mask": png(32)}, "inpaint_full_res_padding needs two of one size"),
    ({"enable_hr": True}, "img2img has no field 'enable_hr'"),
    ({"subseed_strength": 0.5}, "not for drawing from a picture"),
])
def test_what_img2img_refuses_is_named(body, message):
    with pytest.raises(UsageError) as caught:
        asked_of(img2img(**body))
    assert message in str(caught.value) and "--" not in str(caught.value)


def test_settings_are_kept_where_they_are_not_restored():
    said = {"override_settings": {CHECKPOINT: "two"}}
    assert read(**said).kept == {}
    assert read(**said, override_settings_restore_afterwards=False).kept == {CHECKPOINT: "two"}


def test_options():
    options = Settings(MODELS)
    assert options.shown()[CHECKPOINT] == "one" and options.shown()["sd_vae"] == "Automatic"
    options.change(options.shown())  # as clients do that send all of it back
    options.change({CHECKPOINT: "two", "CLIP_stop_at_last_layers": 2, "sd_vae": "None"})
    assert options.values[CHECKPOINT] == "two"
    with pytest.raises(UsageError, match="samples_format is 'jpg', which refsd cannot change"):
        options.change({CHECKPOINT: "one", "samples_format": "jpg"})
    assert options.values[CHECKPOINT] == "two" and options.shown()["samples_format"] == "png"
    found = a1111_fields.read("txt2img", {}, options.values, MODELS).fields
    assert (found["model"], found["clip_skip"]) == ("two", 1)


def test_fields_that_are_not_said_are_null():
    for kind, fields in a1111_fields.FIELDS.items():
        body = {**dict.fromkeys(fields), **({"init_images": [png()]} if kind == "img2img" else {})}
        assert read(kind, **body).fields == read(kind, **{
            name: value for name, value in body.items() if value}).fields
    assert a1111_bodies.as_said("1e5") == "1e5" and a1111_bodies.as_said("-1") == -1


def test_models_say_what_they_do_not_have(tiny_model, tmp_path):
    found = find_models([str(tiny_model)])["tiny"]
    assert (found.takes, found.flows) == ("latents", False) and "dialect" not in found.lacks
    for module, flows in ((tiny_xl, False), (tiny_three, True)):
        folder = module.write_model(tmp_path / module.__name__)
        found = find_models([str(folder)])[module.__name__]
        assert found.flows == flows and "dialect" in found.lacks
