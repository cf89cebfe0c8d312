"""The guard before every route and mount: pure ASGI, since BaseHTTPMiddleware breaks SSE.

In this order it refuses: foreign host names, foreign origins on unsafe methods, bodies above 1 MB, people who
are not signed in or lack the role, Gradio's routes that no page of ours uses, and a page session that belongs
to somebody else. It puts the person into the scope and the security headers on the answer. Every route is
closed unless it stands in `PUBLIC`; the pages check roles once more.

Below /v1 it is programs that ask: there an API key stands for the person, and no cookie and no origin counts.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbot import accounts
from chatbot.config import LOOPBACK_NAMES, ServeConfig
from chatbot.openai_errors import RETRY_SECONDS, error_answer, is_api
from chatbot.pages.account import PAGE_HEADERS, message_page
from data.api_keys import ApiKey
from data.errors import Problem
from data.records import Person, PersonRole

BODY_LIMIT = 1_000_000
_TOO_LARGE = "The request is too large - send at most 1 MB."
PUBLIC = frozenset(
    {"/login", "/logout", "/set-password", "/healthz", "/readyz", "/account.css", "/favicon.ico", "/metrics"}
)
"""Open to everybody; /metrics looks at the caller itself, and whoever is signed out may sign out again."""
GRADIO = "/gradio_api"
USED = frozenset({"/queue/join", "/queue/data", "/cancel", "/reset", "/app_id"})
"""All that a page of ours asks of Gradio below its prefix, `/heartbeat/` besides. Of its other routes there
one fetches any address and hands on what that says as if this server said it, scripts included; some store
files, ask other hosts, or tell a page session's contents to whoever names it.
"""
DEEP_LINK = "deep_link"
"""In the query of a page or of `/config` it names a file of Gradio's that takes the place of our components,
their scripts included."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
KEPT_PAGE_SESSIONS = 10_000

CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; "
    "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""What Gradio needs and no more; the plain pages set a stricter one themselves."""
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: browsers would then send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Wraps the whole application. It is told how a cookie or an API key becomes a person, or None."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        person_of: Callable[[str | None], Person | None],
        owner_of: Callable[[str | None], tuple[ApiKey, Person] | None],
    ) -> None:
        self.app = app
        self.config = config
        self.person_of = person_of
        self.owner_of = owner_of
        self._page_sessions: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no page of ours opens one
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["person"] = None
        guarded = self._with_headers(scope, send)
        try:
            refusal = self._refusal(scope)
        except Problem as problem:
            # The database cannot say who asks, and the handlers of errors stand behind this guard.
            refusal = None if scope["path"] in PUBLIC else answer(scope, 503, str(problem))
        if refusal:
            await refusal(scope, receive, guarded)
            return
        await _with_body_limit(self.app, scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """Why this request goes no further, as the answer to send; None lets it pass."""
        headers = Headers(scope=scope)
        if (host := host_name(headers.get("host", ""))) not in self.config.trusted_hosts:
            return answer(
                scope, 400, f"This server does not answer to the name {host!r} - start it with --public-url."
            )
        by_key = is_api(scope["path"])
        if not by_key and scope["method"] not in SAFE_METHODS and not self._is_own_origin(scope, headers):
            return answer(scope, 403, "The request came from another site - open Night School itself.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 9 or int(length) > BODY_LIMIT:
            return answer(scope, 413, _TOO_LARGE)
        if by_key:
            return self._key_refusal(scope, headers)
        scope["person"] = self.person_of(cookie(headers))
        return self._role_refusal(scope)

    def _key_refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Put the key and its person into the scope, or refuse a key that is none."""
        key = bearer(headers)
        owner = self.owner_of(key)
        if owner is None:
            fact = "The API key is unknown or was revoked" if key else "There is no API key in this request"
            remedy = "make one at /account/keys and send it as `Authorization: Bearer ns-...`."
            return error_answer(401, f"{fact} - {remedy}", code="invalid_api_key")
        scope["api_key"], scope["person"] = owner
        return None

    def _role_refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        if path in PUBLIC:
            return None
        person = scope["person"]
        if person is None:
            if is_page(scope):
                if scope["method"] not in SAFE_METHODS:
                    return RedirectResponse("/login", 303)
                query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
                return RedirectResponse(f"/login?next={quote(path + query)}", 303)
            return answer(scope, 401, "You are not signed in - sign in first.")
        if not accounts.may(person, needed_role(path)):
            return answer(scope, 403, "This page is for operators - ask one of them.")
        inner = path.removeprefix("/operate")
        event = inner.removeprefix(GRADIO)
        is_closed = inner.startswith("/monitoring") or (inner.startswith(GRADIO) and not is_used(event))
        if is_closed or DEEP_LINK in QueryParams(scope["query_string"]):
            return answer(scope, 404, "There is no such page - go back to the start.")
        if not all(self._may_use(page, person) for page in page_sessions(scope, event)):
            return answer(scope, 403, "This page belongs to somebody else - reload it.")
        return None

    def _is_own_origin(self, scope: Scope, headers: Headers) -> bool:
        """Browsers name the site that sends; programs name none, and carry no cookie by accident."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        return origin in (f"{scope['scheme']}://{headers.get('host', '')}", *self.config.origins)

    def _may_use(self, page: str, person: Person) -> bool:
        """A page session belongs to whoever used it first; Gradio itself would give it to anybody."""
        owner = self._page_sessions.setdefault(page, person.id)
        self._page_sessions.move_to_end(page)
        if len(self._page_sessions) > KEPT_PAGE_SESSIONS:
            self._page_sessions.popitem(last=False)
        return owner == person.id

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        return guarded


def needed_role(path: str) -> PersonRole:
    """The least role that may see a path."""
    return "operator" if path == "/operate" or path.startswith("/operate/") else "user"


def host_name(host: str) -> str:
    """`[::1]:7860` -> `::1`; anything malformed -> the empty name, which nobody trusts."""
    try:
        parts = urlsplit(f"//{host}")
        return "" if parts.username is not None or parts.path else (parts.hostname or "")
    except ValueError:
        return ""


def cookie(headers: Headers) -> str | None:
    """The session token a browser sends."""
    cookies: dict[str, str] = cookie_parser(headers.get("cookie", ""))
    return cookies.get(accounts.COOKIE)


def bearer(headers: Headers) -> str | None:
    """The API key that a program sends."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def is_used(event: str) -> bool:
    """Whether our pages ask this of Gradio, its prefix left out."""
    return event.removesuffix("/") in USED or event.startswith("/heartbeat/")


def page_sessions(scope: Scope, event: str) -> list[str]:
    """The Gradio page sessions named by a request that follows events; an honest one names one."""
    if event.startswith("/heartbeat/"):
        return [event.removeprefix("/heartbeat/")]
    if event.startswith("/queue/data"):
        return parse_qs(str(scope["query_string"].decode("latin-1"))).get("session_hash", [])
    return []


def is_page(scope: Scope) -> bool:
    """Whether a person at a browser asks for a page or sends a form, rather than a script for data."""
    return not is_api(scope["path"]) and "text/html" in Headers(scope=scope).get("accept", "")


def is_local(scope: Scope) -> bool:
    """Whether the caller is a program on this machine, not a proxy that speaks for somebody else."""
    headers = Headers(scope=scope)
    client = scope.get("client") or ("", 0)
    forwarded = "forwarded" in headers or "x-forwarded-for" in headers
    return (
        not forwarded and client[0] in LOOPBACK_NAMES and host_name(headers.get("host", "")) in LOOPBACK_NAMES
    )


def answer(scope: Scope, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """A sentence as who asks can read it: OpenAI's error below /v1, a page for people, JSON for scripts.

    A 503 says when to come again, unless `headers` do.
    """
    again = {"retry-after": str(RETRY_SECONDS)} if status == 503 else {}
    headers = {**again, **(headers or {})}
    if is_api(scope["path"]):
        said: Response = error_answer(status, sentence)
        said.headers.update(headers)
        return said
    if is_page(scope):
        return HTMLResponse(message_page(sentence), status, {**PAGE_HEADERS, **headers})
    return JSONResponse({"error": sentence}, status, headers)


async def _with_body_limit(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app`, but cut off a body that grows past the limit without having declared it."""
    received, is_over, has_started = 0, False, False

    async def counted() -> Message:
        nonlocal received, is_over
        message = await receive()
        received += len(message.get("body", b""))
        is_over = is_over or received > BODY_LIMIT
        return {"type": "http.disconnect"} if is_over else message

    async def watched(message: Message) -> None:
        nonlocal has_started
        if is_over and not has_started:
            return  # the application's word on its broken body; ours follows
        has_started = True
        await send(message)

    try:
        await app(scope, counted, watched)
    except Exception:
        if not is_over:
            raise
    if is_over and not has_started:
        await answer(scope, 413, _TOO_LARGE)(scope, receive, send)
