"""How much memory there is for keys and values, and how much of it a request may come to need.

Counted in columns, each what one token leaves behind in all layers. A request is let in only where all that
its prompt and its longest replies can take fits beside what runs (scheduler.py), so memory never runs out
half way through a reply. The prefixes that versions keep (prefixes.py) have a limit of their own.
"""

import contextlib
import ctypes
import math
import resource
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from chatbot.shelves import WORTH_SHARING, room_for
from chatbot.threads import lower_priority

_SHARE = 1 / 3
"""Of the memory that is free at the start. The rest is for versions that are loaded later, what a pass
computes, and the trainer."""
_SLACK = 3
"""Bytes taken for each byte that is counted, at worst: a shelf holds memory for twice what stands on it, and
keys or values are there twice while it is given another size. Batches that are padded stay below that too."""
_KEPT = 256 * 2**20
"""Bytes of keys and values that each version remembers for the next turns of conversations, at least."""
_KEPT_ON_GPU = 1 / 32
"""Of the memory of a GPU, where that is more."""
_KEPT_CONTEXTS = 2
"""Room for so many conversations of full length, where that is more, up to _KEPT_OF_FREE."""
_KEPT_OF_FREE = 1 / 16
"""Of the memory that is free before a model is loaded."""
LOADING = 1.25
"""Of the weights of a model, what must be free to load it."""
_GROUP = Path("/sys/fs/cgroup")
"""Where a container finds its own limits."""
_SOON_SECONDS = 2.0
"""Longer than a round of the engine."""


@dataclass(frozen=True)
class Memory:
    """What keys and values of replies under way may take."""

    columns: int
    context: int
    """Tokens of the longest possible row."""
    is_shared: bool
    """Whether replies to a prompt share its columns, as on shelves; else each row stands alone."""

    @staticmethod
    def of(
        device: torch.device, config: Any, dtype: torch.dtype, context: int, *, is_shared: bool
    ) -> "Memory":
        """Of a model whose weights are on `device` already."""
        columns = int(_SHARE * free_bytes(device) / (_SLACK * column_bytes(config, dtype)))
        return Memory(columns, context, is_shared)

    def needed(self, prompt: int, replies: int, new: int) -> int:
        """Columns that a prompt of so many tokens and its replies, of up to `new` each, take at most."""
        alone = room_for(prompt + new, self.context)
        together = prompt + replies * new
        if replies == 1 or not self.is_shared:
            return replies * alone
        # Worst case: all replies reach full length, then end one by one while their columns stay. The family
        # is parted once at most `parted` rows are left; each then takes `alone`.
        parted = math.ceil(together / (WORTH_SHARING * (prompt + new))) - 1
        return max(room_for(together, self.context), min(replies, parted) * alone)


def free_bytes(device: torch.device) -> int:
    """On a GPU with what PyTorch holds there for this process and does not use, and within the limit of this
    process (trainer/night.py); on a CPU what this machine, or the container we are in, has left."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        limit = int(total * torch.cuda.get_per_process_memory_fraction(device.index))
        return min(free + torch.cuda.memory_reserved(device), limit) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((_GROUP / "memory.max").read_text())
        used = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - int(used["anon"]))  # what is cached of files gives way
    return max(0, free)


def peak_bytes() -> int:
    """The most that this process has held of the machine's memory."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of each
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bytes_to_keep(device: torch.device, context_bytes: int) -> int:
    """How much of keys and values a version may remember for the next turns of conversations.

    context_bytes: those of the longest conversation.
    """
    on_gpu = int(_KEPT_ON_GPU * torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else 0
    contexts = min(_KEPT_CONTEXTS * context_bytes, int(_KEPT_OF_FREE * free_bytes(device)))
    return max(_KEPT, on_gpu, contexts)


def give_back(device: torch.device) -> None:
    """What PyTorch holds on a GPU, and the C library in this process, and neither uses.

    The trainer may need it: after thirty versions, one after the other, glibc alone holds as much as all that
    is in use (benchmarks/RESULTS.md). Other C libraries than glibc have no such call.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def give_back_soon(device: torch.device) -> None:
    """The same in a moment, when nothing refers any more to what was let go of, and in nobody's way."""

    def work() -> None:
        lower_priority()
        give_back(device)

    timer = threading.Timer(_SOON_SECONDS, work)
    timer.daemon = True
    timer.start()


def column_bytes(config: Any, dtype: torch.dtype) -> int:
    """Of keys and values of one token in all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * kept * dim * dtype.itemsize)
