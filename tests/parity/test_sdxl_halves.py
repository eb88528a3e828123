"""The networks of SDXL in bfloat16 against diffusers and transformers, as in test_halves.py."""

import numpy as np
import torch
from bounds import rms
from diffusers import UNet2DConditionModel
from test_halves import as_array, backend, inputs, judge, narrowed  # noqa: F401  a fixture
from test_models import levels, normal, randomised
from test_sdxl_networks import CLIPS, added, ask, flattened, ids_of
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from refsd.half import HALVES, to_float32
from refsd.models import clip, unet
from refsd.models import config as configs

# configuration, numbers of the text's vector: two levels, of 8 x 8 and 4 x 4
SMALL = {"layers_per_block": 1, "use_linear_projection": True, "attention_head_dim": 2}
IN_A_HALF = {
    "base": (levels([32, 32], [0, 1], transformer_layers_per_block=[1, 4], **SMALL,
                    **added(40, 6, 16)), 40),
    "refiner": (levels([32, 32], [1, 0], transformer_layers_per_block=4, **SMALL,
                       **added(48, 5, 32)), 48),
    "depths a layer": (levels([32, 32], [1, 1], transformer_layers_per_block=[[1], [2]],
                              reverse_transformer_layers_per_block=[[1, 2], [2, 1]], **SMALL,
                              **added(24, 6, 8)), 24),
}  # fmt: skip


def test_unets_in_a_half(backend):  # noqa: F811
    errors, dtype = [], "bfloat16"
    for name, (config, width) in IN_A_HALF.items():
        count = (config["projection_class_embeddings_input_dim"] - width) // config[
            "addition_time_embed_dim"]
        for seed in range(8):
            torch.manual_seed(seed)
            model, found = narrowed(randomised(UNet2DConditionModel(**config)), dtype)
            ids, steps = np.random.default_rng(seed).integers(0, 4097, (1, count)), np.array([500])
            sample, text, vector = inputs(dtype, normal(seed, 1, 4, 8, 8), normal(seed, 1, 20, 48),
                                          normal(seed, 1, width))
            ours = unet.unet(sample, steps, text, **found, text_embeds=vector,
                             time_ids=ids.astype("f4"),
                             config=configs.UNetConfig.from_json(model.config))
            assert ours.dtype == HALVES[dtype]
            wide = [to_float32(x) for x in (sample, text, vector)]
            theirs = ask(model, wide[0], steps, *wide[1:], ids)
            truth = ask(model.double(), wide[0], steps, *wide[1:], ids)
            errors.append((rms(to_float32(ours) - truth), rms(theirs - truth)))
            print(f"  {name}: {errors[-1][0] / errors[-1][1]:.3f}")
    judge(f"UNets, {dtype}, {backend}", errors)


def test_clips_in_a_half(backend):  # noqa: F811
    """The vector, and the penultimate layer's states."""
    errors, ids, dtype = {"vector": [], "states": []}, ids_of(40), "bfloat16"
    for config in CLIPS.values():
        for seed in range(4):
            torch.manual_seed(seed)
            model, found = narrowed(randomised(CLIPTextModelWithProjection(CLIPTextConfig(
                vocab_size=1000, bos_token_id=0, **config))), dtype)
            mine, states = configs.CLIPTextConfig.from_json(model.config.to_dict()), []
            _, vector = clip.clip_text_pooled(ids, **flattened(found), config=mine, states=states)
            narrow, truth = said(model, ids), said(model.double(), ids)
            for part, ours in (("vector", vector), ("states", states[-2])):
                errors[part].append((rms(to_float32(ours) - truth[part]),
                                     rms(narrow[part] - truth[part])))
    for part, found in errors.items():
        judge(f"CLIPs' {part}, {dtype}, {backend}", found)


def said(model, ids):
    with torch.no_grad():
        y = model(torch.from_numpy(ids), output_hidden_states=True)
    return {"vector": as_array(y.text_embeds), "states": as_array(y.hidden_states[-2])}
