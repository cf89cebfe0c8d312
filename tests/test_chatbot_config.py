"""chatbot/config.py: what a person may turn on the server, and what is refused."""

import math
from typing import Any

import pytest

from chatbot.config import ServeConfig
from data.errors import Refused


def test_the_defaults_serve_this_machine_alone() -> None:
    config = ServeConfig()

    assert (config.host, config.port, config.replies) == ("127.0.0.1", 7860, 4)
    assert config.trainer


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"port": 70_000}, "Port 70000 is out of range"),
        ({"replies": 0}, "Cannot show 0 replies a turn"),
        ({"replies": 10}, "Cannot show 10 replies a turn"),
        ({"compare_share": 1.5}, "1.5 is no share of turns - give --compare-share a number from 0 to 1"),
        ({"compare_share": math.nan}, "nan is no share of turns"),
        ({"max_new_tokens": -1}, "cannot be negative"),
        ({"threads": -1}, "cannot be negative"),
        ({"threads": 16_000}, "There cannot be 16000 threads - use up to 1,024."),
        ({"rows": 0}, "Cannot write 0 replies at a time - give --rows a number from 1"),
        ({"queue": 3}, "A queue of 3 is too short for a few people - give --queue a number from 4"),
        ({"precision": "int4"}, "Precision 'int4' is unknown - use one of auto, float32, bfloat16, int8"),
        ({"precision": "int8", "four_bit": True}, "two ways to one end"),
        ({"engine": "http://gpu1:8000,gpu2:8000"}, "'gpu2:8000' is not the address of a server"),
        ({"engine": "http://[::1:8000"}, "is not the address of a server"),
        ({"engine": "http://gpu1:abc"}, "'http://gpu1:abc' is not the address of a server"),
        ({"proxies": "*"}, "'*' is not the address of a proxy"),
        ({"proxies": "127.0.0.1,"}, "'' is not the address of a proxy"),
        ({"proxies": "10.0.0.2/8"}, "or a network like 172.16.0.0/12"),
        ({"public_url": "https://[::1"}, "is not the address of a site"),
        ({"public_url": "https://example.org:70000"}, "is not the address of a site"),
        ({"public_url": "https://example.org?x"}, "is not the address of a site"),
        ({"public_url": "chat.example.org"}, "is not the address of a site"),
        ({"public_url": "https://example.org/path"}, "is not the address of a site"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        ServeConfig(**changes)


@pytest.mark.parametrize(
    ("typed", "origin"),
    [
        ("https://Chat.Example.org/", "https://chat.example.org"),
        ("https://chat.example.org:443", "https://chat.example.org"),
        ("http://chat.example.org:80", "http://chat.example.org"),
        ("HTTPS://chat.example.org:8443", "https://chat.example.org:8443"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_an_address_is_known_again_as_browsers_name_it(typed: str, origin: str) -> None:
    assert ServeConfig(public_url=typed).origins[-1] == origin
