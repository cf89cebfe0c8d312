"""What must not grow with the number of rankings: opening a chat, a vote, the operator's page.

    python benchmarks/growth.py                                  # about three minutes, some GB of disk
    python benchmarks/growth.py --sizes 1000,100000              # half a minute

A database of each size is filled with turns of four replies, each ranked, in conversations of ten turns, a
hundred conversations a person; half of the replies by one of fifty versions. Then the functions that a
browser's calls reach are timed, in this process, for somebody with a hundred conversations: `chat` is the
whole chat page at the latest turn, `vote` stores a ranking with its commit, and the others are the panels of
the operator's page. `again` is a panel that was just looked at: what is slow to count is kept for a while.
Medians in milliseconds.
"""

import argparse
import time
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory

from formats import median_milliseconds
from peers import table
from served import tiny_model

from chatbot.basemodel import load_base
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.following import Answering
from chatbot.pages.actions import Actions
from chatbot.pages.operate_desk import Desk, Visit
from chatbot.pages.operate_now import refresh_html, serving_html
from chatbot.pages.operate_versions import listing_html
from chatbot.pages.payload import Payload
from chatbot.turns import Turns
from data import conversations, messages, people, rankings, runs
from data.database import Database, new_id, open_database
from data.home import open_home
from data.records import Person, Placement

K, TURNS, CHATS, VERSIONS = 4, 10, 100, 50
TEXT = "Bees dance to tell each other where the flowers are, and how far it is to fly. " * 3
TIMES = 14


def main() -> None:
    """Fill and measure each size in turn; a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1000,100000,1000000", help="rankings, separated by commas")
    arguments = parser.parse_args()
    rows, names = [], list[str]()
    for size in map(int, arguments.sizes.split(",")):
        with TemporaryDirectory(dir=Path.cwd()) as folder:
            home = open_home(Path(folder))
            db = open_database(home)
            fill(db, size)
            base = load_base(str(tiny_model(home.root / "tiny")), home, tell=lambda line: None)
            found = measure(db, Desk(db, home, ServeConfig(), lambda: Answering("base")), Engine(base))
            db.close()
        names = list(found)
        rows.append([f"{size:,}", *(f"{value:.1f}" for value in found.values())])
        print(table(["rankings", *names], rows), flush=True)


def fill(db: Database, size: int) -> None:
    """`size` rankings, a person's hundred conversations at a time."""
    with db.write() as conn:
        conn.executemany(
            "INSERT INTO versions VALUES (?, 'base', 'm', '', ?, '', 'accepted', '{}', NULL, 100, ?)",
            [(f"v{i:06}", f"v{i:06}", time.time()) for i in range(1, VERSIONS + 1)],
        )
    for first in range(0, size, CHATS * TURNS):
        person = people.add(db, f"person {first // (CHATS * TURNS)}")
        fill_for(db, person, min(CHATS * TURNS, size - first))


def fill_for(db: Database, person: Person, turns: int) -> None:
    """So many ranked turns of one person."""
    chats, messages, ranked, placed = [], [], [], []
    for number in range(turns):
        now = time.time()
        if number % TURNS == 0:
            chat, parent = new_id(), None
            chats.append((chat, person.id, "About bees", 1, now, now))
        turn, replies = new_id(), [new_id() for _ in range(K)]
        messages.append((turn, chat, parent, "user", "What do bees say?", person.id, None, None, None, now))
        for place, reply in enumerate(replies):
            version = f"v{number % VERSIONS + 1:06}" if place % 2 else "base"
            messages.append((reply, chat, turn, "assistant", TEXT, None, version, 60, "stop", now))
            placed.append((turn, reply, place + 1, place))
        ranked.append((turn, turn, person.id, now))  # a ranking may have its turn's id
        parent = replies[0]
    with db.write() as conn:
        conn.executemany("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?)", chats)
        conn.executemany(
            "INSERT INTO messages (id, conversation_id, parent_id, role, content, author_id, version, tokens,"
            " finish_reason, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            messages,
        )
        conn.executemany(
            "INSERT INTO rankings (id, turn_id, person_id, source, kind, revision, is_current, reasons,"
            " comment, created_at) VALUES (?, ?, ?, 'human', 'full', 1, 1, '[]', '', ?)",
            ranked,
        )
        conn.executemany("INSERT INTO placements VALUES (?, ?, ?, ?)", placed)


def measure(db: Database, desk: Desk, engine: Engine) -> dict[str, float]:
    """Milliseconds of each, by name."""
    person = people.by_name(db, "person 0")
    assert person is not None
    visit = Visit(person, "en", "UTC")
    actions = Actions(db, Turns(db, engine), ServeConfig())
    chats = [chat.id for chat in conversations.list_for(db, person.id)]
    turn = messages.latest_turn(db, chats[0])
    assert turn is not None
    replies = [reply.id for reply in messages.replies(db, turn.id)]
    number = count(1)

    def vote() -> None:
        """Another order each time: the same again would store nothing."""
        first = next(number)
        placements = [Placement(reply, (first + i) % K + 1, i) for i, reply in enumerate(replies)]
        rankings.save(db, turn_id=turn.id, person_id=person.id, kind="full", placements=placements)

    def overview(desk: Desk) -> None:
        serving_html(db, visit, desk.answering())
        refresh_html(desk, visit, runs.latest(db), False)

    def afresh() -> Desk:
        """One that keeps no figures yet."""
        return Desk(desk.db, desk.home, desk.config, desk.answering)

    looks = cycle(chats)
    return {
        "chat": median_milliseconds(
            lambda: actions.open_chat(person, Payload({"conversation_id": next(looks), "look": 1})), TIMES
        ),
        "vote": median_milliseconds(vote, TIMES),
        "overview": median_milliseconds(lambda: overview(afresh()), TIMES),
        "overview again": median_milliseconds(lambda: overview(desk), TIMES),
        "versions": median_milliseconds(lambda: listing_html(afresh(), visit), TIMES),
        "versions again": median_milliseconds(lambda: listing_html(desk, visit), TIMES),
    }


if __name__ == "__main__":
    main()
