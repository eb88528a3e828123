"""pipe.stream: the pictures of single calls, in mini-batches, one ahead of the caller."""

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from test_interruption import PIPELINES, control_net, make

import refsd
from refsd.errors import ModelError, UsageError
from refsd.parallel import limit

PROMPTS = ["a red cat", "a cat", "red", "a red red cat"]
SEEDS = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("stream") / "model")


@pytest.fixture
def pipe(folder):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")


@pytest.fixture
def calls(pipe, monkeypatch):
    """The arguments of the pipeline's calls so far."""
    made, real = [], type(pipe).__call__

    def noted(self, *args, **options):
        made.append(options)
        return real(self, *args, **options)

    monkeypatch.setattr(type(pipe), "__call__", noted)
    return made


def options(**more):
    return {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np", **more}


def same(streamed, single):
    assert streamed.images.dtype == single.images.dtype
    assert np.array_equal(streamed.images, single.images)
    assert streamed.seed == single.seed


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_streams_the_bits_of_single_calls(name, ahead, tmp_path, monkeypatch):
    net = control_net(tmp_path, "numba") if "ControlNet" in name else None
    pipe, inputs = make(name, tmp_path / "model", net, monkeypatch, backend="numba")
    common = {"num_inference_steps": 2, "output_type": "np", **inputs}
    single = [pipe(prompt=prompt, generator=seed, **common)
              for prompt, seed in zip(PROMPTS, SEEDS)]
    assert not np.array_equal(single[0].images, single[1].images)
    for batch in (1, 3) if ahead else (2,):
        found = list(pipe.stream(PROMPTS, generator=SEEDS, batch=batch, ahead=ahead, **common))
        assert len(found) == len(single)
        for one, other in zip(found, single):
            same(one, other)


def test_one_call_draws_what_differs_in_texts_and_seeds_alone(pipe, calls):
    wanted = [{"prompt": "a cat", "generator": 1}, {"prompt": "red", "generator": 2},
              {"prompt": "red", "generator": 3, "guidance_scale": 3},
              {"prompt": "a cat", "generator": 4, "guidance_scale": 3},
              {"prompt": "a cat", "negative_prompt": "red", "guidance_scale": 3},
              {"prompt": "a cat", "negative_prompt": "cat", "guidance_scale": 3},
              {"prompt": "a cat", "negative_prompt": None, "guidance_scale": 3},
              {"prompt": "a cat", "num_images_per_prompt": 2},
              {"prompt": "a cat", "num_images_per_prompt": 2},
              {"prompt": ["a cat"]}, {"prompt": ["a cat"]},
              {"prompt": "a cat", "generator": [1]}, {"prompt": "a cat", "generator": [1]},
              {"prompt": "a cat", "latents": np.zeros((1, 4, 2, 2))},
              {"prompt": "a cat", "latents": np.zeros((1, 4, 2, 2))}]
    found = list(pipe.stream(wanted, batch=2, generator=9, **options()))
    assert len(found) == len(wanted)
    assert [call["prompt"] for call in calls] == [
        ["a cat", "red"], ["red", "a cat"], ["a cat", "a cat"], *["a cat"] * 3, ["a cat"],
        ["a cat"], *["a cat"] * 4]
    assert calls[2]["negative_prompt"] == ["red", "cat"] and calls[2]["generator"] == [9, 9]
    assert [one.seed for one in found[:5]] == [1, 2, 3, 4, 9]
    assert [len(one.images) for one in found] == [1] * 7 + [2] * 2 + [1] * 6


def test_lists_that_count_no_pictures_and_shared_objects_are_drawn_together(pipe, calls):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append(len(tensors["latents"]))

    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents"]}
    list(pipe.stream(["a cat"] * 2, batch=2, **options(**more)))
    assert seen == [2, 2] and len(calls) == 1
    list(pipe.stream(["a cat"] * 2, batch=2, **options(negative_prompt=["red"])))
    assert len(calls) == 3


def test_a_picture_to_draw_from_is_shared_a_batch_of_them_and_a_mask_are_not(folder):
    pipe = refsd.StableDiffusionInpaintPipeline.from_pretrained(folder, backend="numba")
    picture, mask = np.zeros((16, 16, 3), np.float32), np.ones((16, 16), np.float32)
    steps = []
    options = {"num_inference_steps": 2, "image": picture, "output_type": "np",
               "callback_on_step_end": lambda *_: steps.append(1)}
    list(pipe.stream(PROMPTS[:2], batch=2, mask_image=mask, **options))
    assert len(steps) == 2 * 2
    pipe = refsd.StableDiffusionImg2ImgPipeline.from_pretrained(folder, backend="numba")
    for image, calls in ((picture, 1), (picture[None], 2), ([picture], 2)):
        steps.clear()
        list(pipe.stream(PROMPTS[:2], batch=2, strength=1.0, **options | {"image": image}))
        assert len(steps) == calls * 2


def test_seeds_are_each_call_s_one_each_or_new(folder):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numba")

    def seeds(generator, batch):
        found = list(pipe.stream(["a cat"] * 3, generator=generator, batch=batch, **options()))
        assert all(np.array_equal(one.images, two.images) == (one.seed == two.seed)
                   for one, two in itertools.combinations(found, 2))
        return [one.seed for one in found]

    for batch in (1, 3):
        assert seeds(7, batch) == seeds(np.int64(7), batch) == [7] * 3
        assert seeds(itertools.count(3), batch) == seeds(np.arange(3, 6), batch) == [3, 4, 5]
        assert len(set(seeds(None, batch))) == 3
    with pytest.raises(UsageError, match=r"generator has none for prompts\[2\]; give one"):
        seeds([1, 2], 1)


def test_outputs_are_those_of_the_call(pipe):
    pipe.safety_checker = lambda images: [bool(image[0, 0, 0] > 0.5) for image in images]
    by_two = list(pipe.stream(PROMPTS[:2], batch=2, generator=1, **options()))
    assert [one.nsfw_content_detected for one in by_two] == [
        pipe(prompt, generator=1, **options()).nsfw_content_detected for prompt in PROMPTS[:2]]
    pictures = list(pipe.stream(PROMPTS[:2], batch=2, **options(output_type="pil",
                                                                return_dict=False)))
    assert [[image.size for image in images] for images, _ in pictures] == [[(16, 16)]] * 2


def test_texts_of_a_dialect_are_drawn_one_by_one(pipe, calls, caplog):
    pipe.dialect = "a1111"
    list(pipe.stream(PROMPTS, batch=4, **options()))
    assert len(calls) == 4 and "batch changes nothing" in caplog.text


@pytest.mark.parametrize("wrong, line", [
    ({"prompts": "a cat"}, "prompts is 'a cat'; give a list of texts, or of dicts"),
    ({"prompts": {"prompt": "a cat"}}, "give a list of texts, or of dicts"),
    ({"prompts": 3}, "prompts is 3; give a list"),
    ({"prompts": [], "batch": 0}, "batch is 0"), ({"prompts": [], "ahead": 1}, "ahead is 1")])
def test_what_cannot_be_is_refused_before_anything_is_drawn(pipe, wanted_error, wrong, line):
    wanted_error(lambda: pipe.stream(**wrong), line)


@pytest.fixture
def wanted_error():
    def check(function, line):
        with pytest.raises(UsageError) as caught:
            function()
        assert line in str(caught.value)

    return check


@pytest.mark.parametrize("ahead", [True, False])
def test_an_error_comes_in_its_picture_s_place(pipe, ahead):
    for bad, line in ((5, r"prompts\[1\] is 5"), ({"prompt": "a cat", "eta": 2}, "eta is 2")):
        stream = pipe.stream(["a cat", bad, "a cat"], ahead=ahead, **options())
        assert next(stream).images.shape == (1, 16, 16, 3)
        with pytest.raises(UsageError, match=line):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
        assert workers() == [] and pipe("a cat", **options())


def workers():
    return [thread for thread in threading.enumerate() if "refsd-stream" in thread.name]


class Steps:
    """A callback that counts steps, tells their threads, and can hold them up."""

    def __init__(self):
        self.threads, self.begun, self.go = [], threading.Event(), threading.Event()

    def __call__(self, pipe, index, timestep, tensors):
        self.threads.append(threading.current_thread())
        if len(self.threads) == 3:  # the first step of the second picture of two steps
            self.begun.set()
            assert self.go.wait(60)


def test_the_next_picture_is_in_work_while_the_caller_has_one(pipe):
    steps = Steps()
    stream = pipe.stream(PROMPTS, **options(callback_on_step_end=steps))
    first = next(stream)
    assert steps.begun.wait(60)  # though nobody has asked for the second
    steps.go.set()
    next(stream)
    third = next(stream)
    assert third.images.shape == first.images.shape
    assert len(steps.threads) >= 6 and threading.main_thread() not in steps.threads
    stream.close()


def test_no_more_than_one_is_drawn_ahead(pipe):
    taken = []
    stream = pipe.stream((taken.append(prompt) or prompt for prompt in itertools.cycle(PROMPTS)),
                         batch=2, **options())
    next(stream)
    while workers() and not all(thread_waits(pipe)):
        pass
    assert len(taken) == 4  # the mini-batch at hand, and the next
    stream.close()


def thread_waits(pipe):
    """Whether the drawing of the second mini-batch is over: its clock has the decoder's time."""
    yield "decode" in pipe.drawing.clock


def test_in_turn_the_caller_s_thread_draws_when_asked(pipe):
    steps = Steps()
    steps.go.set()
    stream = pipe.stream(PROMPTS, ahead=False, **options(callback_on_step_end=steps))
    next(stream)
    assert steps.threads == [threading.main_thread()] * 2 and workers() == []
    assert pipe("a cat", **options())  # between two pictures the pipeline is the caller's


def test_closing_stops_after_a_step_and_leaves_no_thread(pipe):
    steps = Steps()
    stream = pipe.stream(PROMPTS, **options(num_inference_steps=2, callback_on_step_end=steps))
    next(stream)
    assert steps.begun.wait(60) and len(workers()) == 1
    threading.Timer(0.05, steps.go.set).start()
    stream.close()
    assert len(steps.threads) == 3 and workers() == []
    assert len(pipe("a cat", **options()).step_seconds) == 2  # and the next drawing is whole


def test_meanwhile_nobody_else_draws_with_the_pipeline_or_its_sampler(pipe, wanted_error):
    other = refsd.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    picture = np.zeros((16, 16, 3), np.float32)
    stream = pipe.stream(PROMPTS, **options())
    image = next(stream).images
    wanted_error(lambda: pipe("a cat"), "this pipeline is at work on the next picture of a stream")
    wanted_error(lambda: other("a cat", picture), "this pipeline's sampler is at work on the next")
    wanted_error(lambda: next(pipe.stream(PROMPTS)), "give it ahead=False")
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert other("a cat", image, output_type="np", generator=1).images.shape == (1, 16, 16, 3)
    stream.close()
    assert pipe("a cat", **options())


def test_the_caller_s_threads_and_context_hold_for_the_drawing(folder):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numba")
    seen = []

    def look(pipe, *_):
        import numba

        from refsd.numba_ops import memory

        seen.append((limit(), numba.get_num_threads(), memory._allocator.get()))

    from refsd.numba_ops import memory

    def own(size):
        return np.empty(size, np.uint8)

    with refsd.threads(1), memory.allocating_with(own):
        list(pipe.stream(PROMPTS[:2], **options(callback_on_step_end=look)))
    assert seen == [(1, 1, own)] * 4
    assert limit() is None


def test_a_network_that_fails_ends_the_stream(pipe):
    pipe.vae.tree["decoder"]["conv_out"]["bias"] = np.full(3, np.nan, np.float32)
    stream = pipe.stream(PROMPTS, **options())
    with pytest.raises(ModelError, match="decode"):
        next(stream)
    assert workers() == []


ABANDONED = """
import atexit, sys, refsd
pipe = refsd.StableDiffusionPipeline.from_pretrained(sys.argv[1], backend="numpy")
steps = []
stream = pipe.stream([{"prompt": "a cat", "num_inference_steps": 1}, "a cat", "a cat"],
                     num_inference_steps=1000, height=16, width=16,
                     callback_on_step_end=lambda *_: steps.append(1))
next(stream)
atexit.register(lambda: print(len(steps) < 900))
"""


def test_a_stream_that_nobody_closes_does_not_keep_python_from_ending(folder):
    done = subprocess.run([sys.executable, "-c", ABANDONED, folder], capture_output=True, text=True,
                          timeout=240, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
