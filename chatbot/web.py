"""The web application: a FastAPI parent with the plain routes, and the Gradio pages mounted behind the guard.

`open_site` is there at once and answers sign-in and health while the model still loads; `mount_pages` adds
the chat at `/`, the operator's page at `/operate` and the API for programs at `/v1` when it can answer.
Each mount has its own `auth_dependency`: hiding a page's parts protects nothing, a separate mount does.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.data_routes import data_routes
from chatbot.guard import SECURITY_HEADERS, Guard, answer, is_local, is_page
from chatbot.key_routes import key_routes
from chatbot.metrics import Metrics
from chatbot.openai_errors import RETRY_SECONDS, is_api, problem_answer
from chatbot.pages import account as pages
from chatbot.signin import account_routes, sign_in_routes
from chatbot.throttle import Throttle
from data.database import Database
from data.errors import Busy, NotFound, Problem, Refused
from data.home import Home
from data.records import Person, PersonRole

if TYPE_CHECKING:
    from gradio import Blocks

    from chatbot.following import Follower
    from chatbot.turns import Turns

log = logging.getLogger(__name__)

LEAST_FREE_DISK = 5.0  # per cent


@dataclass
class Site:
    """What the routes look at: one for each server process."""

    db: Database
    home: Home
    config: ServeConfig
    metrics: Metrics
    throttle: Throttle = field(default_factory=Throttle)
    turns: "Turns | None" = None
    """None until the model is loaded."""
    is_draining: bool = False
    """Set when the server is told to end: what runs is stored, nothing new begins."""

    def readiness(self) -> dict[str, bool]:
        """The conditions under which a person can chat; all must hold."""
        return {
            "database": self._can_write(),
            "model": self.turns is not None and self.turns.engine.is_ready,
            "disk": psutil.disk_usage(str(self.home.root)).percent < 100 - LEAST_FREE_DISK,
            "staying": not self.is_draining,
        }

    def _can_write(self) -> bool:
        try:
            with self.db.write():
                return True
        except Problem:
            return False


def open_site(site: Site) -> FastAPI:
    """The application without its Gradio pages: sign-in, account, health and metrics."""
    # Gradio reads both, the latter when it is imported too: no request leaves this host, and files of its own
    # lie where no other account of this machine and no other program of this one can lay any.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(site.home.gradio))
    app = FastAPI(title="Night School", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = site
    app.include_router(_state_routes(site))
    app.include_router(sign_in_routes(site.db, site.config, site.throttle))
    app.include_router(account_routes(site.db, site.config, site.throttle))
    app.include_router(data_routes(site.db, site.home, site.throttle))
    app.include_router(key_routes(site.db, site.config))
    app.add_exception_handler(Problem, _say_problem)
    app.add_exception_handler(HTTPException, _say_http)
    app.add_exception_handler(RequestValidationError, _say_invalid)
    app.add_exception_handler(Exception, _say_broken)
    # Gradio reflects foreign origins with credentials unless its parent has this very middleware.
    app.add_middleware(CORSMiddleware, allow_origins=list(site.config.origins), allow_credentials=True)
    app.add_middleware(
        Guard,
        config=site.config,
        person_of=lambda token: accounts.person_of(site.db, token),
        owner_of=lambda key: accounts.owner_of_key(site.db, key),
    )
    return app


def mount_pages(app: FastAPI, turns: "Turns", follower: "Follower") -> None:
    """Add the API and the pages; whoever calls this runs the application's lifespan afterwards."""
    from chatbot.pages.chat import build_chat
    from chatbot.pages.operate import build_operate

    site: Site = app.state.site
    mount_api(app, turns)  # first: the chat's mount takes what is left
    mount(app, "/operate", "operator", build_operate(site.db, site.home, site.config, follower.answering))
    mount(app, "/", "user", build_chat(site.db, turns, site.config))
    site.turns = turns
    site.metrics.turns = turns


def mount_api(app: FastAPI, turns: "Turns") -> None:
    """Add /v1, which needs no Gradio."""
    from chatbot.openai_api import NOTHING_ELSE, openai_routes

    app.include_router(openai_routes(app.state.site, turns))
    app.mount("/v1", NOTHING_ELSE)


def mount(app: FastAPI, path: str, role: PersonRole, blocks: "Blocks") -> None:
    """Put one Gradio page at `path`, for people of at least this role. Longer paths come first."""
    import gradio

    from chatbot.pages import theme

    site: Site = app.state.site
    gradio.mount_gradio_app(
        app,
        blocks,
        path,
        server_name=site.config.host,
        server_port=site.config.port,
        footer_links=[],
        run_history=False,
        auth_dependency=_dependency(role),
        show_error=False,
        max_file_size="1mb",
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme.theme(),
        head=theme.head(),
    )


def _dependency(role: PersonRole) -> Callable[[Request], str | None]:
    """Gradio asks this before each of its guarded routes; it becomes `request.username` in every event."""

    def person_id(request: Request) -> str | None:
        person: Person | None = request.scope.get("person")
        return person.id if person and accounts.may(person, role) else None

    return person_id


def _state_routes(site: Site) -> APIRouter:
    """Health, readiness, metrics, and the files of the plain pages."""
    router = APIRouter()
    style, icon = pages.asset("account.css"), pages.asset("moon.svg")
    kept = {"cache-control": "public, max-age=3600"}

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> Response:
        checks = site.readiness()
        if all(checks.values()):
            return JSONResponse({"ready": True, **checks})
        return JSONResponse({"ready": False, **checks}, 503, {"retry-after": str(RETRY_SECONDS)})

    @router.get("/metrics")
    def metrics(request: Request) -> Response:
        if not is_local(request.scope):
            accounts.require(request, "operator")
        return PlainTextResponse(site.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/operate")
    def add_slash() -> Response:
        return RedirectResponse("/operate/", 307)

    @router.get("/account.css")
    def account_css() -> Response:
        return Response(style, media_type="text/css", headers=kept)

    @router.get("/favicon.ico")
    def favicon() -> Response:
        return Response(icon, media_type="image/svg+xml", headers=kept)

    return router


def _say_problem(request: Request, error: Exception) -> Response:
    if is_api(request.scope["path"]):
        assert isinstance(error, Problem), "registered for nothing else"
        return problem_answer(error)
    kinds: tuple[tuple[type[Problem], int], ...] = (
        (accounts.SignedOut, 401),
        (NotFound, 404),
        (Refused, 403),
        (Busy, 503),
    )
    status = next((status for kind, status in kinds if isinstance(error, kind)), 503)
    return answer(request.scope, status, str(error))


def _say_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for nothing else"
    site: Site = request.app.state.site
    if error.status_code == 404 and site.turns is None:
        if is_page(request.scope):
            again = {"retry-after": str(RETRY_SECONDS)}
            return HTMLResponse(pages.waiting_page(), 503, {**pages.PAGE_HEADERS, **again})
        return answer(request.scope, 503, "The model is loading - try again in a moment.")
    sentences = {
        404: "There is no such page - go back to the start.",
        405: "That cannot be done here - go back.",
    }
    said = sentences.get(error.status_code, str(error.detail))
    return answer(request.scope, error.status_code, said, dict(error.headers or {}))


def _say_invalid(request: Request, error: Exception) -> Response:
    return answer(request.scope, 422, "The form is not complete - fill in every field and send it again.")


def _say_broken(request: Request, error: Exception) -> Response:
    """What nobody thought of. Outside of the guard; logged here, since uvicorn is silent."""
    if not isinstance(error, ClientDisconnect):  # who hung up before all was sent hears nothing
        log.error("%s %r failed.", request.method, request.scope["path"], exc_info=error)
    sentence = "Something broke here - try again, or tell the operator, whose log has it."
    said = answer(request.scope, 500, sentence)
    for name, value in SECURITY_HEADERS.items():
        said.headers.setdefault(name, value)
    return said
