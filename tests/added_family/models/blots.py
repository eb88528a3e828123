"""The two networks, as functions over their trees."""

from refsd import functional as F


def words(ids, *, table, proj):
    """silu(W e).   (N, L) -> (N, L, D)"""
    return F.silu(F.linear(F.embedding(ids, **table), **proj))


def blots(sample, timesteps, text, *, blot_in, time, read, blot_out):
    """Each pixel asks the words.   (N, 4, H, W), (N,), (N, L, D) -> (N, 4, H, W)"""
    H, W = sample.shape[2:]
    h = F.timestep_embedding(timesteps, dim=blot_in["weight"].shape[0], flip_sin_to_cos=True,
                             freq_shift=0, dtype=str(sample.dtype))
    temb = F.to_image(F.linear(h, **time), height=1, width=1)

    h = F.to_tokens(F.add(F.conv2d(sample, **blot_in, padding=1), temb))
    k = F.linear(text, **read)
    h = F.to_image(F.add(h, F.attention(h, k, k, heads=2)), height=H, width=W)
    return F.conv2d(h, **blot_out, padding=1)
