"""Why a run ended before its end, in the words of its row; by these it is known whether it is worth resuming.

outcome.py writes them down, and watch.py where a process could not do so itself. No torch, so that a watcher
is small.
"""

from data.errors import Locked, disk_full, out_of_memory
from data.records import Run
from data.runs import LEASE_EXPIRED

SHUT_DOWN = "It was stopped because the server or the machine shut down."
KILLED = "The training process was killed"
"""How the reason begins where a signal ended the process, and it could write nothing itself."""
HELD_UP = "It was held up"
"""How it begins where others held the database for too long: later it may do."""


class ShutDown(KeyboardInterrupt):
    """SIGTERM: what started this process shuts down; nobody meant to end the run itself."""


def reason_of(error: BaseException) -> str:
    """Why a run ended that this error ended."""
    if isinstance(error, ShutDown):
        return SHUT_DOWN
    if isinstance(error, KeyboardInterrupt):
        return "It was stopped by Ctrl-C."
    if isinstance(error, Locked):
        return f"{HELD_UP}: {error}"
    return str(out_of_memory(error) or disk_full(error) or error) or type(error).__name__


def is_worth_resuming(run: Run) -> bool:
    """Whether this is a whole night that ended by no fault of its own, and by nobody's wish."""
    is_night = run.kind in ("slot", "manual")
    is_cut_off = run.reason in (LEASE_EXPIRED, SHUT_DOWN) or run.reason.startswith((KILLED, HELD_UP))
    return is_night and is_cut_off and run.state == "interrupted" and not run.cancel_requested
