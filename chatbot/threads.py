"""Work beside an engine that decodes: a thread that gives way, and computing without a pool of threads."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NICENESS = 19
"""The lowest priority. A version that is built beside eight streams takes a third longer, and adds a third
less to the gaps between their tokens (benchmarks/RESULTS.md)."""


def lower_priority() -> None:
    """From now on this thread computes where others leave it a core. It cannot be taken back.

    Only on Linux has each thread a priority of its own; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Compute without a pool of threads: for what is done beside an engine that decodes.

    OpenMP has a pool for each thread that computes in parallel. Where these are more than there are cores,
    none of them spins while it waits, and each step of the engine takes nearly twice as long; for ever, since
    a pool stays as long as its thread does.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
