"""What A1111's API answers: pictures and what is said of them, progress, and lists."""

import base64
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refsd.cli.hires import NAMES as UPSCALERS
from refsd.cli.infotext import parse_infotext
from refsd.cli.metadata import ELSEWHERE
from refsd.serve import asked
from refsd.serve.a1111_fields import FIELDS, Wanted
from refsd.serve.jobs import CANCELLED, Job
from refsd.serve.studio import Studio

# What A1111's info says under a name of its own, of an infotext's settings.
NUMBERS = {"Steps": ("steps", int), "CFG scale": ("cfg_scale", float),
           "Clip skip": ("clip_skip", int), "Denoising strength": ("denoising_strength", float),
           "Variation seed strength": ("subseed_strength", float)}
TEXTS = {"Sampler": "sampler_name", "Model": "sd_model_name", "Model hash": "sd_model_hash",
         "Version": "version"}
OWN = {*NUMBERS, *TEXTS, "Seed", "Size", "Variation seed", "Seed resize from"}
# Lists of what refsd does not have, or has otherwise.
LISTS: dict[str, Any] = {
    "sd-vae": [], "scripts": {"txt2img": [], "img2img": []}, "script-info": [], "cmd-flags": {},
    "prompt-styles": [], "hypernetworks": [], "face-restorers": [], "realesrgan-models": [],
    "extensions": [],
    "upscalers": [{"name": label, "model_name": None, "model_path": None, "model_url": None,
                   "scale": 4} for label in ("None", *UPSCALERS.values())
                  if not label.startswith("Latent")],
    "latent-upscale-modes": [{"name": label} for label in UPSCALERS.values()
                             if label.startswith("Latent")],
}


def drawn(job: Job, kind: str, body: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """The answer of a job that is over, with what there is of its pictures; reads their files."""
    pictures = [*job.pictures]
    hidden = dict.fromkeys(["mask"] if wanted.include_init_images else ["mask", "init_images"])
    return {"images": [base64.b64encode(picture.png).decode() for picture in pictures]
            if wanted.send_images else [],
            "parameters": dict.fromkeys(FIELDS[kind]) | dict(body)
            | {name: None for name in hidden if name in FIELDS[kind]},
            "info": json.dumps(info(job, wanted.without_effect))}


def info(job: Job, without_effect: list[str]) -> dict[str, Any]:
    """What A1111's "info" says of a job's pictures, and `warnings`."""
    pictures, said = [*job.pictures], job.request
    every = [parse_infotext(picture.infotext).settings for picture in pictures]
    first = every[0] if every else {}
    seeds = [picture.seed for picture in pictures]
    varied = [int(settings.get("Variation seed", -1)) for settings in every]
    size, resized = (first.get(name, "0x0").split("x") for name in ("Size", "Seed resize from"))
    warnings = [*without_effect, *job.warnings]
    if job.state == CANCELLED:
        warnings.append(f"interrupted: {len(pictures)} of {job.count} pictures were drawn")
    prompt, negative = said["prompt"], said.get("negative_prompt", "")
    return {
        "prompt": prompt, "all_prompts": [prompt] * len(pictures),
        "negative_prompt": negative, "all_negative_prompts": [negative] * len(pictures),
        "seed": seeds[0] if seeds else None, "all_seeds": seeds,
        "subseed": varied[0] if varied else None, "all_subseeds": varied,
        "subseed_strength": 0.0, "clip_skip": 1, "denoising_strength": None,
        **{name: kind(first[key]) for key, (name, kind) in NUMBERS.items() if key in first},
        **{name: first.get(key) for key, name in TEXTS.items()},
        "width": int(size[0]), "height": int(size[1]),
        "seed_resize_from_w": int(resized[0]), "seed_resize_from_h": int(resized[1]),
        "batch_size": job.count, "restore_faces": False, "face_restoration_model": None,
        "sd_vae_name": None, "sd_vae_hash": None, "index_of_first_image": 0, "styles": [],
        "extra_generation_params": {key: value for key, value in first.items() if key not in OWN},
        "infotexts": [picture.infotext for picture in pictures],
        "job_timestamp": stamp(job.created), "is_using_inpainting_conditioning": False,
        "warnings": warnings,
    }


def stamp(seconds: float) -> str:
    """A time as A1111 writes it."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))


def progress(job: Job | None, image: bytes | None) -> dict[str, Any]:
    """How far the job is that is drawn; None where none is. image: what is seen of it."""
    if job is None:
        state = dict.fromkeys(("job_count", "job_no", "sampling_step", "sampling_steps"), 0)
        flags = dict.fromkeys(("skipped", "interrupted"), False)
        return {"progress": 0.0, "eta_relative": 0.0, "current_image": None, "textinfo": None,
                "current_task": None, "state": {**flags, "stopping_generation": False, "job": "",
                                                "job_timestamp": "0", **state}}
    done = (job.index * job.steps + job.step) / (job.count * job.steps) if job.steps else 0.0
    return {"progress": done, "eta_relative": job.remaining or 0.0, "textinfo": None,
            "current_image": image and base64.b64encode(image).decode(), "current_task": job.id,
            "state": {"skipped": job.skip, "interrupted": job.stop, "stopping_generation": job.stop,
                      "job": job.id, "job_count": job.count, "job_no": job.index,
                      "job_timestamp": stamp(job.created), "sampling_step": job.step,
                      "sampling_steps": job.steps}}


def models(studio: Studio) -> list[dict[str, Any]]:
    """The models that the server was started with; where their files are is not told."""
    return [{"title": id, "model_name": id, "hash": None, "sha256": None, "filename": id,
             "config": None} for id in studio.models]


def loras(studio: Studio) -> list[dict[str, Any]]:
    """The LoRAs that a prompt's <lora:NAME:X> finds."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in studio.loras]


def embeddings(studio: Studio) -> dict[str, Any]:
    """The words of the embeddings that prompts may use."""
    files = [*studio.base.embedding]
    if studio.base.embd_dir:
        files += map(str, sorted(Path(studio.base.embd_dir).rglob("*.safetensors")))
    unknown = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    return {"loaded": {Path(file).stem: unknown for file in files}, "skipped": {}}


def memory() -> dict[str, Any]:
    """The machine's memory and what this process has of it; the graphics card's is not known."""
    status = Path("/proc/self/statm")
    if not status.exists():
        ram: dict[str, Any] = {"error": "this system does not say it"}
    else:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        used = int(status.read_text().split()[1])
        ram = {"free": (total - used) * page, "used": used * page, "total": total * page}
    return {"ram": ram, "cuda": {"error": "refsd does not ask the graphics card"}}


def png_info(image: Any) -> dict[str, Any]:
    """The texts of a picture, and its infotext taken apart. Raises UsageError for no picture."""
    texts = asked.read_picture("image", image).texts
    named = {name.lower(): text for name, text in texts.items()}
    text = next((named[name] for name in ("parameters", *ELSEWHERE) if name in named
                 and (name == "parameters" or parse_infotext(named[name]).settings)), "")
    found = parse_infotext(text)
    parameters = {"Prompt": found.prompt, "Negative prompt": found.negative_prompt,
                  **found.settings} if text else {}
    return {"info": text, "items": dict(texts), "parameters": parameters}
