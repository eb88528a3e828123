"""A single file taken apart: which networks it holds, under whose names, and what else it says."""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from refsd.errors import ModelError
from refsd.families import DEFAULT, Family, Layout, recognise
from refsd.networks import NETWORKS, network_of
from refsd.weights.header import Header
from refsd.weights.ldm import ema_name
from refsd.weights.reader import read_tensors

logger = logging.getLogger(__name__)

# Of training, and of the noise: nothing of it is needed to draw. The noise's own are compared.
OF_NO_PART = re.compile(
    r"(model_ema\..*|global_step|lvlb_weights|logvar|betas|alphas_cumprod(_prev)?|posterior_.*"
    r"|sqrt_.*alphas_cumprod|sqrt_recip.*|log_one_minus_alphas_cumprod|cond_stage_model\.logit_scale"
    r"|cond_stage_model\.text_projection|text_encoders\.\w+\.logit_scale|denoiser\.sigmas"
    r"|model\.model_sampling\.sigmas|v_pred|ztsnr|optimizer.*|loss\..*|scheduler.*)"
)
PREDICTIONS = {
    "epsilon": "epsilon", "eps": "epsilon", "noise": "epsilon", "v": "v_prediction",
    "v_prediction": "v_prediction", "v-prediction": "v_prediction", "velocity": "v_prediction",
    "sample": "sample", "x0": "sample",
}  # fmt: skip


class Part(NamedTuple):
    """One network in a file: what stands before its names; whether these are its family's own."""

    prefix: str
    ldm: bool


class Contents(NamedTuple):
    """What a file holds: networks of a family, and what stands before all names of a checkpoint."""

    family: Family
    parts: dict[str, Part]
    outer: str


class Evidence(NamedTuple):
    """What a file says of how to draw with it: what is predicted, and of which training."""

    prediction: str
    zero_snr: bool
    lcm: bool
    because: str


def contents(header: Header, *, ema: bool = False, default: Family = DEFAULT) -> Contents:
    """The family of a file, `default` where nothing tells, and the networks that it holds.

    A prefix may be any, as "state_dict." before all names; the published one is preferred.
    """
    names, parts, outer = header.tensors, {}, ""
    family = recognise(names, default)
    for component in family.networks:
        layout = family.layouts[component]
        others = ("control_model.", *(
            other.prefix for other in family.layouts.values() if other.prefix != layout.prefix))
        own = () if layout.landmark is None else (layout.landmark,)
        network = network_of(component, family.configs[component])
        for landmark in (*own, *network.landmarks):
            heads = {name.removesuffix(landmark) for name in names if name.endswith(landmark)}
            heads = {head for head in heads if head in ("",) or head[-1] == "."}
            heads -= {head for head in heads if any(other in head for other in others)}
            if heads:
                best = min(heads, key=lambda h: (not h.endswith(layout.prefix), len(h), h))
                parts[component] = Part(best, landmark in own)
                break
    unet = family.layouts.get("unet")
    if ema and unet and "unet" not in parts and (
            ema_name(f"{unet.prefix}{unet.landmark}") in names):
        parts["unet"] = Part(unet.prefix, True)
    for component, part in parts.items():
        if part.prefix.endswith(family.layouts[component].prefix):
            outer = part.prefix.removesuffix(family.layouts[component].prefix)
            break
    return Contents(family, parts, outer)


def missing_part(path: str, component: str, held: Collection[str]) -> ModelError:
    """The error that says which network is not there and how to name one."""
    word, option = NETWORKS[component].word, component.replace("_", "-")
    held = " and the ".join(NETWORKS[name].word for name in held)
    holds = f", only the {held}" if held else ", nor another whole network of such a model"
    how = f"Name one with {component}= (--{option} PATH): a folder or a .safetensors file"
    if component != "vae" and not component.startswith("text_encoder"):
        how = "Give the file that has it, and this one with vae= or text_encoder="
    return ModelError(f"{path}: there is no {word} in it{holds}. {how}")


def evidence(header: Header) -> Evidence:
    """The marker tensors (v_pred, ztsnr, as ComfyUI, Forge and NoobAI have them) and metadata.

    Raises ModelError for a training whose noise refsd does not compute.
    """
    family, parts, outer = contents(header)
    names = {name.removeprefix(outer) for name in header.tensors}
    if edm := sorted(names & {"edm_mean", "edm_std", "edm_vpred.sigma_max"}):
        raise ModelError(f"{header.path}: trained with EDM's noise (its tensor {edm[0]}), which "
                         "refsd does not compute; give another model")
    said = header.metadata
    unet = parts.get("unet")
    guided = unet and f"{unet.prefix}time_embed.cond_proj.weight" in header.tensors
    guided = guided or (unet and f"{unet.prefix}time_embedding.cond_proj.weight" in header.tensors)

    prediction, because = _of_family(header, family, outer)
    if "v_pred" in names:
        prediction, because = "v_prediction", "its tensor v_pred"
    else:
        for key in ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type"):
            if said.get(key, "").lower() in PREDICTIONS:
                prediction, because = PREDICTIONS[said[key].lower()], f"its metadata {key}"
                break
        else:
            if said.get("ss_v_parameterization", "").lower() == "true":
                prediction, because = "v_prediction", "its metadata ss_v_parameterization"
    zero = "ztsnr" in names or said.get("ss_zero_terminal_snr", "").lower() == "true"
    return Evidence(prediction, zero, bool(guided), because)


def _of_family(header: Header, family: Family, outer: str) -> tuple[str, str]:
    """What a file of a family predicts that does not say it, and why; nothing where it is noise."""
    step, prediction = f"{outer}global_step", family.scheduler.get("prediction_type", "epsilon")
    if family.predictions and step in header.tensors and header.tensors[step].shape in ((), (1,)):
        steps = int(read_tensors(header, names=[step])[step].item())
        if steps in family.predictions:
            return family.predictions[steps], f"its tensor global_step ({steps})"
    return prediction, "" if prediction == "epsilon" else f"its family alone ({family.name})"


def say_rest(header: Header, parts: Mapping[str, Part], outer: str) -> None:
    """One line on the tensors that belong to no part and are none of training."""
    prefixes = tuple(part.prefix for part in parts.values())
    rest = sorted(name for name in header.tensors if not name.startswith(prefixes)
                  and not OF_NO_PART.fullmatch(name.removeprefix(outer)))  # fmt: skip
    if rest:
        shown = ", ".join(ascii(name)[1:-1][:100] for name in rest[:5])
        more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
        logger.warning("%s: ignoring %d tensors of no part: %s%s", header.path, len(rest), shown,
                       more)  # fmt: skip


def adapted(layout: Layout, config: Mapping[str, Any], header: Header, part: Part) -> dict:
    """The config with what the tensors of a part say of it."""
    if layout.adapt is None:
        return dict(config)
    return layout.adapt(config, {name.removeprefix(part.prefix): info
                                 for name, info in header.tensors.items()
                                 if name.startswith(part.prefix)})
