"""The networks against a second implementation, and what must hold whatever the weights are.

Rounding errors are proportional to u. So the float64 run may lie from the truth by what float32
was seen to err, times 2^-29 (the ratio of the two u), times 16: for the truth sums in another
order, errs as much itself, and the largest of a few thousand errors varies by a small factor.
"""

import numpy as np
import pytest
from bounds import assert_within
from golden_port import Port
from golden_port_ops import Ops
from model_samples import CLIPS, UNETS, VAES, added_inputs, tree, values, weights

from refsd import functional as F
from refsd.models import clip, layers, unet, vae

RATIO = 2.0**-29
SIZES = [(8, 8), (4, 12), (5, 7), (9, 6)]


def truth_of(part, config, found):
    """The stand-in port in float64, which shares no code with refsd."""
    return Port(Ops(format="float64"), {part: found}, {part: config})


def same(narrow, wide, truth, what):
    """float64 equals the truth; float32 errs by rounding only, which is at most 1e-4 here."""
    assert narrow.dtype == "float32" and wide.dtype == "float64"
    error = abs(narrow - wide).max()
    assert 0 < error < 1e-4 * abs(truth).max()
    assert_within(wide, truth, 16 * RATIO * error, what)
    return error


def run_unet(config, size, batch, dtype, steps=(3,), seed=0):
    sample = values(1, batch, config.get("in_channels", 4), *size, dtype=dtype)
    width = config["cross_attention_dim"]
    context = values(2, batch, 5, max(width) if isinstance(width, list) else width, dtype=dtype)
    if isinstance(width, list):  # levels without attention have a width that is never read
        context = context[:, :, :width[-1]]
    guided = config.get("time_cond_proj_dim")
    condition = values(3, batch, guided, dtype=dtype) if guided else None
    steps = np.resize(steps, batch)
    found, models_config = tree("unet", config, seed, dtype)
    added = added_inputs(config, batch)
    if added:
        added["text_embeds"] = added["text_embeds"].astype(dtype)
    y = unet.unet(sample, steps, context, **found, config=models_config, timestep_cond=condition,
                  **added)
    truth = truth_of("unet", config, weights("unet", config, seed))
    return y, truth.unet(0, sample, steps, (context, {}), condition,
                         tuple(added.values()) or None)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", SIZES[:3])
def test_unet(name, size):
    config = UNETS[name]
    narrow, _ = run_unet(config, size, 2, "float32", steps=(3, 981))
    wide, truth = run_unet(config, size, 2, "float64", steps=(3, 981))
    assert wide.shape == (2, config.get("out_channels", 4), *size)
    same(narrow, wide, truth, name)


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("size", SIZES)
def test_vae(name, size):
    config, batch = VAES[name], 2
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    channels = config.get("latent_channels", 4)
    image, latents = values(1, batch, 3, *(2 * n for n in size)), values(2, batch, channels, *size)
    results = []
    for dtype in ("float32", "float64"):
        found, models_config = tree("vae", config, dtype=dtype)
        encoder = {key: found[key] for key in ("encoder", "quant_conv") if key in found}
        decoder = {key: found[key] for key in ("decoder", "post_quant_conv") if key in found}
        results.append((*vae.encode(image.astype(dtype), **encoder, config=models_config),
                        vae.decode(latents.astype(dtype), **decoder, config=models_config)))
    truth = truth_of("vae", config, weights("vae", config))
    truths = (*truth.encode(image), truth.decode_each(latents.astype("float64")))
    for narrow, wide, truth in zip(*results, truths):
        same(narrow, wide, truth, name)
    assert results[0][2].shape == (batch, 3, *(scale * n for n in size))


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("skipped", [0, 1])
def test_clip(name, length, skipped):
    config = CLIPS[name]
    ids = np.random.default_rng(0).integers(0, 40, (3, length))
    narrow, wide = (clip.clip_text(ids, **found, config=c, layers_skipped=skipped) for found, c in
                    (tree("text_encoder", config, dtype=t) for t in ("float32", "float64")))
    truth = truth_of("text_encoder", config, weights("text_encoder", config))
    same(narrow, wide, truth.encode_text(0, ids, skipped=skipped), name)


def test_clip_reads_from_left_to_right():
    found, config = tree("text_encoder", CLIPS["quick_gelu"])
    ids = np.random.default_rng(0).integers(0, 40, (1, 10))
    before = clip.clip_text(ids, **found, config=config)
    ids[0, 6] = (ids[0, 6] + 1) % 40
    after = clip.clip_text(ids, **found, config=config)
    assert np.array_equal(before[:, :6], after[:, :6])
    assert np.all(np.any(before[:, 6:] != after[:, 6:], axis=2))


def test_skipping_every_layer_leaves_the_embeddings():
    found, config = tree("text_encoder", CLIPS["gelu"])
    ids = np.array([[3, 1, 2]])
    bare = clip.clip_text(ids, **found, config=config, layers_skipped=2)
    hidden = clip.embed(ids, **found["embeddings"])
    assert np.array_equal(bare, F.layer_norm(hidden, **found["final_layer_norm"], eps=config.eps))


@pytest.mark.parametrize("eos, ids, ends", [
    (2, [[1, 39, 5, 39], [7, 8, 9, 2]], [1, 2]),  # the old rule: the first largest id
    (39, [[1, 39, 5, 39], [7, 8, 39, 2]], [1, 2]),  # the first end of text
    (39, [[1, 2, 3, 4], [39, 0, 0, 0]], [0, 0]),  # none: the first position
])
def test_pooling_takes_the_end_of_the_text(eos, ids, ends):
    config = tree("text_encoder", {**CLIPS["gelu"], "eos_token_id": eos})[1]
    hidden = values(1, 2, 4, 8)
    pooled = clip.pool(hidden, np.array(ids), config=config)
    assert np.array_equal(pooled, hidden[[0, 1], ends])


def wide_and_slack(config, size):
    """A UNet's output in float64, and how far another order of its sums may lie from it.

    As above: that of float64 too is judged by what float32 errs, so no BLAS is asked for bits.
    """
    narrow, wide = (run_unet(config, size, 3, t, steps=(1, 500, 999))[0]
                    for t in ("float32", "float64"))
    return wide, 16 * RATIO * abs(narrow - wide).max()


def test_an_image_in_a_batch_is_the_image_alone():
    config = UNETS["odd widths, heads a level"]
    batch, slack = wide_and_slack(config, (6, 8))
    found, models_config = tree("unet", config, dtype="float64")
    sample, context = values(1, 3, 4, 6, 8, dtype="float64"), values(2, 3, 5, 10, dtype="float64")
    for n in range(3):
        part = slice(n, n + 1)
        alone = unet.unet(sample[part], np.array([1, 500, 999])[part], context[part], **found,
                          config=models_config)
        # NumPy's matrix products may sum in another order for another number of rows
        assert_within(alone, batch[part], slack)


def test_the_order_of_the_text_does_not_matter_but_the_text_does():
    config = UNETS["two levels"]
    straight, slack = wide_and_slack(config, (6, 8))
    found, models_config = tree("unet", config, dtype="float64")
    sample, context = values(1, 3, 4, 6, 8, dtype="float64"), values(2, 3, 5, 10, dtype="float64")
    steps = np.array([1, 500, 999])
    turned = unet.unet(sample, steps, context[:, ::-1], **found, config=models_config)
    assert_within(turned, straight, slack)
    other = unet.unet(sample, steps, context + 1, **found, config=models_config)
    assert abs(other - straight).max() > 1e9 * slack


def test_the_guidance_embedding_is_added_to_the_sinusoids():
    config = UNETS["guidance embedding"]
    found, models_config = tree("unet", config)
    args = values(1, 1, 4, 8, 8), np.array([5]), values(2, 1, 5, 10)
    without = unet.unet(*args, **found, config=models_config)
    zero = unet.unet(*args, **found, config=models_config, timestep_cond=values(3, 1, 6) * 0)
    assert np.array_equal(without, zero)
    some = unet.unet(*args, **found, config=models_config, timestep_cond=values(3, 1, 6))
    assert abs(some - without).max() > 1e-3


def test_a_resnet_without_weights_at_its_end_is_the_identity():
    block = tree("unet", UNETS["two levels"])[0]["down_blocks"][0]["resnets"][0]
    silent = {name: array * 0 for name, array in block["conv2"].items()}
    x, temb = values(1, 2, 8, 5, 6), values(2, 2, 32)
    y = layers.resnet(x, temb, **{**block, "conv2": silent}, groups=4, eps=1e-5)
    assert np.array_equal(y, x)


def test_a_transformer_without_weights_at_its_end_is_the_identity():
    block = tree("unet", UNETS["two levels"])[0]["down_blocks"][0]["attentions"][0]
    silent = {name: array * 0 for name, array in block["proj_out"].items()}
    x, context = values(1, 2, 8, 5, 6), values(2, 2, 5, 10)
    y = layers.transformer(x, context, **{**block, "proj_out": silent}, heads=2, groups=4)
    assert np.array_equal(y, x)


def test_the_posterior():
    mean, logvar, noise = values(1, 2, 4, 3, 3), values(2, 2, 4, 3, 3), values(3, 2, 4, 3, 3)
    assert np.array_equal(vae.sample_posterior(mean, logvar, 0 * noise), mean)
    wide = [a.astype("float64") for a in (mean, logvar, noise)]
    truth = wide[0] + np.exp(wide[1] / 2) * wide[2]
    # e^x 4 u (bounds.EXP), the product 1 u, the sum 1 u
    bound = 2.0**-24 * (5.01 * abs(truth - wide[0]) + abs(truth))
    assert_within(vae.sample_posterior(mean, logvar, noise), truth, bound)


def test_the_logarithm_of_the_variance_is_held_in_its_range():
    found, config = tree("vae", VAES["two levels"])
    loud = {name: array * 1000 for name, array in found["quant_conv"].items()}
    image = values(1, 1, 3, 8, 8)
    mean, logvar = vae.encode(image, encoder=found["encoder"], quant_conv=loud, config=config)
    assert logvar.min() == -30 and logvar.max() == 20
    assert abs(mean).max() > 100
