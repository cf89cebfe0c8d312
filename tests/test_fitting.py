"""trainer/fitting.py: what a night freezes and what its models are given; test_refresh.py trains some."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from chatbot.basemodel import Base
from chatbot.manifest import RewardRecord, hash_file
from chatbot.policy import Policy
from data import conversations, rankings, runs
from data.comparisons import RankedTurn, read_snapshot, write_snapshot
from data.database import Database
from data.forgetting import forget
from data.home import Home
from data.snapshots import taught_turns
from tests.adapter_files import make_version
from tests.learners import fair_share, predicted, shares
from tests.nights import a_run, known_conversations, tiny_night
from tests.operating import add_version
from tests.stories import a_turn, frozen, rank, somebody
from trainer import ensemble, fitting
from trainer.fitting import fit_rewards, freeze_snapshot
from trainer.night import Night, begin
from trainer.progress import Cancelled, Progress
from trainer.reliability import FLOOR
from trainer.report import write_report
from trainer.team import SOLO, Team

T = TypeVar("T")

MODELS = ("reward-0", "reward-1", "judge")
NO_POLICY = cast(Policy, SimpleNamespace(heads={}))
"""Where nothing is trained."""


@dataclass(frozen=True)
class Told(Team):
    """A chief whose words are kept; or, with another rank, a member that hears them one by one."""

    words: list[Any] = field(default_factory=list)

    def broadcast(self, value: T) -> T:
        if not self.is_chief:
            return cast(T, self.words.pop(0))
        self.words.append(value)
        return value


@dataclass(frozen=True)
class Training:
    """What the ensemble or the judge would have learned, and what it would have gone on from."""

    turns: tuple[RankedTurn, ...]
    warm: Path | None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """Every training that there would have been, ensemble and judge in turn; nothing is examined either."""
    found: list[Training] = []

    def fit(policy: Policy, turns: tuple[RankedTurn, ...], warm: Path | None, **_: object) -> None:
        found.append(Training(turns, warm))

    monkeypatch.setattr(ensemble, "fit", fit)
    monkeypatch.setattr(ensemble, "fit_one", fit)
    monkeypatch.setattr(fitting, "examine", lambda *_, **__: {"accuracy": 0.5})
    return found


def begun(db: Database, home: Home, base: Base, team: Team = SOLO, **changes: Any) -> Night:
    """A night of its own that has got no further than that."""
    run = a_run(db)
    return begin(db, home, base, tiny_night(home, **changes), run, Progress(db, run, quiet=True), team)


def many_rankings(db: Database, people: Sequence[str], first: int = 0, question: str = "Why?") -> None:
    """One ranking a name, each in a conversation of its own; these are numbered from `first` on."""
    with known_conversations(first):
        for name in people:
            person = somebody(db, name)
            rank(db, person, a_turn(db, person, question=question), (1, 2, 3))


def a_night_before(db: Database, home: Home, base: Base) -> Path:
    """The folder of an accepted version that learned from all there is, with what a warm start needs."""
    run = a_run(db)
    folder, snapshot = home.runs / run.id, frozen(db)
    for name in MODELS:
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text('{"r": 8}')
    write_snapshot(snapshot.turns, folder / "snapshot.jsonl")
    runs.set_snapshot(db, run.id, snapshot)
    learned = {
        part: ensemble.warm_start(
            [turn for turn in snapshot.turns if turn.part == part],
            tiny_night(home),
            0,
            learned=None,
            still=[],
            saved_rank=None,
        ).learned
        for part in "AB"
    }
    (folder / "learned.json").write_text(json.dumps(learned))
    make_version(db, home, base, run=run, rewards=[_record(folder, name) for name in MODELS])
    runs.finish(db, run, state="published", reason="A test.")
    return folder


def _record(folder: Path, name: str) -> RewardRecord:
    files = {path.name: hash_file(path) for path in (folder / name).iterdir()}
    return RewardRecord(name=name, files=files, mean=0.0, std=1.0, usual_length=0.0, length=0.0)


def lessons_of(db: Database, night: Night) -> list[str]:
    """What the night is known to have learned from beside its own rankings."""
    rows = db.query("SELECT lesson_id FROM run_lessons WHERE run_id = ?", (night.run.id,))
    return [row["lesson_id"] for row in rows]


def put_one_into_the_other_part(learned: Path) -> str:
    """Rewrites what models of part A had learned as a release that parts rankings otherwise would have."""
    parts = json.loads(learned.read_text())
    ranking, content = parts["B"].popitem()
    parts["A"][ranking] = content
    learned.write_text(json.dumps(parts))
    return str(ranking)


def test_nobody_has_more_than_their_share_of_the_rankings_a_night_takes(
    db: Database, home: Home, tiny_base: Base, trained: list[Training]
) -> None:
    many_rankings(db, [f"p{i % 20}" for i in range(60)])
    many_rankings(db, [*["loud"] * 16, *(f"p{i}" for i in range(16))], first=60)
    night = begun(db, home, tiny_base, max_rankings=32)
    snapshot = freeze_snapshot(night)
    fit_rewards(night, NO_POLICY, snapshot, [])
    assert len(snapshot.turns) == 32 and snapshot == read_snapshot(night.folder / "snapshot.jsonl")
    for turns in (snapshot.turns, trained[0].turns, trained[1].turns):
        assert max(shares(turns).values()) <= fair_share(turns) + 1e-9


def test_an_import_takes_only_the_places_that_people_leave(db: Database, home: Home, tiny_base: Base) -> None:
    many_rankings(db, ["ada"] * 20)
    many_rankings(db, ["imported"] * 30, first=20)
    with db.write() as conn:
        conn.execute(
            "UPDATE rankings SET source = 'imported' WHERE person_id = ?", (somebody(db, "imported").id,)
        )
    night = begun(db, home, tiny_base, max_rankings=32)
    turns = freeze_snapshot(night).turns
    assert [turn.source for turn in turns].count("imported") == 12
    runs.finish(db, night.run, state="refused", reason="A test.")
    assert rankings.count(db, after=runs.learned_until(db)) == 0, "what found no place is not new for ever"
    assert [turn.created_at for turn in turns] == sorted(turn.created_at for turn in turns)


def test_who_was_not_predicted_the_night_before_weighs_less(
    db: Database, home: Home, tiny_base: Base, trained: list[Training]
) -> None:
    names = ("ann", "bob", "cai", "eve")
    many_rankings(db, names * 10)
    ids = {name: somebody(db, name).id for name in names}
    known = predicted({id: 0.5 if name == "eve" else 0.8 for name, id in ids.items()})
    add_version(db, "v000001", base_sha256=tiny_base.sha256, serve=False, report=known)
    of_another_base = predicted(dict.fromkeys(ids.values(), 0.8))
    add_version(db, "v000002", serve=False, report=of_another_base)
    night = begun(db, home, tiny_base)
    snapshot = freeze_snapshot(night)
    fit_rewards(night, NO_POLICY, snapshot, [])
    assert {t.reliability for t in snapshot.turns if t.person_id == ids["eve"]} == {FLOOR}
    for turns in (snapshot.turns, trained[0].turns, trained[1].turns):
        weights = {person: [t.weight for t in turns if t.person_id == person] for person in ids.values()}
        for person in (ids[name] for name in names[:3]):
            assert max(weights[ids["eve"]]) == pytest.approx(FLOOR * min(weights[person]), rel=1e-3)
    report = {name: {"warm_start": {}} for name in ("reward", "judge")}
    assert write_report(night, snapshot, report, None, None)["person_reliability"] == {ids["eve"]: FLOOR}


def test_nobody_has_more_than_their_share_of_what_warm_models_learn(
    db: Database, home: Home, tiny_base: Base, trained: list[Training]
) -> None:
    many_rankings(db, [f"p{i % 30}" for i in range(240)])
    before = a_night_before(db, home, tiny_base)
    many_rankings(db, ["loud"] * 16, first=240)
    night = begun(db, home, tiny_base)
    snapshot = freeze_snapshot(night)
    fit_rewards(night, NO_POLICY, snapshot, [])
    everyone = snapshot.turns
    assert shares(everyone)[somebody(db, "loud").id] < fair_share(everyone), "so there no cap is needed"
    for training in trained:
        assert training.warm == before and len(training.turns) < 32
        assert max(shares(training.turns).values()) <= fair_share(training.turns) + 1e-9


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("learned.json", ""),
        ("learned.json", None),
        ("judge/adapter_config.json", None),
        ("judge/adapter_config.json", '{"r": 4}'),
        ("reward-1/adapter_config.json", "{}"),
    ],
)
def test_damaged_reward_models_of_an_earlier_night_are_passed_over(
    db: Database, home: Home, tiny_base: Base, trained: list[Training], file: str, content: str | None
) -> None:
    many_rankings(db, [f"p{i}" for i in range(20)])
    path = a_night_before(db, home, tiny_base) / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    for warm_start in (True, False):
        night = begun(db, home, tiny_base, warm_start=warm_start)
        fit_rewards(night, NO_POLICY, freeze_snapshot(night), [])
        runs.finish(db, night.run, state="refused", reason="A test.")
    assert [training.warm for training in trained] == [None] * 4


def test_who_taught_the_models_that_a_night_goes_on_from_taught_its_version_too(
    db: Database, home: Home, tiny_base: Base, trained: list[Training]
) -> None:
    many_rankings(db, ["ada"])
    many_rankings(db, [f"p{i}" for i in range(30)], first=1)
    a_night_before(db, home, tiny_base)
    night = begun(db, home, tiny_base, max_rankings=16)  # sixteen others have newer ones
    snapshot = freeze_snapshot(night)
    assert somebody(db, "ada").id not in {turn.person_id for turn in snapshot.turns}
    fit_rewards(night, NO_POLICY, snapshot, [])
    assert trained[0].warm is not None
    make_version(db, home, tiny_base, seed=1, run=night.run)
    runs.finish(db, night.run, state="published", reason="A test.")
    assert forget(db, home, somebody(db, "ada")).versions == ["v000001", "v000002"]


@pytest.mark.parametrize(("here", "imported"), [(280, False), (160, True)])
def test_what_was_ranked_here_examines_before_what_was_imported(
    db: Database,
    home: Home,
    tiny_base: Base,
    trained: list[Training],
    monkeypatch: pytest.MonkeyPatch,
    here: int,
    imported: bool,
) -> None:
    asked: list[RankedTurn] = []

    def examine(*given: Any, most: int, **_: object) -> Any:
        asked.extend(given[2][-most:])
        return {"accuracy": 0.5}

    monkeypatch.setattr(fitting, "examine", examine)
    many_rankings(db, ["ada"] * here)
    many_rankings(db, ["imported"] * 400, first=here)  # later than all that people ranked
    with db.write() as conn:
        person = somebody(db, "imported").id
        conn.execute("UPDATE rankings SET source = 'imported' WHERE person_id = ?", (person,))
    night = begun(db, home, tiny_base)
    fit_rewards(night, NO_POLICY, freeze_snapshot(night), [])
    sources = [turn.source for turn in asked]
    assert len(sources) - sources.count("imported") == here
    assert len(sources) == (400 if imported else here)


def test_one_person_s_newest_rankings_are_not_all_that_a_model_is_examined_on(
    db: Database, home: Home, tiny_base: Base, trained: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def examine(*given: Any, most: int, **_: object) -> Any:
        asked.append([turn.person_id for turn in given[2] if turn.pairs()][-most:])
        return {"accuracy": 0.5}

    monkeypatch.setattr(fitting, "examine", examine)
    monkeypatch.setattr(fitting, "_EXAMINED", 6)
    many_rankings(db, ["ada", "bob"] * 10)
    many_rankings(db, ["mallory"] * 50, first=20)
    with known_conversations(70):
        for _ in range(20):  # these examine nothing, and take no turn of ada's
            rank(db, (ada := somebody(db, "ada")), a_turn(db, ada), (1, 1, 1), kind="all_bad")
    night = begun(db, home, tiny_base)
    fit_rewards(night, NO_POLICY, freeze_snapshot(night), [])
    assert [sorted(Counter(people).values()) for people in asked] == [[2, 2, 2]] * 2


def test_prompts_that_taught_a_model_do_not_examine_it(
    db: Database, home: Home, tiny_base: Base, trained: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[RankedTurn]] = []
    examined_models: list[Sequence[str]] = []
    policy = cast(Policy, SimpleNamespace(heads=dict.fromkeys(["reward-0", "reward-1", "judge"])))

    def examine(policy: Policy, names: Sequence[str], turns: Sequence[RankedTurn], **_: object) -> Any:
        asked.append(turns)
        examined_models.append(names)
        return {"accuracy": 0.5}

    monkeypatch.setattr(fitting, "examine", examine)
    for i in range(10):  # four people are asked each question
        question = f"What is {i} times {i}, please?"
        many_rankings(db, ["ada", "bob", "eve", "kim"], first=4 * i, question=question)
    night = begun(db, home, tiny_base)
    fit_rewards(night, policy, freeze_snapshot(night), [])
    assert examined_models == [["reward-0", "reward-1"], ["judge"]], "else one would be its own examiner"
    for training, turns in zip(trained, asked, strict=True):
        taught, examined = ({str(turn.prompt) for turn in side} for side in (training.turns, turns))
        assert taught and examined and not taught & examined


def test_models_that_learned_from_what_is_of_the_other_part_now_are_not_gone_on_from(
    db: Database, home: Home, tiny_base: Base, trained: list[Training]
) -> None:
    many_rankings(db, [f"p{i}" for i in range(20)])
    put_one_into_the_other_part(a_night_before(db, home, tiny_base) / "learned.json")
    night = begun(db, home, tiny_base)
    reports = fit_rewards(night, NO_POLICY, freeze_snapshot(night), [])
    assert trained[0].warm is None
    assert "1 is deleted, revised or in the other part now." in reports["reward"]["warm_start"]["reason"]


def test_a_run_that_learned_from_what_is_of_the_other_part_now_begins_anew(
    db: Database, home: Home, tiny_base: Base, trained: list[Training]
) -> None:
    many_rankings(db, [f"p{i}" for i in range(20)])
    night = begun(db, home, tiny_base)
    fit_rewards(night, NO_POLICY, freeze_snapshot(night), [])
    (night.folder / "reward-0").mkdir()
    freeze_snapshot(night)
    assert (night.folder / "reward-0").is_dir(), "nothing has changed: it is used again"
    assert runs.metrics(db, night.run.id) != [] and lessons_of(db, night) != []
    put_one_into_the_other_part(night.folder / "learned.json")
    freeze_snapshot(night)
    assert not (night.folder / "reward-0").exists()
    assert runs.metrics(db, night.run.id) == [], "they would stand in one curve with those to come"
    assert lessons_of(db, night) == [], "its version will not have learned from what was thrown away"


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_a_run_that_begins_anew_tells_the_time_left_and_one_that_goes_on_waits_for_work_of_its_own(
    db: Database, home: Home, tiny_base: Base, is_taken_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_rankings(db, [f"p{i}" for i in range(20)])
    night = begun(db, home, tiny_base)
    freeze_snapshot(night)
    night.progress.enter("gate", "Comparing.")
    runs.interrupt_expired(db, time.time() + 1000)
    run = runs.resume(db, night.run.id)
    assert run is not None
    if is_taken_back:
        delete_a_ranking(db, home, tiny_base)
    again = begin(db, home, tiny_base, night.config, run, Progress(db, run, quiet=True), SOLO)
    freeze_snapshot(again)
    again.progress.enter("reference", "Sampling replies of the reference.")
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 60)
    again.progress.enter("reward", "Training.")
    assert (runs.get(db, run.id).eta_seconds is not None) == is_taken_back


def accept_a_version(db: Database, home: Home, base: Base) -> None:
    a_night_before(db, home, base)


def delete_a_ranking(db: Database, home: Home, base: Base) -> None:
    conversations.delete(db, taught_turns(db)[0].conversation_id)


@pytest.mark.parametrize("change", [accept_a_version, delete_a_ranking])
def test_every_member_learns_what_the_chief_does_whatever_it_finds_itself(
    db: Database,
    home: Home,
    tiny_base: Base,
    trained: list[Training],
    change: Callable[[Database, Home, Base], None],
) -> None:
    many_rankings(db, [f"p{i}" for i in range(20)])
    if change is delete_a_ranking:
        a_night_before(db, home, tiny_base)
    chief = begun(db, home, tiny_base, Told())
    snapshot = freeze_snapshot(chief)
    reports = fit_rewards(chief, NO_POLICY, snapshot, [])
    runs.finish(db, chief.run, state="cancelled", reason="A test.")
    change(db, home, tiny_base)
    words = cast(Told, chief.team).words
    member = begun(db, home, tiny_base, Told(rank=1, words=[*words]))
    assert fit_rewards(member, NO_POLICY, snapshot, []) == reports
    assert trained[2:] == trained[:2]
    assert not member.folder.exists(), "what is written is the chief's"


def test_an_examination_moves_the_bar_and_hears_that_the_run_is_cancelled(
    db: Database, home: Home, tiny_base: Base, trained: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    many_rankings(db, [f"p{i}" for i in range(20)])
    night = begun(db, home, tiny_base)
    asked: list[int] = []

    def examine(*_: object, most: int, tell: Callable[[float], None], **__: object) -> Any:
        asked.append(most)
        runs.request_cancel(db, night.run.id)
        tell(1.0)

    monkeypatch.setattr(fitting, "examine", examine)
    with pytest.raises(Cancelled):
        fit_rewards(night, NO_POLICY, freeze_snapshot(night), [])
    run = runs.get(db, night.run.id)
    assert (run.stage, run.message) == ("reward", "Examining 2 reward models on rankings of the other part.")
    assert asked == [200] and run.progress == pytest.approx(0.33)
