"""What the definitions give of a picture that comes in bands of rows: the very bits of the whole.

A convolution is a matrix product for each slice of rows, whose bits may depend on the slice's size:
so bands are the slices. A group norm's sums are NumPy's pairwise ones: a tree whose leaves are up
to 128 adjacent numbers, here made as they come and then added up along the same tree.
"""

import numpy as np

from refsd.ops import conv

READS_HALVES = False
LEAF = 128  # NumPy's PW_BLOCKSIZE; each half but the last is a multiple of 8


def conv2d_rows(channels, kernel, result, algorithm, itemsize, most):
    """The rows of a band of a convolution's result (N, H', W', O), 0: there are none.

    `most` is for backends whose bits leave the choice.
    """
    if algorithm != "im2col":
        return 0
    N, _, Wo, _ = result  # halves are widened
    return conv.slice_rows(channels * kernel[2] * kernel[3], N * Wo, max(itemsize, 4))


def group_norm(shape, weight, bias, *, groups, eps, bands):
    """The function of a band that normalises it by statistics of all of x (N, C, H, W).

    bands() begins to give x from above; it is called three times, as the definition has three sums.
    """
    N, C, H, W = shape
    count, column = C // groups * H * W, (-1, 1, 1)

    def mean(function):
        total = Sums(N, groups, C // groups, H * W)
        for band in bands():
            total.add(function(_grouped(band, groups)))
        total = total.total()
        return np.true_divide(total, np.intp(count), out=total, casting="unsafe")[..., None, None]

    first = mean(lambda x: x)
    rest = mean(lambda x: x - first)

    def centred(band):
        return (band - first) - rest

    scale = np.sqrt(mean(lambda x: centred(x) * centred(x)) + eps)

    def normalise(band):
        normal = centred(_grouped(band, groups)) / scale
        return normal.reshape(band.shape) * weight.reshape(column) + bias.reshape(column)

    return normalise


def _grouped(band, groups):
    """(N, C, h, W) -> (N, groups, C / groups, h W)"""
    N, C, h, W = band.shape
    return band.reshape(N, groups, C // groups, h * W)


class Sums:
    """Sums over (channels, pixels) of x (N, groups, channels, pixels) that comes in runs of pixels.

    The bits are those of x.reshape(N, groups, -1).sum(axis=-1).
    """

    def __init__(self, N, groups, channels, pixels):
        self.pixels, self.splits = pixels, []
        lengths = np.array([channels * pixels])
        while (lengths > LEAF).any():
            split = lengths > LEAF
            left = np.where(split, lengths // 2 - lengths // 2 % 8, lengths)
            lengths = np.stack([left, lengths - left], 1).ravel()
            lengths = lengths[lengths > 0]
            self.splits.append(split)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.leaves = None
        self.done = np.zeros(len(lengths), bool)
        self.at = np.arange(channels) * pixels  # of what a channel has left over
        self.heads, self.tails = [None] * channels, [None] * channels

    def add(self, x):
        """The next run of pixels of all channels.   (N, groups, channels, n)"""
        if self.leaves is None:
            self.leaves = np.empty((*x.shape[:2], len(self.starts)), x.dtype)
        for c in range(x.shape[2]):
            self._add(c, x[:, :, c])

    def _add(self, c, x):
        """Sum the leaves that end in this run, and keep what is left."""
        at, x = self.at[c], x if self.tails[c] is None else np.concatenate([self.tails[c], x], -1)
        first = np.searchsorted(self.starts, at)
        if self.heads[c] is None and first < len(self.starts) and self.starts[first] <= (
                at + x.shape[-1]):  # what belongs to a leaf that began in a channel before
            head = self.starts[first] - at
            self.heads[c], x, at = x[..., :head], x[..., head:], at + head
        if self.heads[c] is not None:
            stop = np.searchsorted(self.ends, at + x.shape[-1], "right")
            if stop > first:
                self._sum(np.arange(first, stop), x, at)
                x, at = x[..., self.ends[stop - 1] - at:], self.ends[stop - 1]
        self.tails[c], self.at[c] = x.copy(), at

    def _sum(self, which, x, at):
        """The leaves `which`, whose numbers are in x from `at` on."""
        starts, lengths = self.starts[which] - at, (self.ends - self.starts)[which]
        for length in np.unique(lengths):
            of = lengths == length
            rows = x[..., starts[of][:, None] + np.arange(length)]
            self.leaves[..., which[of]] = np.ascontiguousarray(rows).sum(axis=-1)
        self.done[which] = True

    def total(self):
        """The sums.   (N, groups)"""
        ends = [part for pair in zip(self.heads, self.tails) for part in pair if part is not None]
        rest, at = np.concatenate(ends, -1), 0
        for leaf in np.flatnonzero(~self.done):  # those that lie in several channels
            length = self.ends[leaf] - self.starts[leaf]
            self.leaves[..., leaf] = np.ascontiguousarray(rest[..., at:at + length]).sum(axis=-1)
            at += length
        sums = self.leaves
        for split in reversed(self.splits):
            firsts = np.arange(len(split)) + np.cumsum(split) - split
            parent = sums[..., firsts]
            parent[..., split] += sums[..., firsts[split] + 1]
            sums = parent
        return sums[..., 0]
