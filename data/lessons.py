"""What a run learned from, by id, so that a deletion finds the versions that it reaches.

Directly (`run_rankings`): from the rankings of its snapshot, or the demonstrations of its file. Besides these
(`run_lessons`): from messages that it practised on or imitated, and from rankings of earlier nights, which
reward models know that went on from there. Ids stay after what they name is gone.
"""

from collections.abc import Collection, Sequence

from data.database import Database
from data.records import Run
from data.text import to_json


def set_taught(
    db: Database, run_id: str, taught: Sequence[tuple[str, str]], sha256: str, newest: float | None = None
) -> None:
    """Writes down what the run is taught directly, in place of what stood there.

    taught: the id of each ranking or demonstration, and of the person whose it is.
    sha256: of the file that holds them. The same file again keeps its first time.
    newest: rankings after this time are new to the next run; None where the run saw no rankings.
    """
    with db.write() as conn:
        conn.execute("DELETE FROM run_rankings WHERE run_id = ?", (run_id,))
        conn.execute(
            "UPDATE runs SET snapshot_at = iif(?2 IS NULL OR snapshot_hash IS ?1, snapshot_at, ?2),"
            " snapshot_hash = ?1 WHERE id = ?3",
            (sha256, newest, run_id),
        )
        conn.executemany(
            "INSERT INTO run_rankings (run_id, ranking_id, person_id)"
            " VALUES (?, ?, (SELECT id FROM people WHERE id = ?))",
            [(run_id, id, person_id) for id, person_id in taught],
        )


def count_by(db: Database, run_id: str | None, person_id: str) -> int:
    """How many of this person's rankings, or demonstrations, taught the run directly; of no run, none."""
    row = db.one(
        "SELECT count(*) AS n FROM run_rankings WHERE run_id = ? AND person_id = ?", (run_id, person_id)
    )
    return int(row["n"]) if row else 0


def note(db: Database, run_id: str, ids: Sequence[str]) -> None:
    """Writes down what else the run learns from: messages, by their id, or rankings of earlier nights."""
    with db.write() as conn:
        conn.execute(
            "INSERT OR IGNORE INTO run_lessons (run_id, lesson_id, person_id) SELECT ?, value,"
            " (SELECT coalesce(m.author_id, c.person_id) FROM messages m"
            " JOIN conversations c ON c.id = m.conversation_id WHERE m.id = value) FROM json_each(?)",
            (run_id, to_json(list(ids))),
        )


def forget(db: Database, run: Run, ids: Collection[str] | None = None) -> None:
    """Removes these of what `note` wrote down, or all: what was learned from them was thrown away."""
    with db.write() as conn:
        conn.execute(
            "DELETE FROM run_lessons WHERE (?1 IS NULL OR lesson_id IN (SELECT value FROM json_each(?1)))"
            " AND run_id = (SELECT id FROM runs WHERE id = ?2 AND fencing_token = ?3)",
            (None if ids is None else to_json(list(ids)), run.id, run.fencing_token),
        )


def runs_taught_by(db: Database, ids: Sequence[str]) -> set[str]:
    """The runs that learned from any of these, directly or besides."""
    rows = db.query(
        "SELECT run_id FROM run_rankings WHERE ranking_id IN (SELECT value FROM json_each(:ids))"
        " UNION SELECT run_id FROM run_lessons WHERE lesson_id IN (SELECT value FROM json_each(:ids))",
        {"ids": to_json(list(ids))},
    )
    return {row["run_id"] for row in rows}


def of_person(db: Database, person_id: str) -> list[str]:
    """All that any run learned from this person."""
    rows = db.query(
        "SELECT ranking_id AS id FROM run_rankings WHERE person_id = :id"
        " UNION SELECT lesson_id FROM run_lessons WHERE person_id = :id",
        {"id": person_id},
    )
    return [row["id"] for row in rows]
