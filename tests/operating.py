"""What an operator finds in the morning, for the tests of their page: versions, runs, reports, and the page.

`whole_report` is a night's report with everything in it; `log_updates` leaves the metrics of its practice.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from chatbot.config import ServeConfig
from chatbot.following import Answering
from chatbot.pages import theme
from chatbot.pages.operate import build_operate
from data import runs, versions
from data.database import Database
from data.home import Home
from data.records import Person, Run, RunState, Version

NASTY = "<img src=x onerror=alert(1)> ${alert(1)} {{value}}"


def add_version(
    db: Database, name: str, parent: str = "base", *, serve: bool = True, **changes: Any
) -> Version:
    """A version as the trainer leaves it, without files."""
    row: dict[str, Any] = {
        "base_model": "tiny",
        "base_sha256": "0" * 64,
        "path": name,
        "sha256": "1" * 64,
        "status": "accepted",
        "report": {"gate": {"reasons": ["It wins 61 % of 300 replies."]}},
        "run_id": None,
        "rankings": 7,
    }
    version = versions.add(db, name=name, parent=parent, **(row | changes))
    if serve:
        versions.publish(db, name, actor="trainer", reason="It passed the gate.")
    return version


def start_run(db: Database, key: str = "2026-11-21T03:30 UTC", **report: Any) -> Run:
    """A living run."""
    run = runs.claim(db, key, config={"max_kl": 8.0})
    assert run is not None
    if report:
        runs.report(db, run, **report)
    return runs.get(db, run.id)


def end_run(db: Database, run: Run, state: RunState = "published", version: str | None = None) -> Run:
    """The same run when it is over."""
    return runs.finish(db, run, state=state, reason="It wins 61 % of 300 replies.", version=version)


def log_updates(db: Database, run: Run, updates: int = 13, stage: str = "ppo") -> None:
    """A practice that climbs, and in the end over-optimises: the score goes on, the judge does not."""
    for step in range(updates):
        metrics = {
            "score": 0.16 * step,
            "judge": 0.2 * step - 0.012 * step**2,
            "kl": 0.05 * step**2 - 0.02,
            "start_kl": 0.05 * step**2,
            "length": 90.0 - 4 * step,
            "entropy": 1.7 - 0.03 * step,
            "eos_rate": 0.3 + 0.03 * step,
            "distinct_2": 0.6,
            "disagreement": 0.3 + 0.02 * step,
        }
        runs.log(db, run, stage, step, metrics)


def examination(accuracy: float, pairs: int, person: str = "nobody-known") -> dict[str, Any]:
    """A reward model's report with all its keys."""
    return {
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.06, accuracy + 0.06],
        "pairs": pairs,
        "rankings": pairs // 6,
        "held_out": 2 * (pairs // 6),
        "ties": 0.12,
        "always_longest": 0.41,
        "always_first_shown": 0.505,
        "kendall_tau": 0.36,
        "ece": 0.07,
        "reliability": [
            {"confidence": 0.55, "accuracy": 0.52, "pairs": 120},
            {"confidence": 0.75, "accuracy": 0.66, "pairs": 50},
            {"confidence": 0.93, "accuracy": 0.81, "pairs": 9},
        ],
        "score_length_correlation": -0.31,
        "disagreement": 0.28,
        "accuracy_by_person": {person: {"accuracy": 0.71, "pairs": 40}},
        "accuracy_by_source": {"human": {"accuracy": 0.69, "pairs": pairs}},
        "paraphrase_flip_rate": 0.14,
        "paraphrases": 50,
    }


def whole_report(text: str = "A reply.", person: str = "nobody-known") -> dict[str, Any]:
    """The report of a night, as trainer/night.py writes it; `text` is what models and people said in it."""
    side = {"length": 61.2, "eos_rate": 0.62, "empty_rate": 0.0, "duplicate_rate": 0.01, "distinct_2": 0.63}
    probes = {"refusal_rate": 0.05, "perplexity": 17.31, "capability": 0.42, "repetition": 0.03}
    reply = {"prompt": text, "candidate": text, "current": text + "\n\nAnd a second thought."}
    return {
        "parent": "base",
        "reference": None,
        "rankings": 120,
        "parts": {"A": 74, "B": 46},
        "people": 5,
        "winners_direction": -0.3,
        "warm_start": {"is_warm": False, "reason": "No reward models of an earlier night are there."},
        "reward": examination(0.68, 210, person),
        "judge": examination(0.64, 330, person),
        "algorithm": "ppo",
        "ppo": {
            "best_update": 8,
            "updates": 12,
            "stopped": "The reward rose by 0.31 while the judge fell by 0.22.",
            "notes": ["People ranked cut replies too, so no reply is punished for having no end."],
            "samples": {"4": [{"prompt": text, "reply": text, "score": 0.31}]},
        },
        "gate": {
            "passed": True,
            "reasons": ["The judge prefers the candidate on 61% of 300 prompts."],
            "win_rate": 0.61,
            "win_rate_interval": [0.555, 0.662],
            "replies": {"candidate": side, "current": {**side, "length": 103.9, "eos_rate": 0.33}},
            "probes": {"candidate": probes, "current": {**probes, "perplexity": 16.97}},
            "judge": examination(0.64, 330, person),
            "sampling": {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 128},
            "samples": [{**reply, "candidate_score": 0.42, "current_score": -0.1 * i} for i in range(10)],
        },
        "seconds": {"snapshot": 0.2, "reference": 24.6, "reward": 448.4, "judge": 152.7, "ppo": 843.1},
        "peak_memory_gib": 8.56,
        "config": {"max_kl": 8.0},
    }


def obedient(db: Database) -> Callable[[], Answering]:
    """An engine that answers with whatever the database says."""
    return lambda: Answering(versions.serving(db).current)


def built_page(db: Database, home: Home) -> gr.Blocks:
    """The page. Outside a running loop Gradio makes one of its own for each page and never closes it."""

    async def build() -> gr.Blocks:
        return build_operate(db, home, ServeConfig(), obedient(db))

    return asyncio.run(build())


def call(page: gr.Blocks, name: str, person: Person, *values: Any) -> Any:
    """Call one function of the page as Gradio does."""
    function = next(f.fn for f in page.fns.values() if f.fn is not None and f.fn.__name__ == name)
    return function(*values, request=gr.Request(username=person.id, headers={}, cookies={}))


@contextmanager
def served(page: gr.Blocks, person: Person) -> Iterator[str]:
    """The page on a real server, with `person` signed in; its address."""
    app = FastAPI()

    async def mount() -> None:
        gr.mount_gradio_app(
            app,
            page,
            "/operate",
            auth_dependency=lambda request: person.id,
            ssr_mode=False,
            footer_links=[],
            theme=theme.theme(),
            head=theme.head(),
        )

    asyncio.run(mount())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/operate/"
        server.should_exit = True
        thread.join(10)
