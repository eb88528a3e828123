"""Metrics: what they count, in lines that Prometheus reads."""

import asyncio
import re
import sys
import threading
from types import SimpleNamespace

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient
from web_samples import HOME

from refsd.serve.answers import answer
from refsd.serve.app import make_app
from refsd.serve.jobs import Job, Piece, TextJob
from refsd.serve.metrics import SECONDS, Metrics, memory
from refsd.version import __version__

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="[^"\\\n]*",?)+)\})? (\S+)')


def read(text):
    """{name: {labels: value}}, each name after its two lines of description."""
    found, described = {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, about = line.split(" ", 3)
            described.setdefault(name, []).append((kind, about))
            continue
        name, labels, value = SAMPLE.fullmatch(line).groups()
        of = name if name in described else re.sub("_(bucket|sum|count)$", "", name)
        assert [kind for kind, _ in described[of]] == ["HELP", "TYPE"]
        labels = tuple(re.findall('="([^"]*)"', labels or ""))
        assert labels not in found.setdefault(name, {})
        found[name][labels] = float(value)
    return found


def over(state="done", seconds=1.0, pictures=1, made=4):
    return SimpleNamespace(state=state, seconds=seconds, pictures=[None] * pictures, made=made)


def test_nothing_has_happened_yet():
    found = read(Metrics().text())
    assert found["refsd_info"] == {(__version__,): 1}
    assert found["refsd_jobs_total"] == {("done",): 0, ("failed",): 0, ("cancelled",): 0}
    assert found["refsd_queue_jobs"] == found["refsd_drawing_jobs"] == {(): 0}
    assert found["refsd_drawing_seconds_count"] == {(): 0}


def test_jobs_are_counted_by_their_end():
    metrics = Metrics()
    for job in (over(), over(seconds=2.0, pictures=3, made=12), over("failed", pictures=0, made=1),
                over("cancelled", None, 0, 0), over(seconds=1e6)):
        metrics.job(job)
    found = read(metrics.text())
    assert found["refsd_jobs_total"] == {("done",): 3, ("failed",): 1, ("cancelled",): 1}
    assert (found["refsd_pictures_total"], found["refsd_steps_total"]) == ({(): 5}, {(): 21})
    assert found["refsd_drawing_seconds_sum"] == {(): 1000003}
    assert found["refsd_drawing_seconds_count"] == {(): 3}
    buckets = found["refsd_drawing_seconds_bucket"]
    assert list(buckets) == [*((str(end),) for end in SECONDS), ("+Inf",)]
    assert [*buckets.values()] == [0, 1, *[2] * 9, 3]


def test_texts_are_no_pictures():
    metrics, job = Metrics(), TextJob(SimpleNamespace(said={}, count=1))
    job.begin()
    for stopped in ("", "length"):
        job.write(Piece(0, "a", stopped))
    job.end("done")
    metrics.job(job)
    found = read(metrics.text())
    assert (found["refsd_tokens_total"], found["refsd_steps_total"]) == ({(): 2}, {(): 0})
    assert found["refsd_jobs_total"]["done",] == 1
    assert found["refsd_drawing_seconds_count"] == {(): 0}


def test_jobs_that_are_known_are_counted_by_their_state():
    jobs = [Job(SimpleNamespace(said={}, count=1)) for _ in range(4)]
    jobs[0].begin()
    jobs[1].end("done")
    found = read(Metrics().text(jobs))
    assert (found["refsd_queue_jobs"], found["refsd_drawing_jobs"]) == ({(): 2}, {(): 1})


def test_the_steps_of_all_pictures_are_counted():
    job = Job(SimpleNamespace(said={}, count=2))
    for index in range(2):
        job.begin_picture(index, 3)
        assert [job.count_step() for _ in range(3)] == [1, 2, 3]
    assert job.made == 6


def fail(request):
    raise ZeroDivisionError


@pytest.fixture
def client():
    metrics = Metrics()
    routes = [Route("/api/v1/jobs/{id}", lambda request: answer({}), methods=["GET"]),
              Route("/fail", fail)]
    studio = SimpleNamespace(jobs=lambda: [Job(SimpleNamespace(said={}, count=1))])
    return TestClient(make_app(routes, metrics=metrics, studio=studio), HOME)


def requests(client):
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = read(answer.text)
    assert found["refsd_queue_jobs"] == {(): 1}
    return found.get("refsd_requests_total", {})


def test_requests_are_counted_by_route_and_status(client):
    assert requests(client) == {}
    for id in "abc":
        client.get(f"/api/v1/jobs/{id}")
    client.post("/api/v1/jobs/a"), client.get("/fail")
    for path in ("/nowhere", "/%22%0a{}", "/elsewhere"):
        client.get(path)
    client.request("BREW", "/health"), client.get("/health", headers={"host": "evil.example"})
    assert requests(client) == {
        ("GET", "/api/v1/jobs/{id}", "200"): 3, ("POST", "/api/v1/jobs/{id}", "405"): 1,
        ("GET", "/fail", "500"): 1, ("GET", "other", "404"): 3, ("other", "/health", "405"): 1,
        ("GET", "other", "421"): 1, ("GET", "/metrics", "200"): 1}


def test_the_start_and_the_end_are_no_requests():
    async def silent(scope, receive, send):
        pass

    metrics = Metrics()
    asyncio.run(metrics.counting(silent)({"type": "lifespan"}, None, None))
    assert "refsd_requests_total{" not in metrics.text()


def test_who_left_before_the_answer_is_counted():
    metrics = Metrics()

    async def silent(scope, receive, send):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(metrics.counting(silent)({"type": "http", "method": "GET"}, None, None))
    assert read(metrics.text())["refsd_requests_total"] == {("GET", "other", "499"): 1}


def test_threads_count_together():
    metrics, before = Metrics(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [metrics.job(over()) for _ in range(2000)])
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    found = read(metrics.text())
    assert found["refsd_steps_total"] == {(): 8 * 2000 * 4}
    assert found["refsd_drawing_seconds_count"] == {(): 16000}


def test_memory_is_that_of_the_process(tmp_path):
    now = memory()
    assert 20 << 20 < now["resident"] <= now["peak"]
    found = read(Metrics().text())
    assert found["process_resident_memory_bytes"][()] > 20 << 20
    # Linux adds up what each thread counts in batches: a peak may seem a little lower later on.
    assert found["process_peak_memory_bytes"][()] > now["peak"] - (1 << 20)
    assert memory(tmp_path / "none") == {}
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t  10 kB\n")
    assert memory(tmp_path / "status") == {"resident": 10240, "peak": 20480}
