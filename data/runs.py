"""Runs: one night, or one refresh asked for by hand; claimed once, held by a lease, fenced by a token.

Claiming is one BEGIN IMMEDIATE transaction: of any number of processes exactly one gets the slot. A holder
whose lease has expired is written off as interrupted, and its token no longer opens anything. A run's row and
metrics stay, whatever became of it.
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from data import lessons
from data.comparisons import Snapshot
from data.database import Database, Row, new_id
from data.errors import NotFound, Refused
from data.records import Metric, Run, RunState
from data.text import clean, to_json
from data.versions import check_lease

LEASE_SECONDS = 60.0
PATIENCE = 0.2
"""Seconds that a word of progress waits for other writers: the night must not stand still for it."""
LEASE_EXPIRED = "The process that ran it stopped without a word; its lease expired."


def new_key(kind: str) -> str:
    """A key for a run that somebody asks for by hand: `Run.kind` tells from it what for."""
    return f"{kind}-{new_id()}"


def claim(
    db: Database,
    key: str,
    *,
    config: Mapping[str, Any],
    now: float | None = None,
) -> Run | None:
    """The run of this slot, if it is ours: None where it is taken or another run holds a living lease."""
    moment = time.time() if now is None else now
    with db.write() as conn:
        interrupt_expired(db, moment)
        if db.one("SELECT 1 FROM runs WHERE key = ? OR state = 'running'", (clean(key),)):
            return None
        row = db.one("SELECT max(fencing_token) AS last FROM runs")
        id = new_id()
        conn.execute(
            "INSERT INTO runs (id, key, state, config, lease_until, fencing_token, started_at)"
            " VALUES (?, ?, 'running', ?, ?, ?, ?)",
            (
                id,
                clean(key),
                to_json(dict(config)),
                moment + LEASE_SECONDS,
                (row["last"] or 0) + 1 if row else 1,
                moment,
            ),
        )
        return get(db, id)


def resume(db: Database, run_id: str, *, now: float | None = None) -> Run | None:
    """Takes an interrupted or failed run up again under a new token: None where another run holds a living
    lease, Refused where it came to its end."""
    moment = time.time() if now is None else now
    with db.write() as conn:
        interrupt_expired(db, moment)
        run = get(db, run_id)
        if db.one("SELECT 1 FROM runs WHERE state = 'running'"):
            return None
        if run.state not in ("interrupted", "failed", "cancelled"):
            raise Refused(f"This run is over ({run.state}) - start a new refresh.")
        row = db.one("SELECT max(fencing_token) AS last FROM runs")
        assert row is not None, "the run itself has one"
        conn.execute(
            "UPDATE runs SET state = 'running', fencing_token = ?, lease_until = ?, cancel_requested = 0,"
            " reason = '', finished_at = NULL WHERE id = ?",
            (row["last"] + 1, moment + LEASE_SECONDS, run_id),
        )
        return get(db, run_id)


def interrupt_expired(db: Database, now: float | None = None) -> int:
    """Writes off a running run whose lease has expired; how many there were (0 or 1). One that was asked to
    stop is cancelled."""
    moment = time.time() if now is None else now
    with db.write() as conn:
        done = conn.execute(
            "UPDATE runs SET state = iif(cancel_requested, 'cancelled', 'interrupted'), finished_at = ?,"
            " reason = ?"
            " WHERE state = 'running' AND lease_until <= ?",
            (moment, LEASE_EXPIRED, moment),
        )
        return int(done.rowcount)


def heartbeat(db: Database, run: Run, *, now: float | None = None) -> bool:
    """Renews the lease; False where it was lost: stop, and publish nothing."""
    moment = time.time() if now is None else now
    with db.write() as conn:
        done = conn.execute(
            "UPDATE runs SET lease_until = ? WHERE id = ? AND fencing_token = ? AND state = 'running'",
            (moment + LEASE_SECONDS, run.id, run.fencing_token),
        )
        return bool(done.rowcount)


def report(
    db: Database,
    run: Run,
    *,
    stage: str,
    progress: float,
    eta_seconds: float | None = None,
    message: str = "",
) -> None:
    """What the run does now; ignored once it is over, or another process has taken it up. Busy where others
    write for longer than PATIENCE."""
    with db.write(patience=PATIENCE) as conn:
        conn.execute(
            "UPDATE runs SET stage = ?, progress = ?, eta_seconds = ?, message = ?"
            " WHERE id = ? AND fencing_token = ? AND state = 'running'",
            (stage, min(1.0, max(0.0, progress)), eta_seconds, clean(message), run.id, run.fencing_token),
        )


def set_snapshot(db: Database, run_id: str, snapshot: Snapshot, newest: float | None = None) -> None:
    """Writes down what the run learns from, ranking by ranking, so that a deletion can reach the version.

    Rankings after `newest`, by default the newest of these, are new to the next run. It is never later than
    now, in case a clock was ahead: what comes next is new. The same snapshot again keeps its first time.
    """
    now = time.time()
    newest = min(now, newest or max((turn.created_at for turn in snapshot.turns), default=now))
    taught = [(turn.ranking_id, turn.person_id) for turn in snapshot.turns]
    lessons.set_taught(db, get(db, run_id).id, taught, snapshot.sha256, newest)


def log(db: Database, run: Run, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Stores the numbers of one step; a step logged again replaces itself. Ignored once another process has
    taken the run up. Busy where others write for longer than PATIENCE."""
    with db.write(patience=PATIENCE) as conn:
        conn.executemany(
            "INSERT OR REPLACE INTO metrics (run_id, stage, step, name, value)"
            " SELECT id, ?, ?, ?, ? FROM runs WHERE id = ? AND fencing_token = ?",
            [(stage, step, name, float(value), run.id, run.fencing_token) for name, value in values.items()],
        )


def forget_metrics(db: Database, run: Run, stage: str | None = None) -> None:
    """Removes the metrics of a stage that starts over, or of all: they describe work that was thrown away."""
    with db.write() as conn:
        conn.execute(
            "DELETE FROM metrics WHERE (? IS NULL OR stage = ?)"
            " AND run_id = (SELECT id FROM runs WHERE id = ? AND fencing_token = ?)",
            (stage, stage, run.id, run.fencing_token),
        )


def finish(
    db: Database,
    run: Run,
    *,
    state: RunState,
    reason: str,
    version: str | None = None,
    patience: float | None = None,
) -> Run:
    """Ends the run with its reason in sentences; Refused where its lease was lost.

    patience: seconds to wait for others who write; as for every write if left out.
    """
    assert state != "running", "a run ends in another state"
    with db.write(patience=patience) as conn:
        check_lease(db, run)
        conn.execute(
            "UPDATE runs SET state = ?, reason = ?, version = ?, progress = iif(?, 1, progress),"
            " eta_seconds = NULL, finished_at = ? WHERE id = ?",
            (state, clean(reason), version, state in ("published", "refused"), time.time(), run.id),
        )
        return get(db, run.id)


def request_cancel(db: Database, run_id: str) -> Run:
    """Asks a running run to stop at its next step."""
    with db.write() as conn:
        run = get(db, run_id)
        if run.state != "running":
            raise Refused(f"This run is over ({run.state}) - there is nothing to cancel.")
        conn.execute("UPDATE runs SET cancel_requested = 1 WHERE id = ?", (run_id,))
        return get(db, run_id)


def get(db: Database, id: str) -> Run:
    """One run, else NotFound."""
    row = db.one("SELECT * FROM runs WHERE id = ?", (clean(id),))
    if row is None:
        raise NotFound(f'No run {id!r} - run "trainer runs" to list them.')
    return _run(row)


def list_all(db: Database, limit: int = 50) -> list[Run]:
    """The last runs, newest first."""
    rows = db.query("SELECT * FROM runs ORDER BY fencing_token DESC LIMIT ?", (limit,))
    return [_run(row) for row in rows]


def latest(db: Database) -> Run | None:
    """The run that was claimed last, running or over."""
    return next(iter(list_all(db, 1)), None)


def metrics(db: Database, run_id: str, stage: str | None = None) -> list[Metric]:
    """The numbers of a run by stage, step and name; all stages, or one. What was no number is nan."""
    rows = db.query(
        "SELECT * FROM metrics WHERE run_id = ? AND (? IS NULL OR stage = ?) ORDER BY stage, step, name",
        (run_id, stage, stage),
    )
    return [
        Metric(
            row["run_id"],
            row["stage"],
            row["step"],
            row["name"],
            math.nan if row["value"] is None else row["value"],
        )
        for row in rows
    ]


def newest_metric(db: Database, stage: str, name: str) -> float | None:
    """The last value of the newest run that has any; None where none has, or it was no number."""
    row = db.one(
        "SELECT m.value FROM runs r CROSS JOIN metrics m ON m.run_id = r.id"  # in this order: newest first
        " WHERE m.stage = ? AND m.name = ? ORDER BY r.id DESC, m.step DESC LIMIT 1",
        (stage, name),
    )
    return row["value"] if row else None


def learned_until(db: Database, now: float | None = None) -> float | None:
    """The time of the newest ranking that a published or refused run has seen; later ones are new.

    What a run saw after `now` does not count: the clock was ahead then.
    """
    row = db.one(
        "SELECT max(snapshot_at) AS at FROM runs"
        " WHERE state IN ('published', 'refused') AND snapshot_at <= ?",
        (time.time() if now is None else now,),
    )
    return row["at"] if row else None


def _run(row: Row) -> Run:
    values = {
        name: row[name] for name in Run.__dataclass_fields__ if name not in ("config", "cancel_requested")
    }
    return Run(config=json.loads(row["config"]), cancel_requested=bool(row["cancel_requested"]), **values)
