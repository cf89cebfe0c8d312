"""The routes by which data leaves: a person's own, all that may teach, and the deletion of a person."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from chatbot import accounts
from chatbot.pages import account as pages
from chatbot.signin import Field, address_of, html_answer, without_cookies
from chatbot.throttle import Throttle
from data import api_keys, audit, conversations, exchange, people
from data.database import Database
from data.errors import NotFound, Problem
from data.forgetting import NOBODY, forget
from data.home import Home
from data.records import Person

EVERY = 1_000_000


def data_routes(db: Database, home: Home, throttle: Throttle) -> APIRouter:
    """/account/export, /account/delete and /operate/export/FORMAT."""
    router = APIRouter()

    @router.get("/account/export")
    def export_own(request: Request) -> Response:
        """Every conversation and ranking of the person who asks, as one streamed JSON file."""
        person = accounts.require(request)
        return _download(own_data(db, person), f"night-school-{person.id}.json", "application/json")

    @router.post("/account/delete")
    def delete(request: Request, password: Field) -> Response:
        person = accounts.require(request)
        try:
            accounts.confirm_password(db, throttle, person, password, address_of(request))
            stored = people.password_hash(db, person.id)  # it is gone when `check` is called
            done = forget(
                db,
                home,
                person,
                actor=NOBODY,
                check=lambda: accounts.check_still_operated(db, person, stored),
            )
        except Problem as problem:
            return html_answer(pages.account_page(person, delete_problem=str(problem)), problem)
        return without_cookies(html_answer(pages.farewell_page(done)))

    @router.get("/operate/export/{fmt}")
    def export(request: Request, fmt: str) -> Response:
        """What may teach, as `python -m data export` writes it. Raises Refused for a format that is none."""
        person = accounts.require(request, "operator")
        rows = exchange.export_rows(db, fmt)
        audit.record(db, person.name, "export", {"format": fmt})
        return _download(exchange.as_lines(rows), f"night-school-{fmt}.jsonl", "application/jsonl")

    return router


def _download(pieces: Iterator[str], name: str, kind: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return StreamingResponse(pieces, media_type=kind, headers=headers)


def own_data(db: Database, person: Person) -> Iterator[str]:
    """A person's data as pieces of one JSON text, a conversation at a time, with their own rankings."""
    yield f'{{"person": {json.dumps(asdict(person), ensure_ascii=False)}, "conversations": ['
    before = "\n"
    for conversation in conversations.list_for(db, person.id, limit=EVERY):
        try:
            whole = conversations.export(db, conversation.id)
        except NotFound:  # deleted while the file was on its way
            continue
        whole["rankings"] = [row for row in whole["rankings"] if row["person_id"] == person.id]
        yield before + json.dumps(whole, ensure_ascii=False)
        before = ",\n"
    keys = [asdict(key) for key in api_keys.list_for(db, person.id)]
    yield f'], "api_keys": {json.dumps(keys, ensure_ascii=False)}}}\n'
