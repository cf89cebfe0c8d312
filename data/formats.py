"""The formats other trainers read, as pure functions: a ranked turn to rows, a row to a judged prompt.

Published files have traps: empty and identical replies, dialogues that part before the last reply, one
speaker twice in a row (joined here). What cannot be used is Refused with a clause that says why: replies that
are too many among them, since what learns takes each with each. An empty reply costs its pair, but no whole
ranking: there a model may have chosen to say nothing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.comparisons import RankedTurn
from data.errors import Refused
from data.prompts import chat_messages, check_length
from data.rankings import check_kind
from data.records import RankingKind
from data.text import clean

Messages = tuple[dict[str, str], ...]
Row = dict[str, Any]

FORMATS = {
    "preference": 'TRL: {"prompt": [...], "chosen": [reply], "rejected": [reply]}, a row a pair, no ties',
    "kto": 'TRL unpaired: {"prompt": [...], "completion": [reply], "label": bool}: best and worst place',
    "sft": '{"messages": [...]}, ending with a reply that a person wrote',
    "tiers": 'all: {"prompt", "completions", "tiers": [[best], ..., [worst]], "kind", "source", "cut",'
    ' "reasons", "comment"}',
    "hh": 'Anthropic: {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}',
    "normalised": '{"id", "prompt", "replies", "ranking": [best, ..., worst, ties as a list], "source"};'
    " best: a row a pair; never all bad",
}
"""What a row of each looks like."""
MOST_REPLIES = 64
"""Of one prompt: these make 2,016 pairs."""
_FIELDS = {
    "preference": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "sft": ("messages",),
    "tiers": ("prompt", "completions", "tiers"),
    "hh": ("chosen", "rejected"),
    "normalised": ("prompt", "replies", "ranking"),
}
"""What a row of each cannot do without."""
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_NAMES = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Judged:
    """A prompt with replies and what was said of them; without places, a demonstration."""

    prompt: Messages
    replies: tuple[str, ...]
    places: tuple[int, ...]
    kind: RankingKind = "full"
    reasons: tuple[str, ...] = ()
    comment: str = ""
    cut: tuple[bool, ...] = ()
    """Whether each reply was cut off; empty where nothing tells."""

    def __post_init__(self) -> None:
        if len(self.replies) > 1 and len(set(self.replies)) == 1 and self.kind != "all_bad":
            raise Refused("the replies are identical")
        if self.prompt[-1]["role"] != "user" or any(map(_says_nothing, self.prompt)):
            raise Refused("the prompt does not end with a user's words, or has an empty message")
        roles = [entry["role"] for entry in self.prompt]
        if "system" in roles[1:] or roles[roles[0] == "system"] != "user":
            raise Refused("the dialogue does not begin with a user, after the system message if there is one")
        if self.places:
            check_kind(self.kind, self.places)


def _says_nothing(entry: dict[str, str]) -> bool:
    """Whether a message is empty that may not be: a model may have chosen to say nothing."""
    return entry["role"] != "assistant" and not entry["content"].strip()


def rows_of(turn: RankedTurn, fmt: str) -> Iterator[Row]:
    """The rows that say in this format what the turn's ranking says."""
    prompt = list(turn.prompt)
    if fmt in ("preference", "hh"):
        for better, worse, q in turn.pairs():
            if q == 1 and turn.replies[better] != turn.replies[worse]:
                yield from _pair_row(prompt, turn.replies[better], turn.replies[worse], fmt)
    elif fmt == "kto":
        for reply, label in _labels(turn):
            yield {"prompt": prompt, "completion": _said(reply), "label": label}
    elif fmt == "tiers":
        yield {
            "prompt": prompt,
            "completions": list(turn.replies),
            "tiers": tiers_of(turn.places),
            "kind": turn.kind,
            "source": turn.source,
            "cut": list(turn.cut),
        }
    elif fmt == "normalised" and turn.kind != "all_bad":
        for id, replies, order in _orders(turn):
            yield {"id": id, "prompt": prompt, "replies": replies, "ranking": order, "source": turn.source}


def _orders(turn: RankedTurn) -> Iterator[tuple[str, list[str], list[int | list[int]]]]:
    """An id, replies and their tiers; of `best` each pair alone, since one row would tie all the others."""
    if turn.kind == "best":
        for better, worse, _ in turn.pairs():
            if turn.replies[better] != turn.replies[worse]:
                yield f"{turn.ranking_id}-{worse}", [turn.replies[better], turn.replies[worse]], [0, 1]
    else:
        order = [tier[0] if len(tier) == 1 else tier for tier in tiers_of(turn.places)]
        yield turn.ranking_id, list(turn.replies), order


def tiers_of(places: Sequence[int]) -> list[list[int]]:
    """The indices of the replies, best tier first."""
    return [[at for at, place in enumerate(places) if place == tier] for tier in sorted(set(places))]


def _pair_row(prompt: list[dict[str, str]], chosen: str, rejected: str, fmt: str) -> Iterator[Row]:
    if fmt == "preference":
        yield {"prompt": prompt, "chosen": _said(chosen), "rejected": _said(rejected)}
        return
    texts = [*(entry["content"] for entry in prompt), chosen, rejected]
    if not any(_SPEAKER.search("\n\n" + text) for text in texts):  # else the format cannot carry it
        opening = "".join(_NAMES[entry["role"]] + entry["content"] for entry in prompt) + _NAMES["assistant"]
        yield {"chosen": opening + chosen, "rejected": opening + rejected}


def _labels(turn: RankedTurn) -> list[tuple[str, bool]]:
    """The best place is good and the worst bad, where they differ; `best` says nothing of the others."""
    tiers = tiers_of(turn.places)
    good = tiers[0] if len(tiers) > 1 else []
    bad = [] if turn.kind == "best" else tiers[-1] if len(tiers) > 1 or turn.kind == "all_bad" else []
    return [(turn.replies[at], True) for at in good] + [(turn.replies[at], False) for at in bad]


def _said(reply: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply}]


def judged(row: Row, fmt: str) -> Judged:
    """What a row of this format says (`kto` rows are grouped by `judged_labels`)."""
    _check_fields(row, fmt)
    read = {"preference": _preference, "hh": _hh, "tiers": _tiers, "normalised": _normalised, "sft": _sft}
    return read[fmt](row)


def label_of(row: Row) -> tuple[Messages, str, bool]:
    """The prompt, reply and label of a KTO row."""
    _check_fields(row, "kto")
    reply = _messages(row.get("completion"), "assistant")
    if not isinstance(row.get("label"), bool) or len(reply) != 1:
        raise Refused("the completion is not one reply, or the label neither true nor false")
    return _joined(_messages(row.get("prompt"), "user")), reply[0]["content"], row["label"]


def _check_fields(row: Row, fmt: str) -> None:
    """Refused where a row lacks what its format needs, and with the format that it seems to have instead."""
    seen = _format_of(row)
    if missing := [name for name in _FIELDS[fmt] if name not in row]:
        names = [repr(name[:40]) for name in sorted(row)[:8]] + ["others"] * (len(row) > 8)
        there = f"its fields are {', '.join(names)}" if row else "it has no fields at all"
        raise Refused(f"it has no {missing[0]!r}; {there}" + (f", as of --format {seen}" if seen else ""))
    if (fmt, seen) == ("preference", "hh"):
        raise Refused("its texts name their speakers, as of --format hh")


def _format_of(row: Row) -> str | None:
    """The format that a row seems to have, by its fields; None where they are of none."""
    found = next((fmt for fmt, names in _FIELDS.items() if all(name in row for name in names)), None)
    is_dialogue = "prompt" not in row and _SPEAKER.match(str(row.get("chosen")))
    return "hh" if found == "preference" and is_dialogue else found


def judged_labels(prompt: Messages, labels: Sequence[tuple[str, bool]]) -> Judged:
    """All labelled replies of one prompt: the good ones before the bad ones, or all bad."""
    replies = tuple(reply for reply, _ in labels)
    if all(label for _, label in labels):
        raise Refused("no reply to this prompt is labelled false, so nothing can be compared")
    if not any(label for _, label in labels):
        return Judged(prompt, replies, (1,) * len(replies), "all_bad")
    return Judged(prompt, replies, tuple(1 if label else 2 for _, label in labels))


def _preference(row: Row) -> Judged:
    prompt = _messages(row["prompt"], "user") if "prompt" in row else ()
    chosen, rejected = (_messages(row.get(name), "assistant") for name in ("chosen", "rejected"))
    if len(chosen) == len(rejected) == 1:
        chosen, rejected = prompt + chosen, prompt + rejected
    return _pair(chosen, rejected)


def _hh(row: Row) -> Judged:
    return _pair(_dialogue(row.get("chosen")), _dialogue(row.get("rejected")))


def _dialogue(text: object) -> Messages:
    """The messages of a text with speakers' names; what stands before the first is the system's."""
    if not isinstance(text, str):
        raise Refused("'chosen' or 'rejected' is no text")
    opening, *parts = _SPEAKER.split(text)
    system = [{"role": "system", "content": opening.strip()}] if opening.strip() else []
    said = [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return chat_messages(system + said)


def _pair(chosen: Messages, rejected: Messages) -> Judged:
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Refused("a dialogue does not end with a reply")
    if chosen[:-1] != rejected[:-1]:
        raise Refused("the two dialogues part before the last reply")
    if len(chosen) < 2:
        raise Refused("there is no prompt before the replies")
    return Judged(_joined(chosen[:-1]), _words(chosen[-1], rejected[-1]), (1, 2))


def _tiers(row: Row) -> Judged:
    replies = replies_of(row.get("completions"))
    places = _places(row.get("tiers"), len(replies))
    kind, reasons, comment = row.get("kind", "full"), row.get("reasons", []), row.get("comment", "")
    if not isinstance(reasons, list) or not all(isinstance(one, str) for one in [*reasons, comment]):
        raise Refused("the reasons are not a list of texts, or the comment is no text")
    cut = row.get("cut") or [False] * len(replies)
    if not isinstance(cut, list) or [type(one) for one in cut] != [bool] * len(replies):
        raise Refused("'cut' is not a list of true or false, one for each reply")
    prompt = _joined(_messages(row.get("prompt"), "user"))
    return Judged(prompt, replies, places, kind, tuple(reasons), comment, tuple(cut))


def _normalised(row: Row) -> Judged:
    replies = replies_of(row.get("replies"))
    places = _places(row.get("ranking"), len(replies))
    return Judged(_joined(_messages(row.get("prompt"), "user")), replies, places)


def _sft(row: Row) -> Judged:
    messages = _joined(chat_messages(row.get("messages")))
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise Refused("the messages do not end with a reply to somebody")
    return Judged(messages[:-1], _words(messages[-1]), ())


def _words(*replies: dict[str, str]) -> tuple[str, ...]:
    if any(not reply["content"].strip() for reply in replies):
        raise Refused("a reply is empty")
    return tuple(reply["content"] for reply in replies)


def replies_of(value: object) -> tuple[str, ...]:
    """`value` as the replies of a row, cleaned; Refused with what is wrong, a clause without its remedy."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise Refused("the replies are not a list of texts")
    if not value:
        raise Refused("there are no replies")
    if len(value) > MOST_REPLIES:
        raise Refused(f"there are {len(value):,} replies, more than {MOST_REPLIES}")
    for entry in value:
        check_length(entry)
    return tuple(clean(entry) for entry in value)


def _places(order: object, many: int) -> tuple[int, ...]:
    """The place of each reply, from a list of tiers (an index, or a list of them), best first."""
    if not isinstance(order, list):
        raise Refused("the ranking is not a list")
    places: dict[int, int] = {}
    for place, tier in enumerate(order, start=1):
        for at in tier if isinstance(tier, list) else [tier]:
            if not isinstance(at, int) or at in places:
                raise Refused(f"{at!r} is no reply's number, or is there twice")
            places[at] = place
    if sorted(places) != list(range(many)):
        raise Refused("the ranking does not name each reply once")
    return tuple(places[at] for at in range(many))


def _messages(value: object, role: str) -> Messages:
    return chat_messages([{"role": role, "content": value}] if isinstance(value, str) else value)


def _joined(messages: Messages) -> Messages:
    """The same words with what one speaker said twice in a row as one message."""
    joined: list[dict[str, str]] = []
    for entry in messages:
        if joined and joined[-1]["role"] == entry["role"]:
            joined[-1] = {"role": entry["role"], "content": f"{joined[-1]['content']}\n\n{entry['content']}"}
        else:
            joined.append(entry)
    return tuple(joined)
