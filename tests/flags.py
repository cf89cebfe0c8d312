"""A config as the flags that say it, for tests that start a program."""

import dataclasses
from typing import Any


def to_flags(config: Any) -> list[str]:
    """The arguments that say the same as the dataclass `config`; defaults are left out."""
    arguments = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or value is None:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            arguments.append(f"{flag}={value}")
    return arguments
