"""Versions, which of them serves and which is the reference. A version's row never changes but for its
status, and for what `redact` takes out of its report; `serving` is one row.

The reference is what PPO starts from on a first night and stays near on every night: the fine-tuned base
where there were demonstrations, else the base itself. It need not serve.

Publication checks the run's fencing token, so a trainer that lost its lease and woke up late cannot publish.
Rolling back goes to what served before, then up the line of parents, and ends at the base model.
"""

import json
import time
from dataclasses import asdict
from typing import Any

from data import audit, lessons
from data.database import Connection, Database, Row
from data.errors import NotFound, Refused
from data.records import BASE_VERSION, AuditEntry, Run, Serving, Version, VersionStatus
from data.text import clean, to_json

_BASE = Version(BASE_VERSION, "", "", "", "", "", "accepted", {}, None, 0, 0.0)


def next_name(db: Database) -> str:
    """The name of the next version: v000001, v000002, ... Numbers are never used again."""
    row = db.one("SELECT max(CAST(substr(name, 2) AS INTEGER)) AS last FROM versions")
    return f"v{(row['last'] if row and row['last'] else 0) + 1:06d}"


def number(name: str) -> int:
    """Where a version stands in the order of making; the base is 0."""
    return 0 if name == BASE_VERSION else int(name[1:])


def add(
    db: Database,
    *,
    name: str,
    parent: str,
    base_model: str,
    base_sha256: str,
    path: str,
    sha256: str,
    status: VersionStatus,
    report: dict[str, Any],
    run_id: str | None,
    rankings: int,
) -> Version:
    """Records a version whose directory is already on the disk; Refused if the name is taken."""
    version = Version(
        name, parent, base_model, base_sha256, path, sha256, status, report, run_id, rankings, time.time()
    )
    with db.write() as conn:
        get(db, parent)
        if name == BASE_VERSION or db.one("SELECT 1 FROM versions WHERE name = ?", (name,)):
            raise Refused(f"The version {name!r} is there already - take the next name.")
        row = asdict(version) | {"report": to_json(report)}
        marks = ", ".join("?" * len(row))
        conn.execute(f"INSERT INTO versions ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
        audit.record(db, audit.TRAINER, "add_version", {"version": name, "status": status, "run_id": run_id})
    return version


def get(db: Database, name: str) -> Version:
    """The version of this name; `base` is always there."""
    if name == BASE_VERSION:
        return _BASE
    row = db.one("SELECT * FROM versions WHERE name = ?", (clean(name),))
    if row is None:
        raise NotFound(f'No version {name!r} - run "trainer versions" to list them.')
    return _version(row)


def line_of(db: Database, name: str) -> list[str]:
    """The version, its parent, and so on up to the base."""
    rows = db.query(
        "WITH RECURSIVE line (name, step) AS (SELECT ?, 0 UNION ALL SELECT v.parent, step + 1 "
        "FROM line JOIN versions v ON v.name = line.name) SELECT name FROM line ORDER BY step",
        (get(db, name).name,),
    )
    return [row["name"] for row in rows]


def list_all(db: Database) -> list[Version]:
    """Every version, oldest first, the base not among them."""
    return [_version(row) for row in db.query("SELECT * FROM versions ORDER BY length(name), name")]


def serving(db: Database) -> Serving:
    """Which version answers new turns."""
    row = db.one("SELECT * FROM serving WHERE id = 1")
    assert row is not None, "the migration writes this row"
    return Serving(
        row["current"],
        row["previous"],
        row["challenger"],
        row["challenger_share"],
        row["reason"],
        row["changed_at"],
        row["reference"],
    )


def reference(db: Database, base_sha256: str) -> Version | None:
    """The version that anchors the learning on this base; None where that is the base itself.

    A reference on another base anchors nothing here, and is kept for the day that base comes back.
    """
    name = serving(db).reference
    found = get(db, name) if name is not None else None
    return found if found is not None and found.base_sha256 == base_sha256 else None


def set_reference(
    db: Database,
    name: str | None,
    *,
    actor: str,
    run: Run | None = None,
) -> Serving:
    """Lets a version anchor the learning from the next night on; None or `base` is the base itself.

    What serves stays. Refused where the gate refused the version, or where `run` is given and lost its lease.
    """
    with db.write() as conn:
        version = get(db, name or BASE_VERSION)
        if run is not None:
            check_lease(db, run)
        if version.status == "refused":
            raise Refused(f"The gate refused {version.name} - choose another reference.")
        before = serving(db).reference
        wanted = None if version.name == BASE_VERSION else version.name
        if wanted != before:
            conn.execute("UPDATE serving SET reference = ? WHERE id = 1", (wanted,))
            detail = {"version": version.name, "before": before or BASE_VERSION, "run_id": run and run.id}
            audit.record(db, actor, "set_reference", detail)
        return serving(db)


def publish(
    db: Database,
    name: str,
    *,
    actor: str,
    reason: str,
    run: Run | None = None,
    force: bool = False,
) -> Serving:
    """Lets a version serve from the next turn on.

    Refused where the gate refused it (unless `force`), or where `run` is given and lost its lease.
    Publishing what serves already changes nothing.
    """
    with db.write() as conn:
        version = get(db, name)
        if run is not None:
            check_lease(db, run)
        if version.status == "refused" and not force:
            raise Refused(f"The gate refused {name} - read its report, or publish it with --force.")
        before = serving(db)
        if before.current == name:
            return before
        if version.status == "candidate":
            conn.execute("UPDATE versions SET status = 'accepted' WHERE name = ?", (name,))
        detail = {
            "version": name,
            "before": before.current,
            "reason": reason,
            "run_id": run and run.id,
            "force": force,
        }
        audit.record(db, actor, "publish", detail)
        return _serve(db, conn, name, before.current, reason)


def rollback_target(db: Database) -> str | None:
    """What served before, else the parent of what serves; None where nothing did before the base."""
    now = serving(db)
    if now.previous or now.current == BASE_VERSION:
        return now.previous
    return get(db, now.current).parent


def rollback(db: Database, *, actor: str, reason: str = "") -> Serving:
    """Serves `rollback_target`; Refused where there is none."""
    with db.write() as conn:
        before, target = serving(db).current, rollback_target(db)
        if target is None:
            raise Refused("The base model serves already - there is nothing to roll back to.")
        audit.record(db, actor, "rollback", {"version": target, "before": before, "reason": clean(reason)})
        return _serve(db, conn, target, None, reason or f"Rolled back from {before}.")


def history(db: Database, limit: int = 1000) -> list[AuditEntry]:
    """Every change of what serves, newest first."""
    return audit.entries(db, "publish", "rollback", limit=limit)


def check_lease(db: Database, run: Run) -> None:
    """Refused unless the run still runs under its token."""
    row = db.one("SELECT state, fencing_token FROM runs WHERE id = ?", (run.id,))
    if row is None:
        raise NotFound(f'No run {run.id!r} - run "trainer runs" to list them.')
    if row["state"] != "running" or row["fencing_token"] != run.fencing_token:
        raise Refused(f"This run is over ({row['state']}), its lease was lost - start a new refresh.")


def learned_from(db: Database, ids: list[str]) -> list[str]:
    """The versions that learned from any of these rankings, demonstrations or turns, and those that descend
    from them: by birth, or because one of them was their reference."""
    runs, reached = lessons.runs_taught_by(db, ids), set[str]()
    for version in list_all(db):
        if version.run_id in runs or reached & {version.parent, version.report.get("reference")}:
            reached.add(version.name)
    return sorted(reached, key=number)


def untouched(db: Database, lineage: str, reached: list[str]) -> str:
    """The nearest ancestor of this version, or itself, that may serve and is none of those `reached`."""
    version = get(db, lineage)
    while version.name in reached or version.status == "refused":
        version = get(db, version.parent)
    return version.name


def redact(db: Database, run_ids: list[str], person_id: str) -> list[str]:
    """Takes a person out of the reports of the versions that these runs made; returns the changed ones.

    The replies shown from PPO go with their prompts, which in reports of former code may be anybody's turns;
    so does every entry under the person's id.
    """
    changed = []
    with db.write() as conn:
        for version in list_all(db):
            if version.run_id in run_ids:
                report = _without_key(version.report, person_id)
                if isinstance(ppo := report.get("ppo"), dict) and "samples" in ppo:
                    ppo["samples"] = {}
                if report != version.report:
                    conn.execute(
                        "UPDATE versions SET report = ? WHERE name = ?", (to_json(report), version.name)
                    )
                    changed.append(version.name)
    return changed


def _without_key(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _without_key(entry, key) for name, entry in value.items() if name != key}
    return [_without_key(entry, key) for entry in value] if isinstance(value, list) else value


def _serve(db: Database, conn: Connection, name: str, previous: str | None, reason: str) -> Serving:
    conn.execute(
        "UPDATE serving SET current = ?, previous = ?, challenger = NULL, challenger_share = 0, reason = ?,"
        " changed_at = ? WHERE id = 1",
        (name, previous, clean(reason), time.time()),
    )
    return serving(db)


def _version(row: Row) -> Version:
    values = {name: row[name] for name in Version.__dataclass_fields__ if name != "report"}
    return Version(report=json.loads(row["report"]), **values)
