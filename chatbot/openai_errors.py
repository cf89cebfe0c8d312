"""Errors below /v1 as OpenAI's clients read them; the message is a sentence, as everywhere.

    {"error": {"message": "Fact - remedy.", "type": "...", "param": "n" or null, "code": "..." or null}}

The official client retries 429 and 5xx by itself, after as long as `Retry-After` says.
"""

from typing import Any

from starlette.responses import JSONResponse

from data.errors import Busy, NotFound, Problem, Refused, Unavailable

RETRY_SECONDS = 2
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Invalid(Refused):
    """A request that cannot be answered as it is. `param` names the field that is wrong."""

    def __init__(self, sentence: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param
        self.code = code


def is_api(path: str) -> bool:
    """Whether a path belongs to programs that show an API key."""
    return path == "/v1" or path.startswith("/v1/")


def error_object(
    status: int, sentence: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The object that stands for an error, in an answer of its own or at the end of a stream."""
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def error_answer(
    status: int, sentence: str, *, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """An error as a whole answer."""
    headers = {"retry-after": str(RETRY_SECONDS)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_object(status, sentence, param=param, code=code), status, headers)


def problem_answer(problem: Problem) -> JSONResponse:
    """What a program reads of something that a person can mend."""
    if isinstance(problem, Invalid):
        return error_answer(400, str(problem), param=problem.param, code=problem.code)
    if isinstance(problem, NotFound):
        return error_answer(404, str(problem), param="model", code="model_not_found")
    if isinstance(problem, Refused):
        return error_answer(400, str(problem))
    if isinstance(problem, Busy) and not isinstance(problem, Unavailable):
        return error_answer(429, str(problem), code="rate_limit_exceeded")
    return error_answer(503, str(problem))
