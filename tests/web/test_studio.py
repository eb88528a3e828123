"""The studio: its pictures are those of `refsd draw`, and its jobs can be watched and ended."""

import asyncio
import base64
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from web_samples import HOME, await_true

from refsd.__main__ import main
from refsd.cli import draw, output
from refsd.cli.png import read_png
from refsd.cli.recipe import parse_recipe
from refsd.errors import ResourceError
from refsd.serve import drawer, studio
from refsd.serve.app import make_app
from refsd.serve.asked import Limits
from refsd.serve.jobs import Job
from refsd.serve.models import find_models
from refsd.serve.refusals import QueueFull, Refused

BASE = draw.parser().parse_args(["--backend", "numpy"])
SMALL = {"prompt": "a glossy red sphere", "width": 64, "height": 64, "steps": 2, "seed": 5}
PATIENCE = 60  # seconds for what takes one


@pytest.fixture(scope="module")
def models(tiny_model):
    return find_models([str(tiny_model), "bundled"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web") / "made" / "pictures"


@pytest.fixture(scope="module")
def shop(models, folder):
    """One for all tests that leave it as it was."""
    made = studio.Studio(models, folder, base=BASE, limits=Limits(queue=3, history=50), ahead=True)
    yield made
    made.close()


def drawn(shop, **said):
    """The job, when it is over."""
    job = shop.submit(shop.read({**SMALL, **said}))
    assert job.join(PATIENCE)
    return job


class Held:
    """Holds the drawing thread at the end of a step until the test lets it go."""

    def __init__(self, monkeypatch):
        self.reached, self.free = threading.Semaphore(0), threading.Semaphore(0)
        step = drawer._Steps.__call__

        def stopping(own, *said):
            self.reached.release()
            assert self.free.acquire(timeout=PATIENCE)
            step(own, *said)

        monkeypatch.setattr(drawer._Steps, "__call__", stopping)

    def wait(self):
        assert self.reached.acquire(timeout=PATIENCE)

    def go(self, steps=1000):
        self.free.release(steps)


@pytest.fixture
def held(monkeypatch):
    found = Held(monkeypatch)
    yield found
    found.go()


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def command(tmp_path, *words, model):
    """What `refsd draw` makes of the same request."""
    model = [] if model == "bundled" else ["-m", model]
    assert main([SMALL["prompt"], *model, "-W", "64", "-H", "64", "--steps", "2", "-s", "5", "-q",
                 "--backend", "numpy", "-o", f"{tmp_path}/", *words]) == 0


@pytest.mark.parametrize("words, said", [
    ([], {}),
    (["--sampler", "dpm2", "--schedule", "karras", "-n", "blue", "--compat", "a1111",
      "--clip-skip", "1"],
     {"sampler": "DPM2", "schedule": "karras", "negative_prompt": "blue", "compat": "a1111",
      "clip_skip": 1}),
    (["--hires-scale", "2", "--hires-steps", "1"], {"hires_scale": 2, "hires_steps": 1}),
    (["--sampler", "heun", "--variation-strength", "0.5", "--variation-seed", "3"],
     {"sampler": "heun", "variation_strength": 0.5, "variation_seed": 3}),
])
def test_a_picture_is_byte_for_byte_that_of_refsd_draw(shop, model, tmp_path, words, said):
    job = drawn(shop, **said)
    assert (job.state, job.error) == ("done", None)
    command(tmp_path, *words, model=model)
    assert job.pictures[0].png == (tmp_path / "refsd-5.png").read_bytes()


def test_a_batch_counts_the_seed_up(shop, model, folder, tmp_path):
    job = drawn(shop, count=2, seed=7)
    command(tmp_path, "-s", "7", "-b", "2", model=model)
    assert [picture.seed for picture in job.pictures] == [7, 8]
    for picture in job.pictures:
        assert np.array_equal(pixels(picture.path), pixels(tmp_path / f"refsd-{picture.seed}.png"))
        assert picture.path.parent == folder and picture.path.name == picture.name
        assert (picture.width, picture.height) == (64, 64)
        recipe = parse_recipe(read_png(str(picture.path)).texts["refsd"], "it")
        assert recipe.texts()["parameters"] == picture.infotext and recipe.seed == picture.seed
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_no_picture_is_replaced(shop):
    first, second = drawn(shop, seed=30), drawn(shop, seed=30)
    assert first.pictures[0].name == "refsd-30.png" != second.pictures[0].name
    assert first.pictures[0].png == second.pictures[0].png


def test_models_take_turns(shop, tmp_path):
    """The other one's pictures are right, and those before and after the same."""
    first, other, last = drawn(shop), drawn(shop, model="bundled"), drawn(shop)
    assert shop._drawer.model == "tiny"
    command(tmp_path, model="bundled")
    assert other.pictures[0].png == (tmp_path / "refsd-5.png").read_bytes()
    assert last.pictures[0].png == first.pictures[0].png


def test_the_former_model_is_let_go_of_first(shop, monkeypatch):
    import weakref

    drawn(shop)
    pipe, held = weakref.ref(shop._drawer.session.pipe), []
    session = drawer.Session

    def loaded(*said):
        import gc

        gc.collect()
        held.append(pipe())
        return session(*said)

    monkeypatch.setattr(drawer, "Session", loaded)
    drawn(shop, model="bundled", steps=1)
    assert held == [None]


def test_previews_and_progress_are_seen(shop, held):
    job = shop.submit(shop.read({**SMALL, "steps": 3}))
    held.wait()
    assert (job.state, job.position, job.step, job.steps) == ("drawing", 0, 0, 3)
    assert job.preview is None and job.remaining is None and job.started is not None
    held.go(1)
    held.wait()
    assert (job.step, job.index, job.count) == (1, 0, 1)
    image = Image.open(io.BytesIO(job.preview))
    assert image.size == (64, 64) and job.preview is job.preview
    assert 0 < job.remaining < PATIENCE and 0 < job.seconds < PATIENCE
    held.go(2)
    assert job.join(PATIENCE)
    assert job.preview is None and job.remaining == 0 and job.asked is None
    assert job.created <= job.started <= job.ended


def test_previews_come_every_n_steps(shop, monkeypatch):
    shown = []
    monkeypatch.setattr(drawer.Job, "show", lambda job, image: image and shown.append(job.step))
    for every, steps in ((0, []), (1, [1, 2, 3]), (2, [2]), (4, [])):
        shown.clear()
        assert drawn(shop, steps=4, preview=every).state == "done"
        assert shown == steps


def events_of(job):
    async def read():
        return [event async for event in job.events()]

    return asyncio.run(asyncio.wait_for(read(), PATIENCE))


def test_events_tell_all_that_happens(shop, held):
    job = shop.submit(shop.read({**SMALL, "count": 2}))

    async def watch():
        found = []
        async for name, value in job.events():
            found.append((name, value["step"] if isinstance(value, dict) else value))
            if name in ("step", "preview"):
                held.go(1)
        return found

    found = asyncio.run(asyncio.wait_for(watch(), PATIENCE))
    names = [name for name, _ in found]
    assert found[0] == ("state", job) and found[-1] == ("done", job) and names.count("done") == 1
    assert [value for name, value in found if name == "picture"] == job.pictures
    assert {("step", 0), ("step", 1), ("preview", 1)} <= {*found} - {found[0], found[-1]}


def test_events_of_what_is_over_are_its_pictures_and_the_end(shop):
    job = drawn(shop)
    assert events_of(job) == [("picture", job.pictures[0]), ("done", job)]
    asyncio.run(job.wait())


def test_many_listeners_that_leave_are_forgotten(shop, held):
    job = shop.submit(shop.read(SMALL))

    async def listen():
        listeners = [asyncio.ensure_future(job.wait()) for _ in range(50)]
        streams = [job.events() for _ in range(50)]
        for stream in streams:
            assert (await anext(stream))[0] == "state"
        await asyncio.sleep(0)  # the tasks begin
        assert len(job.changes._waiting) == 100
        for stream in streams:
            await stream.aclose()
        for listener in listeners[1:]:
            listener.cancel()
        held.go()
        await asyncio.wait_for(listeners[0], PATIENCE)

    asyncio.run(listen())
    assert job.state == "done" and not job.changes._waiting


def test_a_loop_that_is_gone_stops_nobody(shop, held):
    job = shop.submit(shop.read(SMALL))
    loop = asyncio.new_event_loop()
    stream = job.events()
    loop.run_until_complete(anext(stream))
    loop.close()
    held.go()
    assert job.join(PATIENCE) and job.state == "done"


def test_a_queued_job_is_cancelled_at_once(shop, held):
    first, second, third = (shop.submit(shop.read(SMALL)) for _ in range(3))
    held.wait()
    assert [job.position for job in (first, second, third)] == [0, 1, 2]
    assert shop.cancel(second.id) is second and second.state == "cancelled"
    assert (third.position, second.started, second.pictures) == (1, None, [])
    held.go()
    assert third.join(PATIENCE) and [first.state, third.state] == ["done", "done"]
    assert shop.cancel(first.id).state == "done"


def test_a_job_that_is_drawn_is_cancelled_after_the_step(shop, held, folder):
    before = sorted(folder.iterdir())
    job = shop.submit(shop.read({**SMALL, "steps": 5}))
    held.wait()
    shop.cancel(job.id)
    assert job.state == "drawing"
    held.go(1)
    assert job.join(PATIENCE) and (job.state, job.step, job.error) == ("cancelled", 1, None)
    assert sorted(folder.iterdir()) == before
    assert events_of(job) == [("cancelled", job)]


def test_what_is_cancelled_or_skipped_changes_no_later_picture(shop, model, tmp_path, monkeypatch):
    held = Held(monkeypatch)
    job = shop.submit(shop.read({**SMALL, "sampler": "dpm++2m", "steps": 4, "compat": "a1111"}))
    held.wait()
    held.go(1)
    held.wait()
    shop.cancel(job.id)
    held.go()
    assert job.join(PATIENCE) and job.state == "cancelled"
    job = drawn(shop, sampler="dpm++2m")
    command(tmp_path, "--sampler", "dpm++2m", model=model)
    assert job.pictures[0].png == (tmp_path / "refsd-5.png").read_bytes()


def test_skip_goes_on_with_the_next_picture(shop, held):
    shop.skip()  # of nothing
    job = shop.submit(shop.read({**SMALL, "count": 3, "seed": 60}))
    held.wait()
    shop.skip()
    held.go(1)
    held.wait()
    assert (job.index, job.skip) == (1, False)
    held.go()
    assert job.join(PATIENCE) and job.state == "done"
    assert [picture.seed for picture in job.pictures] == [61, 62]


def test_as_many_wait_as_may(shop, held):
    first = shop.submit(shop.read(SMALL))
    held.wait()
    jobs = [shop.submit(shop.read(SMALL)) for _ in range(3)]
    with pytest.raises(QueueFull) as caught:
        shop.submit(shop.read(SMALL))
    assert caught.value.status == 429 and "3 jobs wait" in str(caught.value)
    assert shop.current is first and shop.jobs()[-4:] == [first, *jobs]
    for job in jobs:
        shop.cancel(job.id)
    held.go()
    assert first.join(PATIENCE)


@pytest.mark.parametrize("problem, code, message", [
    (ResourceError("no place. Free some"), "resource", "no place. Free some"),
    (MemoryError(), "resource", "out of memory"), (ZeroDivisionError("/secret"), "internal",
                                                   "a fault within refsd"),
    (OSError(28, "No space left", "/x"), "disk-full", "/x: No space left"),
])
def test_a_job_that_fails_stops_nothing(shop, monkeypatch, caplog, problem, code, message):
    def failing(*said):
        raise problem

    with monkeypatch.context() as broken:
        broken.setattr(drawer._Steps, "__call__", failing)
        job = drawn(shop)
    assert (job.state, job.error["code"]) == ("failed", code)
    assert job.error["message"].startswith(message) and "secret" not in job.error["message"]
    logged = [record for record in caplog.records if record.exc_info]
    assert bool(logged) == (code == "internal")
    assert events_of(job) == [("failed", job)]
    assert drawn(shop).state == "done"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_its_thread_the_server_is_not_well(models, tmp_path, monkeypatch):
    """It ends by a fault outside of a job alone, which would be one of the studio's own."""
    made = studio.Studio(models, tmp_path, base=BASE)
    client = TestClient(make_app(studio=made), HOME)
    assert client.get("/health").status_code == 200

    def fail(job):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Job, "begin", fail)
    made.submit(made.read(SMALL))
    await_true(lambda: not made.alive)
    answer = client.get("/health")
    assert answer.status_code == 503 and answer.json() == {"error": {
        "code": "studio", "message": "the thread that draws has ended: no job is drawn any more. "
        "Start the server again"}}
    made.close()


def test_what_the_model_cannot_do_is_said_in_the_fields_words(shop):
    job = drawn(shop, clip_skip=40)
    assert job.state == "failed" and job.error["code"] == "usage"
    assert "clip_skip" in job.error["message"] and "--" not in job.error["message"]


def test_what_changes_nothing_is_said(shop):
    job = drawn(shop, cfg_scale=1, negative_prompt="b")
    assert job.state == "done" and "negative-prompt changes nothing" in job.warnings[0]


def test_what_is_odd_about_a_picture_is_said_to_who_sent_it(shop, held):
    """And not to whom a picture is drawn for meanwhile."""
    other = shop.submit(shop.read(SMALL))
    held.wait()
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (9, 9, 9, 9)).save(file, "PNG")
    job = shop.submit(shop.read({**SMALL, "init_image": base64.b64encode(file.getvalue()).decode(),
                                 "strength": 1}))
    held.go()
    assert job.join(PATIENCE) and (job.state, other.state) == ("done", "done")
    assert job.warnings == ["init_image: its transparency is not looked at; its colours are taken"]
    assert other.warnings == []


def test_a_full_disk_fails_the_job_and_says_where_the_picture_is(shop, monkeypatch, folder):
    write = output._write

    def full(data, target):
        if Path(target.path).parent == folder:
            raise OSError(28, "No space left on device")
        return write(data, target)

    with monkeypatch.context() as broken:
        broken.setattr(output, "_write", full)
        job = drawn(shop, count=2)
    assert (job.state, job.error["code"], job.pictures) == ("failed", "disk-full", [])
    assert "No space left on device. The picture of seed 5 is kept as " in job.error["message"]
    kept = Path(job.error["message"].rpartition(" as ")[2])
    assert pixels(kept).shape == (64, 64, 3)
    kept.unlink()
    assert drawn(shop).state == "done"


def test_finished_jobs_are_forgotten(models, tmp_path, monkeypatch):
    ended = []
    made = studio.Studio(models, tmp_path, base=BASE, limits=Limits(history=2, kept=100),
                         ended=ended.append)
    monkeypatch.setattr(drawer.Drawer, "draw", lambda self, job: None)
    jobs = [made.submit(made.read(SMALL)) for _ in range(4)]
    assert jobs[-1].join(PATIENCE)
    assert made.jobs() == jobs[2:] and ended == jobs and made.get(jobs[3].id) is jobs[3]
    with pytest.raises(Refused, match="no job of this id") as caught:
        made.get(jobs[0].id)
    assert caught.value.status == 404
    jobs[2].ended -= 101
    assert made.jobs() == jobs[3:]
    made.close()


def test_who_listens_to_ends_cannot_stop_the_thread(models, tmp_path, monkeypatch):
    made = studio.Studio(models, tmp_path, base=BASE, ended=lambda job: 1 / 0)
    monkeypatch.setattr(drawer.Drawer, "draw", lambda self, job: None)
    assert [drawn(made).state for _ in range(2)] == ["done", "done"]
    made.close()


def test_closing_ends_the_step_and_cancels_the_rest(models, tmp_path, held):
    made = studio.Studio(models, tmp_path, base=BASE)
    jobs = [made.submit(made.read({**SMALL, "count": 2})) for _ in range(2)]
    held.wait()
    held.go(2)
    held.wait(), held.wait()
    threading.Timer(0.2, held.go).start()
    made.close()
    assert not made._thread.is_alive() and [job.state for job in jobs] == ["cancelled"] * 2
    assert len(jobs[0].pictures) == 1 and [*tmp_path.iterdir()] == [jobs[0].pictures[0].path]
    with pytest.raises(Refused) as caught:
        made.submit(made.read(SMALL))
    assert caught.value.status == 503
    made.close()


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(models, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        studio.Studio(models, tmp_path / "file" / "below", base=BASE)


def test_memory_stays_flat(models, tmp_path, monkeypatch):
    """What is held of 300 finished jobs is that of the history, without options and pictures."""
    made = studio.Studio(models, tmp_path, base=BASE, limits=Limits(history=10))
    monkeypatch.setattr(drawer.Drawer, "draw", lambda self, job: None)
    for _ in range(300):
        drawn(made)
    assert len(made.jobs()) == 10 and all(job.asked is None for job in made.jobs())
    made.close()
