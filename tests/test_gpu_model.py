"""The model of a GPU's time: its counts are the networks', its arithmetic is that of the page."""

from collections import Counter

import pytest

pytest.importorskip("greenlet")

from benchmarks import calls, gpu_launches, gpu_model, gpu_occupancy
from benchmarks.gpu.variants import variants
from benchmarks.gpu_launches import Launch
from refsd.numba_ops.cuda.plan import Factory, Plan

CARD = gpu_model.Card("ten of everything", 80, 10, 1e12, 1e11, 1e10)
PRODUCT = Launch("linear", "linear", "mma", 10, 256, 10**9, 10**6, True)


def seconds_of(**changes):
    return gpu_model.time_of(PRODUCT._replace(**changes), CARD)


@pytest.mark.parametrize("part, name", [("clip", "clip"), ("unet", "first step"),
                                        ("decode", "decode")])
def test_no_flop_of_a_network_is_lost_or_counted_twice(part, name):
    found = gpu_launches.launches(name, "float16", 80)
    count, flops, _ = gpu_launches.totals(found)
    planned = calls.work(part)[0]
    assert planned - count < flops <= planned  # shares of several launches are rounded down
    assert not any(launch.flops for launch in found if ".add_" in launch.kernel)  # split sums
    ops = Counter(launch.op for launch in found)
    assert part != "unet" or ops["conv2d"] >= 98 and ops["attention"] >= 32 and ops["linear"] >= 184


def test_text_is_read_once_for_all_steps():
    """Keys and values of 16 layers, which are no part of the later steps."""
    first, other = (gpu_launches.totals(gpu_launches.launches(part, "float16", 80))[1]
                    for part in ("first step", "unet"))
    channels = [320] * 10 + [640] * 10 + [1280] * 12  # a key and a value each
    assert first - other == sum(2 * 2 * 77 * 768 * width for width in channels)


def test_float32_moves_twice_the_bytes_of_halves_in_a_kernel_of_ours():
    moved = {dtype: sum(launch.bytes for launch in gpu_launches.launches("unet", dtype, 80)
                        if launch.op == "silu") for dtype in ("float16", "float32")}
    assert moved["float32"] == 2 * moved["float16"] > 0


def test_a_launch_takes_the_longest_of_its_three_and_a_gap():
    gap, least = gpu_model.ASSUMPTIONS["gap"][0], gpu_model.ASSUMPTIONS["least"][0]
    assert seconds_of() == (pytest.approx(1e9 / (1e12 * 0.75) + gap), "arithmetic")
    assert seconds_of(bytes=10**8) == (pytest.approx(1e8 / (1e10 * 0.9) + gap), "memory")
    assert seconds_of(flops=0, bytes=0) == (pytest.approx(least + gap), "launch")
    # Eleven blocks on ten multiprocessors are two rounds of ten, and half the threads half as fast.
    assert seconds_of(blocks=11)[0] == pytest.approx(1e9 / (1e12 * 0.75 * 0.55) + gap)
    assert seconds_of(threads=128)[0] == pytest.approx(1e9 / (1e12 * 0.75 * 0.5) + gap)
    assert seconds_of(blocks=20, threads=128) == seconds_of()
    # Without tensor cores float32's rate, and another efficiency.
    assert seconds_of(way="tiles")[0] == pytest.approx(1e9 / (1e11 * 0.75) + gap)
    assert seconds_of(way="plain")[0] == pytest.approx(1e9 / (1e11 * 0.06) + gap)
    assert seconds_of(op="silu")[0] == pytest.approx(1e9 / (1e12 * 0.30) + gap)


def test_hopper_multiplies_slower_by_mma_than_by_wgmma():
    card = CARD._replace(capability=90)
    shares = [gpu_model.efficiency(PRODUCT._replace(way=way, op=op), card)
              for way, op in [("wgmma", "linear"), ("mma", "linear"), ("mma", "attention")]]
    assert shares == sorted(shares, reverse=True) == [0.65, 0.47, 0.30]


def test_a_kernel_says_how_it_multiplies_by_the_instructions_that_it_takes():
    def make(gpu, name):
        taken = getattr(gpu, name)
        return Plan(lambda: taken, (), 96)

    factory = Factory(make, (), 80, "")
    assert [gpu_launches.variant(factory, (name,)) for name in ("mma_f16", "load4", "uint32")] == [
        (96, "mma"), (96, "tiles"), (96, "plain")]


def test_blocks_that_a_multiprocessor_holds(monkeypatch):
    """By hand: 110 registers are 112 of a thread, 28672 of 256; 48 KiB and 1 of 164."""
    monkeypatch.setattr(gpu_occupancy, "table", lambda: {"tiles()": {
        "80": {"registers": 110, "shared": 48 << 10}, "90a": {"registers": 40, "shared": 0},
        "75": {"registers": 16, "shared": 0}}})
    assert gpu_occupancy.resident("tiles()", 256, 80) == (2, "registers")
    assert gpu_occupancy.resident("tiles()", 32, 80) == (3, "shared memory")
    assert gpu_occupancy.resident("tiles()", 256, 90) == (6, "registers")
    assert gpu_occupancy.resident("tiles()", 1024, 75) == (1, "threads")
    assert gpu_occupancy.resident("tiles()", 32, 75) == (16, "blocks")
    assert gpu_occupancy.resident("another()", 32, 75) is None
    # Two blocks of 64 threads are half of what hides latencies, whatever waits for a place.
    monkeypatch.setattr(gpu_model, "resident", lambda *_: (2, "registers"))
    assert gpu_model.filled(PRODUCT._replace(blocks=40, threads=64), CARD) == 0.5


@pytest.mark.parametrize("capability", [75, 80, 86, 90])
def test_a_step_launches_declared_variants_only(capability):
    """Those that the gate measures, and that are carried to a machine without a compiler."""
    declared = {name for name, _, _ in variants(capability)}
    for dtype in ("float16", "float32"):
        found = {launch.kernel for launch in gpu_launches.launches("unet", dtype, capability)
                 if not launch.rule}
        assert found and found - declared == set()


def test_nothing_is_read_back_where_nothing_is_computed():
    with pytest.raises(RuntimeError, match="8 bytes would be copied"):
        gpu_launches.Counting(80).download(None, 0, memoryview(b"12345678"))


def test_the_page_has_every_card_and_every_assumption(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu_model.BEGIN}\nold\n{gpu_model.END}\nafter\n")
    monkeypatch.setattr(gpu_model, "PAGE", page)
    gpu_model.main(["--write", "--card", "RTX 3060"])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert all(f"* {name}: {value:g} " in text for name, (value, _) in
               gpu_model.ASSUMPTIONS.items())
    assert "### RTX 3060, float16: a UNet step" in text and "A100" not in text


def test_the_page_is_no_older_than_the_code():
    """python -m benchmarks.gpu_model --write"""
    _, rest = gpu_model.PAGE.read_text().split(gpu_model.BEGIN)
    assert rest.split(gpu_model.END)[0].strip() == gpu_model.page()
