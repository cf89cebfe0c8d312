"""The page of one run: what it does now or how it ended, what happened, and what it measured on the way.

The head is the run's row; the body is drawn from its metrics and its report. A run that made no version has
its report in its folder, a living one has metrics only: each part of the body shows what is there.
"""

import json
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from chatbot.pages.operate_desk import Visit, card
from chatbot.pages.operate_gate import gate_html
from chatbot.pages.operate_now import bar_html
from chatbot.pages.operate_practice import practice_html, replies_html, steps_by_stage
from chatbot.pages.operate_report import number, part, sentences
from chatbot.pages.operate_reward import measured_so_far, reward_html
from chatbot.pages.operate_words import duration, moment
from data import runs, versions
from data.database import Database
from data.errors import NotFound
from data.home import Home
from data.records import BASE_VERSION, FINE_TUNING_STAGES, NIGHT_STAGES, Run
from data.runfolder import EXAMINATIONS, REPORT


def report_of(db: Database, home: Home, run: Run) -> dict[str, Any]:
    """What the run wrote down: with its version, else in its folder; empty where it got nowhere."""
    if run.version:
        try:
            return versions.get(db, run.version).report
        except NotFound:
            return {}
    for name in (REPORT, EXAMINATIONS):
        try:
            return part(json.loads((home.runs / run.id / name).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not written, or being written
            continue
    return {}


# ---------------------------------------------------------------------------------------------------------
# The head: a row of the table `runs`


def head_html(visit: Visit, run: Run) -> str:
    """Its name and state; while it lives stage, bar and time left, afterwards why it ended as it did."""
    is_running = run.is_alive(time.time())
    until = time.time() if is_running else run.finished_at or run.lease_until
    took = duration(until - run.started_at, visit.language)
    facts = [visit.html("since" if is_running else "started_at", at=moment(run.started_at, visit.zone))]
    facts.append(visit.html("running_for" if is_running else "took_in_all", time=took))
    made = f" <strong>{escape(run.version)}</strong>" if run.version else ""
    told = bar_html(visit, run) + _steps_html(visit, run.stage) if is_running else _why(run.reason)
    return card(
        visit.html("run"),
        f"<p class='ns-big'>{name_html(visit, run)}</p>"
        f"<p>{state_html(visit, run)}{made} <span class='ns-quiet'>{' · '.join(facts)}</span></p>{told}",
    )


def name_html(visit: Visit, run: Run) -> str:
    """The slot it was for, or what somebody asked for."""
    word = escape(visit.known(f"asked_{run.kind}", run.key.replace("T", " ", 1)))
    return f"<span class='ns-key' title='{escape(run.key)}'>{word}</span>"


def state_html(visit: Visit, run: Run) -> str:
    """How it stands, as a chip."""
    word = escape(visit.known(f"state_{run.state}", run.state))
    return f"<span class='ns-state ns-{escape(run.state)}'>{word}</span>"


def _why(reason: str) -> str:
    return f"<p>{escape(reason)}</p>" if reason else ""


def _steps_html(visit: Visit, stage: str) -> str:
    """All stages in order, the present one marked; nothing for a stage this page does not know."""
    for stages in (NIGHT_STAGES, FINE_TUNING_STAGES):
        if stage in stages:
            at = stages.index(stage)
            kinds = ["is-done"] * at + ["is-now"] + ["is-ahead"] * (len(stages) - at - 1)
            steps = "".join(
                f"<li class='{kind}'{' aria-current=step' if kind == 'is-now' else ''}>"
                f"{visit.html(f'stage_{name}')}</li>"
                for name, kind in zip(stages, kinds, strict=True)
            )
            return f"<ol class='ns-steps'>{steps}</ol>"
    return ""


# ---------------------------------------------------------------------------------------------------------
# The body: metrics and report


def body_html(db: Database, visit: Visit, run: Run, report: Mapping[str, Any]) -> str:
    """Everything the run measured, in the order in which it came about."""
    logged = steps_by_stage(runs.metrics(db, run.id))
    report = {**measured_so_far(logged), **report}
    told = [
        story_html(visit, report),
        practice_html(visit, run, logged, report),
        reward_html(db, visit, report),
        gate_html(visit, part(report, "gate")),
        seconds_html(visit, part(report, "seconds")),
    ]
    if any(told):
        return "".join(told)
    word = "no_figures_yet" if run.is_alive(time.time()) else "no_figures"
    return f"<p class='ns-empty'>{visit.html(word)}</p>"


def story_html(visit: Visit, report: Mapping[str, Any]) -> str:
    """What happened, in sentences: what it learned from and began with, which update was kept, the notes."""
    told = [*_lesson(visit, report), *_imitated(visit, report), *_practised(visit, report)]
    if not told:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in told)
    replies = replies_html(visit, part(report, "ppo").get("samples"))
    return card(visit.html("what_happened"), f"<ul class='ns-why'>{items}</ul>{replies}")


def _lesson(visit: Visit, report: Mapping[str, Any]) -> list[str]:
    """What was learned from, and what the reward models went on from."""
    told = []
    rankings, people = number(report.get("rankings")), number(report.get("people"))
    if rankings and people:
        told.append(visit.say("lesson", n=round(rankings), people=_counted(visit, people)))
    if parts := part(report, "parts"):
        sides = {key: round(number(parts.get(key)) or 0) for key in "AB"}
        told.append(visit.say("lesson_parts", own=sides["A"], other=sides["B"]))
    parent = report.get("parent")
    reference = " ".join(sentences(report.get("reference"))) or BASE_VERSION
    if isinstance(parent, str) and "reference" in report and "sft" not in report:
        word = "began_with" if parent == reference else "began_near"
        told.append(visit.say(word, parent=parent, reference=reference))
    warm = part(report, "warm_start") or part(report, "reward", "warm_start")
    told += sentences(warm.get("reason"))
    told += [why for why in sentences(part(report, "judge", "warm_start").get("reason")) if why not in told]
    return told


def _counted(visit: Visit, people: float) -> str:
    return visit.say("counted_people", n=round(people))


def _imitated(visit: Visit, report: Mapping[str, Any]) -> list[str]:
    """What a fine-tuning was taught by, and the pass over it that was kept."""
    shown, people = number(report.get("demonstrations")), number(report.get("people"))
    best, sft = number(part(report, "sft").get("best_epoch")), part(report, "sft")
    told = []
    if shown is not None and people is not None:
        told.append(visit.say("imitated", n=round(shown), people=_counted(visit, people)))
    if left_out := number(report.get("left_out")):
        told.append(visit.say("left_out", n=round(left_out)))
    if best is not None:
        told.append(visit.say("kept_pass", best=round(best)))
        told.append(visit.say("stopped_early") if sft.get("stopped_early") is True else "")
    return [sentence for sentence in told if sentence]


def _practised(visit: Visit, report: Mapping[str, Any]) -> list[str]:
    """Which update was kept, why it stopped, and what else was noted."""
    ppo = part(report, "ppo")
    best, updates = number(ppo.get("best_update")), number(ppo.get("updates"))
    told = []
    if best is not None and updates is not None:
        algorithm = " ".join(sentences(report.get("algorithm"))) or "ppo"
        algorithm = visit.known(f"algorithm_{algorithm}", algorithm)
        word = "kept_update" if best else "kept_none"
        told.append(visit.say(word, algorithm=algorithm, best=round(best), updates=round(updates)))
    if stopped := sentences(ppo.get("stopped")):
        told.append(visit.say("stopped", why=" ".join(stopped)))
    told += sentences(ppo.get("notes")) + sentences(report.get("notes"))
    for word in ("peak_memory", "peak_gpu_memory"):
        memory = number(report.get(f"{word}_gib"))
        told.append(visit.say(word, gib=f"{memory:.1f}") if memory else "")
    return [sentence for sentence in told if sentence]


def seconds_html(visit: Visit, seconds: Mapping[str, Any]) -> str:
    """How long each stage took: a bar of its share, and the length."""
    took = {stage: number(value) or 0.0 for stage, value in seconds.items()}
    whole = sum(took.values())
    if whole <= 0:
        return ""
    lines = "".join(
        f"<li><span class='ns-label'>{escape(visit.known(f'stage_{stage}', stage))}</span>"
        f"<span class='ns-track' aria-hidden='true'><i style='left:0;width:{100 * value / whole:.1f}%'></i>"
        f"</span><span class='ns-said'>{escape(duration(value, visit.language))}</span></li>"
        for stage, value in took.items()
        if value > 0
    )
    title = visit.html("seconds", time=duration(whole, visit.language))
    return card(title, f"<ul class='ns-ranges ns-seconds'>{lines}</ul>")
