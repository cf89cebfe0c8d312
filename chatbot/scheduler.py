"""Who is next: the requests that wait, and the order in which they are let in.

People who chat come before API calls, those before rollouts. Within a kind the person with the fewest replies
under way is next, then whoever came first: a burst of one person waits for itself. Nobody may hold more than
half of the queue with one kind and three quarters with all; to API calls it is full at three quarters. A
request waits for rows and for all the memory that it may come to need; programs, which are API calls and
rollouts, leave a quarter of both to people who chat. Nobody is overtaken for needing much: if need be they
run alone. Only API calls are refused for needing more memory than is for programs.

Whoever has something under way is let in again only where as much then stays free as all of theirs takes. A
person alone so gets half of what their kind may use, two come to a third each, and there is room for whoever
comes next (the dynamic threshold of Choudhury and Hahne, 1998). What a person alone leaves idle is the price:
rows that are lent cannot be had back before long replies end. Others pass them by meanwhile. What has no
person, as rollouts and simulated raters, may take all that its kind may.

Decides, and knows no tensor, no thread and no version.
"""

from collections import Counter
from collections.abc import Sequence

from chatbot.generation import Generation, Kind
from chatbot.memory import Memory
from data.errors import Busy, Refused

LEAST_TOKENS = 128
"""So long a reply may become, whatever else there is memory for."""


Whose = tuple[str | None, Kind]
"""A person, and one kind of request of theirs."""


class Scheduler:
    """The queue in front of an engine. Not thread-safe: the engine's lock is around it."""

    def __init__(self, max_waiting: int, max_rows: int) -> None:
        """`max_waiting` requests may queue before Busy; at most `max_rows` replies are let in."""
        self.max_waiting = max_waiting
        self.max_rows = max_rows
        self.memory: Memory | None = None
        """For keys and values of all that runs; None where that is for others to see to."""
        self._waiting: list[Generation] = []  # as they came
        self._running: dict[Generation, int] = {}  # and the columns of memory that each may need

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> Sequence[Generation]:
        """What was let in and has not been let go."""
        return list(self._running)

    @property
    def requests(self) -> list[Generation]:
        """What runs and what waits."""
        return [*self._running, *self._waiting]

    @property
    def room(self) -> int:
        """Free rows and free places in the queue: no more one-reply requests than this would be taken."""
        rows = sum(request.width for request in self._running)
        return max(0, self.max_rows - rows) + self.max_waiting - self.waiting

    def add(self, request: Generation) -> None:
        """Queue it; raises Busy where the queue is full, or what its person may have of it, and Refused where
        an API call asks for what programs can never have."""
        columns = self._columns(request)
        most = _for_programs(self.memory.columns) if self.memory else columns
        if request.kind == "api" and columns > most:
            raise Refused(
                f"The prompt and its replies may come to need memory for {columns:,} tokens, more than the "
                f"{most:,} for programs - ask for fewer or shorter replies, or shorten the messages."
            )
        kept = self.max_waiting // 4 if request.kind == "api" else 0
        if self.waiting >= self.max_waiting - kept:
            raise Busy(f"{self.waiting} requests are waiting already - try again in a moment.")
        theirs = Counter(other.kind for other in self._waiting if other.person == request.person)
        is_much = theirs[request.kind] >= max(1, self.max_waiting // 2)
        if request.person is not None and (is_much or theirs.total() >= self.max_waiting * 3 // 4):
            raise Busy(f"{theirs.total()} of your requests are waiting already - wait for their answers.")
        self._waiting.append(request)

    def longest_that_fits(self, prompt: int, replies: int, most: int) -> int:
        """Tokens that each reply to a prompt of so many may have: `most`, halved until all of it fits into
        what programs may use. Not below LEAST_TOKENS: what is still too much then is refused."""
        while self.memory is not None and most > LEAST_TOKENS:
            if self.memory.needed(prompt, replies, most) <= _for_programs(self.memory.columns):
                break
            most = max(LEAST_TOKENS, most // 2)
        return most

    def let_in(self) -> list[Generation]:
        """Let in everybody for whom there is room, in order. What needs more than there is runs alone."""
        return list(iter(self._let_in_next, None))

    def _let_in_next(self) -> Generation | None:
        if not self._waiting:
            return None
        rows, columns = self._under_way()
        all_rows, all_columns = rows.total(), columns.total()
        passed_by = set()
        for request in self._in_order():
            whose, width, needed = (request.person, request.kind), request.width, self._columns(request)
            usable_rows, usable_columns = self._usable(request)
            rows_left, columns_left = usable_rows - all_rows - width, usable_columns - all_columns - needed
            is_another = request.person is not None and whose in rows
            leaves_enough = rows[whose] + width <= rows_left and columns[whose] + needed <= columns_left
            if whose in passed_by or (is_another and not leaves_enough):
                passed_by.add(whose)  # what they asked for later waits, too
                continue
            if self._running and min(rows_left, columns_left) < 0:
                return None
            self._waiting.remove(request)
            self._running[request] = needed
            return request
        return None

    def _under_way(self) -> tuple[Counter[Whose], Counter[Whose]]:
        """Rows and columns that each person's requests of each kind take."""
        rows, columns = Counter[Whose](), Counter[Whose]()
        for request, needed in self._running.items():
            rows[request.person, request.kind] += request.width
            columns[request.person, request.kind] += needed
        return rows, columns

    def _usable(self, request: Generation) -> tuple[int, int]:
        """Rows and columns that there are for its kind: API calls and rollouts leave a part to chats."""
        rows, columns = self.max_rows, self.memory.columns if self.memory else 0  # or nothing needs any
        return (rows, columns) if request.kind == "chat" else (_for_programs(rows), _for_programs(columns))

    def _columns(self, request: Generation) -> int:
        """Columns of memory that it may come to need."""
        if self.memory is None:
            return 0
        return self.memory.needed(len(request.prompt), len(request.rows), request.sampling.max_new_tokens)

    def position_of(self, request: Generation) -> int:
        """How many waiting requests come up to and with this one; 0 where it does not wait."""
        return self._in_order().index(request) + 1 if request in self._waiting else 0

    def let_go(self) -> list[Generation]:
        """Take out the requests that ended, in the queue or under way."""
        ended = [request for request in self.requests if request.is_done]
        gone = set(ended)  # asked once: others may stop more of them meanwhile
        self._running = {r: columns for r, columns in self._running.items() if r not in gone}
        self._waiting = [request for request in self._waiting if request not in gone]
        return ended

    def _in_order(self) -> list[Generation]:
        under_way: Counter[str | None] = Counter()
        for request in self._running:
            under_way[request.person] += request.width
        return sorted(  # a stable sort: within a priority as they came
            self._waiting,
            key=lambda r: (r.priority, under_way[r.person] if r.person is not None else 0),
        )


def _for_programs(there: int) -> int:
    """Of rows or columns, what is not kept for people who chat."""
    return there - there // 4
