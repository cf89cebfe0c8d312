"""trainer/progress.py: what a night tells of itself, and how it learns that it must stop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from data import runs
from data.database import Database, connect
from data.records import Run
from tests.waiting import until
from trainer import progress
from trainer.progress import STAGES, Cancelled, Progress


@pytest.fixture
def run(db: Database) -> Run:
    """A run that is ours."""
    claimed = runs.claim(db, "tonight", config={})
    assert claimed is not None
    return claimed


@dataclass
class Clock:
    """A monotonic clock that goes on only where a test says so."""

    now: float = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of progress.py: however slow the machine, no time passes by itself."""
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def told(db: Database, run: Run, clock: Clock) -> Iterator[Progress]:
    """The progress of `run`, which says nothing in the terminal."""
    with Progress(db, run, quiet=True) as telling:
        yield telling


def test_the_stages_make_up_one_night() -> None:
    assert sum(STAGES.values()) == pytest.approx(1)


def test_a_stage_and_its_share_stand_in_the_run_s_row(db: Database, run: Run, told: Progress) -> None:
    told.enter("reward", "Training the reward model.")
    row = runs.get(db, run.id)
    assert (row.stage, row.message) == ("reward", "Training the reward model.")
    assert row.progress == pytest.approx(STAGES["snapshot"] + STAGES["reference"])
    told.tell(1.0, "Done.")
    assert runs.get(db, run.id).progress == pytest.approx(row.progress + STAGES["reward"])


def test_the_end_of_the_last_stage_is_the_end(db: Database, run: Run, told: Progress) -> None:
    told.enter("publish", "Writing the version.")
    told.tell(1.0, "Written.")
    assert runs.get(db, run.id).progress == pytest.approx(1)


def test_the_time_left_is_predicted_from_the_time_gone(
    db: Database, run: Run, told: Progress, clock: Clock
) -> None:
    told.enter("snapshot", "Reading.")
    assert runs.get(db, run.id).eta_seconds is None  # too early to say
    clock.now += 60
    told.enter("ppo", "Improving.")
    done = runs.get(db, run.id).progress
    assert runs.get(db, run.id).eta_seconds == pytest.approx(60 * (1 - done) / done)


def test_of_a_run_taken_up_again_only_what_this_process_did_foretells_the_time(
    db: Database, run: Run, told: Progress, clock: Clock
) -> None:
    told.enter("ppo", "Improving.")
    told.tell(1.0, "Improved.")
    runs.interrupt_expired(db, time.time() + 1000)
    again = runs.resume(db, run.id)
    assert again is not None
    began = clock.now
    with Progress(db, again, quiet=True) as telling:
        telling.enter("gate", "Comparing.")
        for seconds, fraction in ((10, 0.1), (130, 0.6)):
            assert runs.get(db, run.id).eta_seconds is None  # what it found done took no time
            clock.now = began + seconds
            telling.tell(fraction, "Comparing on.")
    left = (0.4 * STAGES["gate"] + STAGES["publish"]) / (0.5 * STAGES["gate"])
    assert runs.get(db, run.id).eta_seconds == pytest.approx(120 * left)


def test_a_run_whose_earlier_work_is_thrown_away_tells_the_time_left_at_once(
    db: Database, run: Run, told: Progress, clock: Clock
) -> None:
    told.enter("gate", "Comparing.")
    runs.interrupt_expired(db, time.time() + 1000)
    again = runs.resume(db, run.id)
    assert again is not None and again.progress > 0.5
    with Progress(db, again, quiet=True) as telling:
        telling.enter("snapshot", "Reading.")
        telling.begin_anew()
        telling.enter("reference", "Sampling.")
        clock.now += 60
        telling.enter("reward", "Training.")
    left = (1 - STAGES["snapshot"] - STAGES["reference"]) / STAGES["reference"]
    assert runs.get(db, run.id).eta_seconds == pytest.approx(60 * left)


def test_a_run_that_pauses_after_a_stage_tells_the_time_until_then(
    db: Database, run: Run, clock: Clock
) -> None:
    with Progress(db, run, last="judge", quiet=True) as telling:
        clock.now += 60
        telling.enter("judge", "Training.")
    done = runs.get(db, run.id).progress
    assert runs.get(db, run.id).eta_seconds == pytest.approx(60 * STAGES["judge"] / done)


def test_words_within_a_second_are_not_written_down_but_the_end_is(
    db: Database, run: Run, told: Progress
) -> None:
    told.enter("gate", "Comparing.")
    told.tell(0.1, "Still comparing.")
    assert runs.get(db, run.id).message == "Comparing."
    told.tell(1.0, "Compared.")
    assert runs.get(db, run.id).message == "Compared."


def test_the_seconds_of_a_stage_count_while_it_runs(told: Progress, clock: Clock) -> None:
    told.enter("ppo", "Improving.")
    clock.now += 30
    told.enter("gate", "Comparing.")
    clock.now += 10
    assert (told.seconds["ppo"], told.seconds["gate"]) == (30, 10)


def test_a_locked_database_costs_a_line_of_progress_and_not_the_night(
    db: Database, run: Run, told: Progress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("data.database.BUSY_SECONDS", 60.0)
    other = connect(db.path)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    told.enter("ppo", "Improving the policy.")
    told.log(1, {"loss": 0.5})
    assert time.monotonic() - began < 30, "it waits for others less long than what must be written"
    assert "not written: Another process is writing to the database" in caplog.text
    other.execute("ROLLBACK")
    other.close()
    told.tell(1.0, "Done.")
    assert (runs.get(db, run.id).stage, runs.get(db, run.id).message) == ("ppo", "Done.")


def test_metrics_are_rows_of_the_stage(db: Database, run: Run, told: Progress) -> None:
    told.enter("ppo", "Improving.")
    told.log(3, {"kl": 1.5, "score": 0.2})
    found = {(m.stage, m.step, m.name): m.value for m in runs.metrics(db, run.id)}
    assert found == {("ppo", 3, "kl"): 1.5, ("ppo", 3, "score"): 0.2}


def test_a_cancelled_run_stops_at_its_next_word(db: Database, run: Run, told: Progress) -> None:
    told.enter("reward", "Training.")
    runs.request_cancel(db, run.id)
    with pytest.raises(Cancelled, match="cancelled by an operator - what served before still serves"):
        told.tell(1.0, "Trained.")


def test_a_run_that_lost_its_lease_stops_at_its_next_word(db: Database, run: Run, told: Progress) -> None:
    told.enter("snapshot", "Reading.")
    runs.interrupt_expired(db, time.time() + 1000)
    with pytest.raises(Cancelled, match="lost its lease to another process - nothing was published"):
        told.enter("reward", "Training.")


def test_a_process_that_slept_stops_where_another_has_taken_its_run_up(
    db: Database, run: Run, told: Progress
) -> None:
    told.enter("reward", "Training.")
    runs.interrupt_expired(db, time.time() + 1000)
    again = runs.resume(db, run.id)
    told.log(1, {"loss": 9.0})
    with pytest.raises(Cancelled, match="lost its lease to another process"):
        told.tell(1.0, "Trained.")
    assert runs.get(db, run.id) == again and runs.metrics(db, run.id) == []


def test_the_lease_is_renewed_while_the_night_runs_and_not_after(
    db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_HEARTBEAT_SECONDS", 0.01)
    with Progress(db, run, quiet=True):
        until(lambda: runs.get(db, run.id).lease_until > run.lease_until)
    renewed = runs.get(db, run.id).lease_until
    time.sleep(0.05)
    assert runs.get(db, run.id).lease_until == renewed


@pytest.mark.usefixtures("clock")
def test_without_a_terminal_each_stage_is_a_line(
    db: Database, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(db, run) as told:
        told.enter("snapshot", "Reading the rankings.")
        told.tell(1.0, "Read.")
    assert capsys.readouterr().err == "[     0 s] Reading the rankings.\n"


def test_a_quiet_night_prints_nothing(told: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    told.enter("ppo", "Improving.")
    assert capsys.readouterr() == ("", "")
