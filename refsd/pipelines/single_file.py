"""The scheduler of a single file, which carries none: what its tensors and metadata say."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.families import NOISE
from refsd.schedulers import from_config
from refsd.weights.header import FLOATS, Header, read_header
from refsd.weights.reader import read_tensors
from refsd.weights.single import PREDICTIONS, contents, evidence

logger = logging.getLogger(__name__)

# That of the LCM folders (LCM_Dreamshaper_v7).
LCM_SCHEDULER = {"_class_name": "LCMScheduler", **NOISE, "clip_sample": False}
# Lin et al. 2023: noise to the end, and steps that begin there. PNDM has no such option.
ZERO_SNR_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    **NOISE,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def scheduler_of_file(path: Path) -> dict[str, Any]:
    """The scheduler config that a file's family and evidence ask for.

    A line says what is predicted where that is not plain noise, or where the file says it.
    """
    header = read_header(path)
    family, _, outer = contents(header)
    own = family.scheduler_for(header.metadata)
    if own is not family.scheduler:
        logger.warning("%s: its metadata say that it is distilled: drawn with %s; scheduler= "
                       "(--sampler) overrules", path, own["_class_name"])
    if "beta_schedule" not in own:  # its steps follow no noise, and there is one thing to predict
        return dict(own)
    signs = evidence(header)
    config = LCM_SCHEDULER if signs.lcm else own
    if signs.zero_snr:
        config = ZERO_SNR_SCHEDULER
    config = {**config, "prediction_type": signs.prediction}
    if signs.because or signs.zero_snr:
        zero = ", with noise to the end (zero terminal SNR)" if signs.zero_snr else ""
        why = f", says {signs.because}" if signs.because else ""
        logger.warning("%s: predicts %s%s%s; prediction_type= (--prediction) overrules", path,
                       signs.prediction, why, zero)
    if not signs.zero_snr:
        _compare_noise(header, f"{outer}alphas_cumprod", config, family.name)
    return config


def predicting(config: Mapping[str, Any], wanted: str | None) -> dict[str, Any]:
    """The config with what the caller says is predicted: epsilon, v or sample."""
    if wanted is None:
        return dict(config)
    if not isinstance(wanted, str) or wanted.lower() not in PREDICTIONS:
        raise UsageError(f"prediction_type is {shown(wanted)}; give epsilon, v_prediction (v) or "
                         "sample")
    found = {**config, "prediction_type": PREDICTIONS[wanted.lower()]}
    if found["prediction_type"] == "epsilon" and found.get("rescale_betas_zero_snr"):
        found["rescale_betas_zero_snr"] = False  # noise alone says nothing of x_0 there
    return found


def _compare_noise(header: Header, name: str, config: Mapping[str, Any], family: str) -> None:
    """One line where the training's own buffer holds another noise than is drawn with.

    2^-8 is two roundings to bfloat16 of a number below 1: files are stored in half.
    """
    info = header.tensors.get(name)
    steps = config["num_train_timesteps"]
    if info is None or info.dtype not in FLOATS or info.shape != (steps,):
        return
    stored = read_tensors(header, dtype="float64", names=[name])[name]
    apart = np.abs(stored - np.asarray(from_config(config).alphas_cumprod, "float64")).max()
    if not apart <= 2.0**-8:
        logger.warning("%s: its buffer %s holds another noise (%.4f at the end) than %s's, "
                       "which is drawn with; if it was trained so, replace the scheduler",
                       header.path, name, stored[-1], family)
