"""Convolution tile by tile in a transformed space: FFT (overlap-save) and Winograd.

Both cut the image into overlapping tiles, transform tile and kernel, multiply (a sum over the
input channels for each transformed coefficient: many small matrix products), and transform back.
A tile of `size` gives `size - k + 1` outputs along each axis, so neighbours overlap by k - 1.
Winograd's matrices are those of Lavin and Gray 2016, "Fast Algorithms for Convolutional Networks".
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft2, next_fast_len, rfft2

# The transformed tiles of one slice of tile rows.
SLICE_BYTES = 16 * 2**20


def fft(x, weight, stride, dilation, groups):
    """Correlation = inverse FFT of (FFT of x times conjugate FFT of the kernel). Any options."""
    weight = _dilate(weight, dilation)
    size = tuple(min(_fast(n), _fast(max(64, 4 * k)))
                 for n, k in zip(x.shape[2:], weight.shape[2:]))

    def inverse(spectrum):
        return irfft2(spectrum, s=size).astype(x.dtype, copy=False)

    y = _tiled(x, np.conj(rfft2(weight, s=size)), weight.shape[2:], groups, size, rfft2, inverse)
    return np.ascontiguousarray(y[:, :, ::stride[0], ::stride[1]])


def winograd2(x, weight, stride, dilation, groups):
    """F(2x2, 3x3): 16 products a tile in place of 36. Stride 1, dilation 1."""
    return _winograd(x, weight, groups, F2)


def winograd4(x, weight, stride, dilation, groups):
    """F(4x4, 3x3): 36 products a tile in place of 144; its rounding error is larger."""
    return _winograd(x, weight, groups, F4)


def _winograd(x, weight, groups, matrices):
    """A^T [(G g G^T) * (B^T d B)] A for each tile d and kernel g"""
    B, G, A = (m.astype(x.dtype) for m in matrices)
    return _tiled(x, G @ weight @ G.T, (3, 3), groups, B.shape,
                  transform=lambda tiles: B @ tiles @ B.T, inverse=lambda sums: A @ sums @ A.T)


def _tiled(x, kernel, taps, groups, size, transform, inverse):
    """The loop they share.   x (N, C, H, W), transformed kernel (O, C / groups, P, Q)"""
    (N, C, H, W), (O, I, P, Q) = x.shape, kernel.shape
    Ho, Wo = H - taps[0] + 1, W - taps[1] + 1
    step = (size[0] - taps[0] + 1, size[1] - taps[1] + 1)
    down, across = math.ceil(Ho / step[0]), math.ceil(Wo / step[1])
    missing = ((down - 1) * step[0] + size[0] - H, (across - 1) * step[1] + size[1] - W)
    x = np.pad(x, ((0, 0), (0, 0), (0, max(0, missing[0])), (0, max(0, missing[1]))))
    tiles = sliding_window_view(x, size, axis=(2, 3))[:, :, ::step[0], ::step[1]]

    matrices = kernel.reshape(groups, O // groups, I, P, Q).transpose(0, 3, 4, 1, 2)
    y = np.empty((N, O, down * step[0], across * step[1]), x.dtype)
    rows = max(1, SLICE_BYTES // (N * C * across * P * Q * kernel.itemsize))
    for i in range(0, down, rows):
        part = transform(tiles[:, :, i:i + rows, :across])
        R = part.shape[2]
        part = part.reshape(N, groups, I, R, across, P, Q).transpose(1, 5, 6, 2, 0, 3, 4)
        # For each coefficient: (O x I) times (I x tiles).
        sums = matrices @ part.reshape(groups, P, Q, I, -1)
        sums = sums.reshape(groups, P, Q, O // groups, N, R, across).transpose(4, 0, 3, 5, 6, 1, 2)
        block = inverse(sums.reshape(N, O, R, across, P, Q))[..., :step[0], :step[1]]
        y[:, :, i * step[0]:(i + R) * step[0]] = block.swapaxes(3, 4).reshape(N, O, R * step[0], -1)
    return y[:, :, :Ho, :Wo]


def _dilate(weight, dilation):
    """The kernel with dilation - 1 zeros between its taps"""
    O, I, kh, kw = weight.shape
    wide = np.zeros((O, I, dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1), weight.dtype)
    wide[:, :, ::dilation[0], ::dilation[1]] = weight
    return wide


def _fast(n):
    return next_fast_len(n, real=True)


# B^T, G, A^T of F(2x2, 3x3): interpolation points 0, 1, -1.
F2 = (
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
# B^T, G, A^T of F(4x4, 3x3): interpolation points 0, 1, -1, 2, -2.
F4 = (
    np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
              [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]),
    np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
              [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]),
    np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
)
