"""API keys of people: how one is made and recognised, and the page on which its owner looks after them.

A key is `ns-` and 32 random bytes, shown once. Whoever carries it counts as its owner, with their role, at
/v1 and nowhere else: a key opens no page, and a cookie opens nothing below /v1, so no other site can act for
anybody there. The page is a plain form without a script, like the account's.
"""

import secrets

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.pages import account as pages
from chatbot.signin import Field
from data import api_keys
from data.api_keys import ApiKey
from data.database import Database
from data.errors import NotFound, Problem
from data.records import Person

MARK = "ns-"
"""How a key begins, so that people and scanners of code know one when they see it."""
_SHOWN = 8


def make(db: Database, person: Person, label: str = "") -> tuple[str, ApiKey]:
    """A new key of this person, and what is remembered of it. Raises Refused."""
    key = MARK + secrets.token_urlsafe(32)
    return key, api_keys.add(db, person, accounts.digest(key), key[:_SHOWN], label)


def owner_of(db: Database, key: str | None) -> tuple[ApiKey, Person] | None:
    """Whose key this is, where it is good."""
    if not key or len(key) > 200 or not key.isascii():
        return None
    return api_keys.find(db, accounts.digest(key))


def key_routes(db: Database, config: ServeConfig) -> APIRouter:
    """/account/keys: what a person has, makes and revokes; the guard lets only signed-in people through."""
    router = APIRouter(prefix="/account/keys")

    def page(request: Request, *, key: str = "", said: str = "", status: int = 200) -> Response:
        person = accounts.require(request)
        address = f"{config.public_url.rstrip('/') or str(request.base_url).rstrip('/')}/v1"
        text = pages.keys_page(person, api_keys.list_for(db, person.id), address, new_key=key, said=said)
        return HTMLResponse(text, status, pages.PAGE_HEADERS)

    @router.get("")
    def show_keys(request: Request) -> Response:
        return page(request)

    @router.post("")
    def make_key(request: Request, label: Field = "") -> Response:
        try:
            key, _ = make(db, accounts.require(request), label)
        except Problem as problem:
            return page(request, said=str(problem), status=400)
        return page(request, key=key)  # not a redirect: the key is in this answer and nowhere else

    @router.post("/{id}/revoke")
    def revoke_key(request: Request, id: str) -> Response:
        person = accounts.require(request)
        key = api_keys.get(db, id)
        if key.person_id != person.id:
            raise NotFound("This key is not one of yours - reload the page.")
        api_keys.revoke(db, key, person.name)
        return RedirectResponse("/account/keys", 303)

    return router
