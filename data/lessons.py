"""Whose rankings or demonstrations a version learned from: what the sidebar tells people about it."""

from data.database import Database
from data.records import Version


def taught_by(db: Database, version: Version, person_id: str) -> int:
    """How many of this person's rankings, or demonstrations, the version's own night learned from."""
    row = db.one(
        "SELECT count(*) AS n FROM run_rankings WHERE run_id = ? AND person_id = ?",
        (version.run_id, person_id),
    )
    return int(row["n"]) if row else 0
