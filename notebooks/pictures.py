"""Pictures side by side."""

import matplotlib.pyplot as plt
import numpy as np


def show(pictures, labels=(), *, columns=None, side=1.1, rows=(), title=""):
    """A grid of pictures, each under its label, row by row.

    A picture is a PIL image, an array (H, W, 3) in [0, 1], or (H, W), shown in grey from its
    lowest to its highest number. `side` is a picture's in inches, `columns` their number in a row,
    `rows` the names of the rows.
    """
    columns = len(pictures) if columns is None else columns
    lines = -(-len(pictures) // columns)
    size = (columns * side + 0.6 * bool(len(rows)), lines * (side + 0.22) + 0.3 * bool(title))
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, picture in zip(axes.flat, pictures):
        axis.imshow(np.asarray(picture), cmap="gray")
    for axis, label in zip(axes.flat, labels):
        axis.set_title(label)
    for axis, name in zip(axes[:, 0], rows):
        axis.set_ylabel(name)
    if title:
        figure.suptitle(title)
    plt.show()
