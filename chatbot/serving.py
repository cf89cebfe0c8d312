"""What serves, once it is loaded: the engine, its turns, the eye on new versions, the trainer beside them.

Importing this imports torch, which takes seconds; server.py does so in a thread while sign-in answers.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

from chatbot.basemodel import Base, load_base
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.following import Follower
from chatbot.interface import AnyEngine
from chatbot.metrics import Metrics
from chatbot.precision import choose
from chatbot.remote import RemoteEngine
from chatbot.sharing import Sharing
from chatbot.turns import Turns
from data.database import Database
from data.home import Home

log = logging.getLogger(__name__)

TRAINER_PAUSE_SECONDS = 5.0
TRAINER_GRACE_SECONDS = 5.0


class LoadedServer:
    """All that runs behind the pages. `close` ends it in order and within seconds."""

    def __init__(self, db: Database, home: Home, config: ServeConfig, metrics: Metrics) -> None:
        """Load the model and begin to answer. Raises Problem where the model cannot be had."""
        self.engine = engine_for(load_base(config.model, home), home, config)
        self.engine.ended = metrics.count
        self.engine.start()
        self.sharing = Sharing(db, self.engine, config.threads) if isinstance(self.engine, Engine) else None
        if self.sharing:
            self.sharing.share_once()
            self.sharing.start()
        self.turns = Turns(db, self.engine, max_new_tokens=config.max_new_tokens or None)
        self.follower = Follower(db, home, self.engine)
        self.follower.follow_once()  # the first answer already comes from the version that serves
        self.follower.start()
        self.trainer = Trainer(home, self._for_trainer(config)) if config.trainer else None

    def _for_trainer(self, config: ServeConfig) -> ServeConfig:
        """With the length of the replies that are served, as far as nights can: up to half of the context."""
        longest = min(self.turns.sampling.max_new_tokens, self.engine.base.context // 2)
        return replace(config, max_new_tokens=longest)

    def close(self, patience: float | None = None) -> None:
        """End the streams as interrupted, store them, and end the threads and the trainer.

        patience: seconds to wait for a version that is being built; without, until it is there.
        """
        if self.trainer:
            self.trainer.ask_to_end()
        self.engine.close()
        self.turns.close()
        self.follower.close(patience)
        if self.sharing:
            self.sharing.close()
        if self.trainer:
            self.trainer.close()


def engine_for(base: Base, home: Home, config: ServeConfig) -> AnyEngine:
    """The engine of this process, or one over vLLM servers; not started."""
    if config.engines:
        return RemoteEngine(
            base,
            config.engines,
            home.adapters,
            four_bit=config.four_bit,
            max_waiting=config.queue,
            rows_per_server=config.rows,
        )
    is_open = config.precision == "auto" and not config.four_bit
    precision = choose(base, home) if is_open else config.precision
    return Engine(
        base,
        precision=precision,
        four_bit=config.four_bit,
        max_waiting=config.queue,
        max_rows=config.rows,
    )


class Trainer:
    """`trainer watch` as a child process, started again where it dies."""

    def __init__(self, home: Home, config: ServeConfig) -> None:
        self._command = trainer_command(config)
        self._environment = {**os.environ, "NIGHTSCHOOL_HOME": str(home.root)}
        self._ending = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        # setpriv ties the child to this thread's life, so the thread must stay as long as the server.
        self._thread = threading.Thread(target=self._keep, name="trainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_end(self) -> None:
        """Signal the child and start it no more."""
        with self._lock:
            self._ending.set()
            if self._child and self._child.poll() is None:
                self._child.terminate()

    def close(self) -> None:
        """Wait until the child has ended; after a few seconds it is killed."""
        self.ask_to_end()
        if self._child:
            try:
                self._child.wait(TRAINER_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        while True:
            with self._lock:
                if self._ending.is_set():
                    return
                self._child, problem = self._started()
            if self._child:
                problem = f"ended with code {self._child.wait()}"
            if self._ending.is_set():
                return
            log.error("The trainer %s; it is started again.", problem)
            self._ending.wait(TRAINER_PAUSE_SECONDS)

    def _started(self) -> tuple[subprocess.Popen[bytes] | None, str]:
        """The new child; where it cannot be started, why, as the end of a sentence."""
        try:
            # A group of its own: Ctrl-C in the terminal reaches the server, which ends it in order.
            child = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:  # too many processes, no memory, a Python that is being replaced
            return None, f"could not be started ({error.strerror})"
        return child, ""


def trainer_command(config: ServeConfig) -> list[str]:
    """How the trainer is started: it learns what is served, on half of the threads.

    Where setpriv is there, it also ends when the server is killed outright.
    """
    command = [sys.executable, "-m", "trainer", "watch", *(["--model", config.model] if config.model else [])]
    command += ["--four-bit"] if config.four_bit else []
    command += [f"--max-new-tokens={config.max_new_tokens}"] if config.max_new_tokens else []
    command += [f"--threads={max(1, config.threads // 2)}"] if config.threads else []
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else command
