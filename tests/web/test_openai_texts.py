"""OpenAI's completions: what each field becomes, and texts by the openai package."""

import asyncio

import httpx
import openai
import pytest
import tiny_gpt2
from openai.types import completion_create_params
from starlette.testclient import TestClient
from web_samples import HOME, PATIENCE, await_true, serving

import refsd
from refsd.cli import draw
from refsd.errors import UsageError
from refsd.serve import native, openai_texts, writer
from refsd.serve import openai as served
from refsd.serve.app import make_app
from refsd.serve.asked import Limits
from refsd.serve.gallery import Gallery
from refsd.serve.models import TextModel, find_all, find_models
from refsd.serve.refusals import Refused
from refsd.serve.studio import Studio

BASE = draw.parser().parse_args(["--backend", "numpy"])
BUNDLED = "bundled-gpt2"


def read(**said):
    return openai_texts.read_texts(said, ["one", "two"], Limits(prompt=100))


def test_the_client_has_no_other_fields():
    fields = completion_create_params.CompletionCreateParamsStreaming.__annotations__
    assert set(fields) <= set(openai_texts.FIELDS)


def test_what_is_not_said_is_as_openai_has_it():
    found = read(prompt="a")
    asked = found.asked
    assert (asked.model, asked.prompt, asked.count, asked.tokens) == ("one", "a", 1, 16)
    assert asked.sampling == {"temperature": 1, "repetition_penalty": 1, "stop": []}
    assert 0 <= asked.seed < 2**32 and asked.seed != read(prompt="a", seed=-1).asked.seed
    assert (found.stream, found.echo, found.usage, found.warnings) == (False, False, False, [])
    assert read().asked.prompt == read(prompt=None).asked.prompt == ""


@pytest.mark.parametrize("said, wanted", [
    ({"model": "two"}, {"model": "two"}), ({"model": ""}, {"model": "one"}),
    ({"prompt": ["b"]}, {"prompt": "b"}), ({"n": 2, "best_of": 2}, {"count": 2}),
    ({"max_tokens": 5.0}, {"tokens": 5}), ({"seed": 7}, {"seed": 7}),
    ({"temperature": 0}, {"seed": None}),
])
def test_fields_become_a_text_jobs(said, wanted):
    asked = read(**said).asked
    assert {name: getattr(asked, name) for name in wanted} == wanted
    assert asked.said == said


@pytest.mark.parametrize("said, wanted", [
    ({"temperature": 0.5, "top_p": 0.9, "top_k": 5}, {"temperature": 0.5, "top_p": 0.9,
                                                      "top_k": 5}),
    ({"top_p": 1, "top_k": 0}, {}), ({"top_k": -1}, {}), ({"repetition_penalty": 1.5},
                                                          {"repetition_penalty": 1.5}),
    ({"stop": "x"}, {"stop": ["x"]}), ({"stop": ["x", "", "y"]}, {"stop": ["x", "y"]}),
    ({"temperature": 0, "top_p": 0.5}, {"temperature": 0}),
    ({"logit_bias": {}, "logprobs": None, "suffix": "", "presence_penalty": 0.0,
      "frequency_penalty": 0, "best_of": 1}, {}),
])
def test_how_tokens_are_chosen(said, wanted):
    assert read(**said).asked.sampling == {"temperature": 1, "repetition_penalty": 1, "stop": [],
                                           **wanted}


def test_what_has_no_effect_is_said():
    assert read(temperature=0, top_p=1, top_k=-1, seed=-1, user="").warnings == []
    found = read(temperature=0, top_p=0, top_k=1, seed=0, user="me", safety_identifier="me")
    assert [line.partition(":")[0] for line in found.warnings] == [
        f"{name} has no effect" for name in ("user", "safety_identifier", "top_p", "top_k", "seed")]


@pytest.mark.parametrize("said, message", [
    ({"max_token": 5}, "/v1/completions has no field 'max_token'; did you mean max_tokens?"),
    ({"max_tokens": 0}, "max_tokens is 0; give an integer"), ({"n": 9}, "n is 9"),
    ({"best_of": 2}, "best_of is 2; all texts are answered"), ({"temperature": -1}, "temperature"),
    ({"temperature": "1"}, "temperature is '1'"), ({"top_p": 2}, "top_p is 2"),
    ({"top_k": -2}, "top_k is -2"), ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"seed": 2**64}, "seed is"), ({"stream": "yes"}, "stream is 'yes'"),
    ({"echo": 2}, "echo is 2"),
    ({"prompt": ["a", "b"]}, "prompt is ['a', 'b']; give one text"),
    ({"prompt": [1, 2]}, "prompt is [1, 2]; give one text"), ({"prompt": 5}, "prompt is 5"),
    ({"prompt": "a" * 101}, "prompt has 101 characters; give at most 100"),
    ({"prompt": "\ud800"}, "give a text"), ({"stop": 5}, "stop is 5; give a text, or a list"),
    ({"stop": ["a"] * 17}, "stop is"), ({"stop": [5]}, "stop is [5]"),
    ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5; refsd has repetition_penalty"),
    ({"presence_penalty": -1}, "presence_penalty is -1"),
    ({"logit_bias": {"5": 1}}, "logit_bias is {'5': 1}; no token is made likelier"),
    ({"logprobs": 0}, "logprobs is 0; probabilities are not told"), ({"suffix": "x"}, "suffix is"),
    ({"user": 5}, "user is 5; give a text"), ({"model": 5}, "model is 5; give a text"),
    ({"stream_options": []}, "stream_options is []"),
    ({"stream_options": {"include_usage": 1}}, "stream_options is"),
    ({"stream_options": {"usage": True}}, "stream_options is"),
])
def test_what_is_refused_is_named(said, message):
    with pytest.raises(UsageError) as caught:
        read(**said)
    assert message in str(caught.value)


def test_a_model_that_writes_none_is_not_found():
    with pytest.raises(Refused, match="'three', which is none .* give one of one, two") as caught:
        read(model="three")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(Refused, match="no model that writes"):
        openai_texts.read_texts({}, {}, Limits())


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return str(tiny_gpt2.write(tmp_path_factory.mktemp("gpt2") / "writer"))


def test_models_that_write_are_found_beside_those_that_draw(gpt2, tiny_model):
    models, writers = find_all()
    assert (list(models), writers) == (["bundled"], {BUNDLED: TextModel(BUNDLED, None, "GPT-2")})
    models, writers = find_all([gpt2, str(tiny_model), gpt2])
    assert list(models) == ["tiny"] and list(find_models([gpt2])) == ["bundled"]
    assert writers == {id: TextModel(id, gpt2, "GPT-2") for id in ("writer", "writer-2")}


@pytest.fixture(scope="module")
def studio(tmp_path_factory, tiny_model, gpt2):
    models, writers = find_all([str(tiny_model)])
    writers |= find_all([gpt2])[1]
    made = Studio(models, tmp_path_factory.mktemp("pictures"), base=BASE, writers=writers)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(studio):
    with serving(make_app(served.routes(studio))) as found:
        yield f"{found}/v1"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


def test_models_that_write_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny", BUNDLED, "writer"]
    assert client.models.retrieve("writer").id == "writer"


@pytest.fixture(scope="module")
def truth():
    return refsd.GPT2.from_pretrained(backend="numpy")


def test_a_text_is_that_of_the_model(client, truth):
    found = client.completions.create(model=BUNDLED, prompt="a glossy", temperature=0)
    wanted = truth.generate("a glossy", max_new_tokens=16)
    assert found.choices[0].text == wanted.continuation and found.choices[0].index == 0
    assert found.choices[0].finish_reason == "stop" == {"end": "stop"}[wanted.stopped]
    assert (found.object, found.model) == ("text_completion", BUNDLED)
    assert found.usage.prompt_tokens == 2 and found.usage.completion_tokens == len(wanted.ids)
    assert found.usage.total_tokens == 2 + len(wanted.ids) and "seed" not in found.model_extra


@pytest.mark.parametrize("stream", [False, True])
def test_texts_are_drawn_by_seeds_that_count_up(client, truth, stream):
    found = client.completions.create(
        model=BUNDLED, prompt="a", temperature=1, seed=5, n=3, top_p=0.9, stop=" on", echo=True,
        max_tokens=4, stream=stream)
    wanted = [truth.generate("a", max_new_tokens=4, temperature=1, generator=seed, top_p=0.9,
                             stop=[" on"]) for seed in (5, 6, 7)]
    if stream:
        chunks = list(found)
        texts = [("".join(chunk.choices[0].text for chunk in chunks
                          if chunk.choices[0].index == index)) for index in range(3)]
        ends = [chunk.choices[0].finish_reason for chunk in chunks
                if chunk.choices[0].finish_reason]
        assert {chunk.seed for chunk in chunks} == {5} and len(chunks) > 3
        assert all(chunk.choices[0].text or chunk.choices[0].finish_reason for chunk in chunks)
    else:
        texts = [choice.text for choice in found.choices]
        ends = [choice.finish_reason for choice in found.choices]
        assert found.seed == 5
    assert texts == [one.text for one in wanted]
    assert ends == ["length" if one.stopped == "length" else "stop" for one in wanted]


def test_a_stream_ends_as_clients_want_it(url):
    found = httpx.post(f"{url}/completions", json={
        "model": BUNDLED, "prompt": "a glossy", "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}})
    assert found.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in found.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert '"choices":[],"usage":{"prompt_tokens":2' in lines[-2] and '"usage":null' in lines[0]


def test_models_take_turns(client):
    first = client.completions.create(model=BUNDLED, prompt="a", temperature=0).choices[0].text
    other = client.completions.create(model="writer", prompt="a", temperature=0).choices[0].text
    assert first != other
    assert client.completions.create(model=BUNDLED, prompt="a",
                                     temperature=0).choices[0].text == first


def test_a_model_is_loaded_once(gpt2):
    made = writer.Writer(find_all([gpt2])[1], BASE)
    made.load("writer")
    first = made.gpt2
    made.load("writer")
    assert made.gpt2 is first


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_has_no_room_for_is_said_in_the_fields_words(client, stream):
    with pytest.raises(openai.APIError) as caught:
        list(client.completions.create(model=BUNDLED, prompt="a glossy", max_tokens=200,
                                       stream=stream))
    assert "max_tokens is 200, after the prompt's 2 tokens" in caught.value.message
    assert stream or isinstance(caught.value, openai.BadRequestError)


def test_a_model_that_draws_writes_nothing(client):
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.completions.create(model="tiny", prompt="a")


def test_what_is_wrong_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="logprobs is 5"):
        client.completions.create(model=BUNDLED, prompt="a", logprobs=5)


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_cancels_the_job(url, studio, monkeypatch, stream):
    waiting = writer.TextJob.write

    def slow(job, piece):
        waiting(job, piece)
        await_true(lambda: job.stop)

    monkeypatch.setattr(writer.TextJob, "write", slow)

    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            task = asyncio.ensure_future(client.completions.create(
                model=BUNDLED, prompt="a glossy", stream=stream, max_tokens=20, n=8, seed=1))
            if stream:
                await anext(events := await task)
            await asyncio.to_thread(await_true, lambda: getattr(studio.current, "pieces", ()))
            job = studio.current
            if stream:
                await events.close()
            else:
                task.cancel()
            await asyncio.wait_for(job.wait(), PATIENCE)
            return job

    job = asyncio.run(ask())
    assert job.state == "cancelled" and len(job.pieces) == 1


def test_texts_wait_for_pictures_in_one_queue(studio):
    """In the order in which they came, in one thread."""
    routes = native.routes(studio, Gallery(studio.folder), body=1)
    drawn = studio.submit(studio.read({"prompt": "a", "width": 64, "height": 64, "steps": 2}))
    asked = openai_texts.read_texts({"prompt": "a", "seed": 1}, studio.writers, Limits()).asked
    written = studio.submit(asked)
    again = studio.submit(studio.read({"prompt": "a", "width": 64, "height": 64, "steps": 2}))
    assert again.join(PATIENCE)
    assert [job.state for job in (drawn, written, again)] == ["done"] * 3
    assert drawn.ended <= written.started <= written.ended <= again.started
    with TestClient(make_app(routes), base_url=HOME) as client:
        shown = [job["id"] for job in client.get("/api/v1/jobs").json()["jobs"]]
    assert {drawn.id, again.id} <= {*shown} and written.id not in shown
    assert written.pictures == [] and written.step == len(written.pieces) and not written.asked


def test_a_server_without_a_model_that_writes_says_so(tmp_path, tiny_model):
    made = Studio(find_models([str(tiny_model)]), tmp_path, base=BASE)
    with TestClient(make_app(served.routes(made)), base_url=HOME) as client:
        found = client.post("/v1/completions", json={"prompt": "a"})
    made.close()
    assert found.status_code == 404 and "no model that writes" in found.json()["error"]["message"]
