"""chatbot/config.py: what a person may turn on the server, and what is refused."""

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
        ({"max_new_tokens": -1}, "cannot be negative"),
        ({"threads": -1}, "cannot be negative"),
        ({"precision": "int4"}, "Precision 'int4' is unknown - use one of auto, float32, bfloat16, int8"),
        ({"precision": "int8", "four_bit": True}, "two ways to one end"),
        ({"engine": "http://gpu1:8000,gpu2:8000"}, "'gpu2:8000' is not the address of a server"),
        ({"public_url": "chat.example.org"}, "is not the address of a site"),
        ({"public_url": "https://example.org/path"}, "is not the address of a site"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        ServeConfig(**changes)
