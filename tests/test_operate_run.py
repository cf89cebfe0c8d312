"""The page of one run: charts, reports and replies, whole, partial, odd or missing; and once in Chromium.

Old reports lack what newer nights write, and a report is a file that anything may have written: nothing in it
may break the page or run on it.
"""

import json
import math
import re
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Locator, Page, expect

from chatbot.pages.operate_desk import Visit
from chatbot.pages.operate_gate import gate_html
from chatbot.pages.operate_practice import against_kl, practice_html, replies_html, steps_by_stage
from chatbot.pages.operate_reward import reward_html
from chatbot.pages.operate_run import body_html, head_html, report_of, story_html
from chatbot.pages.operate_runs import NEWEST, find, is_settled
from data import people, runs
from data.database import Database
from data.home import Home
from data.records import Person, Run
from tests.attacks import ATTACKS
from tests.browser import PATIENCE, chromium
from tests.operating import (
    add_version,
    built_page,
    call,
    end_run,
    log_updates,
    served,
    start_run,
    whole_report,
)

ALL_ATTACKS = "\n".join(ATTACKS)


@pytest.fixture
def operator(db: Database) -> Person:
    return people.add(db, "olga", "operator")


@pytest.fixture
def visit(operator: Person) -> Visit:
    return Visit(operator, "en", "UTC")


@pytest.fixture
def page(db: Database, home: Home) -> gr.Blocks:
    return built_page(db, home)


def a_night(db: Database, report: dict[str, Any], state: Any = "published") -> Run:
    """A run with metrics that made v000001 with this report."""
    run = start_run(db)
    log_updates(db, run)
    add_version(db, "v000001", run_id=run.id, report=report, serve=state == "published")
    return end_run(db, run, state, "v000001")


def body(db: Database, home: Home, visit: Visit, run: Run) -> str:
    return body_html(db, visit, run, report_of(db, home, run))


# ---------------------------------------------------------------------------------------------------------
# Practice


def test_the_judge_is_drawn_over_the_root_of_kl_and_the_published_update_is_marked(
    db: Database, visit: Visit
) -> None:
    run = a_night(db, whole_report())
    steps = steps_by_stage(runs.metrics(db, run.id))["ppo"]
    drawn = against_kl(visit, run, steps, 8)
    judge = next(one for one in drawn.series if "judge" in one.label)
    assert len(judge.points) == 13
    assert [p.x for p in judge.points] == [math.sqrt(max(0.0, row["kl"])) for row in steps.values()]
    assert drawn.mark == (math.sqrt(steps[8]["kl"]), steps[8]["judge"], "published: 8")


def test_what_was_kept_but_refused_is_not_called_published(db: Database, visit: Visit) -> None:
    run = a_night(db, whole_report(), "refused")
    steps = steps_by_stage(runs.metrics(db, run.id))["ppo"]
    mark = against_kl(visit, run, steps, 8).mark
    assert mark is not None and mark[2] == "kept: 8"


def test_best_of_k_and_what_is_not_finite_are_drawn_too(db: Database, visit: Visit) -> None:
    run = start_run(db)
    log_updates(db, run, 3, stage="bestofk")
    runs.log(db, run, "bestofk", 3, {"judge": math.nan, "score": math.inf, "kl": 1.0})
    html = practice_html(visit, run, steps_by_stage(runs.metrics(db, run.id)), {})
    assert "Score by update" in html and "nan" not in html and "inf" not in html


def test_replies_at_an_update_are_shown_where_they_are_texts(visit: Visit) -> None:
    rows = [{"prompt": "Hi", "reply": "<i>Hello", "score": 0.5}, {"prompt": [1, 2], "reply": [3]}]
    html = replies_html(visit, {"4": rows, "5": "?"})
    assert "Replies at update 4" in html and "&lt;i&gt;Hello" in html and "+0.50" in html
    assert html.count("<article") == 1 and "update 5" not in html


# ---------------------------------------------------------------------------------------------------------
# The reports


def test_accuracy_stands_beside_its_interval_and_both_baselines(db: Database, visit: Visit) -> None:
    html = reward_html(db, visit, whole_report())
    for words in ("68 %", "[62, 74]", "210 pairs", "The longest always wins", "41 %", "first shown", "50 %"):
        assert words in html
    for words in ("35 <small>of 70", "tau", "+0.36", "ECE", "0.07", "−0.31", "0.28", "14 %", "of 50"):  # noqa: RUF001
        assert words in html
    for words in ("75 % sure, 66 % right", "Rankings examined on"):
        assert words in html


def test_accuracy_by_person_names_the_people_it_still_knows(db: Database, visit: Visit) -> None:
    known = reward_html(db, visit, whole_report(person=visit.person.id))
    gone = reward_html(db, visit, whole_report(person="0193-gone-since"))
    assert "olga" in known and "71 %" in known and "0193-gon" in gone
    assert "weighed" not in known + gone


def test_beside_a_person_who_weighed_less_stands_how_much(db: Database, visit: Visit) -> None:
    report = {**whole_report(person=visit.person.id), "person_reliability": {visit.person.id: 0.4}}
    assert "40 pairs · rankings weighed 40 %" in reward_html(db, visit, report)


def test_the_gate_says_its_verdict_its_interval_and_both_sides(visit: Visit) -> None:
    html = gate_html(visit, whole_report()["gate"])
    for words in ("passed", "on 61% of 300 prompts.", "61 %", "[56, 66]", "Perplexity", "17.31", "16.97"):
        assert words in html
    for words in ("Refusals of harmless prompts", "62.0 %", "33.0 %", "temperature 0.8", "at most 128"):
        assert words in html
    assert html.count("<article") == 10 and "7 more" in html
    assert html.count("the judge&#x27;s choice") == 10


def test_a_refusal_lists_its_vetoes(visit: Visit) -> None:
    gate = {**whole_report()["gate"], "passed": False, "reasons": ["9.0% of the replies are empty."]}
    html = gate_html(visit, gate)
    assert "refused" in html and "Why it was refused" in html and "9.0% of the replies are empty." in html


def test_a_probe_that_this_page_does_not_know_is_shown_by_its_own_name(visit: Visit) -> None:
    gate = {"probes": {"candidate": {"moon_phase": 0.25}, "current": {}}}
    html = gate_html(visit, gate)
    assert "moon phase" in html and "0.25" in html


def test_the_story_tells_the_memory_of_the_gpu_where_there_was_one(visit: Visit) -> None:
    for peak, is_told in ((11.84, True), (0.0, False)):
        story = story_html(visit, {**whole_report(), "peak_gpu_memory_gib": peak})
        assert "Its peak memory was 8.6 GiB." in story and ("On the GPU it was 11.8 GiB." in story) is is_told


def test_the_story_tells_the_warm_start_why_it_stopped_and_the_notes(visit: Visit) -> None:
    html = story_html(visit, whole_report())
    for words in (
        "120 rankings by 5 people",
        "No reward models of an earlier night",
        "the policy after 8 of them best",
        "It stopped early: The reward rose by 0.31",
        "People ranked cut replies too",
    ):
        assert words in html


def test_a_fine_tuning_tells_what_it_imitated(db: Database, home: Home, visit: Visit) -> None:
    run = start_run(db, "sft-1")
    for step in range(1, 9):
        runs.log(db, run, "sft", step, {"loss": 3 / step, "held_out_loss": 3.1 / step})
    sft = {"best_epoch": 2, "stopped_early": True, "held_out_loss": [3.0, 2.6, 2.5]}
    report = {"parent": "base", "reference": None, "people": 1, "demonstrations": 40, "sft": sft}
    add_version(db, "v000001", run_id=run.id, status="candidate", serve=False, report=report)
    html = body(db, home, visit, end_run(db, run, version="v000001"))
    for words in ("imitated 40 demonstrations by 1 person", "Pass 2", "stopped early", "Loss on demons"):
        assert words in html
    assert "KL is measured" not in html
    assert "Fine-tuning on demonstrations" in head_html(visit, run)


# ---------------------------------------------------------------------------------------------------------
# Reports that are not whole


ODD = (None, [], "text", 0, math.nan, True, {"a": None})


def spoiled(report: Any, odd: object) -> list[Any]:
    """Copies of `report` with one of its values, at any depth, replaced by `odd`."""
    if isinstance(report, list):
        return [[copy, *report[1:]] for copy in [odd, *spoiled(report[0], odd)]] if report else []
    if not isinstance(report, dict):
        return []
    return [{**report, key: copy} for key, value in report.items() for copy in [odd, *spoiled(value, odd)]]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_report_breaks_the_page(db: Database, visit: Visit, odd: object) -> None:
    run = start_run(db)
    log_updates(db, run, 2)
    report = whole_report()
    report["gate"]["samples"] = report["gate"]["samples"][:1]
    cases = spoiled(report, odd)
    assert len(cases) > 100
    for case in cases:
        html = body_html(db, visit, run, case)
        assert "Score by update" in html and not re.search(r"\bnan\b|None|True", html)


@pytest.mark.parametrize("key", whole_report())
def test_a_report_from_before_a_key_was_written_shows_the_rest(db: Database, visit: Visit, key: str) -> None:
    run = a_night(db, whole_report())
    older = {name: value for name, value in whole_report().items() if name != key}
    html = body_html(db, visit, run, older)
    assert ("Reward report" in html) and ("Time by stage" in html) == (key != "seconds")


def test_a_run_that_measured_nothing_says_so(db: Database, home: Home, visit: Visit) -> None:
    run = start_run(db)
    assert "as soon as the first are measured" in body(db, home, visit, run)
    assert "measured nothing" in body(db, home, visit, end_run(db, run, "failed"))


def test_a_living_run_shows_what_its_metrics_already_say(db: Database, home: Home, visit: Visit) -> None:
    run = start_run(db, stage="ppo", progress=0.5, eta_seconds=600)
    runs.log(db, run, "reward", 0, {"held_out_accuracy": 0.66, "held_out_always_longest": 0.4})
    log_updates(db, run, 3)
    html = body(db, home, visit, run)
    assert "66 %" in html and "40 %" in html and "Score by update" in html and "published:" not in html
    head = head_html(visit, run)
    assert "about 10 min left" in head and "aria-current=step>Practising" in head


def test_a_run_without_a_version_has_its_report_in_its_folder(db: Database, home: Home, visit: Visit) -> None:
    run = end_run(db, start_run(db), "refused")
    folder = home.runs / run.id
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("{ half a rep")
    assert report_of(db, home, run) == {}
    report = {**whole_report(), "gate": None, "ppo": {"best_update": 0, "updates": 12}}
    (folder / "report.json").write_text(json.dumps(report))
    html = body(db, home, visit, run)
    assert "liked none better than the start" in html and "68 %" in html


def test_a_run_without_a_judge_has_a_reward_report_and_no_more(
    db: Database, home: Home, visit: Visit
) -> None:
    run = end_run(db, start_run(db), "refused")
    (home.runs / run.id).mkdir(parents=True)
    report = {**whole_report(), "gate": None, "ppo": None}
    (home.runs / run.id / "report.json").write_text(json.dumps(report))
    html = body(db, home, visit, run)
    assert "Reward report" in html and "What happened" in html and "updates" not in html


# ---------------------------------------------------------------------------------------------------------
# Texts of models and people


def test_what_models_and_people_wrote_is_escaped_everywhere(db: Database, home: Home, visit: Visit) -> None:
    report = whole_report(ALL_ATTACKS, person=ALL_ATTACKS)
    report["ppo"] |= {"stopped": ALL_ATTACKS, "notes": [ALL_ATTACKS]}
    report["gate"] |= {"reasons": [ALL_ATTACKS], "probes": {"candidate": {ALL_ATTACKS: 1.0}}}
    report |= {"seconds": {ALL_ATTACKS: 3.0}, "parent": ALL_ATTACKS, "algorithm": ALL_ATTACKS}
    report["warm_start"] = {"reason": ALL_ATTACKS}
    html = body(db, home, visit, a_night(db, report))
    ours = re.compile(
        r"</?(section|h[1-4]|p|ul|ol|li|div|span|small|strong|b|i|details|summary|article|figure|figcaption"
        r"|svg|g|line|text|circle|title|polyline|table|thead|tbody|tr|th|td)\b"
    )
    tags = re.findall(r"<[^>]*>", html)
    assert len(tags) > 500 and all(ours.match(tag) for tag in tags)
    assert not any(word in tag for tag in tags for word in ("onerror", "onload", "href", "src="))


# ---------------------------------------------------------------------------------------------------------
# Which run


def test_the_newest_run_is_followed_unless_one_is_chosen(db: Database) -> None:
    assert find(db, NEWEST) is None
    first = end_run(db, start_run(db, "first"))
    second = start_run(db, "second")
    assert [r.key for r in (find(db, NEWEST), find(db, None), find(db, first.id)) if r] == [
        "second",
        "second",
        "first",
    ]
    forged = find(db, "../../etc/passwd")
    assert forged is not None and forged.id == second.id


def test_the_end_of_a_run_is_drawn_before_the_page_rests(db: Database) -> None:
    run = start_run(db)
    assert not is_settled(run) and not is_settled(end_run(db, run))


def test_choosing_a_run_shows_it(db: Database, page: gr.Blocks, operator: Person) -> None:
    first = end_run(db, start_run(db, "2026-11-20T03:30 UTC"), "failed")
    start_run(db, "2026-11-21T03:30 UTC")
    wanted, head, _ = call(page, "choose", operator, first.id)
    assert wanted == first.id and "2026-11-20 03:30 UTC" in head and "failed" in head


# ---------------------------------------------------------------------------------------------------------
# In a browser


def is_inside(page: Page, found: Locator) -> bool:
    """Whether nothing of it lies beyond the left or right edge of the window."""
    box, width = found.bounding_box(), page.evaluate("innerWidth")
    return box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.browser
@pytest.mark.parametrize("width", [1360, 390])
def test_a_run_is_read_in_a_browser_wide_and_narrow(
    db: Database, page: gr.Blocks, operator: Person, width: int
) -> None:
    a_night(db, whole_report(ALL_ATTACKS, operator.id))
    living = start_run(db, "manual-1", stage="reward", progress=0.2, eta_seconds=1200, message=ALL_ATTACKS)
    foreign: list[str] = []
    with served(page, operator) as address, chromium() as browser:
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.set_default_timeout(PATIENCE)
        tab.on("request", lambda r: foreign.append(r.url) if "evil.example" in r.url else None)
        tab.goto(address)
        tab.get_by_role("tab", name="Runs").click()
        bar = tab.get_by_role("tabpanel").filter(visible=True).get_by_role("progressbar")
        expect(bar).to_have_attribute("aria-valuenow", "20")
        runs.report(db, living, stage="ppo", progress=0.7)
        expect(bar).to_have_attribute("aria-valuenow", "70")

        tab.get_by_role("listbox").or_(tab.get_by_label("Which run")).first.click()
        tab.get_by_role("option", name="published").click()
        figure = tab.get_by_role("img", name="Score over distance")
        expect(figure).to_be_visible()
        expect(tab.locator(".ns-ring").first).to_be_visible()
        for summary in tab.locator("summary:visible").all():
            summary.click()
        assert tab.locator(".ns-pair .ns-text").first.inner_text().strip() == ALL_ATTACKS.strip()
        assert is_inside(tab, figure) and is_inside(tab, tab.locator(".ns-figures").last)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("window.pwned") is None
    assert foreign == []
