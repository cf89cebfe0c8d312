"""One vLLM server, as far as Night School needs it: is it well, what has it loaded, a reply token by token.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve DIRECTORY --enable-lora --max-loras 4 --max-lora-rank 16

Prompts go as token ids and replies come as token ids, so that the chat format is ours alone. Two traps are
stepped around here. A model's `generation_config.json` silently changes what vLLM takes for a parameter that
is not sent: all are sent. And only our end-of-turn token ends a reply, not whatever else the model lists.

Left out on purpose: a second try, and the choice between servers (replicas.py).
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from data.errors import Busy, Refused
from data.records import FinishReason, Sampling

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_ANSWER = 10.0
SECONDS_TO_LOAD = 120.0
_PROBES_AT_A_TIME = 8
"""Few: they share the steps of the replies under way."""
_MAX_SEED = 2**63 - 1
_MOST_IDS = 2**31
"""No vocabulary has as many tokens."""
_PLAIN = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The distribution of the model itself, whatever its `generation_config.json` would like instead."""


class Gone(Busy):
    """The server cannot do it now: it is down, or was started anew and has forgotten an adapter."""


class Failed(Refused):
    """The server is well and yet could not do this one thing; another may."""


@dataclass(frozen=True)
class TokenDelta:
    """The next tokens of a reply."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None


class Server:
    """One vLLM server. Belongs to one event loop.

    Every method raises Gone where the server cannot answer now, and Refused where it will not. An error at
    one request says little of the server: it is asked how it is before it counts as gone.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self.url,
            # A connection that was kept may be dead when it is used next; a new one costs a millisecond.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # a proxy for the world outside has no business between us
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def check(self) -> None:
        """Returns where the server and its engine are well."""
        self._check(await self._ask("GET", "/health"))

    async def context(self) -> int:
        """The longest sequence, in tokens, that it takes."""
        for path in ("/health", "/v1/models"):
            response = await self._ask("GET", path)
            if response.status_code != 404:
                self._check(response)
        try:
            models = response.json()["data"]
            return int(next(model["max_model_len"] for model in models if not model.get("parent")))
        except (ValueError, AttributeError, KeyError, TypeError, StopIteration) as error:
            raise Refused(f"{self.url} is no vLLM server - give the address of one.") from error

    async def load(self, name: str, directory: Path) -> None:
        """Load the PEFT adapter in `directory`, a path that the server sees too. Twice is harmless."""
        body = {"lora_name": name, "lora_path": str(directory.absolute())}
        response = await self._ask("POST", "/v1/load_lora_adapter", body, seconds=SECONDS_TO_LOAD)
        if response.is_success or "has already been loaded" in response.text:
            return
        await self.check()  # a server that is dying fails at everything
        if (reason := _reason_in(response.text)) is None:
            raise Refused(
                f"{self.url} loads no adapters - start it with --enable-lora and the environment variable "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
        raise Refused(
            f"{self.url} could not load {str(directory)!r} ({reason}) - the server must see this directory "
            "under the same path, and be started with a --max-lora-rank that suffices."
        )

    async def unload(self, name: str) -> None:
        """Let an adapter go. Harmless where it is not loaded."""
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def loaded(self) -> dict[str, Path]:
        """The adapters that it holds by name, each with the directory it came from."""
        response = await self._ask("GET", "/v1/models")
        self._check(response)
        with self._reading():
            models = response.json()["data"]
            return {model["id"]: Path(model["root"]) for model in models if model.get("parent")}

    async def mean_logprob(self, model: str, ids: Sequence[int], reply_start: int) -> float:
        """Mean log-probability of ids[reply_start:] under `model`, in nats.

        Each token is made the only one that may follow what stands before it; vLLM says how likely it was.
        Its `prompt_logprobs` would take a single request, but beside other requests of adapters they kill the
        engine, and alone they leave out an adapter of the head (vLLM issues 16668 and 51594; seen with 0.32).
        """
        room = asyncio.Semaphore(_PROBES_AT_A_TIME)

        async def logprob(place: int) -> float:
            async with room:
                return await self._logprob_of(model, ids[:place], ids[place])

        places = range(reply_start, len(ids))
        last = await logprob(places[-1])  # first and alone: the others find their beginning in the cache
        values = await asyncio.gather(*(logprob(place) for place in places[:-1]))
        return (sum(values) + last) / len(places)

    async def _logprob_of(self, model: str, prompt: Sequence[int], token: int) -> float:
        """Of `token` after `prompt`."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 0.0,
            "allowed_token_ids": [token],
            "ignore_eos": True,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
            **_PLAIN,
        }
        response = await self._ask("POST", "/v1/completions", body, seconds=SECONDS_TO_LOAD)
        if not response.is_success:
            raise await self._failure(response.status_code, response.text)
        with self._reading():
            return float(response.json()["choices"][0]["logprobs"]["token_logprobs"][0])

    async def write(
        self, model: str, prompt: Sequence[int], sampling: Sampling, seed: int, end_of_turn: int
    ) -> AsyncGenerator[TokenDelta]:
        """A reply to `prompt`, as it is written. Closing the iterator ends it there."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed & _MAX_SEED,
            "stop_token_ids": [end_of_turn],
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": True,
            **_PLAIN,
        }
        # No limit here on the silence between two tokens: the request may queue there. What is too long
        # depends on what the server does meanwhile (SILENT_SECONDS of replica.py, and writing.py).
        timeout = httpx.Timeout(None, connect=SECONDS_TO_CONNECT)
        try:
            async with self._client.stream("POST", "/v1/completions", json=body, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise await self._failure(response.status_code, response.text)
                async for line in _lines(response):
                    if line.startswith(b"data: {"):
                        with self._reading():
                            chunk = json.loads(line.removeprefix(b"data: "))
                            if chunk.get("choices") == []:  # the last one may tell of usage alone
                                continue
                            piece = await self._piece(chunk)
                        yield piece
        except httpx.HTTPError as error:
            raise self._gone(error) from error

    async def _piece(self, chunk: dict[str, Any]) -> TokenDelta:
        if error := chunk.get("error"):
            raise await self._failure(int(error.get("code") or 500), json.dumps(chunk))
        choice = chunk["choices"][0]
        if not isinstance(choice.get("token_ids"), list):
            raise Refused(f"{self.url} sends text without its token ids - use vLLM 0.11 or newer.")
        match choice.get("finish_reason"):
            case None | "stop" | "length" as finish_reason:
                logprobs = (choice.get("logprobs") or {}).get("token_logprobs", [])
                _check_tokens(choice["token_ids"], logprobs)
                return TokenDelta(choice["token_ids"], logprobs, finish_reason)
            case other:
                await self.check()
                raise Failed(f"{self.url} broke a reply off ({other}) - see its log.")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises Failed where an answer that is taken apart in it has another shape than those of vLLM."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise Failed(f"{self.url} answered with what is no reply of vLLM - see its log.") from error

    async def _ask(
        self, method: str, path: str, body: object = None, *, seconds: float | None = None
    ) -> httpx.Response:
        timeout = httpx.Timeout(seconds or SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT)
        try:
            return await self._client.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise self._gone(error) from error

    def _check(self, response: httpx.Response) -> None:
        """Raises what an error answer means."""
        if not response.is_success:
            raise self._refusal(response.status_code, response.text)

    def _gone(self, error: Exception) -> Gone:
        return Gone(f"{self.url} does not answer ({str(error) or type(error).__name__}).")

    async def _failure(self, status: int, text: str) -> Gone | Refused:
        """What an error answer to a request for tokens means. Raises Gone where the server is not well."""
        if status < 500:
            return self._refusal(status, text)
        await self.check()
        reason = _reason_in(text) or f"status {status}"
        return Failed(f"{self.url} failed at a request ({reason}) - see its log.")

    def _refusal(self, status: int, text: str) -> Gone | Refused:
        """What an error answer means; 404 is an adapter that the server has forgotten."""
        reason = _reason_in(text) or f"status {status}"
        if status == 404 or status >= 500:
            return Gone(f"{self.url} cannot answer ({reason}).")
        return Refused(f"{self.url} refused a request ({reason}) - see its log.")


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes]:
    """As the server ends them. `aiter_lines` would also break where a text holds U+2028 and its like."""
    rest = b""
    async for read in response.aiter_bytes():
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            yield line


def _check_tokens(ids: list[Any], logprobs: list[Any]) -> None:
    """Raises ValueError where these are no tokens with their log-probabilities."""
    if not all(type(id) is int and 0 <= id < _MOST_IDS for id in ids):
        raise ValueError("no token ids")
    if len(logprobs) != len(ids) or not all(
        isinstance(x, float | int) and math.isfinite(x) for x in logprobs
    ):
        raise ValueError("no log-probabilities")


def _reason_in(text: str) -> str | None:
    """The sentence of vLLM's error object; None where the answer is no such object."""
    try:
        return str(json.loads(text)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return None
