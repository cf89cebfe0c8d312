"""Each due refresh is claimed by exactly one watcher, runs as a child, and never ends without a word."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import pytest

from data import forecast, requests, runs, schedules
from data.backups import newest_at
from data.database import Database, open_database
from data.errors import Locked
from data.home import Home, open_home
from data.records import Run, Schedule
from tests.stories import a_turn, frozen, rank, somebody
from tests.waiting import until
from trainer.reasons import SHUT_DOWN, reason_of
from trainer.watch import Watcher, claim_due, cores, last_slot, log_file, next_night

NIGHT = datetime(2026, 11, 21, 3, 30, tzinfo=UTC).timestamp()
DAY = 86400.0
NIGHTLY = Schedule(min_rankings=2)


def rank_at(db: Database, moment: float, count: int = 2) -> None:
    """`count` rankings that were made at `moment`."""
    for _ in range(count):
        ranking = rank(db, somebody(db), a_turn(db, somebody(db)), [1, 2, 3])
        with db.write() as conn:
            conn.execute("UPDATE rankings SET created_at = ? WHERE id = ?", (moment, ranking.id))


def claim(db: Database, now: float, since: float = 0.0) -> Run | None:
    return claim_due(db, NIGHTLY, {"seed": 1}, now=now, since=since)


def finish(db: Database, run: Run) -> None:
    """The run publishes what it learned from all rankings there are."""
    runs.set_snapshot(db, run.id, frozen(db))
    runs.finish(db, run, state="published", reason="A test.")


def test_a_slot_with_enough_rankings_is_claimed_once(db: Database) -> None:
    rank_at(db, NIGHT - 60)
    assert claim(db, NIGHT - 1) is None
    run = claim(db, NIGHT + 5)
    assert run is not None and run.key == "2026-11-21T03:30 UTC" and run.config == {"seed": 1}
    assert claim(db, NIGHT + 10) is None and last_slot(db) == run.key


def test_a_slot_with_too_few_rankings_is_recorded_and_not_asked_again(db: Database) -> None:
    rank_at(db, NIGHT - 60, count=1)
    assert claim(db, NIGHT + 5) is None
    run = runs.latest(db)
    assert run is not None and run.state == "nothing_to_learn"
    assert run.reason.startswith("Only 1 of 2 new rankings lay there when it was time - what serves stays; ")
    rank_at(db, NIGHT + 60)  # enough by now, but the slot is over
    assert claim(db, NIGHT + 120) is None and len(runs.list_all(db)) == 1
    assert claim(db, NIGHT + DAY) is not None


def test_a_slot_with_enough_new_rankings_and_too_few_in_all_starts_no_process_that_could_only_say_so(
    db: Database,
) -> None:
    config = {"min_rankings": 5}
    rank_at(db, NIGHT - 60, count=4)
    rank_at(db, NIGHT + 60, count=1)  # too late for this night
    assert claim_due(db, NIGHTLY, config, now=NIGHT + 120, since=NIGHT - DAY) is None
    run = runs.latest(db)
    assert run is not None and run.state == "nothing_to_learn"
    assert run.reason.startswith("Only 4 of the 5 rankings and edited replies that a night needs in all lay")
    assert claim_due(db, NIGHTLY, config, now=NIGHT + DAY, since=NIGHT - DAY) is not None


def test_a_slot_with_too_few_rankings_is_not_left_running_where_the_database_is_held(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: Any, **__: Any) -> None:
        raise Locked("Another process is writing to the database - try again in a moment.")

    rank_at(db, NIGHT - 60, count=1)
    monkeypatch.setattr(runs, "finish", held)
    with pytest.raises(Locked):
        claim(db, NIGHT + 5)
    assert runs.latest(db) is None


def test_the_night_before_the_first_start_is_passed_over_without_a_row(db: Database) -> None:
    noon = NIGHT + 9 * 3600
    rank_at(db, noon + 60)
    assert claim(db, noon + 120, since=noon) is None and runs.list_all(db) == []


def test_rankings_that_were_learned_from_do_not_count_again(db: Database) -> None:
    rank_at(db, NIGHT - 60)
    run = claim(db, NIGHT)
    assert run is not None
    finish(db, run)
    assert claim(db, NIGHT + DAY) is None
    rank_at(db, NIGHT + DAY + 60)
    assert claim(db, NIGHT + 2 * DAY) is not None


def test_a_night_that_ran_while_the_clock_was_ahead_does_not_stop_the_next(db: Database) -> None:
    wrong = NIGHT + 30 * DAY
    rank_at(db, NIGHT - 60)
    run = claim(db, wrong)
    assert run is not None
    finish(db, run)
    with db.write() as conn:
        conn.execute("UPDATE runs SET snapshot_at = ?", (wrong,))
    rank_at(db, NIGHT + 60)
    assert claim(db, NIGHT + DAY) is not None


@pytest.mark.parametrize("down", [60.0, 3600.0, DAY, 3 * DAY])
def test_downtime_is_caught_up_by_one_run(db: Database, down: float) -> None:
    rank_at(db, NIGHT - DAY - 60)
    first = claim(db, NIGHT - DAY)
    assert first is not None
    finish(db, first)
    rank_at(db, NIGHT - 60)
    back = [claim(db, NIGHT + down + minutes * 60, since=NIGHT + down) for minutes in range(5)]
    assert sum(run is not None for run in back) == 1


def test_a_living_run_holds_off_the_next_slot_and_a_dead_one_does_not(db: Database) -> None:
    rank_at(db, NIGHT - 60)
    assert runs.claim(db, "manual-1", config={}, now=NIGHT - 10) is not None
    assert claim(db, NIGHT + 5) is None
    assert claim(db, NIGHT + 120) is not None


def _race(root: Path, start: Barrier, claimed: "SimpleQueue[int]") -> None:
    """In a process of its own: look 20 times, from `start` on, and count what was claimed."""
    db = open_database(open_home(root))
    start.wait(60)
    claimed.put(sum(claim(db, NIGHT + look) is not None for look in range(20)))
    db.close()


def test_of_several_watchers_exactly_one_gets_the_night(db: Database, home: Home) -> None:
    rank_at(db, NIGHT - 60)
    spawn = get_context("spawn")
    start, claimed = spawn.Barrier(3), spawn.SimpleQueue()
    watchers = [spawn.Process(target=_race, args=(home.root, start, claimed)) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()
        assert watcher.exitcode == 0
    assert sum(claimed.get() for _ in watchers) == 1 and len(runs.list_all(db)) == 1


# A watcher and its child


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def ended(watcher: Watcher) -> bool:
    watcher.tick(NIGHT + 10)
    run = runs.latest(watcher.db)
    return run is not None and run.state != "running"


@pytest.fixture
def watch_with(db: Database, home: Home) -> Iterator[Callable[[str], Watcher]]:
    """A watcher whose refresh is a line of Python, on a night that is due."""
    schedules.set_(db, NIGHTLY, "ada")
    with db.write() as conn:
        conn.execute("UPDATE schedule SET updated_at = 0")
    rank_at(db, NIGHT - 60)
    watchers: list[Watcher] = []

    def make(code: str) -> Watcher:
        watchers.append(Watcher(home, db, command=child(code)))
        return watchers[-1]

    yield make
    for watcher in watchers:
        watcher.close()


def test_the_child_gets_the_run_low_priority_and_half_of_the_cores(
    watch_with: Callable[[str], Watcher], db: Database, home: Home
) -> None:
    watcher = watch_with(
        "import os, sys, time\n"
        "while os.nice(0) < 10: time.sleep(0.01)\n"  # it is given when the child is there already
        "print(sys.argv[1], os.nice(0), os.environ['OMP_NUM_THREADS'], os.getpid() == os.getsid(0),"
        " os.environ['NIGHTSCHOOL_HOME'], flush=True); sys.exit('Out of luck - try again.')"
    )
    watcher.tick(NIGHT)
    until(lambda: ended(watcher))
    run = runs.latest(db)
    assert run is not None and run.state == "failed"
    assert (
        run.reason == "The training process ended with exit code 1; its last words: Out of luck - try again."
    )
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    words = log_file(home, run).read_text().splitlines()
    assert words == [f"{run.id} 10 {half} True {home.root}", "Out of luck - try again."]


def test_a_watcher_of_still_lower_priority_gives_its_own_to_the_child(
    watch_with: Callable[[str], Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(os, "getpriority", lambda which, who: 15)
    monkeypatch.setattr(os, "setpriority", lambda which, who, priority: given.append(priority))
    watcher = watch_with("pass")
    watcher.tick(NIGHT)
    until(lambda: ended(watcher))
    assert given == [15]  # a lower one is a higher priority, which only root may give


def test_the_child_gets_half_of_the_cores_that_the_watcher_may_use(
    watch_with: Callable[[str], Watcher], db: Database, home: Home
) -> None:
    mine = os.sched_getaffinity(0)
    watcher = watch_with("import os; print(os.environ['OMP_NUM_THREADS'], flush=True)")
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert cores() == 1
        watcher.tick(NIGHT)
    finally:
        os.sched_setaffinity(0, mine)
    until(lambda: ended(watcher))
    run = runs.latest(db)
    assert run is not None and log_file(home, run).read_text() == "1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux chooses whom it ends where memory runs out")
def test_where_memory_runs_out_the_child_goes_first(watch_with: Callable[[str], Watcher]) -> None:
    watcher = watch_with("import time; time.sleep(60)")
    watcher.tick(NIGHT)
    assert watcher._child is not None
    assert Path(f"/proc/{watcher._child.pid}/oom_score_adj").read_text() == "800\n"


def test_a_watcher_backs_up_without_being_asked(watch_with: Callable[[str], Watcher], home: Home) -> None:
    watcher = watch_with("")
    watcher.tick(NIGHT - 3600)
    until(lambda: newest_at(home, NIGHT) is not None)
    assert newest_at(home, NIGHT) == NIGHT - 3600


def test_the_start_names_the_next_night_and_its_zone() -> None:
    words = next_night(Schedule(zone="Asia/Shanghai"), 12)
    assert re.fullmatch(r"Learns next at \S+ 03:30 Asia/Shanghai, if 20 new rankings lie there then\.", words)
    assert "paused" in next_night(Schedule(is_paused=True), 12) and "No time zone 'Mars'" in next_night(
        Schedule(zone="Mars"), 12
    )
    assert "if 20 new rankings, 50 in all, lie there then." in next_night(Schedule(), 50)


def test_the_lease_is_renewed_while_the_child_lives_and_no_second_one_starts(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    watcher = watch_with("import time; time.sleep(60)")
    for seconds in (0, 50, 100, 150):
        watcher.tick(NIGHT + seconds)
        run = runs.latest(db)
        assert run is not None and run.state == "running" and run.lease_until == NIGHT + seconds + 60
    assert len(runs.list_all(db)) == 1


def test_a_killed_child_goes_on_once_and_no_more(watch_with: Callable[[str], Watcher], db: Database) -> None:
    watcher = watch_with("import os; os.kill(os.getpid(), 9)")
    watcher.tick(NIGHT)
    first = runs.latest(db)
    assert first is not None
    until(lambda: (watcher.tick(NIGHT + 10), runs.get(db, first.id).fencing_token > first.fencing_token)[1])
    until(lambda: ended(watcher))
    run = runs.get(db, first.id)
    assert run.reason.startswith("The training process was killed by signal 9 - the machine was probably")
    assert run.reason.endswith("a smaller --model; its last words: none.")
    another = Watcher(watcher.home, db, command=watcher.command)
    another.tick(NIGHT + 60)
    assert len(runs.list_all(db)) == 1 and runs.get(db, first.id) == run
    another.close()


def test_a_run_whose_machine_died_goes_on_when_the_watcher_is_back(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    lost = runs.claim(db, "2026-11-21T03:30 UTC", config={}, now=NIGHT)
    assert lost is not None
    watch_with("import time; time.sleep(60)").tick(NIGHT + 600)
    run = runs.get(db, lost.id)
    assert run.state == "running" and run.fencing_token > lost.fencing_token


def test_a_night_that_restarts_of_the_server_ended_goes_on_each_time(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    watcher = watch_with("import time; time.sleep(60)")
    watcher.tick(NIGHT)
    for restart in range(1, 4):
        watcher.close()
        run = runs.list_all(db)[0]
        assert (run.state, run.reason) == ("interrupted", SHUT_DOWN)
        watcher = watch_with("import time; time.sleep(60)")
        watcher.tick()
        again = runs.get(db, run.id)
        assert (again.state, again.fencing_token) == ("running", 1 + restart)


def test_a_night_that_was_held_up_goes_on_once(watch_with: Callable[[str], Watcher], db: Database) -> None:
    run = runs.claim(db, "2026-11-21T03:30 UTC", config={})
    assert run is not None
    watcher, reason = watch_with("import time; time.sleep(60)"), reason_of(Locked("The database is locked."))
    runs.finish(db, run, state="interrupted", reason=reason)
    assert runs.get(db, run.id).reason == "It was held up: The database is locked."
    watcher.tick()
    again = runs.get(db, run.id)
    assert again.state == "running"
    watcher.close()
    runs.resume(db, run.id)
    again = runs.get(db, run.id)
    runs.finish(db, again, state="interrupted", reason=reason)
    watcher.tick()
    assert runs.get(db, run.id).state == "interrupted"


def test_a_child_that_is_told_to_end_while_the_watcher_stays_goes_on_once(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    run = runs.claim(db, "2026-11-21T03:30 UTC", config={})
    assert run is not None
    watcher = watch_with("import time; time.sleep(60)")
    watcher.since -= 60
    runs.finish(db, run, state="interrupted", reason=SHUT_DOWN)
    watcher.tick()
    assert runs.get(db, run.id).state == "running"
    watcher.close()
    watcher.tick()
    assert runs.get(db, run.id).state == "interrupted"


def test_a_night_that_was_to_be_cancelled_stays_ended_after_a_restart(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    run = runs.claim(db, "2026-11-21T03:30 UTC", config={})
    assert run is not None
    runs.request_cancel(db, run.id)
    runs.finish(db, run, state="interrupted", reason=SHUT_DOWN)
    watch_with("import time; time.sleep(60)").tick(time.time())
    assert runs.get(db, run.id).state == "interrupted"


def test_a_killed_run_that_was_to_be_cancelled_is_cancelled(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    lost = runs.claim(db, "2026-11-21T03:30 UTC", config={}, now=NIGHT)
    assert lost is not None
    runs.request_cancel(db, lost.id)
    watch_with("import time; time.sleep(60)").tick(NIGHT + 600)
    assert runs.get(db, lost.id).state == "cancelled"


@pytest.mark.parametrize("key", ["sft-1", "reward-1"])
def test_what_is_no_night_is_not_taken_up(
    watch_with: Callable[[str], Watcher], db: Database, key: str
) -> None:
    run = runs.claim(db, key, config={}, now=NIGHT - 7200)
    assert run is not None
    watch_with("import time; time.sleep(60)").tick(NIGHT - 3600)
    assert runs.get(db, run.id).state == "interrupted"


def test_a_paused_schedule_takes_nothing_up(watch_with: Callable[[str], Watcher], db: Database) -> None:
    run = runs.claim(db, "manual-1", config={}, now=NIGHT - 7200)
    assert run is not None
    watcher = watch_with("import time; time.sleep(60)")
    schedules.set_(db, replace(NIGHTLY, is_paused=True), "ada")
    watcher.tick(NIGHT - 3600)
    assert runs.get(db, run.id).state == "interrupted"


@pytest.mark.parametrize(
    "reason", [reason_of(KeyboardInterrupt()), "Stopped after the stage 'reward', as asked."]
)
def test_what_a_person_stopped_stays_stopped(
    watch_with: Callable[[str], Watcher], db: Database, reason: str
) -> None:
    run = runs.claim(db, "2026-11-21T03:30 UTC", config={}, now=NIGHT)
    assert run is not None
    runs.finish(db, run, state="interrupted", reason=reason)
    watch_with("import time; time.sleep(60)").tick(NIGHT + 600)
    assert runs.get(db, run.id).state == "interrupted"


def test_a_child_that_finished_its_run_itself_is_left_as_it_is_and_the_log_says_why(
    watch_with: Callable[[str], Watcher], db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer.watch")
    watcher = watch_with("")
    watcher.tick(NIGHT)
    run = runs.latest(db)
    assert run is not None
    finish(db, run)
    told = f"Refresh {run.key} is over (published): A test."
    until(lambda: ended(watcher) and told in caplog.text)
    assert runs.get(db, run.id).reason == "A test."


def test_a_refresh_asked_for_on_the_page_starts_at_the_next_look(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    key = requests.ask(db, somebody(db))
    watch_with("import time; time.sleep(60)").tick(NIGHT - 3600)
    run = runs.latest(db)
    assert run is not None and run.key == key and requests.pending(db) is None


def test_the_page_is_told_the_next_times_or_what_is_wrong(
    watch_with: Callable[[str], Watcher], db: Database
) -> None:
    watcher = watch_with("")
    watcher.tick(NIGHT - 60)
    told = forecast.told(db, schedules.get(db))
    assert told is not None and told.times[0] == NIGHT and len(told.times) == 5
    broken = schedules.set_(db, Schedule(cron="25:00"), "ada")
    watcher.tick(NIGHT)
    told = forecast.told(db, broken)
    assert told is not None and told.times == () and "not a cron expression" in told.problem


@pytest.mark.parametrize("manners", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_closing_ends_the_child_and_its_children(
    watch_with: Callable[[str], Watcher], db: Database, manners: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.watch.GRACE_SECONDS", 0.5)
    watcher = watch_with(
        "import signal, subprocess, sys, time\n"
        f"{manners}\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid, flush=True)\n"
        "time.sleep(99)"
    )
    watcher.tick(NIGHT)
    run = runs.latest(db)
    assert run is not None
    until(lambda: log_file(watcher.home, run).read_text().strip())
    grandchild = int(log_file(watcher.home, run).read_text())
    watcher.close()
    assert runs.get(db, run.id).state == "interrupted"
    until(lambda: not _lives(grandchild))


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_trainer_watch_ends_on_sigterm_with_its_child(db: Database, home: Home) -> None:
    # The real command and the real child: a refresh asked for, with nothing to learn from.
    requests.ask(db, somebody(db))
    empty = str(home.models)
    watching = subprocess.Popen([sys.executable, "-m", "trainer", "watch", "--model", empty])
    try:
        until(lambda: (run := runs.latest(db)) is not None and run.state == "failed", 120)
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(60) == 0
    finally:
        watching.kill()
    run = runs.latest(db)
    assert run is not None and run.config["model"] == empty
    assert f"{empty!r} holds no model" in run.reason
