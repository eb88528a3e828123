"""The noise schedule: betas, alphas_cumprod and the timesteps that a sampler visits.

With beta_t the variance of the noise added at training step t (Ho et al. 2020, arXiv:2006.11239):

    alpha_bar_t = (1 - beta_0) (1 - beta_1) ... (1 - beta_t)
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

Every table has the bits of diffusers 0.42.1 on torch 2.13.0 (x86 with AVX2). That decides how each
line is written: which steps are float32, which float64, and where a product is not rounded.
docs/schedules.md lists the traps.
"""

import math

import numpy as np


def linspace32(start, end, count):
    """start + i (end - start) / (count - 1) in float32, the bits of torch.linspace.   -> (count,)

    torch rounds the ends and the step to float32, counts from the nearer end, and multiplies and
    adds in one rounding (FMA, on x86 with AVX2). Here the float64 product of a float32 step and i
    is exact, and so is the float64 sum unless the step is 2^29 times smaller than the ends.
    """
    start, end = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([start])
    step = np.float64((end - start) / np.float32(count - 1))
    i = np.arange(count)
    from_start = np.float64(start) + step * i
    from_end = np.float64(end) - step * (count - 1 - i)
    return np.where(i < count // 2, from_start, from_end).astype(np.float32)


def betas(config):
    """beta_t of the configured schedule in float32.   -> (T,)"""
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        beta = np.array(config.trained_betas, dtype=np.float32)
    elif config.beta_schedule == "linear":
        beta = linspace32(start, end, count)
    elif config.beta_schedule == "scaled_linear":
        beta = np.square(linspace32(start**0.5, end**0.5, count))
    elif config.beta_schedule == "exp":
        beta = exponential_betas(count)
    else:
        beta = cosine_betas(count)
    return zero_terminal_snr(beta) if config.get("rescale_betas_zero_snr") else beta


def cosine_betas(count):
    """beta_t = min(1 - f(t + 1) / f(t), 0.999), f(t) = cos^2(pi/2 (t/T + 0.008) / 1.008).

    Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17; in double, then float32.   -> (T,)
    """

    def alpha_bar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return betas_of(alpha_bar, count)


def exponential_betas(count):
    """beta_t of alpha_bar(t) = e^(-12 t / T), all the same: an option of Heun's alone.   -> (T,)"""
    return betas_of(lambda t: math.exp(-12.0 * t), count)


def betas_of(alpha_bar, count, max_beta=0.999):
    """min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), max_beta), in double, then float32."""
    ratios = (alpha_bar((i + 1) / count) / alpha_bar(i / count) for i in range(count))
    return np.array([min(1 - ratio, max_beta) for ratio in ratios], dtype=np.float32)


def cumprod_alphas(beta):
    """alpha_bar_t = prod_{s <= t} (1 - beta_s).   (T,) -> (T,)

    torch.cumprod keeps the running product in double and rounds each stored value to float32.
    """
    alpha = 1 - beta
    return np.cumprod(alpha.astype(np.float64)).astype(np.float32)


def zero_terminal_snr(beta):
    """betas whose alpha_bar keeps its first value and ends at exactly 0.   (T,) -> (T,)

    sqrt(alpha_bar) is shifted and scaled; Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    root = np.sqrt(cumprod_alphas(beta))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))

    alpha_bar = np.square(root)
    alpha = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alpha


def spaced_timesteps(spacing, steps, train, *, offset, last=None, extra=0):
    """Descending timesteps, not rounded for "linspace".   -> (steps,)

    leading: multiples of T // n, plus offset; trailing: T - k T/n - 1; linspace: 0 to T - 1 evenly
    (Lin et al. 2023, table 2). `last` replaces T as the end of the range. With `extra` = 1 one step
    more is made and the smallest left out.
    """
    last = train if last is None else last
    count = steps + extra
    if spacing == "linspace":
        timesteps = np.linspace(0, last - 1, count)[::-1]
    elif spacing == "leading":
        timesteps = (np.arange(count) * (last // count))[::-1] + offset
    else:
        # For 62 of the step counts up to 1000 (61, 103, 121, ...) rounding makes arange one longer,
        # and diffusers visits timestep -1, the noisiest, at the end. refsd leaves that one out.
        timesteps = np.round(np.arange(last, 0, -train / steps)) - 1
        timesteps = timesteps[timesteps >= 0]
    return timesteps[:steps]
