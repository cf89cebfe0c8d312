"""Two real vLLM servers on this machine's CPU: the same replies, versions swapped under load, one killed.

    python -m venv var/vllm && var/vllm/bin/pip install -r benchmarks/requirements-vllm.txt
    var/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec     # not for this torch
    VLLM_PYTHON=var/vllm/bin/python .venv/bin/python -m pytest -m vllm

The model is a tiny one whose heads are as wide as vLLM's kernels want them. Its `generation_config.json` asks
for all that bends a distribution, as those of published models do: no reply may show it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from benchmarks.swapping import mistakes, reference, stream, swap
from chatbot.basemodel import Base, load_base
from chatbot.engine import Engine
from chatbot.remote import RemoteEngine
from data.home import open_home
from data.records import Sampling
from tests.adapter_files import write_adapter
from tests.test_engine import done
from tests.tiny import make_tiny_model
from tests.waiting import until

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="$VLLM_PYTHON names no python with vLLM"),
]

HELLO = [{"role": "user", "content": "Hello there."}]
GREEDY = Sampling(temperature=0, max_new_tokens=24)
BENT = {"top_k": 3, "repetition_penalty": 1.8, "temperature": 0.3, "eos_token_id": [2, *range(40, 60)]}
OPTIONS = "--enable-lora --max-loras 4 --max-lora-rank 16 --enforce-eager --dtype float32 --max-model-len 512"
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two servers, and the tests, on the same few cores
    "VLLM_NO_USAGE_STATS": "1",
}


class RealServer:
    """A vLLM server process that can be killed and started again at the same port."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._model = model
        self._log = log.open("w")
        self.start()

    def start(self) -> None:
        command = [*DIES_WITH_US, str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *OPTIONS.split()]
        command += ["--model", str(self._model), "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        """As a machine that loses power."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()

    def versions(self) -> list[str]:
        """What it has loaded, asked by somebody else."""
        models = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["data"]
        return sorted(model["id"] for model in models if model["id"].startswith("v0"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    directory = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", hidden=256)
    (directory / "generation_config.json").write_text(json.dumps(BENT))
    return load_base(str(directory), open_home(tmp_path_factory.mktemp("home")), lambda text: None)


@pytest.fixture(scope="module")
def servers(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealServer]]:
    logs = tmp_path_factory.mktemp("logs")
    made = [RealServer(base.directory, logs / f"{number}.log") for number in range(2)]
    yield made
    for server in made:
        server.close()


@pytest.fixture(scope="module")
def remote(
    base: Base, servers: list[RealServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteEngine]:
    """An engine on both servers, up."""
    shared = tmp_path_factory.mktemp("shared")
    urls = [server.url for server in servers]
    engine = RemoteEngine(base, urls, shared, dtype=torch.float32, patience=240)
    engine.start()
    both_up(engine)
    yield engine
    engine.close()


@pytest.fixture
def here(base: Base) -> Iterator[Engine]:
    """The engine in this process, in the same precision."""
    engine = Engine(base, precision="float32")
    engine.start()
    yield engine
    engine.close()


def both_up(engine: RemoteEngine) -> None:
    deadline = time.monotonic() + 240
    while len(engine._replicas.up) < 2:
        assert time.monotonic() < deadline, [replica.problem for replica in engine._replicas.all]
        time.sleep(0.1)


def adapters_for(base: Base, directory: Path, count: int) -> list[Path]:
    return [write_adapter(directory / f"{i}", base.config, seed=i, size=0.1) for i in range(count)]


def test_greedy_replies_and_log_probabilities_are_those_of_the_engine_here(
    base: Base, here: Engine, remote: RemoteEngine, tmp_path: Path
) -> None:
    (adapter,) = adapters_for(base, tmp_path, 1)
    for version, directory in (("base", None), ("v000001", adapter)):
        for engine in (here, remote):
            engine.load(version, directory)
        mine, theirs = (
            done(e.submit(HELLO, sampling=GREEDY, version=version)).replies[0] for e in (here, remote)
        )
        assert (theirs.token_ids, theirs.text, theirs.finish_reason) == (
            mine.token_ids,
            mine.text,
            mine.finish_reason,
        )
        assert theirs.logprobs == pytest.approx(mine.logprobs, abs=1e-3)
        ids = base.format.encode(HELLO) + mine.token_ids
        values = [engine.mean_logprob(version, ids, len(ids) - mine.tokens) for engine in (here, remote)]
        assert values[0] == pytest.approx(values[1], abs=1e-3)
    remote.unload("v000001")


def test_sampled_tokens_follow_the_models_own_distribution(here: Engine, remote: RemoteEngine) -> None:
    """The mean log-probability of what is drawn is that of the engine here, which BENT would raise."""
    sampling, means = Sampling(1.0, 1.0, 100), []
    for engine in (here, remote):
        asked = [engine.submit(HELLO, replies=9, sampling=sampling) for _ in range(4)]
        drawn = [p for generation in asked for reply in done(generation).replies for p in reply.logprobs]
        means.append(sum(drawn) / len(drawn))
    assert means[0] == pytest.approx(means[1], abs=0.15)


def test_a_seed_makes_its_reply_on_either_server_beside_strangers(remote: RemoteEngine) -> None:
    sampling = Sampling(1.0, 1.0, 40)
    first = done(remote.submit(HELLO, replies=3, seeds=[1, 2, 3], sampling=sampling))
    strangers = [remote.submit(HELLO, replies=3, sampling=sampling) for _ in range(5)]
    again = [remote.submit(HELLO, replies=3, seeds=[1, 2, 3], sampling=sampling) for _ in range(2)]
    wanted = [reply.token_ids for reply in first.replies]
    assert len({tuple(ids) for ids in wanted}) == 3
    for generation in again:
        assert [reply.token_ids for reply in done(generation).replies] == wanted
    assert all(done(stranger) for stranger in strangers)


def test_a_stopped_reply_frees_its_place_within_a_second(
    remote: RemoteEngine, servers: list[RealServer]
) -> None:
    generation = remote.submit(HELLO, replies=4, sampling=Sampling(1.0, 1.0, 400))
    until(lambda: generation.replies[0].tokens)
    generation.stop()
    stopped_at = time.monotonic()

    def running() -> list[str]:
        texts = [httpx.get(f"{server.url}/metrics", trust_env=False).text for server in servers]
        lines = "\n".join(texts).splitlines()
        return [line for line in lines if line.startswith("vllm:num_requests_running")]

    until(lambda: all(line.endswith(" 0.0") for line in running()))
    assert time.monotonic() - stopped_at < 1 and len(running()) == 2


def test_swaps_under_load_leave_every_answer_that_of_its_version(
    base: Base, remote: RemoteEngine, servers: list[RealServer], tmp_path: Path
) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("Hello.", "Count to ten.", "x" * 90)]
    here = partial(Engine, base, precision="float32")
    references = [
        reference(here, adapter, prompts, GREEDY) for adapter in (None, *adapters_for(base, tmp_path, 3))
    ]
    with ThreadPoolExecutor(1) as beside:
        swapping = beside.submit(swap, remote, references, 10, pause=0.1)
        answers = stream(remote, prompts, GREEDY, streams=8, until=swapping.done)
        swaps = swapping.result()
    found = mistakes(remote, references, swaps, answers)
    assert (found.failed, found.wrong) == ([], [])
    assert len({answer.version for answer in answers}) > 5
    assert sum(answer.overtaken for answer in answers) >= 10
    print(
        f"{len(answers)} answers, {len(found.ties)} ties, load {max(one.load for one in swaps):.2f} s at most"
    )
    remote.serve("base")
    until(lambda: not any(server.versions() for server in servers))


def test_replies_outlive_a_killed_server_which_comes_back_with_what_it_missed(
    base: Base, remote: RemoteEngine, servers: list[RealServer], tmp_path: Path
) -> None:
    first, second = adapters_for(base, tmp_path, 2)
    remote.load("v000001", first)
    remote.serve("v000001")
    whole = done(remote.submit(HELLO, sampling=Sampling(0, 1, 300))).replies[0].token_ids
    asked = [remote.submit(HELLO, sampling=Sampling(0, 1, 300)) for _ in range(6)]
    until(lambda: all(generation.replies[0].tokens > 20 for generation in asked))
    servers[0].kill()
    assert [done(generation).replies[0].token_ids for generation in asked] == [whole] * 6
    servers[0].start()
    remote.load("v000002", second)
    remote.serve("v000002")
    wanted = done(remote.submit(HELLO, sampling=GREEDY)).replies[0].token_ids
    both_up(remote)
    until(lambda: servers[0].versions() == servers[1].versions() != [])
    servers[1].kill()
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].token_ids == wanted
