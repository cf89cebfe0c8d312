"""The page on which people look after their API keys: a plain form without a script, like the account's."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.pages import account as pages
from chatbot.signin import Field
from data import api_keys
from data.database import Database
from data.errors import NotFound, Problem


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
            key, _ = accounts.make_key(db, accounts.require(request), label)
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
