"""From what the model predicts (eps, x0 or v) to x0 and eps, and keeping x0 in range.

    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps
    v   = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0

v is that of Salimans and Ho 2022, arXiv:2202.00512.
"""

import numpy as np

from refsd.errors import UsageError
from refsd.places import beside, is_on_device, on_host


def to_x0(kind, output, x, alpha_bar):
    """x0 from the model's output at x_t."""
    signal, noise = float(np.sqrt(alpha_bar)), float(np.sqrt(1 - alpha_bar))
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return signal * x - noise * output
    if signal == 0:
        raise UsageError(
            "a predicted epsilon says nothing about x0 where alpha_bar is 0 (the last step under "
            "rescale_betas_zero_snr); use a v_prediction model, or timestep_spacing leading"
        )
    return (x - noise * output) / signal


def to_eps(kind, output, x, alpha_bar):
    """eps from the model's output at x_t."""
    signal, noise = float(np.sqrt(alpha_bar)), float(np.sqrt(1 - alpha_bar))
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return signal * output + noise * x
    if noise == 0:
        raise UsageError(
            "a predicted x0 says nothing about the noise where alpha_bar is 1 (the first step of "
            "DDIM inversion); use set_alpha_to_one=False, or a model that predicts epsilon"
        )
    return (x - signal * output) / noise


def keep_in_range(x0, config):
    """x0 thresholded or clipped as configured, else x0 itself."""
    if config.thresholding:
        return threshold(x0, config)
    if config.clip_sample:
        return x0.clip(-config.clip_sample_range, config.clip_sample_range)
    return x0


def threshold(x0, config):
    """clip(x0, -s, s) / s, s a high quantile of |x0| in each sample, kept from 1 to a maximum.

    Dynamic thresholding, Saharia et al. 2022, arXiv:2205.11487, section 2.3. Quantiles are found on
    the host: there and back, from a device.
    """
    if is_on_device(x0):
        return beside(x0, threshold(on_host(x0), config))
    flat = x0.reshape(len(x0), -1)
    s = quantile(np.abs(flat), config.dynamic_thresholding_ratio)
    s = np.clip(s, 1, config.sample_max_value)[:, None]
    return (np.clip(flat, -s, s) / s).reshape(x0.shape)


def quantile(x, ratio):
    """The linearly interpolated quantile of each row, the bits of torch.quantile.   (N, K) -> (N,)

    torch finds the rank in x's own dtype, then goes from the nearer neighbour in one rounding.
    """
    x = np.sort(x, axis=1)
    rank = x.dtype.type(ratio) * (x.shape[1] - 1)
    low = int(rank)
    below, above = x[:, low], x[:, min(low + 1, x.shape[1] - 1)]
    weight = rank - low
    if weight < 0.5:
        start = below
    else:
        start, weight = above, weight - 1
    return (start + np.float64(weight) * (above - below)).astype(x.dtype)
