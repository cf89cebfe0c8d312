"""The life of a server process: take the port, answer at once, load the model, serve, end within ten seconds.

1. Port and home are taken before anything slow, so that a second server fails with a sentence.
2. Sign-in and health answer while Gradio and torch are imported and the model loads.
3. Replies that a crash left unfinished are marked, then the pages open and the trainer starts beside us.
4. On SIGTERM or Ctrl-C: nothing new, streams end and are stored as interrupted, the trainer ends, we end.
"""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.metrics import Metrics
from chatbot.remembered import remember
from chatbot.web import Site, mount_pages, open_site
from data import conversations
from data.database import open_database
from data.errors import Problem
from data.files import lock_at
from data.home import Home, open_home

if TYPE_CHECKING:
    from chatbot.serving import LoadedServer

log = logging.getLogger(__name__)

CONNECTIONS_SECONDS = 2
LAST_RESORT_SECONDS = 9.0
LOOK_SECONDS = 0.5
"""Between two looks at whether the engine is still there."""
SILENT_SECONDS = 30.0
"""Between two looks at a connection: one is closed whose other side has its turn and said nothing since."""
MOST_FILES = 65_536


def run_server(config: ServeConfig) -> int:
    """Serve until told to end; the exit code, 1 where the engine broke. Raises Problem for what a person
    can mend."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("chatbot").setLevel(logging.INFO)  # not others: they tell of every request
    _allow_many_connections()
    home = open_home()
    with _listening(config) as (sock, config), alone(home):
        db = open_database(home, check=True)
        try:
            return asyncio.run(_serve(Site(db, home, config, Metrics(db)), sock))
        finally:
            _end_children()
            db.close()


def _allow_many_connections() -> None:
    """As many open files as this account may have; many systems begin with 1,024, a socket each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _listening(config: ServeConfig) -> Iterator[tuple[socket.socket, ServeConfig]]:
    """The bound port, and the config with the port's real number. Raises Problem where it is taken."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((config.host, config.port))
            sock.listen(2048)
        except (OSError, UnicodeError) as error:
            raise Problem(_why_not(config, error)) from error
        yield sock, replace(config, port=sock.getsockname()[1])


@contextlib.contextmanager
def alone(home: Home) -> Iterator[None]:
    """One server per home: a second would mistake the replies that this one writes for those of a crash.

    Raises Busy where there is one already. The lock goes with the process, however it ends.
    """
    another = (
        f"Another server uses {str(home.root)!r} - stop it, or set NIGHTSCHOOL_HOME to another directory."
    )
    with lock_at(home.root / "serving.lock", 0, another):
        yield


def _why_not(config: ServeConfig, error: Exception) -> str:
    why = getattr(error, "strerror", None) or str(error)
    if "in use" in why:
        return f"Port {config.port} is in use - stop the program that uses it, or choose another with --port."
    if isinstance(error, PermissionError):
        return f"Port {config.port} may not be used by this account - choose one above 1023 with --port."
    return f"Cannot listen on {config.host!r} ({why}) - use an address of this machine with --host."


async def _serve(site: Site, sock: socket.socket) -> int:
    app = open_site(site)
    server = _Server(site, app)
    announce(site)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await _open(app, server, serving)
    finally:
        server.should_exit = True
        await serving
    return int(server.loaded is not None and server.loaded.engine.is_broken)


async def _open(app: FastAPI, server: "_Server", serving: "asyncio.Task[None]") -> None:
    """Load the model, open the pages, and stay until the server has ended."""
    loading = _in_thread(server.load)
    waiting: set[asyncio.Future[Any]] = {loading, serving}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        return  # told to end while loading
    loaded = loading.result()
    mount_pages(app, loaded.turns, loaded.follower)
    async with app.router.lifespan_context(app):
        if loaded.trainer:
            loaded.trainer.start()
        print(f"Ready: version {loaded.engine.version} answers.", flush=True)
        while not serving.done():
            await asyncio.wait([serving], timeout=LOOK_SECONDS)
            if loaded.engine.is_broken and not server.site.is_draining:
                log.error(
                    "The engine broke, so the server ends - start it again where nothing does that by itself."
                )
                server.end()


class _Connection(H11Protocol):
    """One that is closed where it asks for nothing, or not to the end: whoever opens thousands of them must
    not keep others out. Uvicorn itself waits for ever until the first request and within one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_later()

    def data_received(self, data: bytes) -> None:
        self._is_silent = False
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._is_silent = True
        self._silence = self.loop.call_later(SILENT_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        request = self.cycle
        is_answered = request is None or request.response_complete
        is_our_turn = not is_answered and (request.response_started or not request.more_body)
        if is_our_turn or not self._is_silent:
            self._look_later()
        else:
            self.transport.close()


class _Server(uvicorn.Server):
    """Uvicorn, with our signals and with the streams stored before the connections are cut."""

    def __init__(self, site: Site, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                lifespan="off",  # the pages come later; `_open` runs their lifespan
                log_level="critical",
                access_log=False,  # a sign-in link would stand in it
                server_header=False,
                forwarded_allow_ips=site.config.proxies.replace(" ", ""),
                timeout_graceful_shutdown=CONNECTIONS_SECONDS,
            )
        )
        self.site = site
        self.loaded: LoadedServer | None = None

    def load(self) -> "LoadedServer":
        """The slow part, outside the event loop: torch, Gradio and the model."""
        import gradio  # noqa: F401  (so that mounting the pages is quick)

        from chatbot.serving import LoadedServer

        conversations.interrupt_unfinished(self.site.db)  # left by a crash: no other server writes here
        self.loaded = LoadedServer(self.site.db, self.site.home, self.site.config, self.site.metrics)
        return self.loaded

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal ends the server in order, the second at once; uvicorn's own would die of it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Begin to end, in order and within seconds; asked twice, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if not self.site.is_draining:
            self.site.is_draining = True
            last_resort = threading.Timer(LAST_RESORT_SECONDS, _give_up)
            last_resort.daemon = True
            last_resort.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.site.is_draining = True
        if self.loaded:
            await asyncio.to_thread(self.loaded.close, CONNECTIONS_SECONDS)
        await super().shutdown(sockets)


def _in_thread(load: Callable[[], "LoadedServer"]) -> "asyncio.Future[LoadedServer]":
    """Like asyncio.to_thread, in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LoadedServer] = loop.create_future()

    def settle(result: "LoadedServer | None", error: Exception | None) -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        elif result:
            future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = load()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended before the model was there
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return future


def _end_children() -> None:
    """Whatever child is left, such as a download while the model was being fetched."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _give_up() -> None:
    log.error("The server did not end in %d seconds; it is cut off.", LAST_RESORT_SECONDS)
    _end_children()
    os._exit(1)


def announce(site: Site) -> None:
    """Say where we are, for later links too, and how the first operator comes in."""
    address = site.config.public_url.rstrip("/") or site.config.url
    with contextlib.suppress(Problem):  # a full disk: who is asked for a link names the address with --url
        remember(site.home.address, {"url": address})
    print(f"Night School is at {address}", flush=True)
    if token := accounts.make_operator_link(site.db):
        print("Make the operator's account with this link (once, within 24 hours):")
        print(f"  {address}/login?link={token}", flush=True)
