"""The frame that every command line of Night School runs in, and what it prints.

`run_cli` turns what a person can mend into a sentence and an exit code; `show` prints what was found.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from data.errors import Problem, disk_full, out_of_memory

ENVIRONMENT = {
    # Server and trainer share the cores. OpenMP threads that spin for long while they wait slow both tenfold;
    # threads that sleep at once need twice the time for the short steps of decoding. These spin some 20 us,
    # or half of that (which needs ACTIVE) where several threads of a process compute in parallel.
    "OMP_WAIT_POLICY": "ACTIVE",
    "GOMP_SPINCOUNT": "2000",
    # Two caches of oneDNN keep up to a megabyte for each of 1,024 shapes; a night and a server know few.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
}
"""What PyTorch's libraries read when they are loaded, where nobody has set it already."""


def run_cli(run: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command line and turns what a person can mend into a sentence; returns the exit code.

    A Problem is one sentence on stderr and its own exit code, and so is memory or a disk that ran out. With
    `--json` it is `{"error": ...}` on stdout, or on stderr where `-` made stdout a file of rows. Ctrl-C is
    130; a reader that went away (`| head`) is no error. Everything else is a bug and shows its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        code = run(arguments) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit; pointing it at nothing keeps that silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        problem = error if isinstance(error, Problem) else out_of_memory(error) or disk_full(error)
        if problem is None:
            raise
        if "--json" in arguments:
            out = sys.stderr if "-" in arguments else sys.stdout
            print(json.dumps({"error": str(problem)}, ensure_ascii=False), file=out)
        else:
            print(problem, file=sys.stderr)
        return problem.exit_code


def show(value: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Prints what a command has found out: `value` as JSON, or `lines` for a person."""
    print(json.dumps(finite(value), indent=1, ensure_ascii=False) if as_json else "\n".join(lines))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns under each other."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
