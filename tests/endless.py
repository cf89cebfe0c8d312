"""`chatbot serve` whose replies outlast a test, however fast or slow the machine: for tests that stop them.

No token ends a reply, and each takes a while: one of 900 tokens a minute and a half at least.

    python -m tests.endless serve ...
"""

import sys
import time
from typing import Any

from chatbot.__main__ import main
from chatbot.llama import Llama
from chatbot.runner import LlamaRunner

SECONDS = 0.1
NO_TOKEN = -1

begin, step = LlamaRunner.__init__, LlamaRunner.step


def begin_endless(runner: LlamaRunner, llama: Llama, end_of_turn: int, **more: Any) -> None:
    begin(runner, llama, NO_TOKEN, **more)


def slow_step(runner: LlamaRunner, beside: int) -> None:
    time.sleep(SECONDS)
    step(runner, beside)


if __name__ == "__main__":
    LlamaRunner.__init__, LlamaRunner.step = begin_endless, slow_step  # type: ignore[method-assign, assignment]
    sys.exit(main())
