"""Known tastes: functions of a prompt and a reply that give a number, higher for what is liked better.

A simulated rater ranks by one, and `trainer measure` measures the same one on prompts never seen: the gold
reward of Gao 2022 (arXiv 2210.10760), which shows learning and over-optimisation without pretending that a
person was there. Three are built in; any Python function will do:

    def polite(prompt: list[dict], reply: str) -> float:
        return float("please" in reply.lower())

    trainer simulate --taste mine.py:polite
"""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data.errors import NotFound, Problem, Refused

Taste = Callable[[Sequence[Mapping[str, str]], str], float]
"""Chat messages up to the user's last, and the reply; gives a finite number."""

EMPTY = -1000.0
"""What `concise` says of a reply without a word: worse than any reply that fits a turn."""
MOST_STRUCTURE = 24
"""Points of structure that count: a list of twelve."""
MOST_WARMTH = 4
"""How many warm phrases count."""

# A Chinese, Japanese or Korean character counts as a word, since they are written without spaces; their
# punctuation does not.
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}\u3000-\u303f\uff00-\uffef]+")
_STRUCTURE = re.compile(r"^\s{0,3}(?:[-*+•]\s+\S|\d{1,2}[.)]\s+\S|#{1,6}\s+\S)", re.MULTILINE)

_WARM = re.compile(
    r"\b(hello|hi|hey|welcome|glad|happy to|great|wonderful|good luck|well done|congratulations|enjoy|love|"
    r"excited|you can do|don['\u2019]t worry|feel free|hope|thank|here to help|let me know|good morning)\b|"
    r"(你好|您好|欢迎|很高兴|加油|别担心|祝|谢谢|太好了|没问题)",
    re.IGNORECASE,
)


def concise(prompt: Sequence[Mapping[str, str]], reply: str) -> float:
    """Shorter is better: minus the number of words. An empty reply is the worst of all."""
    words = len(_WORD.findall(reply))
    return float(-words) if words else EMPTY


def structured(prompt: Sequence[Mapping[str, str]], reply: str) -> float:
    """Laid out is better: a point for each line with text, two where it belongs to a list or is a heading.

    No more than 24 points count. A small base seldom writes lists, but its replies differ in paragraphs.
    """
    lines = sum(1 for line in reply.splitlines() if line.strip())
    return float(min(lines + len(_STRUCTURE.findall(reply)), MOST_STRUCTURE))


def warm(prompt: Sequence[Mapping[str, str]], reply: str) -> float:
    """Warmth is better: the number of different phrases that greet, thank or encourage, at most four.

    Most replies of a plain model have none, so this taste ties often.
    """
    return float(min(len({match.group().lower() for match in _WARM.finditer(reply)}), MOST_WARMTH))


BUILT_IN: dict[str, Taste] = {"concise": concise, "structured": structured, "warm": warm}


def load_taste(name: str) -> Taste:
    """A built-in taste, or FUNCTION of FILE.py for "FILE.py:FUNCTION"."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    file, colon, function_name = name.rpartition(":")
    if not colon or not file.endswith(".py") or not function_name:
        known = ", ".join(BUILT_IN)
        raise NotFound(f"No taste {name!r} - use one of {known}, or FILE.py:FUNCTION.")
    function = getattr(_load_file(Path(file)), function_name, None)
    if not callable(function):
        raise NotFound(f"{file!r} has no function {function_name!r} - define FUNCTION(prompt, reply) there.")
    return _checked(name, function)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise NotFound(f"No file {str(path)!r} - give the path of a Python file, as in FILE.py:FUNCTION.")
    spec = importlib.util.spec_from_file_location(f"taste_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file raises, it is theirs to mend
        raise Refused(f"{str(path)!r} cannot be run ({_shortly(error)}) - mend the file.") from error
    return module


def _checked(name: str, function: Callable[..., Any]) -> Taste:
    """The function, held to its promise: a finite number for every reply."""

    def taste(prompt: Sequence[Mapping[str, str]], reply: str) -> float:
        try:
            value = function([dict(message) for message in prompt], reply)
        except Exception as error:  # a stranger's code again
            raise Problem(
                f"The taste {name!r} failed on a reply ({_shortly(error)}) - mend the function."
            ) from error
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        raise Problem(f"The taste {name!r} gave {value!r} for a reply - it must give a finite number.")

    return taste


def _shortly(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
