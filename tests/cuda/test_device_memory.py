"""What a device's memory holds at most, counted by one that computes nothing, as estimated."""

import pytest

import refsd
from refsd.numba_ops.cuda.array import empty
from refsd.numba_ops.cuda.device import Block, on
from refsd.numba_ops.cuda.pool import size_class
from refsd.pipelines import memory


class Counting:
    """Memory that has a size and nothing else."""

    name = "a device that counts"

    def __init__(self, capability=90):
        self.capability, self.used, self.peak = capability, 0, 0

    def allocate(self, nbytes):
        self.used += size_class(nbytes)
        self.peak = max(self.peak, self.used)
        return Block(self, 0, size_class(nbytes))

    def free(self, block):
        self.used -= block.nbytes

    def available(self):
        """Plenty, so that the VAE works in one piece."""
        return 1 << 40

    def nothing(self, *_):
        """Not computed, not copied, not waited for."""

    upload = launch = synchronize = trim = nothing

    def most(self, call):
        """Bytes on top of what is there."""
        before = self.peak = self.used
        call()
        return self.peak - before


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_networks_take_what_is_estimated(dtype):
    """By a factor of 1.5 either way, as on the CPU."""
    size = {"float32": 4, "float16": 2}[dtype]
    with on(Counting()) as device:
        pipe = refsd.StableDiffusionPipeline.from_pretrained(backend="cuda", dtype=dtype)
        width = pipe.text_encoder.tree["final_layer_norm"]["weight"].shape[0]
        weights = memory.weight_bytes(pipe)
        assert weights <= device.used <= 1.125 * weights + 512 * 700  # pieces, however small
        for batch, side in ((2, 16), (4, 24), (2, 64)):
            x, text = empty((batch, 4, side, side), dtype), empty((batch, 16, width), dtype)
            measured = device.most(lambda: pipe.unet(x, 500, text))  # noqa: B023
            estimated = memory.unet_bytes(pipe.unet, side * side, batch, size)
            assert 1 / 1.5 < estimated / measured < 1.5, (batch, side, measured, estimated)
        latents = empty((1, 4, 64, 64), dtype)
        measured = device.most(lambda: pipe.vae.decode(latents))
        estimated = memory.decoder_bytes(pipe.vae, 64 * 64, size)
        assert 1 / 1.5 < estimated / measured < 1.5, (measured, estimated)
