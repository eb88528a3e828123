"""The networks of Stable Diffusion, as functions over their checkpoints' trees of arrays.

The parameter names are the checkpoint's names, so Python's own call protocol checks a checkpoint:
a missing or an extra key is a TypeError that names it. No backend is named here.
"""
