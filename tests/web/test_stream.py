"""Streams of events, and jobs that are waited for: told as they come, left when nobody listens."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from refsd.serve.jobs import Job
from refsd.serve.refusals import Refused
from refsd.serve.stream import Done, ended, events, streamed

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {
    "spec_version": "2.3"}}


def new_job():
    return Job(SimpleNamespace(said={}, count=1))


class Client:
    """Reads an answer until it leaves."""

    def __init__(self):
        self.text, self.start = "", None
        self.left, self.news = asyncio.Event(), asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.start = message
        self.text += message.get("body", b"").decode()
        self.news.set()

    async def seen(self, text):
        while text not in self.text:
            await asyncio.wait_for(self.news.wait(), 30)
            self.news.clear()

    def begin(self, response):
        return asyncio.ensure_future(response(SCOPE, self.receive, self.send))


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def shown(name, value):
    return {"state": value.state} if isinstance(value, Job) else value


async def finished(response):
    client = Client()
    await client.begin(response)
    return client


def test_what_happens_to_a_job_is_told_in_order():
    async def watch():
        job, client = new_job(), Client()
        task = client.begin(events(job, shown))
        await client.seen("queued")
        job.begin()
        await client.seen("drawing")
        job.begin_picture(0, 2)
        job.count_step()
        job.changes.tell()
        await client.seen('"step":1')
        job.end("done")
        await task
        return client

    client = run(watch())
    headers = dict(client.start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"x-accel-buffering"] == b"no" and client.start["status"] == 200
    told = [dict(line.split(": ", 1) for line in each.splitlines())
            for each in client.text.removesuffix("\n\n").split("\n\n")]
    assert [each["event"] for each in told][:2] == ["state", "state"]
    assert told[-1] == {"event": "done", "data": '{"state":"done"}'}
    assert json.loads(told[-2]["data"])["step"] == 1


def test_values_are_json_or_texts_as_they_are():
    async def pairs():
        yield None, {"a": "ä\n"}
        yield "end", Done("[DONE]")

    client = run(finished(streamed(pairs())))
    assert client.text == 'data: {"a":"\\u00e4\\n"}\n\nevent: end\ndata: [DONE]\n\n'


def test_where_nothing_happens_a_comment_is_sent():
    async def watch():
        client, go = Client(), asyncio.Event()

        async def pairs():
            await go.wait()
            yield "a", 1

        task = client.begin(streamed(pairs(), beat=0.01))
        await client.seen(": nothing new\n\n: nothing new\n\n")
        go.set()
        await task
        assert client.text.endswith(": nothing new\n\nevent: a\ndata: 1\n\n")

    run(watch())


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_is_forgotten_at_once(begun):
    """While nothing happens, and when there is an event that it will not see."""
    async def leave():
        job, client = new_job(), Client()
        task = client.begin(events(job, shown))
        await client.seen("queued")
        if begun:
            job.begin()
        client.left.set()
        await task
        return job.changes._waiting

    assert not run(leave())


def test_a_fault_while_telling_forgets_the_listener_too():
    async def fail():
        job = new_job()
        with pytest.raises(ZeroDivisionError):
            await finished(events(job, lambda name, value: 1 / 0))
        return job.changes._waiting

    assert not run(fail())


def asking(client):
    return Request(SCOPE, client.receive, client.send)


def test_a_job_is_waited_for():
    async def wait():
        job, client, cancelled = new_job(), Client(), []
        task = asyncio.ensure_future(ended(job, asking(client), cancelled.append))
        await asyncio.sleep(0.01)
        assert not task.done()
        job.end("done")
        await task
        return cancelled, job.changes._waiting, len(asyncio.all_tasks())

    assert run(wait()) == ([], {}, 2)  # the test's own


@pytest.mark.parametrize("how", ["leaves", "is stopped"])
def test_the_job_of_a_client_that_leaves_is_cancelled(how):
    async def leave():
        job, client, cancelled = new_job(), Client(), []
        task = asyncio.ensure_future(ended(job, asking(client), cancelled.append))
        await asyncio.sleep(0.01)
        client.left.set() if how == "leaves" else task.cancel()
        with pytest.raises(Refused if how == "leaves" else asyncio.CancelledError) as caught:
            await task
        assert how != "leaves" or caught.value.status == 499
        return cancelled == [job.id], job.changes._waiting, len(asyncio.all_tasks())

    assert run(leave()) == (True, {}, 2)


def test_a_job_that_is_over_is_not_cancelled_when_its_client_leaves():
    async def leave():
        job, client, cancelled = new_job(), Client(), []
        job.end("done")
        client.left.set()
        await ended(job, asking(client), cancelled.append)
        return cancelled

    assert run(leave()) == []
