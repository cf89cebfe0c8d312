"""trainer/refresh.py: a whole night on the tiny model, how it ends, and what it leaves behind."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.basemodel import Base, load_base
from chatbot.manifest import read_manifest
from chatbot.models import merged_model
from chatbot.policy import Policy
from data import conversations, messages, runs, versions
from data.comparisons import Snapshot, read_snapshot
from data.database import Database, connect, open_database
from data.errors import Locked, NotFound, Refused
from data.files import write_json
from data.forgetting import forget
from data.home import Home, open_home
from data.records import Run, Sampling, Version
from tests.adapter_files import make_version
from tests.learners import CPU, turned_round
from tests.nights import a_night, a_run, known_conversations, tiny_night
from tests.stories import a_turn, rank, somebody
from tests.test_outcome import held_after_canaries, hold
from tests.test_sft import a_stage, import_politeness
from tests.tiny import make_tiny_model
from trainer import refresh as refresh_module
from trainer.config import RefreshConfig
from trainer.endings import Endings
from trainer.examine import examine
from trainer.fitting import fit_rewards
from trainer.gate import check_replies
from trainer.guards import Guards
from trainer.improving import _choose_once, improve_policy, shown_samples
from trainer.night import Night, begin
from trainer.probes import probe
from trainer.progress import Cancelled, Progress
from trainer.publish import verify_for
from trainer.reasons import HELD_UP, ShutDown
from trainer.refresh import NothingToLearn, Stage, refresh
from trainer.result import PolicyResult
from trainer.reward import length_preference
from trainer.team import SOLO


def forget_nights(db: Database) -> None:
    """Leaves nothing to go on from: the next night begins as the first did."""
    if versions.serving(db).current != "base":
        versions.rollback(db, actor="test")
    with db.write() as conn:
        conn.execute("UPDATE versions SET status = 'refused', report = '{}'")


SEED = 3
SHORT = {"members": 2, "updates": 3, "gate_prompts": 8, "seed": SEED}


def resumed(db: Database, run: Run) -> Run:
    again = runs.resume(db, run.id)
    assert again is not None
    return again


@pytest.fixture(scope="module")
def paused_home(
    tiny_directory: Path, ranked_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A state directory with a hundred rankings and a night that has paused after stage 2; copy it."""
    home = open_home(tmp_path_factory.mktemp("paused"))
    shutil.copy(ranked_database, home.database)
    base = load_base(str(tiny_directory), home, lambda text: None)
    with closing(open_database(home)) as db:
        refresh(db, home, base, tiny_night(home, **SHORT), a_run(db), until="reward", quiet=True)
    return home.root


@pytest.fixture
def paused(home: Home, paused_home: Path) -> Iterator[Database]:
    """The database of `home`, with the same rankings and the same night, which has paused."""
    shutil.copytree(paused_home, home.root, dirs_exist_ok=True)
    with closing(open_database(home)) as db:
        yield db


def paused_run(db: Database) -> Run:
    run = runs.latest(db)
    assert run is not None
    return run


def the_rest(db: Database, home: Home, base: Base, *, until: Stage = "gate", **changes: Any) -> Run:
    """Go on with the paused night, which has reward models and a judge already."""
    config, run = tiny_night(home, **{"seed": SEED} | changes), resumed(db, paused_run(db))
    return refresh(db, home, base, config, run, until=until, quiet=True)


def test_a_night_publishes_a_version_that_serves(ranked: Database, home: Home, tiny_base: Base) -> None:
    run = a_night(ranked, home, tiny_base)

    assert run.state == "published", run.reason
    assert versions.serving(ranked).current == run.version == "v000001"
    assert "The judge prefers the candidate" in run.reason
    version = versions.get(ranked, "v000001")
    assert (version.parent, version.rankings, version.run_id) == ("base", 100, run.id)
    verify_for(tiny_base, home.adapters / version.path)


def probed(home: Home, base: Base, version: Version | None = None) -> dict[str, float]:
    """What the probes of a tiny night find of a version, or of the base itself."""
    adapter = home.adapters / version.path if version else None
    model = merged_model(base, adapter, device=CPU, dtype=torch.float32)
    return probe(model, base, sampling=Sampling(max_new_tokens=24), seed=SEED)


def test_a_night_writes_down_what_it_measured(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    directions = []

    class Noted(Guards):
        def __init__(self, config: RefreshConfig, length_preference: float, endings: Endings | None) -> None:
            directions.append(length_preference)
            super().__init__(config, length_preference, endings)

    def noted(
        new: dict[str, float], old: dict[str, float], length_preference: float, count: int
    ) -> list[str]:
        directions.append(length_preference)
        return check_replies(new, old, length_preference, count)

    monkeypatch.setattr("trainer.ppo.Guards", Noted)
    monkeypatch.setattr("trainer.gate.check_replies", noted)
    run = the_rest(paused, home, tiny_base)

    asked_for = length_preference(read_snapshot(home.runs / run.id / "snapshot.jsonl").turns)
    assert directions == [asked_for, asked_for] and asked_for != 0
    report = json.loads((home.runs / run.id / "report.json").read_text())
    version = versions.get(paused, "v000001")
    assert report == version.report
    assert report["judge"]["accuracy_interval"][0] > 0.5
    assert report["parts"]["A"] + report["parts"]["B"] == 100
    assert report["gate"]["judge"] == report["judge"] != report["reward"]
    assert len(report["gate"]["samples"]) == 10
    sides = report["gate"]["probes"]
    assert sides["current"] == pytest.approx(probed(home, tiny_base), rel=1e-4)
    assert sides["candidate"] == pytest.approx(probed(home, tiny_base, version), rel=1e-4) != sides["current"]
    assert report["config"]["seed"] == SEED != report["seed"]
    kl = [m.value for m in runs.metrics(paused, run.id, "ppo") if m.name == "kl"]
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert kl[-1] > 0.1
    assert (run.progress, run.eta_seconds) == (1.0, None)


def test_a_policy_trained_with_the_reward_s_sign_flipped_is_refused(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def improve(night: Night, policy: Policy, *rest: Any) -> PolicyResult:
        with turned_round(policy):
            return improve_policy(night, policy, *rest)

    monkeypatch.setattr("trainer.refresh.improve_policy", improve)
    run = the_rest(paused, home, tiny_base)

    assert run.state == "refused"
    assert "of prompts; the lower bound" in run.reason
    assert versions.serving(paused).current == "base"
    assert versions.get(paused, "v000001").status == "refused"


def test_a_second_night_goes_on_from_what_serves(paused: Database, home: Home, tiny_base: Base) -> None:
    the_rest(paused, home, tiny_base)

    run = a_night(paused, home, tiny_base, updates=2, seed=1)

    assert run.state in ("published", "refused")
    first = [m.value for m in runs.metrics(paused, run.id, "ppo") if (m.name, m.step) == ("kl", 0)]
    start = [m.value for m in runs.metrics(paused, run.id, "ppo") if (m.name, m.step) == ("start_kl", 0)]
    assert first[0] > 0.1
    assert start[0] == pytest.approx(0, abs=1e-3)


def test_the_same_seed_gives_the_same_night(ranked: Database, home: Home, tiny_base: Base) -> None:
    def curve(run_id: str) -> list[float]:
        return [m.value for m in runs.metrics(ranked, run_id, "ppo") if m.name in ("kl", "score")]

    one = a_night(ranked, home, tiny_base, updates=2, seed=3, gate_prompts=4)
    forget_nights(ranked)
    two = a_night(ranked, home, tiny_base, updates=2, seed=3, gate_prompts=4)

    assert curve(one.id) == pytest.approx(curve(two.id), abs=1e-4)


def test_what_an_operator_lets_serve_while_the_version_is_written_goes_on_serving(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = make_version(paused, home, tiny_base)

    def verified(*rest: Any) -> Any:  # an operator can write while the files are looked at
        elsewhere = open_database(home)
        versions.publish(elsewhere, by_hand.name, actor="ada", reason="By hand.")
        elsewhere.close()
        return verify_for(*rest)

    monkeypatch.setattr("trainer.publish.verify_for", verified)
    run = the_rest(paused, home, tiny_base)

    assert (run.state, run.version) == ("refused", "v000002")
    assert "While it learned, base was replaced by v000001, with which it was never compared" in run.reason
    assert versions.serving(paused).current == "v000001"
    assert versions.get(paused, "v000002").status == "accepted"
    assert versions.publish(paused, "v000002", actor="ada", reason="").current == "v000002"


def test_no_two_plain_models_are_alive_at_once_and_none_while_reward_models_learn(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def count() -> None:
        gc.collect()
        alive.append(sum(model() is not None for model in built))

    def building(*rest: Any, **more: Any) -> Any:
        count()
        model = merged_model(*rest, **more)
        built.append(weakref.ref(model))
        return model

    def fitting(*rest: Any) -> Any:
        count()
        return fit_rewards(*rest)

    for module in ("refresh", "canary"):
        monkeypatch.setattr(f"trainer.{module}.merged_model", building)
    monkeypatch.setattr("trainer.refresh.fit_rewards", fitting)
    run = a_night(ranked, home, tiny_base, **SHORT)

    assert run.version is not None, "it came as far as the gate"
    assert (len(built), alive) == (5, [0] * 6)


def test_best_of_k_logs_what_it_measured_before_and_after(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, int]] = []

    def log(db: Database, run: Run, stage: str, step: int, values: dict[str, float]) -> None:
        logged.append((stage, step))

    monkeypatch.setattr(runs, "log", log)
    the_rest(paused, home, tiny_base, algorithm="bestofk", **SHORT)

    assert [step for stage, step in logged if stage == "ppo"] == [0, 1]


def test_an_empty_database_is_nothing_to_learn(db: Database, home: Home, tiny_base: Base) -> None:
    with pytest.raises(NothingToLearn, match=r"There are 0 .* 12 in all.*trainer refresh --min-rankings"):
        a_night(db, home, tiny_base)

    run = runs.latest(db)
    assert run is not None
    assert (run.state, run.version) == ("nothing_to_learn", None)


def test_one_ranking_is_not_enough(db: Database, home: Home, tiny_base: Base) -> None:
    person = somebody(db)
    rank(db, person, a_turn(db, person), (1, 2, 3))

    with pytest.raises(NothingToLearn, match="There is 1 ranking to learn from"):
        a_night(db, home, tiny_base)


def test_ties_alone_teach_nothing(db: Database, home: Home, tiny_base: Base) -> None:
    person = somebody(db)
    for _ in range(30):
        rank(db, person, a_turn(db, person), (1, 1, 1))

    with pytest.raises(NothingToLearn, match="None of the 30 rankings lets the reward model prefer"):
        a_night(db, home, tiny_base)


def test_a_version_of_another_base_is_not_trained_on(
    ranked: Database, home: Home, tiny_base: Base, tmp_path: object
) -> None:
    other = load_base(str(make_tiny_model(home.root / "other", seed=9)), home, lambda text: None)
    make_version(ranked, home, other)
    versions.publish(ranked, "v000001", actor="test", reason="")

    with pytest.raises(Refused, match="v000001 serves on another base model"):
        a_night(ranked, home, tiny_base)


def test_a_cancelled_night_leaves_what_serves(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = Progress.enter

    def cancel_at_ppo(self: Progress, stage: str, message: str) -> None:
        if stage == "ppo" and (run := runs.latest(paused)):
            runs.request_cancel(paused, run.id)
        enter(self, stage, message)

    monkeypatch.setattr(Progress, "enter", cancel_at_ppo)
    with pytest.raises(Cancelled):
        the_rest(paused, home, tiny_base)

    run = runs.latest(paused)
    assert run is not None
    assert run.state == "cancelled"
    assert versions.serving(paused).current == "base"


def test_a_night_that_breaks_is_recorded_with_its_reason(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    with pytest.raises(Exception, match="nowhere"):
        a_night(ranked, home, tiny_base, practice="nowhere.jsonl")

    run = runs.latest(ranked)
    assert run is not None
    assert run.state == "failed"
    assert "nowhere.jsonl" in run.reason


@pytest.mark.parametrize("change", [{"judging": "nowhere.jsonl"}, {"max_new_tokens": 513}, {"ptx": 1.0}])
def test_what_would_end_a_night_at_its_end_ends_it_at_once(
    ranked: Database, home: Home, tiny_base: Base, change: dict[str, Any]
) -> None:
    with pytest.raises((NotFound, Refused)):
        a_night(ranked, home, tiny_base, **change)

    run = runs.latest(ranked)
    assert run is not None
    assert (run.state, run.snapshot_hash) == ("failed", None), "nothing was learned for nothing"


def figures(db: Database, run: Run) -> dict[tuple[str, int, str], float]:
    """All that was measured, but for what a clock said."""
    found = {(m.stage, m.step, m.name): m.value for m in runs.metrics(db, run.id)}
    return {key: value for key, value in found.items() if "seconds" not in key[2]}


@pytest.fixture(scope="module")
def whole_night(
    tiny_directory: Path, ranked_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, dict[tuple[str, int, str], float]]:
    """A night that was left in peace, and its figures."""
    home = open_home(tmp_path_factory.mktemp("whole"))
    shutil.copy(ranked_database, home.database)
    base = load_base(str(tiny_directory), home, lambda text: None)
    with closing(open_database(home)) as db:
        run = a_night(db, home, base, **SHORT)
        return run, figures(db, run)


PRACTISED, KEPT = 16, 3
"""Numbers of a conversation that is practised on and of one that is kept for judging."""


@pytest.mark.parametrize("stage, how", [("judge", KeyboardInterrupt), ("ppo", ShutDown), ("gate", Locked)])
def test_a_night_that_was_interrupted_goes_on_where_it_was(
    ranked: Database,
    home: Home,
    tiny_base: Base,
    whole_night: tuple[Run, dict[tuple[str, int, str], float]],
    stage: str,
    how: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole, measured), config, enter = whole_night, tiny_night(home, **SHORT), Progress.enter

    def interrupt(self: Progress, entered: str, message: str) -> None:
        if entered == stage:
            raise how
        enter(self, entered, message)

    run = a_run(ranked)
    with monkeypatch.context() as patch, pytest.raises(how):
        patch.setattr(Progress, "enter", interrupt)
        refresh(ranked, home, tiny_base, config, run, quiet=True)
    assert runs.get(ranked, run.id).state == "interrupted"
    done = refresh(ranked, home, tiny_base, config, resumed(ranked, run), quiet=True)

    assert (done.state, done.reason) == (whole.state, whole.reason)
    assert figures(ranked, done) == pytest.approx(measured, abs=1e-4)


def test_the_stages_can_be_asked_for_one_by_one(ranked: Database, home: Home, tiny_base: Base) -> None:
    config, run = tiny_night(home, **SHORT), a_run(ranked)
    rewards = refresh(ranked, home, tiny_base, config, run, until="reward", quiet=True)
    assert rewards.state == "interrupted" and f"trainer ppo {run.id}" in rewards.reason
    assert {"reward-0", "reward-1", "judge"} <= {path.name for path in (home.runs / run.id).iterdir()}
    improved = refresh(ranked, home, tiny_base, config, resumed(ranked, run), until="ppo", quiet=True)
    assert improved.state == "interrupted" and f"trainer gate {run.id}" in improved.reason
    done = refresh(ranked, home, tiny_base, config, resumed(ranked, run), quiet=True)
    assert done.state in ("published", "refused") and versions.list_all(ranked) != []


def delete_a_ranking(db: Database, home: Home, run: Run) -> None:
    conversations.delete(db, read_snapshot(home.runs / run.id / "snapshot.jsonl").turns[0].conversation_id)


def forget_the_snapshot(db: Database, home: Home, run: Run) -> None:
    (home.runs / run.id / "snapshot.jsonl").unlink()  # as `data forget` does


def what_is_used_again(db: Database, home: Home, base: Base) -> Path:
    """A file of what the paused night has learned: taken up again, it did not learn it anew."""
    learned = home.runs / paused_run(db).id / "reward-0" / "head.safetensors"
    before = learned.stat().st_mtime_ns
    the_rest(db, home, base, until="reward")
    assert learned.stat().st_mtime_ns == before, "nothing has changed"
    return learned


@pytest.mark.parametrize("change", [delete_a_ranking, forget_the_snapshot])
def test_a_run_that_may_not_use_what_it_learned_begins_anew(
    paused: Database, home: Home, tiny_base: Base, change: Callable[[Database, Home, Run], None]
) -> None:
    learned = what_is_used_again(paused, home, tiny_base)
    before = learned.stat().st_mtime_ns
    change(paused, home, paused_run(paused))
    the_rest(paused, home, tiny_base, until="reward")
    assert learned.stat().st_mtime_ns > before


def lessons_of(db: Database, run: Run) -> set[str]:
    """What the run is known to have learned from beside its own rankings."""
    return {row["lesson_id"] for row in db.query("SELECT * FROM run_lessons WHERE run_id = ?", (run.id,))}


def shut_the_chat(db: Database, chat: str) -> None:
    conversations.set_may_train(db, chat, False)


@pytest.mark.parametrize("take_back", [conversations.delete, shut_the_chat])
def test_a_run_taken_up_again_does_not_practise_on_what_was_taken_back(
    paused: Database, home: Home, tiny_base: Base, take_back: Callable[[Database, str], None]
) -> None:
    run, folder = paused_run(paused), home.runs
    with known_conversations(PRACTISED):
        reply = a_turn(paused, somebody(paused), question="Why is the sky blue?")[0]
    chat, turn = reply.conversation_id, str(reply.parent_id)
    the_rest(paused, home, tiny_base, until="ppo", **SHORT)
    exercises, checkpoint = folder / run.id / "exercises.json", next((folder / run.id / "ppo").iterdir())
    assert "Why is the sky blue?" in exercises.read_text()
    before, learned = exercises.stat().st_mtime_ns, lessons_of(paused, run)
    assert turn in learned
    the_rest(paused, home, tiny_base, until="ppo", **SHORT)
    assert exercises.stat().st_mtime_ns == before, "nothing has changed: it goes on"
    (checkpoint / "of-before").touch()
    with paused.write() as conn:
        conn.execute("UPDATE metrics SET step = step + 1000 WHERE stage = 'ppo'")
    take_back(paused, chat)
    the_rest(paused, home, tiny_base, until="ppo", **SHORT)
    assert "Why is the sky blue?" not in exercises.read_text()
    assert not (checkpoint / "of-before").exists(), "what was learned from it has gone"
    steps = {metric.step for metric in runs.metrics(paused, run.id, "ppo")}
    assert steps and max(steps) < 1000, "and so have its figures"
    assert lessons_of(paused, run) == learned - {turn}, "its version will not have learned from it"


def test_an_edit_that_taught_the_reward_models_is_not_forgotten_with_the_exercises(
    db: Database, home: Home, tiny_base: Base
) -> None:
    def edit(question: str) -> str:
        return conversations.add_edit(db, a_turn(db, ada, question=question)[0].id, "four", ada.id).id

    ada, run = somebody(db), a_run(db)
    ranked_too, imitated, kept = edit("One?"), edit("Two?"), edit("Three?")
    night = begin(db, home, tiny_base, tiny_night(home, ptx=1.0), run, Progress(db, run, quiet=True), SOLO)
    write_json(home.runs / run.id / "learned.json", {"A": {ranked_too: "its hash"}, "B": {}})
    _choose_once(night, Snapshot((), ""), night.config)
    assert {ranked_too, imitated, kept} <= lessons_of(db, run)
    for gone in (ranked_too, imitated):
        conversations.delete(db, messages.get(db, gone).conversation_id)
    (night.folder / night.config.algorithm).mkdir()
    night.progress._found = 0.9  # as where an earlier process had come so far
    _choose_once(night, Snapshot((), ""), night.config)
    assert night.progress._found < 0.9, "the time left is told from the beginning of the stage"
    assert lessons_of(db, run) & {ranked_too, imitated, kept} == {ranked_too, kept}


def test_the_gate_judges_on_what_is_asked_here_and_writes_it_into_no_version(
    paused: Database, home: Home, tiny_base: Base
) -> None:
    with known_conversations(KEPT):
        a_turn(paused, somebody(paused), question="Was ist eine Frist?")
    run = the_rest(paused, home, tiny_base, **SHORT | {"judging": None})
    judged = json.loads((home.runs / run.id / "exercises.json").read_text())["judging"]
    assert judged[0]["messages"] == [{"role": "user", "content": "Was ist eine Frist?"}]
    assert len(judged) == 8 and all(prompt["turn_id"] is None for prompt in judged[1:])
    version = versions.get(paused, str(run.version))
    assert "judge prefers" in " ".join(version.report["gate"]["sentences"])
    canary = read_manifest(home.adapters / version.path).canary
    told = json.dumps(version.report) + "".join(tiny_base.format.decode(row["ids"]) for row in canary)
    assert "Frist" not in told


def test_of_the_replies_to_show_none_is_to_a_turn_of_people() -> None:
    ours, theirs = {"prompt": [1, 2]}, {"prompt": [3]}
    assert shown_samples({0: [theirs, ours], 5: [theirs]}, [[3]]) == {0: [ours], 5: []}


def test_what_people_asked_is_practised_on_and_written_into_no_version(
    paused: Database, home: Home, tiny_base: Base
) -> None:
    with known_conversations(PRACTISED):
        for number in range(16):
            a_turn(paused, somebody(paused, "asks"), question=f"sky {number}")
    run = the_rest(paused, home, tiny_base, **SHORT)
    assert "sky" in (home.runs / run.id / "exercises.json").read_text()
    report = versions.get(paused, str(run.version)).report
    shown = [row["prompt"] for rows in report["ppo"]["samples"].values() for row in rows]
    assert shown and "sky" not in json.dumps(report)
    assert forget(paused, home, somebody(paused, "asks")).versions == [run.version], "who ranked nothing too"


def test_a_run_under_which_what_serves_has_changed_begins_anew(
    paused: Database, home: Home, tiny_base: Base
) -> None:
    learned = what_is_used_again(paused, home, tiny_base)
    before = learned.stat().st_mtime_ns
    versions.publish(paused, make_version(paused, home, tiny_base).name, actor="test", reason="")
    the_rest(paused, home, tiny_base, until="reward")
    assert learned.stat().st_mtime_ns > before


def at_first(db: Database, run: Run, name: str) -> float:
    """A figure of PPO before anything was learned."""
    return figures(db, run)["ppo", 0, name]


def a_reference(db: Database, home: Home, base: Base, seed: int = 5) -> str:
    """The name of a version that anchors the KL from now on."""
    name = make_version(db, home, base, seed=seed).name
    versions.set_reference(db, name, actor="test")
    return name


def test_a_night_after_a_fine_tuning_starts_with_it_and_is_anchored_by_it(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    with known_conversations(5000):
        import_politeness(ranked)
    tuned = a_stage(ranked, home, tiny_base, sft_epochs=12).version
    run = a_night(ranked, home, tiny_base, **SHORT)

    assert at_first(ranked, run, "kl") == pytest.approx(0, abs=1e-3)
    assert at_first(ranked, run, "start_kl") == pytest.approx(0, abs=1e-3)
    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert report["reference"] == tuned == "v000001"
    begun = [row["reply"] for row in report["ppo"]["samples"]["0"]]
    replies = json.loads((home.runs / run.id / "reference.json").read_text())
    zero = [tiny_base.format.decode(row["reply"]) for row in replies]
    for said in (begun, zero):  # of the base itself one in ten thousand begins so
        assert sum(reply.startswith("ok") for reply in said) > 2, said


def test_a_later_night_starts_with_what_serves_must_beat_it_and_is_anchored_by_the_reference(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guards, "judge", property(lambda guards: float(guards._seen.batches)))
    monkeypatch.setattr(Guards, "keeps_endings", True)  # so that there is a candidate
    reference = a_reference(ranked, home, tiny_base)
    serving = make_version(ranked, home, tiny_base, seed=6)
    versions.publish(ranked, serving.name, actor="test", reason="")
    run = a_night(ranked, home, tiny_base, **SHORT)

    assert at_first(ranked, run, "kl") > 0.05
    assert at_first(ranked, run, "start_kl") == pytest.approx(0, abs=1e-3)
    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert (report["reference"], report["parent"]) == (reference, serving.name)
    current = report["gate"]["probes"]["current"]
    assert current == pytest.approx(probed(home, tiny_base, serving), rel=1e-4)


def test_a_night_that_starts_with_the_reference_knows_how_its_replies_end(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Endings | None] = []

    class Noted(Guards):
        def __init__(self, config: RefreshConfig, length_preference: float, endings: Endings | None) -> None:
            known.append(endings)
            super().__init__(config, length_preference, endings)

    monkeypatch.setattr("trainer.ppo.Guards", Noted)
    versions.publish(ranked, a_reference(ranked, home, tiny_base), actor="test", reason="")
    a_night(ranked, home, tiny_base, **SHORT | {"updates": 1})
    assert known[0] is not None and known[0].replies > 0


def test_a_run_under_which_the_reference_has_changed_begins_anew(
    paused: Database, home: Home, tiny_base: Base
) -> None:
    learned = what_is_used_again(paused, home, tiny_base)
    before = learned.stat().st_mtime_ns
    a_reference(paused, home, tiny_base)
    the_rest(paused, home, tiny_base, until="reward")
    assert learned.stat().st_mtime_ns > before


def test_a_night_whose_database_others_hold_waits_to_say_so(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, other = Progress.enter, connect(home.database)

    def held(self: Progress, entered: str, message: str) -> None:
        enter(self, entered, message)
        hold(other)

    run = a_run(ranked)
    with monkeypatch.context() as patch, pytest.raises(Locked):
        patch.setattr("data.database.BUSY_SECONDS", 0.2)
        patch.setattr(Progress, "enter", held)
        refresh(ranked, home, tiny_base, tiny_night(home, **SHORT), run, quiet=True)
    ended = runs.get(ranked, run.id)
    assert ended.state == "interrupted" and ended.reason.startswith(HELD_UP)
    other.close()


def test_a_version_is_not_lost_to_whoever_holds_the_database_when_it_is_done(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_after_canaries(refresh_module, home, monkeypatch):
        run = the_rest(paused, home, tiny_base, **SHORT)
    assert run.version == "v000001" and run.state in ("published", "refused")


def test_a_kill_before_the_last_row_leaves_no_version(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trainer.refresh.versions.publish", die)
        the_rest(paused, home, tiny_base)
    assert versions.list_all(paused) == [] and versions.serving(paused).current == "base"


def test_the_second_night_goes_on_from_last_night_s_reward_models(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    a_night(ranked, home, tiny_base, members=2, max_rankings=90)
    run = a_night(ranked, home, tiny_base, **SHORT)

    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert report["warm_start"]["is_warm"], report["warm_start"]


def test_a_night_that_finds_nothing_better_writes_its_report(
    paused: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guards, "judge", property(lambda guards: -float(guards._seen.batches)))
    run = the_rest(paused, home, tiny_base, **SHORT)
    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert (run.version, report["gate"]) == (None, None)
    assert "was better than it in the eyes of the judge" in run.reason


def blunt(*models: str) -> Callable[..., dict[str, Any]]:
    """Examinations in which these models may be right by chance, and the others surely are."""

    def examined(policy: Policy, names: Sequence[str], *asked: Any, **how: Any) -> dict[str, Any]:
        low = 0.4 if set(names) <= set(models) else 0.6
        accuracy = {"accuracy": low + 0.15, "accuracy_interval": [low, low + 0.3]}
        return {**examine(policy, names, *asked, **how), **accuracy}

    return examined


def test_where_the_judge_cannot_judge_the_night_ends_before_it_practises(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.fitting.examine", blunt("judge"))
    run = a_night(ranked, home, tiny_base, **SHORT)

    assert (run.state, run.version, run.progress) == ("refused", None, 1.0)
    assert run.reason.startswith("The judge agrees with 55% of held-out comparisons")
    assert run.reason.endswith("it cannot judge - rank replies in more conversations.")
    assert {m.stage for m in runs.metrics(ranked, run.id)} == {"reward", "judge"}
    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert report["judge"]["accuracy"] == 0.55 and report["gate"] is None and report["ppo"] is None


def test_a_judge_that_can_judge_does_whatever_the_reward_models_are_worth(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.fitting.examine", blunt("reward-0", "reward-1", "reward-2"))
    run = a_night(ranked, home, tiny_base, **SHORT)
    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert "cannot judge" not in run.reason and report["ppo"] is not None


def test_the_stage_reward_alone_pauses_whatever_the_judge_is_worth(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.fitting.examine", blunt("judge"))
    config, run = tiny_night(home, **SHORT), a_run(ranked)
    paused = refresh(ranked, home, tiny_base, config, run, until="reward", quiet=True)
    assert paused.state == "interrupted"
    done = refresh(ranked, home, tiny_base, config, resumed(ranked, run), until="ppo", quiet=True)
    assert done.state == "refused" and "cannot judge" in done.reason
