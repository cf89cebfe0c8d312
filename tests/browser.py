"""A real server in a process of its own and a real Chromium, for the tests of the pages."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from chatbot import accounts
from data import people
from data.database import Database, open_database
from data.home import open_home
from data.records import Person, PersonRole
from tests.stories import a_turn, somebody

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVENTS = "**/queue/join*"
"""Where a page's events go."""
PATIENCE = 60_000
"""Milliseconds that a test waits for what a busy machine may be slow to do, wherever it names no others."""
expect.set_options(timeout=PATIENCE)
ROOT = Path(__file__).parents[1]


@dataclass
class Server:
    """A server that answers, and the lines it has printed."""

    url: str
    process: "subprocess.Popen[str]"


@contextmanager
def running_server(
    model: Path, home: Path, *flags: str, program: Literal["chatbot", "tests.endless"] = "chatbot"
) -> Iterator[Server]:
    """`chatbot serve` on a free port, ready to chat; ended in order afterwards.

    In float32, whatever this machine computes fastest: coarser, a prompt read again and the same prompt
    remembered differ by so much that one seed no longer draws one reply.
    """
    command = [sys.executable, "-m", program, "serve", "--model", str(model), "--no-trainer", "--port", "0"]
    command += ["--precision", "float32"]
    environment = {**os.environ, "NIGHTSCHOOL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    log = home.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *flags], stdout=out, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
        )
    try:
        yield Server(_when_ready(process, log), process)
    finally:
        process.terminate()
        process.wait(PATIENCE / 1000)


@contextmanager
def running_site(
    model: Path, home: Path, *flags: str, program: Literal["chatbot", "tests.endless"] = "chatbot"
) -> Iterator[tuple[Server, Database]]:
    """The same, with its database."""
    with running_server(model, home, *flags, program=program) as server:
        db = open_database(open_home(home))
        yield server, db
        db.close()


def _when_ready(process: "subprocess.Popen[str]", log: Path, seconds: float = 240.0) -> str:
    """The server's address, once /readyz says so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        said = log.read_text()
        if (found := re.search(r"http://127\.0\.0\.1:\d+", said)) and "Ready" in said:
            with urllib.request.urlopen(f"{found[0]}/readyz", timeout=seconds) as answer:
                assert answer.status == 200
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"the server did not become ready:\n{log.read_text()}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Where there is none the test is skipped, in continuous integration it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A signed-in person with a browser of their own, and what their page did."""

    person: Person
    page: Page
    context: BrowserContext
    foreign: list[str] = field(default_factory=list)
    """Requests to other hosts; there must be none."""
    errors: list[str] = field(default_factory=list)
    """Exceptions and error lines of the page's scripts."""

    def start_chat(self) -> None:
        """Wait until the page can be used."""
        self.page.locator(".composer textarea").wait_for()
        self.page.locator(".who .name").wait_for(state="attached")

    def say(self, text: str) -> None:
        """Write a message and send it with Enter."""
        box = self.page.locator(".composer textarea")
        box.fill(text)
        box.press("Enter")

    def wait_until_written(self) -> None:
        """Until every reply on the board is finished."""
        self.page.locator(".card").first.wait_for()
        self.page.locator(".card[aria-busy='true']").first.wait_for(state="detached")


@contextmanager
def before_three(
    browser: Browser,
    site: "tuple[Server, Database]",
    name: str,
    texts: Sequence[str] = ("one", "two", "three"),
) -> Iterator["Visitor"]:
    """Somebody new before the three replies to their one message."""
    chat = a_turn(site[1], somebody(site[1], name), texts)[0].conversation_id
    visitor = visit(browser, *site, name, path=f"/?c={chat}")
    expect(visitor.page.locator(".card")).to_have_count(3, timeout=PATIENCE)
    yield visitor
    visitor.context.close()


def visit(
    browser: Browser,
    server: Server,
    db: Database,
    name: str,
    *,
    role: PersonRole = "user",
    path: str = "/",
    **options: object,
) -> Visitor:
    """Sign `name` in (made here if new) and open the page; `options` are those of a Playwright context."""
    person = people.by_name(db, name) or people.add(db, name, role)
    context = browser.new_context(
        **{"viewport": {"width": 1360, "height": 900}, "locale": "en-US", **options}
    )
    context.add_cookies(
        [{"name": accounts.COOKIE, "value": accounts.open_session(db, person), "url": server.url}]
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    visitor = Visitor(person, page, context)

    def note(request: Request) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            visitor.foreign.append(request.url)

    def fail(error: Error) -> None:
        if not (error.name == "AbortError" and "/assets/" in (error.stack or "")):
            visitor.errors.append(str(error))  # Gradio ends its own streams so when a page is left

    def hear(message: ConsoleMessage) -> None:
        nonlocal is_left
        if message.type != "error":
            return
        is_left |= message.text.startswith("AbortError") and "/assets/" in message.text
        if not is_left:
            visitor.errors.append(message.text)

    def arrive(page: Page) -> None:
        nonlocal is_left
        is_left = False

    is_left = False  # with a stream still open, of which Gradio then says in the console that it was cut
    page.on("request", note)
    page.on("pageerror", fail)
    page.on("console", hear)
    page.on("domcontentloaded", arrive)
    page.goto(server.url + path)
    visitor.start_chat()
    return visitor


def wait_for(page: Page, condition: Callable[[], object]) -> None:
    """Until the condition holds; meanwhile the page lives on."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        page.wait_for_timeout(50)


def is_in_view(page: Page, element: Locator) -> bool:
    """Whether all of it is in view, below the bar and above the box for a message."""
    top, there, bottom = (
        one.bounding_box() for one in (page.locator(".top-bar"), element, page.locator("#composer"))
    )
    assert top and there and bottom
    return top["y"] + top["height"] <= there["y"] and there["y"] + there["height"] <= bottom["y"]
