"""The operator's page: its sentences, its two locks, and the levers, called as Gradio calls them.

One test drives the real page in Chromium: a run's progress, then a roll back in two steps.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from string import Formatter

import gradio as gr
import pytest
from playwright.sync_api import expect

from chatbot.config import ServeConfig
from chatbot.following import Answering
from chatbot.kept import Kept
from chatbot.pages.operate_desk import Desk, Visit
from chatbot.pages.operate_learning import CURVES, RUNS_DRAWN, _drawn, plot
from chatbot.pages.operate_now import backup_html, bar_html, refresh_html, serving_html
from chatbot.pages.operate_runs import runs_html
from chatbot.pages.operate_schedule import times_html
from chatbot.pages.operate_versions import listing_html, record_html
from chatbot.pages.operate_words import WORDS, duration, moment, say
from data import audit, conversations, forecast, people, rankings, requests, runs, schedules, versions
from data.backups import backup_path
from data.database import Database
from data.home import Home
from data.records import Metric, Person, Schedule
from data.recovery import FAILED
from tests.browser import PATIENCE, chromium
from tests.operating import NASTY, add_version, built_page, call, end_run, obedient, served, start_run
from tests.stories import a_turn, rank


@pytest.fixture
def operator(db: Database) -> Person:
    return people.add(db, "olga", "operator")


@pytest.fixture
def visit(operator: Person) -> Visit:
    return Visit(operator, "en", "UTC")


@pytest.fixture
def desk(db: Database, home: Home) -> Desk:
    return Desk(db, home, ServeConfig(), obedient(db))


@pytest.fixture
def page(db: Database, home: Home) -> gr.Blocks:
    return built_page(db, home)


# ---------------------------------------------------------------------------------------------------------
# Who may


def test_every_function_of_the_page_refuses_who_is_no_operator(db: Database, page: gr.Blocks) -> None:
    rater = people.add(db, "ravi", "rater")
    former = people.add(db, "fay", "operator")
    people.set_disabled(db, former.id, True)
    for block in page.fns.values():
        assert block.fn is not None
        for username in (rater.id, former.id, "nobody", None):
            request = gr.Request(username=username, headers={}, cookies={})
            with pytest.raises(gr.Error, match="for operators"):
                block.fn(*[None] * len(block.inputs), request=request)


def test_the_page_speaks_the_language_that_was_chosen_on_the_chat_page(desk: Desk, operator: Person) -> None:
    request = gr.Request(
        username=operator.id, headers={"accept-language": "en"}, cookies={"night_language": "zh-CN"}
    )
    assert desk.open(request).say("versions") == "版本"


# ---------------------------------------------------------------------------------------------------------
# What serves, and a refresh


def test_the_overview_says_what_serves_and_why(db: Database, visit: Visit) -> None:
    add_version(db, "v000001")
    html = serving_html(db, visit, Answering("v000001"))
    for words in (
        "v000001",
        "learned from 7 rankings",
        "made from base",
        "It passed the gate.",
        "61 % of 300",
    ):
        assert words in html


def test_before_any_version_the_base_serves_without_a_verdict(db: Database, visit: Visit) -> None:
    assert "the base model, before any ranking" in serving_html(db, visit, Answering("base"))


def test_a_version_that_cannot_serve_is_an_alert_and_the_one_that_answers_is_named(
    db: Database, visit: Visit
) -> None:
    add_version(db, "v000001")
    add_version(db, "v000002", "v000001", report={"gate": {"reasons": ["It wins 99 %."]}})
    html = serving_html(db, visit, Answering("v000001", f"v000002 does not serve: {NASTY}."))
    assert "<p class='ns-big'>v000001</p>" in html and "It wins 61 % of 300 replies." in html
    assert "role='alert'" in html and "v000002 does not serve: &lt;img" in html and "<img" not in html
    assert "It wins 99 %" not in html and "since" not in html


def test_a_version_that_is_being_loaded_does_not_serve_yet(db: Database, visit: Visit) -> None:
    add_version(db, "v000001")
    html = serving_html(db, visit, Answering("base"))
    assert "<p class='ns-big'>base</p>" in html and "role='alert'" not in html
    assert "v000001 is chosen; it serves as soon as it is loaded and checked." in html
    served_now = serving_html(db, visit, Answering("v000001"))
    assert "role='status'" not in served_now and "role='alert'" not in served_now


def test_a_living_run_shows_its_stage_its_share_and_the_time_left(db: Database, visit: Visit) -> None:
    run = start_run(db, stage="ppo", progress=0.425, eta_seconds=750, message="Update 7 of 16.")
    html = bar_html(visit, run)
    assert "Practising" in html and "about 12 min left" in html and "Update 7 of 16." in html
    assert "aria-valuenow='42'" in html


def test_what_the_trainer_wrote_is_escaped(db: Database, desk: Desk, visit: Visit) -> None:
    run = start_run(db, stage=NASTY, progress=0.5, message=NASTY)
    add_version(db, "v000001", report={"gate": {"reasons": [NASTY]}})
    audit.record(db, NASTY, NASTY, {"note": NASTY})
    serving = serving_html(db, visit, Answering("v000001"))
    pages = [bar_html(visit, run), serving, listing_html(desk, visit), runs_html(visit, [run])]
    assert all("<img" not in html and "&lt;img" in html for html in pages)


def test_refresh_now_leaves_one_request_that_one_run_takes(
    db: Database, page: gr.Blocks, operator: Person
) -> None:
    call(page, "ask", operator)
    key = requests.pending(db)
    call(page, "ask", operator)
    assert key is not None and requests.pending(db) == key
    start_run(db, key)
    assert requests.pending(db) is None
    assert runs.list_all(db)[0].key == key


def test_a_request_waits_until_a_run_takes_it_and_the_page_says_so(
    db: Database, desk: Desk, visit: Visit
) -> None:
    requests.ask(db, visit.person)
    own = refresh_html(desk, visit, None, True)
    alone = refresh_html(replace(desk, config=ServeConfig(trainer=False)), visit, None, True)
    assert "within a minute" in own and "run `trainer watch`" in alone


def test_new_rankings_are_counted_once_for_all_who_look(
    db: Database, desk: Desk, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.kept.FREE_SECONDS", 0.0)
    monkeypatch.setattr("chatbot.kept.KEPT_TIMES", 1e9)
    assert "0 new rankings" in refresh_html(desk, visit, None, False)
    rank(db, visit.person, a_turn(db, visit.person), [1, 2, 3])
    assert "0 new rankings" in refresh_html(desk, visit, None, False)


def test_a_first_night_needs_as_many_rankings_as_any(db: Database, desk: Desk, visit: Visit) -> None:
    schedules.set_(db, replace(schedules.get(db), min_rankings=3), "a test")
    rank(db, visit.person, a_turn(db, visit.person), [1, 2, 3])
    assert "1 new ranking; a scheduled refresh needs 12." in refresh_html(desk, visit, None, False)
    for _ in range(11):
        rank(db, visit.person, a_turn(db, visit.person), [1, 2, 3])
    fresh = replace(desk, count_rankings=Kept(rankings.count))
    assert "12 new rankings; a scheduled refresh needs 3." in refresh_html(fresh, visit, None, False)


def test_edited_replies_count_among_what_a_night_needs(db: Database, desk: Desk, visit: Visit) -> None:
    schedules.set_(db, replace(schedules.get(db), min_rankings=3), "a test")
    for _ in range(11):
        conversations.add_edit(db, a_turn(db, visit.person)[0].id, "better", visit.person.id)
    rank(db, visit.person, a_turn(db, visit.person), [1, 2, 3])
    assert "1 new ranking; a scheduled refresh needs 3." in refresh_html(desk, visit, None, False)


def test_of_very_many_new_rankings_no_more_are_counted_than_must_be(
    db: Database, desk: Desk, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.pages.operate_now.MOST_COUNTED", 2)
    rank(db, visit.person, a_turn(db, visit.person), [1, 2, 3])
    assert "1 new ranking;" in refresh_html(desk, visit, None, False)
    for _ in range(2):
        rank(db, visit.person, a_turn(db, visit.person), [1, 2, 3])
    assert "2+ new rankings" in refresh_html(desk, visit, None, False)


def test_the_overview_says_when_the_last_backup_was_made(db: Database, desk: Desk, visit: Visit) -> None:
    now = visit.person.created_at + 86400
    assert "No backup yet" in backup_html(desk, visit, now)
    assert "href='/operate/export/tiers'" in backup_html(desk, visit, now)
    backup_path(desk.home, now - 86400).touch()
    fresh = backup_html(desk, visit, now)
    assert moment(now - 86400, "UTC") in fresh and "1 is kept" in fresh and "role='alert'" not in fresh
    audit.record(db, "trainer", FAILED, {"problem": f"There is no room {NASTY}."})
    alert = backup_html(desk, visit, now)
    assert "role='alert'" in alert and "There is no room" in alert and NASTY not in alert
    assert "There is no room" not in backup_html(desk, visit, now - 40_000)  # the last one is new enough


def test_backups_that_nobody_makes_are_an_alert(desk: Desk, visit: Visit) -> None:
    now = 1_795_000_000.0
    backup_path(desk.home, now - 3 * 86400).touch()
    late = "No backup for more than two days - see that `trainer watch` runs"
    assert late in backup_html(desk, visit, now)
    next(iter(desk.home.backups.iterdir())).unlink()
    since = visit.person.created_at
    assert late not in backup_html(desk, visit, since + 86400)
    assert late in backup_html(desk, visit, since + 3 * 86400)


def test_cancel_takes_back_a_request_then_stops_a_run_then_refuses(
    db: Database, page: gr.Blocks, operator: Person
) -> None:
    requests.ask(db, operator)
    call(page, "stop", operator)
    assert requests.pending(db) is None
    run = start_run(db)
    call(page, "stop", operator)
    assert runs.get(db, run.id).cancel_requested
    runs.finish(db, run, state="cancelled", reason="An operator cancelled it.")
    with pytest.warns(UserWarning, match="nothing to cancel"):
        call(page, "stop", operator)


def test_a_run_whose_process_was_killed_stands_in_no_way(
    db: Database, page: gr.Blocks, desk: Desk, operator: Person, visit: Visit
) -> None:
    run = start_run(db)
    assert "progressbar" in refresh_html(desk, visit, run, False)
    dead = replace(run, lease_until=run.started_at - 3600)
    with db.write() as conn:
        conn.execute("UPDATE runs SET lease_until = ? WHERE id = ?", (dead.lease_until, run.id))
    *_, refresh, cancel = call(page, "look", operator)
    assert (refresh["interactive"], cancel["visible"]) == (True, False)
    assert "progressbar" not in refresh_html(desk, visit, dead, False)


# ---------------------------------------------------------------------------------------------------------
# Learning


def test_curves_are_drawn_from_the_runs_own_numbers(db: Database, visit: Visit) -> None:
    run = start_run(db)
    for step in range(3):
        runs.log(db, run, "ppo", step, {"kl": 0.5 * step})
    curve = next(curve for curve in CURVES if "kl" in curve.metrics)
    drawn = plot(db, visit, curve, [run])
    assert drawn["visible"] and list(drawn["value"]["y"]) == [0.0, 0.5, 1.0]
    other = next(curve for curve in CURVES if "entropy" in curve.metrics)
    assert not plot(db, visit, other, [run])["visible"]


def test_only_the_runs_that_are_drawn_are_read(
    db: Database, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for key in range(RUNS_DRAWN + 2):
        run = start_run(db, f"manual-{key}")
        runs.log(db, run, "ppo", 0, {"kl": 0.5})
        made.append(end_run(db, run).id)
    read: set[str] = set()

    def metrics(db: Database, run_id: str, stage: str | None = None) -> list[Metric]:
        read.add(run_id)
        return measured(db, run_id, stage)

    measured = runs.metrics
    monkeypatch.setattr(runs, "metrics", metrics)
    assert f"The last {RUNS_DRAWN} runs" in _drawn(db, visit)[0]
    assert read == set(made[-RUNS_DRAWN:])


def test_the_table_of_runs_gives_state_and_reason(db: Database, visit: Visit) -> None:
    run = start_run(db, "manual-1")
    ended = runs.finish(db, run, state="refused", reason="No better than what serves.")
    html = runs_html(visit, [ended])
    assert "refused" in html and "No better than what serves." in html and "Asked for by hand" in html


# ---------------------------------------------------------------------------------------------------------
# Versions


def test_versions_that_never_met_say_so(db: Database, desk: Desk, visit: Visit) -> None:
    add_version(db, "v000001")
    assert "never compared" in listing_html(desk, visit)


def test_the_list_tells_the_version_that_answers_from_the_chosen_one(
    db: Database, desk: Desk, visit: Visit
) -> None:
    for name in ("v000001", "v000002"):
        add_version(db, name)
    html = listing_html(replace(desk, answering=lambda: Answering("v000001")), visit)
    chosen, answering = html.split("v000001</strong>")
    assert ">chosen</span>" in chosen and ">serves</span>" not in chosen
    assert ">serves</span>" in answering
    assert ">chosen</span>" not in listing_html(desk, visit)


def test_how_people_ranked_the_versions_is_read_where_the_tab_is_shown(
    db: Database, home: Home, operator: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(db, "v000001")
    read: list[str] = []

    def record(db: Database) -> dict[tuple[str, str], tuple[int, int, int]]:
        read.append("record")
        return {}

    monkeypatch.setattr("data.snapshots.version_record", record)
    page = built_page(db, home)
    happen(page, "load", operator)
    assert read == []
    happen(page, "select", operator)
    assert read == ["record"]


def happen(page: gr.Blocks, event: str, person: Person) -> None:
    """Calls every function that the page calls at this event."""
    for block in page.fns.values():
        if block.fn and any(name == event for _, name in block.targets):
            request = gr.Request(username=person.id, headers={}, cookies={}, query_params={})
            block.fn(*[None] * len(block.inputs), request=request)


def test_a_record_reads_from_either_side(visit: Visit) -> None:
    record = {("v000002", "v000001"): (5, 2, 1)}
    assert record_html(visit, "v000002", record) == "against v000001: 5 won, 1 lost, 2 tied"
    assert record_html(visit, "v000001", record) == "against v000002: 1 won, 5 lost, 2 tied"


def test_rolling_back_takes_two_steps(db: Database, page: gr.Blocks, operator: Person) -> None:
    add_version(db, "v000001")
    add_version(db, "v000002", "v000001")
    armed = call(page, "arm_rollback", operator)
    assert versions.serving(db).current == "v000002"
    call(page, "carry_out", operator, armed[3])
    assert versions.serving(db).current == "v000001"
    assert versions.history(db)[0].person == "olga"


def test_a_base_published_by_mistake_is_rolled_back_by_the_button_that_says_so(
    db: Database, page: gr.Blocks, operator: Person
) -> None:
    add_version(db, "v000001")
    call(page, "carry_out", operator, call(page, "arm_publish", operator, "base")[3])
    armed = call(page, "arm_rollback", operator)
    call(page, "carry_out", operator, armed[3])
    assert versions.serving(db).current == "v000001"


def test_a_change_armed_before_another_swap_is_refused(
    db: Database, page: gr.Blocks, operator: Person
) -> None:
    add_version(db, "v000001")
    armed = call(page, "arm_rollback", operator)
    add_version(db, "v000002", "v000001")
    with pytest.warns(UserWarning, match="Meanwhile v000002 serves"):
        call(page, "carry_out", operator, armed[3])
    assert versions.serving(db).current == "v000002"


def test_another_version_can_be_published(db: Database, page: gr.Blocks, operator: Person) -> None:
    add_version(db, "v000001")
    add_version(db, "v000002", "v000001", serve=False)
    armed = call(page, "arm_publish", operator, "v000002")
    call(page, "carry_out", operator, armed[3])
    assert versions.serving(db).current == "v000002"


@pytest.mark.parametrize(
    "order", ["", "publish", "publish base v000009", "publish base v000001", "eat base base"]
)
def test_a_forged_or_impossible_order_changes_nothing(
    db: Database, page: gr.Blocks, operator: Person, order: str
) -> None:
    add_version(db, "v000001", serve=False, status="refused")
    with pytest.warns(UserWarning):
        call(page, "carry_out", operator, order)
    assert versions.serving(db).current == "base"


def test_from_the_base_there_is_nothing_to_roll_back_to(
    db: Database, page: gr.Blocks, operator: Person
) -> None:
    with pytest.warns(UserWarning, match="Nothing to roll back to"):
        call(page, "arm_rollback", operator)
    assert versions.serving(db).current == "base"


# ---------------------------------------------------------------------------------------------------------
# Schedule


def test_the_schedule_is_saved_with_who_saved_it(db: Database, page: gr.Blocks, operator: Person) -> None:
    call(page, "store", operator, " 0  4 * * mon ", "Europe/Berlin", 30, True)
    saved = schedules.get(db)
    assert (saved.cron, saved.zone, saved.min_rankings, saved.is_paused) == (
        "0 4 * * mon",
        "Europe/Berlin",
        30,
        True,
    )
    assert audit.entries(db)[0].person == "olga"


@pytest.mark.parametrize(
    ("cron", "zone", "minimum", "words"),
    [
        ("25:00", "UTC", 20, "minute, hour, day, month, weekday"),
        ("99 3 * * *", "UTC", 20, "99 3 .* is not a cron expression: .* - use one like"),
        ("0 0 30 2 *", "UTC", 20, "a day that never comes"),
        ("30 3 * * *", "Mars/Olympus", 20, "no time zone"),
        ("30 3 * * *", "UTC", None, "at least 1"),
        ("30 3 * * *", "UTC", -1, "at least 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(
    db: Database, page: gr.Blocks, operator: Person, cron: str, zone: str, minimum: float | None, words: str
) -> None:
    before = schedules.get(db)
    with pytest.warns(UserWarning, match=words):
        call(page, "store", operator, cron, zone, minimum, False)
    assert schedules.get(db) == before


def test_the_next_times_are_the_trainers_words_on_this_very_schedule(db: Database, visit: Visit) -> None:
    assert "has not looked" in times_html(db, visit)
    soon = time.time() + 3600
    forecast.tell(db, schedules.get(db), [soon])
    assert moment(soon, "UTC") in times_html(db, visit)
    changed = schedules.set_(db, Schedule(cron="61 * * * *"), "olga")
    assert "has not looked" in times_html(db, visit)
    forecast.tell(db, changed, [], "There is no minute 61 - use 0 to 59.")
    assert "no minute 61" in times_html(db, visit)


# ---------------------------------------------------------------------------------------------------------
# Words


def test_both_languages_fill_the_same_blanks() -> None:
    for key, (english, chinese) in WORDS.items():
        assert set(_blanks(english)) == set(_blanks(chinese)), key


def _blanks(text: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(text) if name]


def test_one_is_singular() -> None:
    assert say("learned_from", "en", n=1) == "learned from 1 ranking"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (40, "40 s"), (750, "12 min"), (3599, "1 h 00 min"), (3900, "1 h 05 min")],
)
def test_durations_are_rounded_to_what_matters(seconds: float, words: str) -> None:
    assert duration(seconds, "en") == words


# ---------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture
def address(page: gr.Blocks, operator: Person) -> Iterator[str]:
    """The page on a real server, with `operator` signed in."""
    with served(page, operator) as address:
        yield address


@pytest.mark.browser
def test_an_operator_follows_a_run_and_rolls_back(db: Database, address: str) -> None:
    add_version(db, "v000001", report={"gate": {"reasons": [NASTY]}})
    run = start_run(db, stage="ppo", progress=0.4, eta_seconds=600, message=NASTY)
    with chromium() as browser:
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE)
        alerts: list[str] = []
        tab.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        tab.goto(address)
        bar = tab.get_by_role("progressbar", name="Practising")
        expect(bar).to_have_attribute("aria-valuenow", "40")
        runs.report(db, run, stage="ppo", progress=0.6)
        tab.reload()
        expect(bar).to_have_attribute("aria-valuenow", "60")
        tab.get_by_role("tab", name="Versions").click()
        tab.get_by_role("button", name="Roll back to base").click()
        tab.get_by_role("button", name="Yes, roll back").click()
        expect(tab.get_by_role("button", name="Nothing to roll back to")).to_be_disabled()
    assert versions.serving(db).current == "base"
    assert alerts == []


@pytest.mark.browser
def test_a_schedule_typed_wrongly_is_refused_with_a_sentence_and_the_old_one_stays(
    db: Database, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = schedules.set_(db, Schedule("0 4 * * *", "Europe/Berlin", 30), "olga")
    with chromium() as browser:
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(address)
        tab.get_by_role("tab", name="Schedule").click()
        for label, right, wrong, sentence in (
            ("Cron", before.cron, "99 3 * * *", "'99 3 * * *' is not a cron expression"),
            ("Time zone", before.zone, "Mars/Olympus", "There is no time zone 'Mars/Olympus'"),
            ("New rankings needed", "30", "-5", "A refresh needs at least 1 new ranking"),
        ):
            field = tab.get_by_label(label)
            expect(field).to_have_value(right)
            for text, said in ((wrong, sentence), (right, "The schedule is saved.")):
                field.fill(text)
                field.press("Enter")
                tab.get_by_role("button", name="Save").click()
                expect(tab.get_by_text(said).first).to_be_visible()
                saved = schedules.get(db)
                assert (saved.cron, saved.zone, saved.min_rankings) == (
                    before.cron,
                    before.zone,
                    before.min_rankings,
                )
    assert "less than minimum" not in capfd.readouterr().err
