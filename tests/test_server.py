"""server.py: who may connect, and for how long without a word. Its life is tried in test_chatbot_cli.py."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from chatbot import server
from tests.waiting import until


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads all that is said and whose answer takes longer than silence may."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await asyncio.sleep(3 * server.SILENT_SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """That of a server on which nobody may be silent for long."""
    monkeypatch.setattr(server, "SILENT_SECONDS", 1.5)
    config = uvicorn.Config(slow, port=0, lifespan="off", http=server._Connection, log_level="critical")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    until(lambda: running.started)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join()


def is_closed(connection: socket.socket) -> bool:
    """By the other side; where it was when our last word came, that is a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\r\nhost: x\r\n", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"],
    ids=["nothing", "half a request", "half a body"],
)
def test_a_connection_that_asks_for_nothing_is_closed(port: int, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(said)
        assert is_closed(connection)


def test_one_that_was_answered_and_begins_again_is_closed_too(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        said = b""
        while not said.endswith(b"hi"):
            said += connection.recv(1000)
        connection.sendall(b"G")  # which ends the time that uvicorn itself gives it
        assert is_closed(connection)


def test_one_that_goes_on_slowly_is_not(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n")
        for _ in range(20):
            time.sleep(0.1)  # two seconds in all
            connection.sendall(b"x")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_one_that_waits_for_its_answer_is_not(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        said = b""
        while more := connection.recv(1000):
            said += more
        assert said.startswith(b"HTTP/1.1 200") and said.endswith(b"hi")


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((1024, 524_288), (65_536, 524_288)),
        ((1024, 4096), (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)),
        ((100_000, 524_288), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_server_takes_as_many_connections_as_its_account_may(
    limits: tuple[int, int], wanted: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: given.append(both))
    server._allow_many_connections()
    assert given == ([wanted] if wanted else [])
