"""Command-line flags made from a frozen dataclass, and the frame every command line of Night School runs in.

A field is `Annotated[T, "A sentence."]`; the sentence is the flag's help, the default is the field's. So a
setting is described once, beside its user. Left out on purpose: lists, nested dataclasses, configuration
files and environment variables.

    @dataclass(frozen=True)
    class ServeConfig:
        port: Annotated[int, "The port the pages answer on."] = 7860

    add_flags(parser, ServeConfig)
    config = from_flags(parser.parse_args(), ServeConfig)
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from data.errors import Problem, out_of_memory

Config = TypeVar("Config")

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


def add_flags(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Adds one flag per field of the dataclass `cls`: `max_new_tokens` becomes `--max-new-tokens`."""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind, sentence = _kind_and_sentence(cls, field.name, hints[field.name])
        assert field.default is not dataclasses.MISSING, f"{cls.__name__}.{field.name} needs a default"
        _add_flag(parser, field.name, kind, sentence, field.default)


def from_flags(namespace: argparse.Namespace, cls: type[Config]) -> Config:
    """The dataclass with the values that `add_flags` had parsed; its `__post_init__` checks them."""
    assert dataclasses.is_dataclass(cls), f"{cls.__name__} must be a dataclass"
    return cls(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(cls)})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind_and_sentence(cls: type[Any], name: str, hint: Any) -> tuple[Any, str]:
    """The type and the sentence of `Annotated[T, "sentence"]`; `T | None` counts as T."""
    assert get_origin(hint) is Annotated, f"{cls.__name__}.{name} needs Annotated[type, 'a sentence.']"
    kind, sentence = get_args(hint)[:2]
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    return kind, str(sentence)


def _add_flag(parser: argparse.ArgumentParser, name: str, kind: Any, sentence: str, default: Any) -> None:
    words = sentence.replace("%", "%%")
    if default is not None and default != "":
        words += f" (default: {default})".replace("%", "%%")
    if kind is bool:
        parser.add_argument(
            _flag(name), dest=name, action=argparse.BooleanOptionalAction, default=default, help=words
        )
    elif get_origin(kind) is Literal:
        parser.add_argument(_flag(name), dest=name, choices=get_args(kind), default=default, help=words)
    else:
        assert kind in (str, int, float, Path), f"a flag cannot be made from {kind!r}"
        metavar = {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
        parser.add_argument(_flag(name), dest=name, type=kind, default=default, help=words, metavar=metavar)


def run_cli(run: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command line and turns what a person can mend into a sentence; returns the exit code.

    A Problem is one sentence on stderr (with `--json`, `{"error": ...}` on stdout) and its own exit code, and
    so is memory that ran out; Ctrl-C is 130; a reader that went away (`| head`) is no error. Everything else
    is a bug and shows its traceback.
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
        problem = error if isinstance(error, Problem) else out_of_memory(error)
        if problem is None:
            raise
        if "--json" in arguments:
            print(json.dumps({"error": str(problem)}, ensure_ascii=False))
        else:
            print(problem, file=sys.stderr)
        return problem.exit_code


def show(value: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Prints what a command has found out: `value` as JSON, or `lines` for a person."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False) if as_json else "\n".join(lines))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns under each other."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
