"""The routes of the plain pages: sign in and out, the one-time links, and a person's own account.

Ordinary functions, so that FastAPI runs them in threads: a password hash takes its time on purpose.
"""

import ipaddress
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.openai_errors import RETRY_SECONDS
from chatbot.pages import account as pages
from chatbot.throttle import Throttle, TooManyAttempts
from data import people
from data.database import Database
from data.errors import NotFound, Problem, Refused

PERSON_COOKIE = "night_person"
"""The id of who signed in last: page.js shows what a browser tab has kept to nobody else."""
Field = Annotated[str, Form(max_length=4096)]


def sign_in_routes(db: Database, config: ServeConfig, throttle: Throttle) -> APIRouter:
    """/login, /set-password and /logout: the routes for people who are not signed in."""
    router = APIRouter()
    _add_password_links(router, db, config, throttle)

    def form(next: str, said: str, name: str = "") -> str:
        has_operator = accounts.has_operator(db)
        return pages.sign_in_page(name=name, next_path=own_path(next), said=said, has_operator=has_operator)

    @router.get("/login")
    def show_login(link: str = "", next: str = "/") -> Response:
        if link and not accounts.has_operator(db):
            return html_answer(pages.first_operator_page(link))
        used = "This link was used or has expired - sign in, or restart the server." if link else ""
        return html_answer(form(next, used))

    @router.post("/login")
    def login(
        request: Request, name: Field, password: Field, next: Field = "/", link: Field = ""
    ) -> Response:
        try:
            if link:
                with throttle.attempt(f"address:{address_of(request)}"):
                    token = accounts.open_session(db, accounts.use_operator_link(db, link, name, password))
            else:
                token = accounts.sign_in(db, throttle, name, password, address_of(request))
        except Problem as problem:
            said = str(problem)
            again = pages.first_operator_page(link, name=name, said=said) if link else form(next, said, name)
            return html_answer(again, problem)
        return _signed_in(request, config, db, token, own_path(next))

    @router.get("/logout")
    @router.post("/logout")
    def logout(request: Request) -> Response:
        # A link on another site must not sign people out.
        if request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
            return RedirectResponse("/", 303)
        if token := request.cookies.get(accounts.COOKIE):
            people.close_session(db, accounts.digest(token))
        return signed_out()

    return router


def _add_password_links(router: APIRouter, db: Database, config: ServeConfig, throttle: Throttle) -> None:
    """/set-password, where a one-time link leads."""

    @router.get("/set-password")
    def show_set_password(link: str = "") -> Response:
        try:
            return html_answer(pages.set_password_page(link, accounts.person_of_link(db, link).name))
        except Problem as problem:
            return html_answer(pages.message_page(str(problem)), problem)

    @router.post("/set-password")
    def set_password(request: Request, link: Field, password: Field) -> Response:
        name = ""
        try:
            with throttle.attempt(f"address:{address_of(request)}"):
                name = accounts.person_of_link(db, link).name
                person = accounts.use_password_link(db, link, password)
        except Problem as problem:
            said = str(problem)
            return html_answer(
                pages.set_password_page(link, name, said=said) if name else pages.message_page(said), problem
            )
        return _signed_in(request, config, db, accounts.open_session(db, person), "/")


def account_routes(db: Database, config: ServeConfig, throttle: Throttle) -> APIRouter:
    """/account/ and what a person does there; the guard lets only signed-in people through."""
    router = APIRouter(prefix="/account")

    @router.get("")
    def add_slash() -> Response:
        return RedirectResponse("/account/", 307)

    @router.get("/")
    def show_account(request: Request, done: str = "") -> Response:
        said = "The password is changed; your other sessions have ended. Your API keys go on working."
        return html_answer(
            pages.account_page(accounts.require(request), password_done=said if done == "password" else "")
        )

    @router.post("/password")
    def change_password(request: Request, old: Field, new: Field) -> Response:
        person = accounts.require(request)
        try:
            accounts.change_password(db, throttle, person, old, new, address_of(request))
        except Problem as problem:
            return html_answer(pages.account_page(person, password_problem=str(problem)), problem)
        token = accounts.open_session(db, person)
        return _signed_in(request, config, db, token, "/account/?done=password")

    @router.post("/sign-out-everywhere")
    def sign_out_everywhere(request: Request) -> Response:
        person = accounts.require(request)
        accounts.sign_out_everywhere(db, person, person.name)
        return signed_out()

    return router


def own_path(path: str) -> str:
    """`path` where it leads to a page of ours, else the start: a sign-in must not send people elsewhere."""
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_own and not path.startswith(("/login", "/logout")) else "/"


def address_of(request: Request) -> str:
    """Where a request comes from, as the throttle counts it: of IPv6 the /64, which is what one line has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))


def html_answer(text: str, problem: Problem | None = None) -> Response:
    """A plain page, with the status that belongs to `problem`."""
    status, headers = 200, dict(pages.PAGE_HEADERS)
    if isinstance(problem, TooManyAttempts):
        status = 429
        headers["retry-after"] = str(problem.retry_after)
    elif isinstance(problem, accounts.WrongPassword):
        status = 401
    elif problem:
        status = 400 if isinstance(problem, NotFound | Refused) else 503
    if status == 503:
        headers["retry-after"] = str(RETRY_SECONDS)
    return HTMLResponse(text, status, headers)


def _signed_in(request: Request, config: ServeConfig, db: Database, token: str, path: str) -> Response:
    """On to `path` with the cookie of the session, and the one that tells page.js who it is."""
    is_https = request.url.scheme == "https" or f"https://{request.headers.get('host')}" in config.origins
    answer = RedirectResponse(path, 303, headers={"cache-control": "no-store"})
    person = accounts.person_of(db, token)
    for cookie, value in ((accounts.COOKIE, token), (PERSON_COOKIE, person.id if person else "")):
        answer.set_cookie(
            cookie,
            value,
            max_age=accounts.SESSION_SECONDS,
            httponly=cookie == accounts.COOKIE,
            samesite="lax",
            secure=is_https,
        )
    return answer


def signed_out() -> Response:
    """To the sign-in page, without the cookie of a session."""
    return without_cookies(RedirectResponse("/login", 303))


def without_cookies(answer: Response) -> Response:
    """`answer`, after which the browser has no session and no page of it any more."""
    answer.headers["clear-site-data"] = '"cache"'
    answer.delete_cookie(accounts.COOKIE, httponly=True, samesite="lax")
    return answer
