"""Somebody else's port of the bundled model, the mistakes it can make, and the trial of both.

    python -m tests.porter --help

It stands for a port that refsd knows nothing of: channels last, fused kernels, its own names, short
formats. Nothing here imports refsd but what makes golden packs and asks for verdicts (trial.py).
"""
