"""/v1 as OpenAI's own client sees it: what it sends, what it parses, and which exceptions it raises."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import (
    APIError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from chatbot.accounts import make_key
from chatbot.basemodel import Base
from chatbot.engine import Engine
from data.database import Database
from data.home import Home
from tests.api import HELLO, Api, running_api, slow_steps
from tests.browser import running_server
from tests.stories import somebody
from tests.waiting import until

ASKED: dict[str, Any] = {"model": "night-school", "messages": HELLO, "max_tokens": 24}


@pytest.fixture
def api(db: Database, engine: Engine, home: Home) -> Iterator[Api]:
    with running_api(db, engine, home) as running:
        yield running


@pytest.fixture
def client(api: Api) -> Iterator[OpenAI]:
    with OpenAI(base_url=api.url, api_key=api.key, max_retries=0) as made:
        yield made


def ask(client: OpenAI, **fields: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(**ASKED | fields)
    return answer


def stream(client: OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(**ASKED | fields, stream=True))


def texts(chunks: list[ChatCompletionChunk], replies: int = 1) -> list[str]:
    """The replies of a stream, put together again."""
    joined = [""] * replies
    for chunk in chunks:
        for choice in chunk.choices:
            joined[choice.index] += choice.delta.content or ""
    return joined


def test_an_answer_names_the_version_that_wrote_it_and_what_it_cost(client: OpenAI, api: Api) -> None:
    answer = ask(client, temperature=0)
    (choice,) = answer.choices
    assert (answer.object, answer.model, choice.message.role) == ("chat.completion", "base", "assistant")
    assert answer.system_fingerprint == f"base-{api.engine.base.sha256[:8]}-float32"
    assert choice.message.content and choice.finish_reason == "length"
    assert answer.usage and answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == len(api.engine.base.format.encode(HELLO))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_a_stream_says_piece_by_piece_what_an_answer_says_at_once(client: OpenAI) -> None:
    asked = {"n": 3, "seed": 7, "max_tokens": 60}
    whole = [choice.message.content for choice in ask(client, **asked).choices]
    chunks = stream(client, **asked)
    assert len(set(whole)) == 3 and texts(chunks, 3) == whole
    assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in chunks[:3])
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(ends) == 3 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_the_same_seed_gives_the_same_reply_whatever_n_is(client: OpenAI) -> None:
    alone = ask(client, seed=11).choices[0].message.content
    beside = [choice.message.content for choice in ask(client, seed=11, n=4).choices]
    assert beside[0] == alone and len(set(beside)) == 4
    assert ask(client, seed=12).choices[0].message.content == beside[1]


@pytest.mark.parametrize("streams", [False, True])
def test_a_reply_ends_before_a_stop_text_and_says_nothing_of_it(client: OpenAI, streams: bool) -> None:
    full = ask(client, seed=3, max_tokens=60).choices[0].message.content or ""
    stops = ["never comes", full[20:24]]
    asked = {"seed": 3, "max_tokens": 60, "stop": stops}
    if streams:
        chunks = stream(client, **asked)
        (text,), finish = texts(chunks), chunks[-1].choices[0].finish_reason
    else:
        (choice,) = ask(client, **asked).choices
        text, finish = choice.message.content or "", choice.finish_reason
    assert (text, finish) == (full[: full.index(stops[1])], "stop")


@pytest.mark.parametrize("streams", [False, True])
def test_every_token_of_the_text_has_its_log_probability(client: OpenAI, streams: bool) -> None:
    asked: dict[str, Any] = {"seed": 5, "logprobs": True, "top_logprobs": 0}
    if streams:
        choices = [choice for chunk in stream(client, **asked) for choice in chunk.choices]
        told = [token for c in choices if c.logprobs for token in c.logprobs.content or []]
        text = "".join(choice.delta.content or "" for choice in choices)
    else:
        (whole,) = ask(client, **asked).choices
        assert whole.logprobs
        told, text = whole.logprobs.content or [], whole.message.content or ""
    assert "".join(token.token for token in told) == text != ""
    assert bytes(byte for token in told for byte in token.bytes or []) == text.encode()
    assert all(token.logprob < 0 and token.top_logprobs == [] for token in told)


def test_the_usage_comes_last_in_a_stream_for_those_who_ask(client: OpenAI) -> None:
    *before, last = stream(client, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage and last.usage.completion_tokens <= 24
    assert all(chunk.usage is None and chunk.choices for chunk in before)


def test_roles_and_parts_that_mean_the_same_are_read_the_same(client: OpenAI) -> None:
    plain = [{"role": "system", "content": "Be brief.\nBe kind."}, *HELLO]
    parts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    other = [{"role": "developer", "content": parts}, {**HELLO[0], "name": "ada"}]
    one, two = (ask(client, messages=messages, temperature=0) for messages in (plain, other))
    assert one.choices[0].message == two.choices[0].message
    assert one.usage == two.usage


def test_a_conversation_goes_on_with_the_answer_as_the_client_holds_it(client: OpenAI) -> None:
    messages: list[Any] = [*HELLO, ask(client).choices[0].message, *HELLO]
    assert ask(client, messages=messages).choices[0].message.role == "assistant"


def test_the_models_are_the_aliases_and_the_versions_in_memory(client: OpenAI, api: Api) -> None:
    api.engine.load("v000001", None)
    assert [model.id for model in client.models.list()] == ["night-school", "current", "base", "v000001"]
    assert client.models.retrieve("v000001").owned_by == "night-school"
    with pytest.raises(NotFoundError, match="No model is called 'gpt-9'"):
        client.models.retrieve("gpt-9")


def test_an_alias_is_whatever_serves_and_an_exact_name_is_that_version(client: OpenAI, api: Api) -> None:
    api.engine.load("v000001", None)
    api.engine.serve("v000001")
    names = ("night-school", "current", "base", "v000001")
    assert [ask(client, model=name).model for name in names] == ["v000001", "v000001", "base", "v000001"]
    with pytest.raises(NotFoundError, match=r"'v000099', and no version that is loaded - use 'night-school'"):
        ask(client, model="v000099")


def test_a_wrong_key_and_a_wrong_request_are_sentences(client: OpenAI) -> None:
    with pytest.raises(AuthenticationError, match="unknown or was revoked - make one at /account/keys"):
        client.with_options(api_key="ns-made-up").models.list()
    with pytest.raises(BadRequestError, match="'n' is 10 - use a whole number from 1 to 9") as refused:
        ask(client, n=10)
    assert (refused.value.param, refused.value.type) == ("n", "invalid_request_error")


def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_again(
    tiny_base: Base, db: Database, home: Home
) -> None:
    engine = Engine(tiny_base, precision="float32", max_waiting=0)
    engine.start()
    with running_api(db, engine, home) as api, OpenAI(base_url=api.url, api_key=api.key) as client:
        with pytest.raises(RateLimitError, match="waiting already - try again") as refused:
            ask(client.with_options(max_retries=0))
        assert refused.value.response.headers["retry-after"] == "2"
    engine.close()


def test_a_server_that_ends_says_so_in_the_middle_of_a_stream(
    client: OpenAI, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_steps(monkeypatch)
    chunks = client.chat.completions.create(**ASKED | {"max_tokens": 900, "temperature": 0}, stream=True)
    next(chunks)
    until(lambda: api.engine.load_now == (1, 0))
    api.engine.close()
    with pytest.raises(APIError, match="The server is shutting down"):
        list(chunks)
    with pytest.raises(InternalServerError, match="shutting down"):
        ask(client)


def test_many_streams_at_once_are_each_whole(api: Api) -> None:
    async def talk() -> list[str]:
        async with AsyncOpenAI(base_url=api.url, api_key=api.key) as client:

            async def one(seed: int) -> str:
                answer = await client.chat.completions.create(**ASKED, seed=seed, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

            return await asyncio.gather(*(one(seed) for seed in range(12)))

    together = asyncio.run(talk())
    alone = [json.loads(api.ask(seed=seed, max_tokens=24, temperature=0.8).text) for seed in range(12)]
    assert together == [answer["choices"][0]["message"]["content"] for answer in alone]


def test_the_server_that_chats_answers_programs_too(db: Database, home: Home, tiny_directory: Path) -> None:
    key, _ = make_key(db, somebody(db))
    with (
        running_server(tiny_directory, home.root, program="tests.endless") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
    ):
        whole = ask(client, seed=1, max_tokens=8)
        assert whole.model == "base" and whole.choices[0].message.content
        assert texts(stream(client, seed=1, max_tokens=8)) == [whole.choices[0].message.content]
        with pytest.raises(NotFoundError, match="no such endpoint"):
            client.embeddings.create(model="base", input="x", encoding_format="float")
        long = client.chat.completions.create(**ASKED | {"max_tokens": 900, "n": 9}, stream=True)
        next(long)
        server.process.terminate()
        with pytest.raises(APIError, match="shutting down"):
            list(long)
        assert server.process.wait(60) == 0
