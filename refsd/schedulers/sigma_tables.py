"""sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t): of the training steps, of a run, and back to t.

Every table has the bits of diffusers 0.42.1, as those of noise_schedule.py have.
"""

import math

import numpy as np

from refsd.errors import UsageError


def training_sigmas(alphas_cumprod):
    """sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t).   (T,) -> (T,)"""
    if alphas_cumprod[-1] <= 0:
        raise UsageError(
            "alpha_bar ends at 0, where sigma is infinite; use rescale_betas_zero_snr, which keeps "
            "the last sigma finite, or other betas"
        )
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def interpolate(timesteps, table):
    """The table of the T training steps at fractional timesteps.   (n,), (T,) -> (n,) float64"""
    return np.interp(timesteps, np.arange(len(table)), table)


def karras_sigmas(low, high, steps, rho=7.0):
    """(high^(1/rho) + i/(n-1) (low^(1/rho) - high^(1/rho)))^rho, i = 0..n-1.   -> (n,) float64

    Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    ramp = np.linspace(0, 1, steps)
    high, low = high ** (1 / rho), low ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def exponential_sigmas(low, high, steps):
    """Evenly spaced in log sigma, from high to low.   -> (n,) float64"""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta_sigmas(low, high, steps, alpha=0.6, beta=0.6):
    """low + q (high - low) with q the Beta(alpha, beta) quantiles of 1 .. 0.   -> (n,) float64

    Lee et al. 2024, arXiv:2407.12173.
    """
    from scipy.special import betaincinv  # here, because import refsd must not load SciPy

    return low + betaincinv(alpha, beta, 1 - np.linspace(0, 1, steps)) * (high - low)


def lu_sigmas(low, high, steps):
    """exponential_sigmas once more, from logarithms in float32.   -> (n,) float64

    Lu et al. 2022, arXiv:2206.00927, section 3.4: steps of equal length in lambda.
    """
    high, low = np.log(np.float32([high, low])).tolist()
    return np.exp(high + np.linspace(0, 1, steps) * (low - high))


def shifted(sigmas, shift):
    """s sigma / (1 + (s - 1) sigma), of flow matching (see flow_match.py).   (n,) -> (n,)"""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


SIGMAS = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
    "use_lu_lambdas": lu_sigmas,
}


def chosen_sigmas(config):
    """The one option of SIGMAS that is on, or None; a UsageError if there are two."""
    chosen = [name for name in SIGMAS if config.get(name)]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other; give one")
    return chosen[0] if chosen else None


def sigma_to_timestep(sigma, log_sigmas, dtype=np.float64):
    """The fractional t with log sigma_t = log sigma, interpolated.   (n,) -> (n,) of dtype

    `log_sigmas` is the ascending table of the T training steps; sigmas beyond it get an end of it.
    """
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    low = np.searchsorted(log_sigmas, log_sigma, side="right") - 1
    low = np.clip(low, 0, len(log_sigmas) - 2)
    below, above = log_sigmas[low], log_sigmas[low + 1]
    weight = np.clip((below - log_sigma) / (below - above), 0, 1)
    low = low.astype(dtype)
    return (1 - weight) * low + weight * (low + 1)


def log32(x):
    """The float32 nearest to log x, of float32s; -inf at 0.

    torch's own (Intel MKL) is another float32 in some per cent of the cases, and varies by CPU.
    """
    with np.errstate(divide="ignore"):
        return np.log(np.float64(x)).astype(np.float32)


def exp32(x):
    """The float32 nearest to e^x, of float32s; see log32."""
    return np.exp(np.float64(x)).astype(np.float32)


def expm1_32(x):
    """The float32 nearest to e^x - 1, of one float32; see log32."""
    return np.float32(math.expm1(x))
