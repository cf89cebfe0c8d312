"""Errors of the user's world: each is a sentence, the fact and then the remedy.

Programming errors are assertions; these are for what a person can mend. The command line prints the
sentence and exits with `exit_code`; the web pages show it.
"""

import errno
from pathlib import Path


class Problem(Exception):
    """Something a person can mend."""

    exit_code = 2


class NotFound(Problem):
    """What was named does not exist."""


def no_file(path: Path) -> NotFound:
    """What to raise where a file that a person named is not there."""
    return NotFound(f"There is no file {str(path)!r} - check the path.")


class Refused(Problem):
    """It exists, but may not be done: not this person's, not finished, damaged, or out of range."""


class Busy(Problem):
    """It may be done, but not now: the queue is full or another process holds the lease."""


class Locked(Busy):
    """Others write to the database for longer than anybody waits in front of a page."""


class Unavailable(Busy):
    """It may be done, but nothing is there to do it: a fault that somebody should look at, not a crowd."""


_NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the RuntimeErrors of PyTorch, for a GPU and for a CPU: it is not imported here."""


def out_of_memory(error: BaseException) -> Problem | None:
    """What to tell of an error that came because memory ran out; None for any other."""
    is_of_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    if not (is_of_torch or isinstance(error, MemoryError)):
        return None
    told = f" ({'. '.join(str(error).split('. ')[:2]).rstrip('.')})" if str(error) else ""
    return Problem(
        f"The memory of this machine or of its GPU ran out{told} - close other programs that use it, take a "
        "smaller --model or --four-bit or, to learn, --quick, a smaller --minibatch or --reward-batch 1."
    )


def disk_full(error: BaseException) -> Problem | None:
    """What to tell of an error that came because the disk is full; None for any other, and for a Problem."""
    is_of_python = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    is_of_library = isinstance(error, Exception) and "No space left on device" in str(error)
    if isinstance(error, Problem) or not (is_of_python or is_of_library):
        return None
    return Problem("The disk is full - free some space and try again.")
