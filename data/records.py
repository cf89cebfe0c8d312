"""The nouns of Night School, as frozen dataclasses. No SQL, no behaviour beyond what follows from the fields.

Times are seconds since the epoch (UTC). Ids are UUIDv7 text, made by the server, except versions
("v000001", "base") which are counted.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from data.errors import Refused

PersonRole = Literal["user", "rater", "operator"]
PersonKind = Literal["human", "simulated"]
MessageRole = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "interrupted", "failed"]
RankingKind = Literal["full", "best", "all_bad", "skip"]
Source = Literal["human", "simulated", "imported"]
VersionStatus = Literal["candidate", "accepted", "refused"]
RunState = Literal[
    "running", "published", "refused", "nothing_to_learn", "failed", "cancelled", "interrupted"
]

NIGHT_STAGES = ("snapshot", "reference", "reward", "judge", "ppo", "gate", "publish")
"""What `Run.stage` may be in a night, in order."""
FINE_TUNING_STAGES = ("demonstrations", "sft", "publish")
"""The same of `trainer sft`."""
BASE_VERSION = "base"
"""The version that is always there: the base model without an adapter."""
SHORTEST_OPENING = 24
"""From this many bytes on a first message identifies its dialogue; many begin with "hi" or the like."""
_SLOT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d \S+")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The defaults are the one sampling default of the project."""

    temperature: float = 0.8
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches this; 1 is the full distribution."""
    max_new_tokens: int = 128
    """The longest reply, in tokens, its end-of-turn token included."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 5):
            raise Refused(f"Temperature {self.temperature!r} is out of range - use a number from 0 to 5.")
        if not (math.isfinite(self.top_p) and 0 < self.top_p <= 1):
            raise Refused(f"top_p {self.top_p!r} is out of range - use a number above 0, up to 1.")
        if not 1 <= self.max_new_tokens <= 100_000:
            raise Refused(f"max_new_tokens {self.max_new_tokens!r} is out of range - use 1 to 100000.")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who chats, rates or operates; `simulated` ones exist only to rank."""

    id: str
    name: str
    role: PersonRole
    kind: PersonKind
    is_disabled: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree of messages that belongs to one person."""

    id: str
    person_id: str
    title: str
    may_train: bool
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Message:
    """One node of the tree. Replies to the same turn are siblings: same `parent_id`, role `assistant`."""

    id: str
    conversation_id: str
    parent_id: str | None
    role: MessageRole
    content: str
    author_id: str | None
    """The person who wrote it; None for the model."""
    replaces_id: str | None
    """For a reply edited by a person: the reply it improves on."""
    version: str | None
    sampling: Sampling | None
    seed: int | None
    tokens: int | None
    finish_reason: FinishReason | None
    """None while the model still writes; people's messages are always `stop`."""
    created_at: float

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Chat messages that a reply is asked for; the last one is the user's."""

    messages: tuple[dict[str, str], ...]
    turn_id: str | None
    """The real turn it comes from; None where it was written for practice or read from a file."""
    source: str
    """`people`, `practice`, `judging` or a file's name."""
    conversation_id: str | None = None
    """Where that turn is; None as above."""
    opening: str = ""
    """What was asked first of all in that conversation; left out, what `messages` begin with."""

    @property
    def group(self) -> str:
        """Equal for prompts that are not independent: of one conversation, or begun with the same words.

        The conversation's id would not do: each imported row and each simulated turn has one of its own,
        whatever it shares with others. It serves only where the opening is too short to tell dialogues apart.
        Nor would the words that `messages` begin with: whoever rewords a first message begins a second
        branch of the same conversation.
        """
        opening = self.opening or next((m["content"] for m in self.messages if m["role"] == "user"), "")
        is_telling = len(opening.encode()) >= SHORTEST_OPENING
        return hashlib.sha256(opening.encode()).hexdigest() if is_telling else self.conversation_id or opening


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one reply of a turn was put."""

    message_id: str
    place: int
    """1 is best; equal places are ties."""
    shown: int
    """Position on the page when it was ranked, from 0."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one person said of the replies to one turn. `turn_id` is the id of the user's message."""

    id: str
    turn_id: str
    person_id: str
    source: Source
    kind: RankingKind
    placements: tuple[Placement, ...]
    """`full`: every compared reply; `best`: the winner at place 1, the others at 2; `all_bad`: every
    reply at place 1; `skip`: none."""
    revision: int
    dwell_ms: int | None
    reasons: tuple[str, ...]
    comment: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Version:
    """A policy that can serve. Once written only `status` changes, and `report` if people are forgotten."""

    name: str
    parent: str
    base_model: str
    base_sha256: str
    path: str
    """Relative to the home's `adapters` directory; empty for the base."""
    sha256: str
    status: VersionStatus
    report: dict[str, Any]
    """What the gate measured and why it decided so."""
    run_id: str | None
    rankings: int
    """How many rankings it learned from."""
    created_at: float


@dataclass(frozen=True, slots=True)
class Serving:
    """Which version answers, and which one anchors the learning. One row."""

    current: str
    previous: str | None
    challenger: str | None
    challenger_share: float
    reason: str
    changed_at: float
    reference: str | None
    """What PPO starts from on a first night and stays near on every night; None for the base."""


@dataclass(frozen=True, slots=True)
class Run:
    """One night, or a refresh, reward models alone or a fine-tuning asked for by hand."""

    id: str
    key: str
    """Unique: the scheduled slot (`2026-11-21T03:30 Europe/Berlin`), else kind and id (`manual-<id>`)."""
    state: RunState
    stage: str
    progress: float
    """Of the whole run, 0 to 1."""
    eta_seconds: float | None
    message: str
    """What it is doing now, as a sentence."""
    reason: str
    """Why it ended as it did, as sentences."""
    version: str | None
    """The version it made, published or refused."""
    snapshot_hash: str | None
    config: dict[str, Any]
    lease_until: float
    fencing_token: int
    cancel_requested: bool
    started_at: float
    finished_at: float | None

    @property
    def kind(self) -> str:
        """`slot` for a scheduled one; `manual`, `reward` or `sft` for one asked for by hand."""
        return "slot" if _SLOT.fullmatch(self.key) else self.key.partition("-")[0]

    def is_alive(self, now: float) -> bool:
        """Whether a process works on it; one that was killed lets its lease expire."""
        return self.state == "running" and self.lease_until > now


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a run: PPO's KL at update 3 is `Metric(run, "ppo", 3, "kl", 1.2)`."""

    run_id: str
    stage: str
    step: int
    name: str
    value: float


FEWEST_RANKINGS = 12
"""From which a night learns anything, new and old together, unless it is told to take fewer."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a refresh is due: the cron slot has come **and** enough new rankings lie there.

    `zone` is UTC only where nobody asks for another: `schedules.get` takes the machine's.
    """

    cron: str = "30 3 * * *"
    zone: str = "UTC"
    min_rankings: int = 20
    is_paused: bool = False
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that was done, by a person or by itself."""

    at: float
    person: str
    action: str
    detail: dict[str, Any] = field(default_factory=dict)
