"""What a person may set when starting the server: `ServeConfig`, the flags of `chatbot serve`.

One dial, `--model`, decides the rest: precision, device, context length and the length of replies follow
from it and from the hardware. State lies where `data/home.py` says; that is not a flag.
"""

from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from data.errors import Problem, Refused

PRECISIONS = ("auto", "float32", "bfloat16", "int8")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
MOST_THREADS = 1024
"""More than any machine has cores; with tens of thousands PyTorch ends the process without a word."""


@dataclass(frozen=True)
class ServeConfig:
    """The settings of one server process."""

    host: Annotated[
        str, "The address to listen on; 0.0.0.0 is every interface, and wants the address in --public-url."
    ] = "127.0.0.1"
    port: Annotated[int, "The port to listen on; 0 takes any free one."] = 7860
    model: Annotated[
        str | None, "A directory or hub id of a chat model; without it, the embedded SmolLM2-135M-Instruct."
    ] = None
    four_bit: Annotated[bool, "Load the model in 4 bits (NF4, bitsandbytes): a quarter of the memory."] = (
        False
    )
    engine: Annotated[
        str, "vLLM servers that answer instead of this process, e.g. http://gpu1:8000,http://gpu2:8000."
    ] = ""
    precision: Annotated[
        str, "float32, bfloat16, int8 (CPUs only), or auto: what a short measurement finds to be the fastest."
    ] = "auto"
    replies: Annotated[int, "How many replies a turn shows at first, 1 to 9; each person can change it."] = 4
    compare_share: Annotated[
        float, "How often somebody who asks for one reply a turn gets two to compare; 0 is never, 1 always."
    ] = 0.2
    max_new_tokens: Annotated[
        int, "The longest reply of a turn in tokens; 0 chooses 128 on a CPU, 256 on a GPU and with --engine."
    ] = 0
    rows: Annotated[
        int, "Replies written at a time, by each server of --engine if any; programs get three quarters."
    ] = 64
    queue: Annotated[int, "Requests that may wait to be let in; more are told to try again."] = 32
    threads: Annotated[int, "CPU threads of the model; 0 leaves the choice to torch."] = 0
    public_url: Annotated[
        str, "The address people type when it is not this machine's, e.g. https://chat.example.org."
    ] = ""
    proxies: Annotated[
        str,
        "Addresses or networks of proxies before the server, with commas; only they may name the caller.",
    ] = "127.0.0.1,::1"
    trainer: Annotated[bool, "Start `trainer watch` beside the server, so that one command learns too."] = (
        True
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise Refused(f"Port {self.port!r} is out of range - use a number from 0 to 65535.")
        if self.precision not in PRECISIONS:
            raise Refused(f"Precision {self.precision!r} is unknown - use one of {', '.join(PRECISIONS)}.")
        if self.four_bit and self.precision == "int8":
            raise Refused("--four-bit and --precision int8 are two ways to one end - choose one.")
        server_urls(self.engine)
        if not 1 <= self.replies <= 9:
            raise Refused(f"Cannot show {self.replies!r} replies a turn - use a number from 1 to 9.")
        if not 0 <= self.compare_share <= 1:
            raise Refused(
                f"{self.compare_share!r} is no share of turns - give --compare-share a number from 0 to 1."
            )
        if self.max_new_tokens < 0 or self.threads < 0:
            raise Refused("Token and thread counts cannot be negative - use 0 for the default.")
        if self.threads > MOST_THREADS:
            raise Refused(f"There cannot be {self.threads!r} threads - use up to {MOST_THREADS:,}.")
        if self.rows < 1:
            raise Refused(f"Cannot write {self.rows!r} replies at a time - give --rows a number from 1.")
        if self.queue < 4:
            raise Refused(
                f"A queue of {self.queue!r} is too short for a few people - give --queue a number from 4."
            )
        for one in self.proxies.split(","):
            _check_network(one.strip())
        if self.public_url:
            url = _site(self.public_url)
            if url is None or url.path not in ("", "/") or url.query or url.fragment:
                raise Refused(
                    f"{self.public_url!r} is not the address of a site - "
                    "give scheme and host without a path, like https://chat.example.org."
                )

    @property
    def engines(self) -> tuple[str, ...]:
        """The vLLM servers to use; none is the engine in this process."""
        return server_urls(self.engine)

    @property
    def url(self) -> str:
        """Where a person on this machine finds the server."""
        name = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

    @property
    def trusted_hosts(self) -> frozenset[str]:
        """The names this server answers to, in lower case."""
        public = urlsplit(self.public_url).hostname if self.public_url else None
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, self.host, public) if name)

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose scripts may talk to this server."""
        named = (f"http://127.0.0.1:{self.port}", f"http://localhost:{self.port}", self.url)
        public = _site(self.public_url)
        return tuple(dict.fromkeys((*named, *([_origin(public)] if public else []))))


def server_urls(text: str) -> tuple[str, ...]:
    """The addresses in `URL,URL`. Raises Refused for what is none."""
    urls = tuple(one.strip() for one in text.split(",") if one.strip())
    for url in urls:
        if _site(url) is None:
            raise Refused(f"{url!r} is not the address of a server - give one like http://gpu1:8000.")
    return urls


def check_model_name(model: str | None) -> None:
    """Raises Problem where it can only be a directory, and none is there."""
    looks_like_a_path = model is not None and (model.startswith((".", "/", "~")) or model.count("/") > 1)
    if looks_like_a_path and not Path(str(model)).is_dir():
        raise Problem(f"No directory {model!r} - give a directory that holds a model, or a hub id.")


def _site(url: str) -> SplitResult | None:
    """The parts of the address of a site; None where it is none."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        return None
    return parts if is_one else None


def _check_network(text: str) -> None:
    """Raises Refused for what is neither an address nor a network."""
    try:
        ip_network(text)
    except ValueError:
        raise Refused(
            f"{text!r} is not the address of a proxy - give one like 10.0.0.2, or a network like "
            "172.16.0.0/12."
        ) from None


def _origin(site: SplitResult) -> str:
    """As browsers name it, however it was typed: in lower case, and without the port that goes unsaid."""
    name = f"[{site.hostname}]" if ":" in (site.hostname or "") else site.hostname
    is_unsaid = site.port in (None, {"http": 80, "https": 443}[site.scheme])
    return f"{site.scheme}://{name}" if is_unsaid else f"{site.scheme}://{name}:{site.port}"
