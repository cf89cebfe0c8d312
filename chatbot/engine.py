"""The engine in this process: requests come in from any thread, one thread decodes, replies stream out.

A round of its loop is: decide who is let in (scheduler.py), do one step of each version's rows (runner.py),
record what came of it (generation.py). Requests join and leave at any step.

Each version has weights and a runner of its own, built in the caller's thread beside those that serve.
"""

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chatbot.basemodel import Base
from chatbot.generation import Generation
from chatbot.interface import AnyEngine
from chatbot.kernels import Format
from chatbot.llama import Llama
from chatbot.memory import Memory, bytes_to_keep, column_bytes, free_bytes, give_back, give_back_soon
from chatbot.models import merged_model, pick_device, pick_dtype
from chatbot.padded import TransformersModel
from chatbot.prefixes import Prefixes
from chatbot.runner import Runner, bytes_to_prepare, prepare, runner_for
from chatbot.threads import on_one_thread
from data.errors import Refused, out_of_memory
from data.records import BASE_VERSION

log = logging.getLogger(__name__)

_FORMATS: dict[torch.dtype, Format] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass
class _Loaded:
    """A version in memory."""

    weights: Llama | TransformersModel
    runner: Runner


class Engine(AnyEngine):
    """Serves replies of one base model in several versions; its other half is interface.py."""

    def __init__(
        self,
        base: Base,
        *,
        precision: str = "auto",
        four_bit: bool = False,
        max_waiting: int = 32,
        max_rows: int = 64,
    ) -> None:
        """`precision` is a format of kernels.py, or `auto`: bfloat16 where the hardware has it."""
        device = pick_device()
        if precision == "int8" and device.type != "cpu":
            raise Refused("int8 is a format of CPUs - use bfloat16 on this device.")
        dtype = pick_dtype("bfloat16" if precision == "int8" else precision, device)
        self._format: Format = "int8" if precision == "int8" else _FORMATS[dtype]
        super().__init__(
            base,
            form="nf4" if four_bit else self._format,
            dtype=dtype,
            device=device,
            four_bit=four_bit,
            max_waiting=max_waiting,
            max_rows=max_rows,
        )
        self.threads = torch.get_num_threads()
        """CPU threads of a step, from the next one on."""
        self._bytes_for_prefixes = bytes_to_keep(device, base.context * column_bytes(base.config, dtype))
        self._loaded: dict[str, _Loaded] = {}
        self._bytes_to_build = 0
        """Bytes that building a version may take for a while."""

    def start(self) -> None:
        """Load the base and begin to serve it."""
        self.load(BASE_VERSION, None)
        is_shared = isinstance(self._loaded[BASE_VERSION].weights, Llama)
        with self._lock:
            self._scheduler.memory = Memory.of(
                self.device, self.base.config, self.dtype, self.base.context, is_shared=is_shared
            )
        self._thread.start()

    def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """Mean log-probability of ids[reply_start:], in nats: to compare a version with its manifest."""
        with self._lock:
            self._check_known(version)
            weights = self._loaded[version].weights
        with on_one_thread():
            return float(weights.logprobs(ids, reply_start).mean())

    def _build(self, name: str, adapter: Path | None) -> None:
        self._check_room(name)
        try:
            weights = self._made(adapter)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold what was loaded before it failed
            if problem := out_of_memory(error):
                raise problem from error
            raise
        finally:
            give_back(self.device)
        with self._lock:
            self._loaded.setdefault(name, _Loaded(weights, self._runner(weights)))

    def _made(self, adapter: Path | None) -> Llama | TransformersModel:
        """Weights of the base with this adapter. The base, which is first, tells how many bytes it takes."""
        with on_one_thread():
            model = merged_model(
                self.base, adapter, device=self.device, dtype=self.dtype, four_bit=self.four_bit
            )
            if adapter is None:
                self._bytes_to_build = bytes_to_prepare(model, self._format)
            return prepare(model, self._format, takes=True)

    def _check_room(self, name: str) -> None:
        """Raises Refused where memory is too short to build it. A CPU's system would end the process; on a
        GPU a step of what serves might be the one that gets none."""
        needed, free = self._bytes_to_build, free_bytes(self.device)
        if needed > free:
            raise Refused(
                f"Building {name!r} may take {needed / 2**30:.1f} GiB of memory beside what serves, and "
                f"{free / 2**30:.1f} are free - end other programs, or use a smaller base or --four-bit."
            )

    def _drop(self, name: str) -> None:
        del self._loaded[name]
        give_back_soon(self.device)

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()

    # The loop: decide, do, record

    def _run(self) -> None:
        while self._round():
            pass
        with self._lock:
            self._end_all("interrupted")

    def _round(self) -> bool:
        """Wait for something to do, and do it once; False if the engine closes. While it waits, nothing here
        refers to a version: one that is let go of meanwhile leaves memory."""
        with self._lock:
            self._lock.wait_for(lambda: self._closing or self._scheduler.requests or self._is_busy())
            if self._closing:
                return False
            self._let_go()
            let_in = self._scheduler.let_in()
            loaded = dict(self._loaded)
        if self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)
        for name, version in loaded.items():
            beside = sum(other.runner.under_way for other in loaded.values()) - version.runner.under_way
            self._step(name, version, [request for request in let_in if request.version == name], beside)
        return True

    def _is_busy(self) -> bool:
        return not all(version.runner.is_idle for version in self._loaded.values())

    def _step(self, name: str, version: _Loaded, let_in: list[Generation], beside: int) -> None:
        """Take in who was let in, then one token for each of its rows; so many `beside` them wait for it."""
        if not let_in and version.runner.is_idle:
            return
        theirs = [request for request in self._scheduler.running if request.version == name]
        try:
            for request in let_in:
                version.runner.add(request, request.priority)
            version.runner.step(beside)
        except Exception:
            # A broken step must not take the server down: its replies end as failed, the rest goes on.
            log.exception("A step of %d replies failed.", sum(request.width for request in theirs))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # raises again after what only a new process mends
            version.runner = self._runner(version.weights)
            for request in theirs:
                request.stop("failed")
        for request in theirs:
            request.notice()

    def _runner(self, weights: Llama | TransformersModel) -> Runner:
        return runner_for(weights, self.base.format.end_of_turn, prefixes=Prefixes(self._bytes_for_prefixes))
