"""Command-line flags made from a frozen dataclass.

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
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


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
