"""trainer/ensemble.py: several reward models, what they learn from tonight, and what survives a crash."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatbot.basemodel import Base, load_base
from chatbot.policy import Policy
from data.comparisons import RankedTurn, read_snapshot, write_snapshot
from data.errors import Refused
from data.home import Home, open_home
from data.runfolder import JUDGE
from tests.learners import CPU, fair_share, ranked, shares, some_replies
from trainer import reward
from trainer.config import RefreshConfig
from trainer.ensemble import (
    TrainingSet,
    bootstrap_turns,
    fit,
    fit_one,
    rank_of,
    reward_records,
    rewards_of,
    warm_start,
)
from trainer.members import members_of, pessimistic
from trainer.team import SOLO, Team

CONFIG = RefreshConfig(
    members=2, rank=4, reward_epochs=2, reward_lr=5e-3, reward_batch=4, reward_steps=1, replay=0.5
)
Heard = list[tuple[str, int, float]]


def some_turns(count: int, first: int = 0) -> list[RankedTurn]:
    """Rankings, a conversation each, by a person who wants the letter z."""
    return [
        replace(
            ranked(["zz a", "qq"] if i % 2 else ["b", "bz"], (1, 2) if i % 2 else (2, 1)),
            ranking_id=f"r{i}",
            conversation_id=f"c{i}",
        )
        for i in range(first, first + count)
    ]


def a_policy(base: Base) -> Policy:
    return Policy(base, device=CPU, dtype=torch.float32)


def a_fit(
    base: Base,
    folder: Path,
    turns: Sequence[RankedTurn],
    config: RefreshConfig = CONFIG,
    *,
    warm: Path | None = None,
    killed_at: tuple[str, int] | None = None,
) -> tuple[Policy, Heard]:
    """An ensemble trained into `folder`, and what was heard of it; a KeyboardInterrupt at `killed_at`."""
    policy, heard = a_policy(base), Heard()

    def tell(name: str, step: int, fraction: float, metrics: dict[str, float]) -> None:
        heard.append((name, step, fraction))
        if (name, step) == killed_at:
            raise KeyboardInterrupt

    fit(policy, turns, config, folder=folder, reference_replies=some_replies(), warm=warm, seed=3, tell=tell)
    return policy, heard


def scores_of(policy: Policy, name: str) -> list[float]:
    return reward.scores_of(policy, name, some_replies())


def test_a_bootstrap_sample_draws_whole_conversations_as_often_as_they_weigh() -> None:
    turns = [replace(t, ranking_id=f"{t.ranking_id}{i}") for t in some_turns(200) for i in range(3)]
    sample = bootstrap_turns(turns, seed=0)
    assert len(sample) % 3 == 0 and sum(t.weight for t in sample) == len(turns)
    assert 0.55 < len(sample) / len(turns) < 0.7  # 1 - 1/e
    of_one = {t.conversation_id: t.weight for t in sample}
    assert all(t.weight == of_one[t.conversation_id] for t in sample) and max(of_one.values()) > 1


def test_a_bootstrap_sample_draws_dialogues_that_begin_alike_together() -> None:
    asked = [{"role": "user", "content": f"Why is the number {i} a prime number?"} for i in range(100)]
    turns = [replace(t, prompt=(asked[i % 100],)) for i, t in enumerate(some_turns(300))]
    sample = bootstrap_turns(turns, seed=0)
    assert len(sample) == 3 * len({t.prompt[0]["content"] for t in sample})


def test_each_seed_draws_its_own_sample_and_the_same_one_again() -> None:
    turns = some_turns(40)
    first, second, again = (bootstrap_turns(turns, seed) for seed in (1, 2, 1))
    assert first == again != second


def test_every_bootstrap_sample_holds_a_decided_pair() -> None:
    ties = [ranked("ab", (1, 1), conversation=f"t{i}") for i in range(6)]
    turns = [*ties, ranked("ab", (1, 2), conversation="c")]
    assert all(reward.can_teach(bootstrap_turns(turns, seed)) for seed in range(100))


def test_members_stand_in_the_order_of_their_numbers_and_the_judge_is_none(tiny_base: Base) -> None:
    policy = a_policy(tiny_base)
    for name in ("judge", "reward-10", "reward-2", "reward-0", "value"):
        policy.add(name, seed=0, rank=1, with_head=True)
    policy.add("policy", seed=0, rank=1)
    assert members_of(policy) == ["reward-0", "reward-2", "reward-10"]


def test_members_differ_and_each_scores_the_reference_0_with_a_spread_of_1(
    tiny_base: Base, tmp_path: Path
) -> None:
    policy, heard = a_fit(tiny_base, tmp_path, some_turns(8))
    assert members_of(policy) == ["reward-0", "reward-1"]
    first, second = scores_of(policy, "reward-0"), scores_of(policy, "reward-1")
    for scores in (first, second):
        assert statistics.fmean(scores) == pytest.approx(0, abs=1e-5)
        assert statistics.stdev(scores) == pytest.approx(1, abs=1e-4)
    assert first != pytest.approx(second, abs=0.05)
    assert [name for name, *_ in heard] == sorted(name for name, *_ in heard)
    fractions = [fraction for *_, fraction in heard]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and 0.5 in fractions


def test_the_first_member_sees_every_ranking_and_the_others_a_sample(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    train = reward.train_reward

    def watched(policy: Policy, name: str, turns: Sequence[RankedTurn], *rest: Any, **named: Any) -> None:
        seen.append([t.ranking_id for t in turns])
        train(policy, name, turns, *rest, **named)

    monkeypatch.setattr(reward, "train_reward", watched)
    turns = some_turns(20)
    a_fit(tiny_base, tmp_path, turns, replace(CONFIG, members=3, reward_epochs=1))
    everything = [t.ranking_id for t in turns]
    assert seen[0] == everything
    assert seen[1] != seen[2] and all(set(ids) < set(everything) for ids in seen[1:])


def test_a_member_that_is_done_survives_a_crash_and_is_not_trained_again(
    tiny_base: Base, tmp_path: Path
) -> None:
    turns = some_turns(8)
    whole, _ = a_fit(tiny_base, tmp_path / "whole", turns)
    with pytest.raises(KeyboardInterrupt):
        a_fit(tiny_base, tmp_path / "killed", turns, killed_at=("reward-1", 1))
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["reward-0"]
    resumed, heard = a_fit(tiny_base, tmp_path / "killed", turns)
    assert {name for name, *_ in heard} == {"reward-1"}
    for name in members_of(whole):
        assert scores_of(resumed, name) == pytest.approx(scores_of(whole, name), abs=1e-5)


def test_a_half_written_member_is_not_taken_for_one(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Policy.save

    def torn(policy: Policy, name: str, directory: Path) -> None:
        save(policy, name, directory)
        (directory / "head.safetensors").unlink()
        raise OSError("killed while it wrote")

    monkeypatch.setattr(Policy, "save", torn)
    with pytest.raises(OSError, match="killed while it wrote"):
        a_fit(tiny_base, tmp_path, some_turns(4))
    monkeypatch.setattr(Policy, "save", save)
    policy, heard = a_fit(tiny_base, tmp_path, some_turns(4))
    assert {name for name, *_ in heard} == {"reward-0", "reward-1"}
    assert scores_of(a_fit(tiny_base, tmp_path, [])[0], "reward-0") == scores_of(policy, "reward-0")


def test_the_judge_is_trained_and_found_again_like_a_member(tiny_base: Base, tmp_path: Path) -> None:
    found = []
    for turns in (some_turns(6), []):
        policy = a_policy(tiny_base)
        fit_one(
            policy,
            JUDGE,
            turns,
            CONFIG,
            folder=tmp_path,
            reference_replies=some_replies(),
            warm=None,
            seed=1,
            tell=lambda *heard: None,
        )
        found.append(scores_of(policy, "judge"))
    (record,) = reward_records(policy, tmp_path)
    head = load_file(tmp_path / JUDGE / "head.safetensors")
    normalisation = ("mean", "std", "usual_length", "length")
    assert [record[key] for key in normalisation] == [float(head[key]) for key in normalisation]
    assert record["usual_length"] > 0
    assert found[0] == found[1] and statistics.fmean(found[0]) == pytest.approx(0, abs=1e-5)


def test_a_warm_ensemble_goes_on_member_by_member_from_last_night_s(tiny_base: Base, tmp_path: Path) -> None:
    before, _ = a_fit(tiny_base, tmp_path / "before", some_turns(16))
    still = replace(CONFIG, reward_lr=1e-9)
    after, _ = a_fit(tiny_base, tmp_path / "after", some_turns(4, first=16), still, warm=tmp_path / "before")
    for name in members_of(before):
        assert scores_of(after, name) == pytest.approx(scores_of(before, name), abs=1e-3)


@pytest.mark.parametrize("turns", [[], [ranked("ab", (1, 1))]], ids=["none", "only ties"])
def test_a_warm_ensemble_to_which_nothing_new_was_said_stays_as_it_was(
    tiny_base: Base, tmp_path: Path, turns: list[RankedTurn]
) -> None:
    before, _ = a_fit(tiny_base, tmp_path / "before", some_turns(8))
    after, heard = a_fit(tiny_base, tmp_path / "after", turns, warm=tmp_path / "before")
    assert heard == []
    for name in members_of(before):
        assert scores_of(after, name) == pytest.approx(scores_of(before, name), abs=1e-4)
    with pytest.raises(Refused, match="only ties"):
        a_fit(tiny_base, tmp_path / "fresh", turns)


def test_a_reply_is_worth_the_members_mean_less_their_spread(tiny_base: Base, tmp_path: Path) -> None:
    policy, _ = a_fit(tiny_base, tmp_path, some_turns(8), replace(CONFIG, members=3, reward_epochs=1))
    columns = list(zip(*(scores_of(policy, name) for name in members_of(policy)), strict=True))
    expected = [statistics.fmean(column) - 0.5 * statistics.pstdev(column) for column in columns]
    assert rewards_of(policy, some_replies(), 0.5) == pytest.approx(expected, abs=1e-5)


def test_where_members_disagree_the_reward_is_less_than_their_mean() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 4.0]])
    rewards, spread = pessimistic(scores, 0.5)
    deviation = statistics.pstdev([2.0, 0.0, 4.0])
    assert rewards.tolist() == pytest.approx([1.0, 2.0 - 0.5 * deviation])
    assert spread.tolist() == pytest.approx([0.0, deviation])
    assert pessimistic(scores[1:2], 0.5)[0].tolist() == [1.0, 0.0]  # one member agrees with itself
    assert pessimistic(scores, 0.0)[0].tolist() == [1.0, 2.0]


def lesson_after(
    before: Sequence[RankedTurn] | Mapping[str, str] | None,
    now: Sequence[RankedTurn],
    config: RefreshConfig = CONFIG,
    *,
    seed: int = 0,
    still: Sequence[RankedTurn] | None = None,
    saved_rank: int | None = None,
) -> TrainingSet:
    """What is learned `now` by models that learned from `before`; `still` is there what is there `now`."""
    learned = before if before is None or isinstance(before, Mapping) else lesson_after(None, before).learned
    there = now if still is None else still
    return warm_start(now, config, seed, learned=learned, still=there, saved_rank=saved_rank)


def test_a_warm_start_learns_the_new_rankings_and_repeats_a_few_old_ones() -> None:
    turns = some_turns(30)
    lesson = lesson_after(turns[:20], turns)
    assert lesson.is_warm and list(lesson.turns[5:]) == turns[20:]
    assert list(lesson.turns[:5]) == [t for t in turns[:20] if t in lesson.turns]  # replay is 0.5
    assert (
        lesson.reason == "Went on from the reward models before, with 10 new rankings and 5 of 20 old ones."
    )
    other = lesson_after(turns[:20], turns, seed=1)
    assert other.turns != lesson.turns


@pytest.mark.parametrize(("replay", "old"), [(0.0, 0), (1.0, 10), (9.0, 20)])
def test_no_more_is_repeated_than_there_is(replay: float, old: int) -> None:
    turns = some_turns(30)
    lesson = lesson_after(turns[:20], turns, replace(CONFIG, replay=replay))
    assert len(lesson.turns) == 10 + old


def test_without_models_to_go_on_from_or_when_asked_everything_is_learned_anew() -> None:
    now = some_turns(8)
    first, asked = lesson_after(None, now), lesson_after(now, now, replace(CONFIG, warm_start=False))
    assert first.reason.endswith("there are no reward models to go on from.")
    for lesson in (first, asked):
        assert (lesson.turns, lesson.is_warm) == (tuple(now), False)


@pytest.mark.parametrize(
    "change",
    [{"places": (1, 1)}, {"replies": ("zz", "other")}, {"prompt": ({"role": "user", "content": "?"},)}, None],
    ids=["revised", "another reply", "another prompt", "deleted"],
)
def test_a_ranking_that_is_gone_or_revised_is_forgotten_by_learning_everything_anew(
    change: dict[str, Any] | None,
) -> None:
    before = some_turns(8)
    now = [*before[1:], *some_turns(4, first=20)]
    if change:
        now.append(replace(before[0], **change))
    lesson = lesson_after(before, now)
    assert (lesson.turns, lesson.is_warm) == (tuple(now), False)
    assert "of the 8 rankings learned from before, 1 is deleted, revised or in the other" in lesson.reason
    assert set(lesson.learned) == {turn.ranking_id for turn in now}


def test_a_ranking_too_old_for_tonight_is_not_gone() -> None:
    turns = some_turns(12)
    lesson = lesson_after(turns[:10], turns[2:], still=turns)
    assert lesson.is_warm and lesson.turns[-2:] == tuple(turns[10:])
    assert set(lesson.learned) == {turn.ranking_id for turn in turns}


@pytest.mark.parametrize("change", [None, {"places": (1, 1)}], ids=["deleted", "revised"])
def test_a_ranking_that_aged_out_nights_ago_is_missed_when_it_changes(change: dict[str, Any] | None) -> None:
    turns = some_turns(14)
    first = lesson_after(turns[:10], turns[2:12], still=turns[:12])
    there = [*turns[1:], *([replace(turns[0], **change)] if change else [])]
    now = turns[4:]
    later = lesson_after(first.learned, now, still=there)
    assert (later.turns, later.is_warm) == (tuple(now), False)
    assert "of the 12 rankings learned from before, 1 is deleted, revised or in the other" in later.reason
    assert set(later.learned) == {turn.ranking_id for turn in now}
    assert lesson_after(first.learned, now, still=turns).is_warm


def test_models_that_go_on_with_another_rank_than_asked_say_so(tiny_base: Base, tmp_path: Path) -> None:
    policy, turns = a_policy(tiny_base), some_turns(8)
    policy.add("reward-0", seed=0, rank=2, with_head=True)
    policy.save("reward-0", tmp_path)
    told = {
        rank: lesson_after(turns, turns, saved_rank=rank).reason for rank in (rank_of(tmp_path), CONFIG.rank)
    }
    assert told[2].endswith("They keep their rank, 2; --no-warm-start trains some of rank 4.")
    assert "rank," not in told[4]


def test_a_ranking_that_has_only_aged_is_the_same_one(tmp_path: Path) -> None:
    before = some_turns(6)
    write_snapshot(before, tmp_path / "snapshot.jsonl")
    now = [replace(t, weight=0.5, reliability=0.5) for t in before] + some_turns(2, first=10)
    lesson = lesson_after(read_snapshot(tmp_path / "snapshot.jsonl").turns, now)
    assert lesson.is_warm and {t.weight for t in lesson.turns} == {0.5, 1.0}  # weighed among themselves


def test_models_from_before_chats_told_their_openings_go_on() -> None:
    before = some_turns(6)
    now = [replace(turn, opening="What the chat began with.") for turn in before]
    assert lesson_after(before, now).is_warm


@pytest.mark.parametrize("is_warm", [True, False])
def test_nobody_has_more_of_a_lesson_than_of_a_night(is_warm: bool) -> None:
    turns = [replace(t, person_id=f"p{i % 20}") for i, t in enumerate(some_turns(100))]
    turns += [replace(t, person_id="loud") for t in some_turns(10, first=100)]
    config = replace(CONFIG, warm_start=is_warm, replay=1.0)
    lesson = lesson_after(turns[:100], turns if is_warm else turns[80:], config)
    assert lesson.is_warm == is_warm and max(shares(lesson.turns).values()) <= fair_share(lesson.turns) + 1e-9


def train_in_a_team(directory: str, home: Home, rank: int, size: int) -> dict[str, Any]:
    """What one process hears of the training, and how its models score afterwards."""
    torch.set_num_threads(1)
    if size > 1:
        meeting = f"file://{home.root / 'meeting'}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    turns = [*some_turns(5), ranked(["m", "mmm"], (1, 1), "all_bad"), ranked("zabc", (1, 2, 2, 3))]
    policy, heard = a_policy(load_base(directory, home, print)), Heard()
    figures: list[dict[str, float]] = []

    def tell(name: str, step: int, fraction: float, metrics: dict[str, float]) -> None:
        heard.append((name, step, fraction))
        figures.append(metrics)

    team = Team(rank, size) if size > 1 else SOLO
    config = replace(CONFIG, reward_batch=3)  # a last step of one ranking leaves a process without any
    folder = home.root / "models"
    for _ in range(2):  # the second time both find the first's models
        policy = a_policy(policy.base)
        fit(
            policy,
            turns,
            config,
            folder=folder,
            reference_replies=some_replies(),
            warm=None,
            seed=0,
            tell=tell,
            team=team,
        )
    if size > 1:
        torch.distributed.destroy_process_group()
    scores = [scores_of(policy, name) for name in members_of(policy)]
    return {"heard": heard, "figures": figures, "scores": scores}


def test_two_processes_take_the_steps_of_one_and_end_with_the_same_models(
    tiny_directory: Path, home: Home
) -> None:
    directory = str(tiny_directory)
    with get_context("spawn").Pool(2) as pool:
        members = pool.starmap(train_in_a_team, [(directory, home, rank, 2) for rank in (0, 1)], 1)
    alone = train_in_a_team(directory, open_home(home.root / "alone"), 0, 1)
    for member in members:
        assert member["heard"] == alone["heard"]
        for step, expected in zip(member["figures"], alone["figures"], strict=True):
            assert step == pytest.approx(expected, abs=1e-4)
        for scores, expected in zip(member["scores"], alone["scores"], strict=True):
            assert scores == pytest.approx(expected, abs=1e-4)
