"""Each key of a network's config set to null: refsd reads it as diffusers computes it."""

import json

import diffusers
import pytest
import tiny
import torch
import transformers

from refsd.errors import ModelError
from refsd.networks import NETWORKS, validate

diffusers.utils.logging.set_verbosity(50)
transformers.logging.set_verbosity(50)


def unet(config, folder):
    model = diffusers.UNet2DConditionModel.from_config(config).eval()
    return model(torch.full((1, 4, 8, 8), 0.3), 7, torch.full((1, 5, 16), 0.2)).sample


def vae(config, folder):
    return diffusers.AutoencoderKL.from_config(config).eval().decode(torch.ones(1, 4, 4, 4)).sample


def text_encoder(config, folder):
    (folder / "config.json").write_text(json.dumps(config))
    config = transformers.CLIPTextConfig.from_pretrained(folder)
    ids = torch.tensor([[1, 2, config.eos_token_id]])
    return transformers.CLIPTextModel(config).eval()(ids).last_hidden_state


COMPUTE = {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def outcome(component, config, folder):
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return COMPUTE[component](config, folder)
    except Exception:
        return None


@pytest.mark.parametrize("component, option", [
    (c, o) for c in tiny.CONFIGS for o in NETWORKS[c].options])
def test_null(component, option, tmp_path):
    config = {**tiny.CONFIGS[component], option: None}
    expected = outcome(component, config, tmp_path)
    try:
        read = validate(component, config)
    except ModelError as problem:
        assert f"{option} is None" in str(problem)
        assert expected is None or option in ("scaling_factor",)  # of the VAE, read when drawing
        return
    if expected is not None:
        read = {key: value for key, value in read.items() if value is not None or key in config}
        assert torch.equal(outcome(component, read, tmp_path), expected)
