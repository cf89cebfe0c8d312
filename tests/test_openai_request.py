"""What a request may say, what it means, and the sentence for what it may not."""

import json
from typing import Any

import pytest

from chatbot.openai_errors import Invalid
from chatbot.openai_request import HINTS, NEUTRAL, READ, ChatRequest, read_request
from data.records import Sampling

HELLO = {"role": "user", "content": "Hello"}


def read(**fields: Any) -> ChatRequest:
    return read_request(json.dumps({"model": "base", "messages": [HELLO], **fields}).encode())


def test_what_is_not_said_is_the_projects_default() -> None:
    asked = read()
    assert asked.sampling == Sampling(max_new_tokens=1024)
    assert (asked.replies, asked.seed, asked.stop) == (1, None, ())
    assert not (asked.has_limit or asked.streams or asked.counts_tokens or asked.has_logprobs)
    assert read(**dict.fromkeys([*READ - {"model", "messages"}, *HINTS, *NEUTRAL])) == asked


def test_without_a_seed_every_request_and_reply_has_dice_of_its_own() -> None:
    asked = read(n=9)
    assert len(set(read(n=9).draw_seeds() + asked.draw_seeds())) == 18


def test_what_is_said_is_done() -> None:
    asked = read(
        n=3,
        seed=7,
        temperature=0,
        top_p=0.5,
        max_tokens=9,
        stop="END",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        logprobs=True,
    )
    assert asked.sampling == Sampling(temperature=0.0, top_p=0.5, max_new_tokens=9)
    assert (asked.draw_seeds(), asked.stop) == ([7, 8, 9], ("END",))
    assert asked.has_limit and asked.streams and asked.counts_tokens and asked.has_logprobs


def test_a_share_of_nothing_is_the_likeliest_token_alone() -> None:
    assert 0 < read(top_p=0).sampling.top_p <= 1e-6


def test_the_newer_name_of_the_limit_counts_where_both_are_given() -> None:
    assert read(max_completion_tokens=5).sampling.max_new_tokens == 5
    assert read(max_tokens=9, max_completion_tokens=5).sampling.max_new_tokens == 5


def test_hints_are_left_unread_and_neutral_values_pass() -> None:
    asked = read()
    assert all(read(**{name: "anything"}) == asked for name in HINTS)
    assert all(read(**{name: value}) == asked for name, values in NEUTRAL.items() for value in values)


@pytest.mark.parametrize(
    "name, value",
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", False),
        ("logit_bias", {"50256": -100}),
        ("top_logprobs", 5),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
    ],
)
def test_what_would_change_the_reply_and_cannot_is_refused(name: str, value: Any) -> None:
    with pytest.raises(Invalid, match=f"'{name}' is not supported here") as refused:
        read(**{name: value})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


def test_a_misspelt_parameter_does_not_pass_in_silence() -> None:
    with pytest.raises(Invalid, match="There is no parameter 'temprature' - check how it is written"):
        read(temprature=0)
    with pytest.raises(Invalid, match=r"There is no parameter '\\ud800xxx"):
        read(**{"\ud800" + "x" * 1000: 0})


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": 10},
        {"n": 1.5},
        {"n": True},
        {"seed": "7"},
        {"seed": 2**63},
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 10**400},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_tokens": 1e9},
        {"max_completion_tokens": 100_001},
        {"stream": 1},
        {"logprobs": 5},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": ["include_usage"]},
        {"stream": True, "stream_options": {"include_usage": "yes"}},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": ""},
        {"stop": [7]},
        {"stop": {"text": "x"}},
        {"stop": "x" * 201},
        {"stop": "\ud800"},
        {"stop": ["###", "half \udfff"]},
        {"model": 7},
        {"model": ""},
        {"messages": "Hello"},
        {"messages": {"role": "user"}},
        {"messages": ["Hello"]},
        {"messages": [{"content": "Hello"}]},
        {"messages": [{"role": "tool", "content": "42"}]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 42}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": ["text"]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_a_value_that_makes_no_sense_is_a_sentence(fields: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        read(**fields)
    fact, _, remedy = str(refused.value).partition(" - ")
    assert fact and remedy.endswith(".") and len(fact) < 200
    named = (refused.value.param or "nothing").partition("[")[0]
    assert f'"{named}"' in json.dumps(fields)


def test_a_deep_value_is_refused_like_any_other() -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    with pytest.raises(Invalid, match="'stop' has a list in it"):
        read(stop=[deep])
    with pytest.raises(Invalid, match="a part an object"):
        read(messages=[{"role": "user", "content": [{"type": {"deep": deep}}]}])


def test_messages_become_those_of_the_model() -> None:
    asked = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "name": "x"},
        ]
    )
    assert asked.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
    ]


def test_what_is_wrong_is_named_as_the_client_wrote_it() -> None:
    with pytest.raises(Invalid) as refused:
        read(messages=[HELLO, {"role": "user", "content": None}])
    assert refused.value.param == "messages[1].content"
