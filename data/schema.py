"""The schema's history: migrations m001, m002, ... in order. Nothing here is ever edited, only appended.

Tables are STRICT, times are REAL seconds since the epoch, lists and objects are JSON text. The tree of a
conversation is `messages.parent_id`; alternatives are siblings. What a run learned from (`run_rankings`,
`run_lessons`) keeps an id after what it names is gone, so that a deletion can name the versions it reaches.
"""

from typing import Any

from sqlite_utils import Database as Tables
from sqlite_utils import Migrations

MIGRATIONS = Migrations("nightschool")


def prepare(tables: Tables) -> None:
    """Applies every migration that is pending, each in a transaction of its own."""
    MIGRATIONS.apply(tables)


def unknown_migrations(tables: Tables) -> list[str]:
    """Migrations the file has seen and this code does not know: it was written by newer code."""
    known = {migration.name for migration in MIGRATIONS._migrations}
    return [migration.name for migration in MIGRATIONS.applied(tables) if migration.name not in known]


def is_ours(connection: Any) -> bool:
    """Whether an undamaged database is one of Night School: to SQLite an empty file is undamaged too."""
    return bool(MIGRATIONS.applied(Tables(connection, execute_plugins=False)))


def _run(tables: Tables, script: str) -> None:
    for statement in script.split(";"):
        if statement.strip():
            tables.execute(statement)


@MIGRATIONS()
def m001_people(tables: Tables) -> None:
    _run(
        tables,
        """
        CREATE TABLE people (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL COLLATE NOCASE UNIQUE CHECK (length(name) BETWEEN 1 AND 64),
            role TEXT NOT NULL CHECK (role IN ('user', 'rater', 'operator')),
            kind TEXT NOT NULL CHECK (kind IN ('human', 'simulated')),
            password_hash TEXT,
            is_disabled INTEGER NOT NULL DEFAULT 0 CHECK (is_disabled IN (0, 1)),
            created_at REAL NOT NULL
        ) STRICT;
        CREATE TABLE sessions (
            token_hash TEXT PRIMARY KEY,
            person_id TEXT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
            expires_at REAL NOT NULL,
            created_at REAL NOT NULL
        ) STRICT;
        CREATE INDEX sessions_person ON sessions (person_id);
        CREATE TABLE sign_in_links (
            token_hash TEXT PRIMARY KEY,
            role TEXT NOT NULL CHECK (role IN ('user', 'rater', 'operator')),
            expires_at REAL NOT NULL,
            used_at REAL
        ) STRICT;
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            person TEXT NOT NULL,
            action TEXT NOT NULL,
            detail TEXT NOT NULL CHECK (json_valid(detail))
        ) STRICT
        """,
    )


@MIGRATIONS()
def m002_conversations(tables: Tables) -> None:
    _run(
        tables,
        """
        CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            person_id TEXT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
            title TEXT NOT NULL,
            may_train INTEGER NOT NULL CHECK (may_train IN (0, 1)),
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL
        ) STRICT;
        CREATE INDEX conversations_person ON conversations (person_id, updated_at);
        CREATE TABLE messages (
            id TEXT PRIMARY KEY,
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            parent_id TEXT REFERENCES messages (id) ON DELETE CASCADE,
            role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
            content TEXT NOT NULL,
            author_id TEXT REFERENCES people (id) ON DELETE SET NULL,
            replaces_id TEXT REFERENCES messages (id) ON DELETE SET NULL,
            version TEXT,
            sampling TEXT CHECK (sampling IS NULL OR json_valid(sampling)),
            seed INTEGER,
            tokens INTEGER CHECK (tokens >= 0),
            finish_reason TEXT CHECK (
                finish_reason IN ('stop', 'length', 'cancelled', 'interrupted', 'failed')
            ),
            request_key TEXT,
            created_at REAL NOT NULL
        ) STRICT;
        CREATE INDEX messages_conversation ON messages (conversation_id, id);
        CREATE INDEX messages_parent ON messages (parent_id);
        CREATE INDEX messages_replaces ON messages (replaces_id) WHERE replaces_id IS NOT NULL;
        CREATE INDEX messages_author ON messages (author_id) WHERE author_id IS NOT NULL;
        CREATE INDEX messages_unfinished ON messages (id) WHERE finish_reason IS NULL;
        CREATE UNIQUE INDEX messages_request ON messages (author_id, request_key)
            WHERE request_key IS NOT NULL
        """,
    )


@MIGRATIONS()
def m003_rankings(tables: Tables) -> None:
    _run(
        tables,
        """
        CREATE TABLE rankings (
            id TEXT PRIMARY KEY,
            turn_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
            person_id TEXT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
            source TEXT NOT NULL CHECK (source IN ('human', 'simulated', 'imported')),
            kind TEXT NOT NULL CHECK (kind IN ('full', 'best', 'all_bad', 'skip')),
            revision INTEGER NOT NULL CHECK (revision >= 1),
            is_current INTEGER NOT NULL CHECK (is_current IN (0, 1)),
            dwell_ms INTEGER CHECK (dwell_ms >= 0),
            reasons TEXT NOT NULL CHECK (json_valid(reasons)),
            comment TEXT NOT NULL,
            idempotency_key TEXT,
            created_at REAL NOT NULL,
            UNIQUE (turn_id, person_id, source, revision)
        ) STRICT;
        CREATE UNIQUE INDEX rankings_current ON rankings (turn_id, person_id, source) WHERE is_current = 1;
        CREATE UNIQUE INDEX rankings_request ON rankings (person_id, idempotency_key)
            WHERE idempotency_key IS NOT NULL;
        CREATE INDEX rankings_time ON rankings (created_at);
        CREATE TABLE placements (
            ranking_id TEXT NOT NULL REFERENCES rankings (id) ON DELETE CASCADE,
            message_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
            place INTEGER NOT NULL CHECK (place >= 1),
            shown INTEGER NOT NULL CHECK (shown >= 0),
            PRIMARY KEY (ranking_id, message_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX placements_message ON placements (message_id)
        """,
    )


@MIGRATIONS()
def m004_runs(tables: Tables) -> None:
    _run(
        tables,
        """
        CREATE TABLE runs (
            id TEXT PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL CHECK (state IN (
                'running', 'published', 'refused', 'nothing_to_learn', 'failed', 'cancelled', 'interrupted'
            )),
            stage TEXT NOT NULL DEFAULT '',
            progress REAL NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 1),
            eta_seconds REAL,
            message TEXT NOT NULL DEFAULT '',
            reason TEXT NOT NULL DEFAULT '',
            version TEXT,
            snapshot_hash TEXT,
            snapshot_at REAL,
            config TEXT NOT NULL CHECK (json_valid(config)),
            lease_until REAL NOT NULL,
            fencing_token INTEGER NOT NULL UNIQUE CHECK (fencing_token >= 1),
            cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
            started_at REAL NOT NULL,
            finished_at REAL
        ) STRICT;
        CREATE UNIQUE INDEX runs_one_running ON runs (state) WHERE state = 'running';
        CREATE TABLE run_rankings (
            run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            ranking_id TEXT NOT NULL,
            person_id TEXT REFERENCES people (id) ON DELETE SET NULL,
            PRIMARY KEY (run_id, ranking_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX run_rankings_person ON run_rankings (person_id);
        CREATE INDEX run_rankings_ranking ON run_rankings (ranking_id);
        CREATE TABLE metrics (
            run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            stage TEXT NOT NULL,
            step INTEGER NOT NULL,
            name TEXT NOT NULL,
            value REAL,
            PRIMARY KEY (run_id, stage, step, name)
        ) STRICT, WITHOUT ROWID
        """,
    )


@MIGRATIONS()
def m005_versions(tables: Tables) -> None:
    _run(
        tables,
        """
        CREATE TABLE versions (
            name TEXT PRIMARY KEY CHECK (name GLOB 'v[0-9]*'),
            parent TEXT NOT NULL,
            base_model TEXT NOT NULL,
            base_sha256 TEXT NOT NULL,
            path TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('candidate', 'accepted', 'refused')),
            report TEXT NOT NULL CHECK (json_valid(report)),
            run_id TEXT REFERENCES runs (id) ON DELETE SET NULL,
            rankings INTEGER NOT NULL CHECK (rankings >= 0),
            created_at REAL NOT NULL
        ) STRICT;
        CREATE TABLE serving (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            current TEXT NOT NULL,
            previous TEXT,
            challenger TEXT,
            challenger_share REAL NOT NULL DEFAULT 0 CHECK (challenger_share BETWEEN 0 AND 1),
            reason TEXT NOT NULL,
            changed_at REAL NOT NULL
        ) STRICT;
        INSERT INTO serving (id, current, reason, changed_at)
            VALUES (1, 'base', 'Nothing has been learned yet.', unixepoch());
        CREATE TABLE schedule (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            cron TEXT NOT NULL,
            zone TEXT NOT NULL,
            min_rankings INTEGER NOT NULL CHECK (min_rankings >= 0),
            is_paused INTEGER NOT NULL CHECK (is_paused IN (0, 1)),
            updated_at REAL NOT NULL
        ) STRICT
        """,
    )


@MIGRATIONS()
def m006_reference(tables: Tables) -> None:
    """Which version anchors the learning; none: the base itself."""
    _run(tables, "ALTER TABLE serving ADD COLUMN reference TEXT REFERENCES versions (name)")


@MIGRATIONS()
def m007_api_keys(tables: Tables) -> None:
    """Programs that speak for a person; of a key only its hash is stored."""
    _run(
        tables,
        """
        CREATE TABLE api_keys (
            id TEXT PRIMARY KEY,
            person_id TEXT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
            key_hash TEXT NOT NULL UNIQUE CHECK (length(key_hash) = 64),
            prefix TEXT NOT NULL CHECK (length(prefix) <= 12),
            label TEXT NOT NULL CHECK (length(label) <= 64),
            created_at REAL NOT NULL,
            last_used_at REAL,
            revoked_at REAL
        ) STRICT;
        CREATE INDEX api_keys_person ON api_keys (person_id)
        """,
    )


@MIGRATIONS()
def m008_lessons(tables: Tables) -> None:
    """What a run learned from beside its own rankings: turns it practised on, demonstrations, and the
    rankings of earlier nights that its reward models went on from."""
    _run(
        tables,
        """
        CREATE TABLE run_lessons (
            run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            lesson_id TEXT NOT NULL,
            person_id TEXT REFERENCES people (id) ON DELETE SET NULL,
            PRIMARY KEY (run_id, lesson_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX run_lessons_person ON run_lessons (person_id);
        CREATE INDEX run_lessons_lesson ON run_lessons (lesson_id)
        """,
    )
