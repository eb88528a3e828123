"""What A1111's clients ask of txt2img and img2img, in the fields of refsd.serve.asked.

Each field of A1111's bodies is read, or has no effect here for a reason (IDLE), or must be as it is
where nobody sets it (FIXED). null is what is not said; what is not said is as refsd draw has it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.arguments import nearest, shown
from refsd.cli.hires import NAMES as UPSCALERS
from refsd.errors import UsageError
from refsd.rules import boolean, integer, number, only
from refsd.serve import a1111_pictures, a1111_samplers, a1111_settings
from refsd.serve.a1111_bodies import Fixed, as_said, field, require
from refsd.serve.models import Model

SAVED = "the server keeps every picture in its folder"
IDLE = {
    "auth": "SillyTavern's own: its header says it", "comments": "A1111 fills it",
    "distilled_cfg_scale": "of models that refsd does not have",
    "do_not_save_grid": "no grids are made", "do_not_save_samples": SAVED,
    "force_task_id": "progress is that of the job which is drawn",
    "refiner_switch_at": "there is no refiner", "save_images": SAVED,
    "script_args": "there is no script",
    "seed_enable_extras": "subseed_strength and seed_resize_from_w say it",
    "url": "SillyTavern's own: where it asks",
}
NOTHING = (None, "", "None")
CHURN = "refsd's Euler, Heun and DPM2 are without churn"
FIXED: Fixed = {
    "disable_extra_networks": ((None, False), "tags of LoRAs are always read"),
    "firstpass_image": ((None,), "refsd draws both passes"),
    "infotext": ((None, ""), "say in the fields what it says"),
    "refiner_checkpoint": (NOTHING, "refsd has no refiner"),
    "restore_faces": ((None, False), "refsd restores no faces"),
    "s_churn": ((None, 0), CHURN), "s_noise": ((None, 1), CHURN), "s_tmax": ((None, 0), CHURN),
    "s_tmin": ((None, 0), CHURN),
    "s_min_uncond": ((None, 0), "refsd looks at the negative prompt in every step"),
    "script_name": (NOTHING, "refsd has no scripts"),
    "styles": ((None, []), "refsd has no styles; write them into the prompt"),
    "tiling": ((None, False), "refsd draws no pictures that tile"),
}
SIZE, MODEL, SAMPLER = "width and height are its size", "both passes have one model", \
    "both passes have one sampler"
HIRES: Fixed = {  # looked at where there is a second pass
    "firstphase_height": ((None, 0), SIZE), "firstphase_width": ((None, 0), SIZE),
    "hr_additional_modules": ((None, [], ["Use same choices"]), MODEL),
    "hr_checkpoint_name": ((*NOTHING, "Use same checkpoint"), MODEL),
    "hr_resize_x": ((None, 0), "hr_scale says how large"),
    "hr_resize_y": ((None, 0), "hr_scale says how large"),
    "hr_sampler_name": ((*NOTHING, "Use same sampler"), SAMPLER),
    "hr_scheduler": ((*NOTHING, "Use same scheduler", "Automatic"), SAMPLER),
    "hr_prompt": ((None, ""), "both passes have one prompt"),
    "hr_negative_prompt": ((None, ""), "both passes have one prompt"),
}
TEXTS, NUMBERS = ("prompt", "negative_prompt"), ("seed", "steps", "width", "height", "cfg_scale")
COMMON = (*TEXTS, *NUMBERS, "subseed", "subseed_strength", "seed_resize_from_w",
          "seed_resize_from_h", *a1111_samplers.FIELDS, "batch_size", "n_iter",
          "denoising_strength", "clip_skip", "override_settings",
          "override_settings_restore_afterwards", "alwayson_scripts", "send_images", *IDLE, *FIXED)
FIELDS = {"txt2img": (*COMMON, "enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps",
                      *HIRES),
          "img2img": (*COMMON, *a1111_pictures.FIELDS)}
# Names of refsd.serve.asked in its messages, wherever they stand; and those in front alone.
WITHIN = {"clip_skip": "CLIP_stop_at_last_layers", "hires_denoising": "denoising_strength",
          "hires_scale": "hr_scale", "hires_steps": "hr_second_pass_steps",
          "hires_upscaler": "hr_upscaler", "img_cfg_scale": "image_cfg_scale",
          "init_image": "init_images[0]", "mask_image": "mask",
          "mask_padding": "inpaint_full_res_padding",
          "padding_mask_crop": "inpaint_full_res_padding",
          "seed_resize_from": "seed_resize_from_w", "variation_seed": "subseed",
          "variation_strength": "subseed_strength"}
IN_FRONT = {"count": "batch_size * n_iter", "model": a1111_settings.CHECKPOINT,
            "sampler": "sampler_name", "schedule": "scheduler", "strength": "denoising_strength"}
NAMED = re.compile(rf"\b({'|'.join(WITHIN)})\b|^({'|'.join(IN_FRONT)})\b")


class Wanted(NamedTuple):
    """A body, read: as the fields of refsd.serve.asked.

    without_effect: a line for each thing that was said, or is A1111's default, and has none here.
    kept: settings that hold for later requests too.
    """

    fields: dict[str, Any]
    without_effect: list[str]
    kept: dict[str, Any]
    send_images: bool
    include_init_images: bool


def read(kind: str, body: Mapping[str, Any], values: Mapping[str, Any],
         models: Mapping[str, Model]) -> Wanted:
    """The body of "txt2img" or "img2img", with the settings' values. UsageError names a field."""
    for name in body:
        if name not in FIELDS[kind]:
            raise UsageError(f"{kind} has no field {shown(name)}; "
                             + nearest(name, FIELDS[kind], "leave it out"))
    body = {name: value for name, value in body.items() if value is not None}
    require(body, FIXED)
    _require_no_scripts(body.get("alwayson_scripts", {}))
    override = a1111_settings.read(body.get("override_settings", {}), models, "override_settings")
    values = {**values, **_clip_skip(body), **override}
    model, notes = models[values[a1111_settings.CHECKPOINT]], []
    fields = {"prompt": "", **{name: body[name] for name in TEXTS if name in body},
              **{name: as_said(body[name]) for name in NUMBERS if name in body},
              "count": field(body, "batch_size", 1, integer(1, 1000))
              * field(body, "n_iter", 1, integer(1, 1000)),
              **a1111_settings.fields(values),
              **a1111_samplers.read(body, values["eta_ddim"], model.flows, notes),
              **_variation(body)}
    if "dialect" in model.lacks:
        fields["compat"] = "diffusers"
        notes.append(f"prompt: {model.id} reads it as diffusers does, without weights and editing")
    if kind == "img2img":
        fields |= a1111_pictures.read(body, model, notes)
    elif field(body, "enable_hr", False, boolean):
        fields |= _second_pass(body)
    restored = field(body, "override_settings_restore_afterwards", True, boolean)
    return Wanted(fields, notes, {} if restored else override,
                  field(body, "send_images", True, boolean),
                  field(body, "include_init_images", False, boolean))


def in_fields(message: str) -> str:
    """An error of refsd.serve.asked, its fields called as A1111 calls them."""
    return NAMED.sub(lambda found: WITHIN.get(found[1]) or IN_FRONT[found[2]], message)


def _require_no_scripts(said):
    """Extensions without arguments, or switched off by the first, ask for nothing."""
    if not isinstance(said, Mapping):
        raise UsageError(f"alwayson_scripts is {shown(said)}; give an object, or leave it out")
    for name, script in said.items():
        if not isinstance(script, Mapping) or script.get("args") not in ([], [False], None):
            raise UsageError(f"alwayson_scripts: refsd has no {shown(name)}; leave it out")


def _clip_skip(body):
    """SD.Next's field for A1111's setting."""
    if "clip_skip" not in body:
        return {}
    return {"CLIP_stop_at_last_layers": max(field(body, "clip_skip", 1, integer(0, 64)), 1)}


def _variation(body):
    strength = field(body, "subseed_strength", 0.0, number(0, 1))
    seed = field(body, "subseed", -1, integer(-1, 2**64 - 1))
    found = {"variation_strength": strength, "variation_seed": seed} if strength else {}
    sides = [field(body, f"seed_resize_from_{side}", 0, integer(-1, 4096)) for side in "wh"]
    if min(sides) <= 0 < max(sides):
        raise UsageError(f"seed_resize_from_w is {sides[0]} and seed_resize_from_h {sides[1]}; "
                         "give both, or 0 for none")
    return found if sides[0] <= 0 else {**found, "seed_resize_from": "{}x{}".format(*sides)}


def _second_pass(body):
    same = {name: body.get(name.removeprefix("hr_")) for name in (
        "hr_prompt", "hr_negative_prompt", "hr_sampler_name", "hr_scheduler")}
    require({name: value for name, value in body.items() if same.get(name) != value}, HIRES)
    labels = {label: name for name, label in UPSCALERS.items()} | {"None": "lanczos"}
    upscaler = field(body, "hr_upscaler", "Latent", only(*labels))
    steps = field(body, "hr_second_pass_steps", 0, integer(0, 1000))
    found = {"hires_scale": field(body, "hr_scale", 2.0, number(1, 8)),
             "hires_upscaler": labels[upscaler]}
    if "denoising_strength" in body:
        found["hires_denoising"] = as_said(body["denoising_strength"])
    return {**found, "hires_steps": steps} if steps else found
