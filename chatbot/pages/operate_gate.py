"""The gate's report on a candidate: the verdict in its own sentences, and all that stood behind it.

Prompts and replies are models' and people's words: they are shown as text, each in a box of its own.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from chatbot.pages.operate_charts import Range, ranges
from chatbot.pages.operate_desk import Visit, card, figures
from chatbot.pages.operate_report import MISSING, interval, number, part, rows, sentences, signed

_SIDES = ("candidate", "current")
_SHOWN = 3
"""Samples in sight; the others are folded away."""
_MEASURES = (
    "length",
    "eos_rate",
    "empty_rate",
    "duplicate_rate",
    "distinct_2",
    "refusal_rate",
    "repetition",
    "perplexity",
    "capability",
)
"""What both sides are compared by, in this order; others follow under their own names."""
_SHARES = {"eos_rate", "empty_rate", "duplicate_rate", "refusal_rate", "capability", "repetition"}


def gate_html(visit: Visit, gate: Mapping[str, Any]) -> str:
    """Everything the gate wrote down; nothing where it was not reached."""
    if not gate:
        return ""
    verdict = _verdict_html(visit, gate) + _wins_html(visit, gate)
    sides = _sides_html(visit, gate) + _sampling_html(visit, part(gate, "sampling"))
    columns = "".join(f"<div>{column}</div>" for column in (verdict, sides) if column)
    told = f"<div class='ns-charts'>{columns}</div>{_samples_html(visit, gate)}"
    return card(visit.html("gate_report"), told)


def _verdict_html(visit: Visit, gate: Mapping[str, Any]) -> str:
    """Passed or refused, then the sentences; of a refusal each reason is a veto."""
    passed, reasons = gate.get("passed"), sentences(gate.get("reasons"))
    told = [sentence for sentence in sentences(gate.get("sentences")) if sentence not in reasons]
    chip = ""
    if isinstance(passed, bool):
        kind, word = ("published", "status_accepted") if passed else ("refused", "status_refused")
        chip = f"<p><span class='ns-state ns-{kind}'>{visit.html(word)}</span></p>"
    heading = f"<h3>{visit.html('vetoes')}</h3>" if passed is False and reasons else ""
    return chip + _list(told) + heading + _list(reasons)


def _list(told: list[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in told)
    return f"<ul class='ns-why'>{items}</ul>" if items else ""


def _wins_html(visit: Visit, gate: Mapping[str, Any]) -> str:
    """How often the judge prefers the candidate, and how often it is right about people."""
    lines = []
    wins, right = number(gate.get("win_rate")), number(part(gate, "judge").get("accuracy"))
    if wins is not None:
        lines.append(Range(visit.say("win_rate"), wins, interval(gate.get("win_rate_interval"))))
    if right is not None:
        known = interval(part(gate, "judge").get("accuracy_interval"))
        lines.append(Range(visit.say("judge_accuracy"), right, known, is_baseline=True))
    return ranges(lines)


def _sides_html(visit: Visit, gate: Mapping[str, Any]) -> str:
    """Candidate and current by what can be counted of their replies, and by the probes."""
    sides = [{**part(gate, "replies", side), **part(gate, "probes", side)} for side in _SIDES]
    seen = list(dict.fromkeys(key for side in sides for key in side))
    lines = []
    for key in [*(key for key in _MEASURES if key in seen), *(key for key in seen if key not in _MEASURES)]:
        values = [number(side.get(key)) for side in sides]
        if any(value is not None for value in values):
            name = escape(visit.known(f"measure_{key}", key.replace("_", " ")))
            lines.append([name, *(_measure(key, value) for value in values)])
    if not lines:
        return ""
    head = [visit.html("figure"), *(visit.html(f"side_{side}") for side in _SIDES)]
    return f"<h3>{visit.html('side_by_side')}</h3>" + figures(head, lines)


def _measure(key: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if key in _SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if key == "length" or value >= 1000 else f"{value:.2f}"


def _sampling_html(visit: Visit, sampling: Mapping[str, Any]) -> str:
    """How the replies were drawn: a comparison means nothing without it."""
    temperature, limit = number(sampling.get("temperature")), number(sampling.get("max_new_tokens"))
    if temperature is None or limit is None:
        return ""
    said = visit.html("sampled_at", temperature=f"{temperature:g}", limit=round(limit))
    return f"<p class='ns-quiet'>{said}</p>"


def _samples_html(visit: Visit, gate: Mapping[str, Any]) -> str:
    """Some replies of both sides to the same prompts."""
    shown = [html for row in rows(gate.get("samples")) if (html := _sample_html(visit, row))]
    if not shown:
        return ""
    more = "".join(shown[_SHOWN:])
    if more:
        count = visit.html("more_samples", n=len(shown) - _SHOWN)
        more = f"<details class='ns-fold'><summary>{count}</summary>{more}</details>"
    return f"<h3>{visit.html('samples')}</h3>" + "".join(shown[:_SHOWN]) + more


def _sample_html(visit: Visit, row: Mapping[str, Any]) -> str:
    """A prompt and two replies beside each other, with what the judge gave each."""
    texts = [row.get(side) for side in _SIDES]
    if not all(isinstance(text, str) for text in texts):
        return ""
    scores = [number(row.get(f"{side}_score")) for side in _SIDES]
    new, old = scores
    liked = "" if new is None or old is None or new == old else _SIDES[0] if new > old else _SIDES[1]
    preferred = f" <span class='ns-state ns-published'>{visit.html('judge_prefers')}</span>"
    columns = []
    for side, text, score in zip(_SIDES, texts, scores, strict=True):
        said = f" <span class='ns-quiet'>{signed(score)}</span>" if score is not None else ""
        chip = preferred if side == liked else ""
        body = escape(str(text)) or f"<span class='ns-quiet'>{visit.html('empty_reply')}</span>"
        columns.append(
            f"<section><h4>{visit.html(f'side_{side}')}{said}{chip}</h4>"
            f"<div class='ns-text' dir='auto' tabindex='0'>{body}</div></section>"
        )
    prompt = escape(" ".join(sentences(row.get("prompt"))))
    return (
        f"<article class='ns-sample'><p class='ns-prompt' dir='auto'>{prompt}</p>"
        f"<div class='ns-pair'>{''.join(columns)}</div></article>"
    )
