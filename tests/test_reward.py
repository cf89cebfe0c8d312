"""trainer/reward.py: rankings become a loss, and the loss a score for any reply."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from chatbot.basemodel import Base
from chatbot.batch import TokenBatch
from chatbot.policy import Policy
from data import conversations
from data.comparisons import RankedTurn
from data.database import Database
from data.errors import Refused
from data.snapshots import stream_turns, taught_turns
from tests.learners import CPU, END, a_learner, ranked, some_replies
from tests.stories import rank, somebody
from trainer.config import RefreshConfig
from trainer.forward import TOKENS_PER_PASS
from trainer.reward import (
    add_reward_model,
    all_bad_loss,
    length_preference,
    normalise,
    passes,
    ranking_loss,
    scores_of,
    tokenise,
    train_reward,
)
from trainer.team import Team

CONFIG = RefreshConfig(rank=4, reward_epochs=4, reward_lr=5e-3, reward_batch=4, reward_steps=1)


def gradient(scores: Sequence[float], turn: RankedTurn) -> list[float]:
    """Of the ranking loss, by score."""
    leaf = torch.tensor(scores, requires_grad=True)
    ranking_loss(leaf, turn.pairs()).backward()
    assert leaf.grad is not None
    return leaf.grad.tolist()


def test_with_two_replies_the_loss_is_the_pairwise_loss() -> None:
    loss = ranking_loss(torch.tensor([0.3, 1.1]), ranked("ab", (2, 1)).pairs())
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-(1.1 - 0.3)))))


def test_the_loss_of_k_replies_is_the_mean_over_all_pairs() -> None:
    scores = [0.2, -1.0, 0.7, 0.1]
    loss = ranking_loss(torch.tensor(scores), ranked("abcd", (2, 1, 3, 2)).pairs())
    better = [(1, 0), (1, 2), (1, 3), (0, 2), (3, 2)]
    terms = [math.log1p(math.exp(scores[j] - scores[i])) for i, j in better]
    d = scores[0] - scores[3]
    terms.append(0.5 * math.log1p(math.exp(-d)) + 0.5 * math.log1p(math.exp(d)))
    assert float(loss) == pytest.approx(sum(terms) / 6)


def test_a_tie_pulls_equal_scores_nowhere_and_unequal_ones_together() -> None:
    tie = ranked("ab", (1, 1))
    assert gradient([0.4, 0.4], tie) == [0, 0]
    first, second = gradient([1.0, 0.0], tie)
    assert first > 0 > second


def test_a_step_down_the_loss_raises_the_winner() -> None:
    first, second, third = gradient([0.0, 0.0, 0.0], ranked("abc", (2, 1, 3)))
    assert second < 0 < third
    assert first == pytest.approx(0)


def test_best_sets_the_winner_against_the_others_and_says_nothing_among_them() -> None:
    turn = ranked("abc", (2, 1, 2), "best")
    assert turn.pairs() == [(1, 0, 1.0), (1, 2, 1.0)]
    first, second, third = gradient([5.0, 0.0, -5.0], turn)
    assert second < 0 and first > third > 0


def test_all_bad_pushes_every_reply_down_and_the_best_of_them_most() -> None:
    scores = torch.tensor([0.0, 2.0], requires_grad=True)
    all_bad_loss(scores, level=0.5).backward()
    assert scores.grad is not None and (scores.grad > 0).all()
    assert scores.grad[1] > scores.grad[0]


def test_a_reply_ends_with_its_end_of_turn_unless_it_was_cut(tiny_base: Base) -> None:
    turn = replace(ranked(["one", "two"], (1, 2)), cut=(False, True))
    whole, cut = tokenise([turn], tiny_base.format)[0].replies
    assert (whole.reply[-1] == END, cut.reply[-1] == END) == (True, False)
    assert (len(whole.reply), len(cut.reply)) == (4, 3)
    assert whole.prompt == cut.prompt == tiny_base.format.encode(turn.prompt)


def test_of_a_message_too_long_to_read_the_end_stays_and_of_such_a_reply_the_beginning(
    tiny_base: Base,
) -> None:
    turn = ranked(["y" * 3000, "no"], (1, 2), question="x" * 3000 + "?")
    long, short = tokenise([turn], tiny_base.format)[0].replies
    assert long.prompt == short.prompt == tiny_base.format.encode(turn.prompt)[-1024:]
    assert long.reply == tiny_base.format.encode_text("y" * 1024) and not long.finished
    assert short.reply == tiny_base.format.encode_reply("no")


def test_prompt_and_reply_together_fit_a_base_with_a_short_context(tiny_base: Base) -> None:
    turn = ranked(["y" * 3000, "no"], (1, 2), question="x" * 3000 + "?")
    long, short = tokenise([turn], tiny_base.format, 301)[0].replies
    assert long.prompt == short.prompt == tiny_base.format.encode(turn.prompt)[-150:]
    assert (len(long.reply), short.reply) == (150, tiny_base.format.encode_reply("no"))


def test_the_end_of_a_long_conversation_is_all_that_is_read_of_it(db: Database, tiny_base: Base) -> None:
    ada, parent = somebody(db), None
    chat = conversations.create(db, ada.id)
    for number in range(100):
        turn = conversations.add_user_message(db, chat.id, parent, f"{number} " + "why " * 100, ada.id)
        replies = [conversations.add_written_reply(db, turn.id, text, None) for text in ("one", "two")]
        parent = replies[0].id
    rank(db, ada, replies, [1, 2])
    [kept], [whole] = taught_turns(db), list(stream_turns(db))
    assert 100 < len(kept.prompt) < len(whole.prompt) == 199
    [short], [long] = (tokenise([turn], tiny_base.format) for turn in (kept, whole))
    assert short.replies == long.replies


def test_a_long_history_loses_its_oldest_turns_and_keeps_the_system_message(tiny_base: Base) -> None:
    messages = [{"role": "system", "content": "be kind"}]
    for i in range(9):
        messages += [{"role": role, "content": f"{i}" * 100} for role in ("user", "assistant")]
    messages.append({"role": "user", "content": "and now?"})
    turn = replace(ranked(["a", "b"], (1, 2)), prompt=tuple(messages))
    text = tiny_base.format.decode(tokenise([turn], tiny_base.format)[0].replies[0].ids)
    assert "be kind" in text and "and now?" in text and "8888" in text and "0000" not in text


def likes_z(count: int, first: int = 0) -> list[RankedTurn]:
    """Rankings by a person who wants the letter z, wherever it stands."""
    pairs = [("zz z", "qq"), ("a", "az"), ("qz", "q"), ("bb", "bz")]
    return [
        ranked(pairs[i % 4], (1, 2) if i % 4 in (0, 2) else (2, 1), conversation=f"c{i}", question=f"q{i}")
        for i in range(first, first + count)
    ]


def a_trained(base: Base, turns: Sequence[RankedTurn], config: RefreshConfig = CONFIG) -> Policy:
    policy = Policy(base, device=CPU, dtype=torch.float32)
    train_reward(policy, "reward", turns, config, seed=0, tell=lambda step, fraction, metrics: None)
    return policy


def accuracy(policy: Policy, turns: Sequence[RankedTurn]) -> float:
    """The share of rankings of two whose winner scores more."""
    hits = []
    for t in tokenise(turns, policy.base.format):
        scores = scores_of(policy, "reward", t.replies)
        hits += [scores[i] > scores[j] for i, j, _ in t.pairs]
    return sum(hits) / len(hits)


def test_a_reward_model_learns_what_the_rankings_prefer(tiny_base: Base) -> None:
    policy = a_trained(tiny_base, likes_z(24))
    assert accuracy(policy, likes_z(16, first=100)) > 0.9


def test_a_taste_for_brevity_reaches_replies_of_any_words(tiny_base: Base) -> None:
    """The number of tokens is what tells: no letter stands more often in what wins."""

    def rankings(letters: str) -> list[RankedTurn]:
        pairs = [(letter * short, letter * long) for letter in letters for short, long in ((3, 9), (9, 27))]
        return [ranked(pair, (1, 2), conversation=f"c{i}") for i, pair in enumerate(pairs)]

    policy = a_trained(tiny_base, rankings("abcdefghij"))
    assert accuracy(policy, rankings("QRSTUVWXYZ")) == 1.0
    assert policy.heads["reward"].length.item() < -0.2  # at the rate of the other weights it would be -0.05


def test_length_as_such_is_never_paid_for(tiny_base: Base) -> None:
    longer = [ranked(("a" * 27, "b" * 3), (1, 2), conversation=f"c{i}") for i in range(8)]
    policy = a_trained(tiny_base, longer)
    assert accuracy(policy, longer) == 1.0
    assert policy.heads["reward"].length.item() == 0.0


def test_training_tells_every_step_and_moves_nothing_else(tiny_base: Base) -> None:
    policy = Policy(tiny_base, device=CPU, dtype=torch.float32)
    policy.add("judge", seed=3, with_head=True)
    before = policy.keep("judge")
    heard: list[tuple[int, float]] = []

    def tell(step: int, fraction: float, metrics: dict[str, float]) -> None:
        heard.append((step, fraction))

    train_reward(policy, "reward", likes_z(6), CONFIG, seed=0, tell=tell)
    assert heard == [(i, i / 8) for i in range(1, 9)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in policy.state("judge").items())


@pytest.mark.parametrize("rankings", [1, 2], ids=["a ranking a pass", "two a pass"])
def test_a_step_scores_each_reply_once_and_keeps_a_ranking_together(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, rankings: int
) -> None:
    passes_of: list[int] = []
    hidden = Policy.hidden

    def counted(policy: Policy, batch: TokenBatch) -> torch.Tensor:
        passes_of.append(len(batch.ids))
        return hidden(policy, batch)

    monkeypatch.setattr(Policy, "hidden", counted)
    turns = [ranked("abcd", (1, 2, 3, 4), conversation=f"c{i}") for i in range(4)]
    (first, *_) = tokenise(turns, tiny_base.format)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", rankings * first.tokens)
    a_trained(tiny_base, turns, replace(CONFIG, reward_epochs=1, reward_batch=2))
    assert passes_of == [4 * rankings] * (4 // rankings)


@dataclass(frozen=True)
class Listener(Team):
    """One process that keeps the gradients of every step."""

    heard: list[list[Tensor]] = field(default_factory=list)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.heard.append([p.grad.clone() for p in parameters if p.grad is not None])


def one_step(
    base: Base, turns: Sequence[RankedTurn], start: Path | None = None
) -> tuple[list[Tensor], dict[str, float]]:
    """The gradients of a step on all `turns` together, and what is told of it."""
    policy, listener = Policy(base, device=CPU, dtype=torch.float32), Listener()
    told: list[dict[str, float]] = []
    config = replace(CONFIG, reward_epochs=1, reward_batch=len(turns))
    train_reward(
        policy, "reward", turns, config,
        seed=0, tell=lambda step, fraction, metrics: told.append(metrics), start=start, team=listener,
    )  # fmt: skip
    return listener.heard[0], told[0]


class Loud(Team):
    """One process whose gradients are a thousand times what they should be."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= 1000


def test_no_step_is_longer_than_a_gradient_norm_of_1_allows(tiny_base: Base) -> None:
    norms: list[float] = []

    def look(optimiser: torch.optim.Optimizer, *_: object) -> None:
        gradients = [
            p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    told: list[float] = []
    policy, turns = Policy(tiny_base, device=CPU, dtype=torch.float32), [ranked(["a", "b"], (1, 2))] * 2
    hook = register_optimizer_step_pre_hook(look)
    try:
        train_reward(
            policy, "reward", turns, replace(CONFIG, reward_batch=1),
            seed=0, tell=lambda step, fraction, metrics: told.append(metrics["grad_norm"]), team=Loud(),
        )  # fmt: skip
    finally:
        hook.remove()
    assert min(told) > 1 and norms == pytest.approx([1.0] * len(told), abs=1e-3)


LONG = [
    ranked(["n" * 60, "o", "p" * 25, "q" * 90, "rr"], (2, 1, 3, 4, 2), conversation="long"),
    ranked(["m" * 50, "m", "mm" * 20], (1, 1, 1), "all_bad", conversation="bad"),
    ranked(["a", "b"], (1, 2), conversation="short"),
]


@pytest.mark.parametrize("room", [150, 1], ids=["a few replies a pass", "a reply a pass"])
def test_a_ranking_too_long_for_one_pass_teaches_what_it_would_in_one(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    a_learner(tiny_base).save("reward-0", tmp_path)
    whole, told = one_step(tiny_base, LONG, tmp_path)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", room)
    cut, told_of_cut = one_step(tiny_base, LONG, tmp_path)
    assert told_of_cut == pytest.approx(told, rel=1e-4, abs=1e-5)
    for one, other in zip(whole, cut, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_no_pass_is_larger_than_there_is_room_for_or_than_one_reply(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [*LONG, ranked("abcdefghi", range(1, 10)), ranked(["x" * 200, "y"], (1, 2))]
    longest = max(t.longest for t in tokenise(turns, tiny_base.format))
    sizes: list[int] = []
    hidden = Policy.hidden

    def measured(policy: Policy, batch: TokenBatch) -> Tensor:
        rows = zip(batch.ids, batch.mask, strict=True)
        sizes.append(policy.tokens_read([ids[mask].tolist() for ids, mask in rows]))
        return hidden(policy, batch)

    monkeypatch.setattr(Policy, "hidden", measured)
    for room in (60, 300, 500):
        monkeypatch.setitem(TOKENS_PER_PASS, "cpu", room)
        one_step(tiny_base, turns)
        assert max(sizes) <= max(room, longest)
        sizes.clear()


def test_of_a_pass_s_room_replies_take_what_they_do_not_have_in_common(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = ranked([letter * 20 for letter in "abcdefghi"], range(1, 10))
    (tokenised,) = tokenise([turn], tiny_base.format)
    room = Policy(tiny_base, device=CPU, dtype=torch.float32).tokens_read([r.ids for r in tokenised.replies])
    assert room < 0.7 * tokenised.tokens
    passes: list[int] = []
    hidden = Policy.hidden

    def counted(policy: Policy, batch: TokenBatch) -> Tensor:
        passes.append(len(batch.ids))
        return hidden(policy, batch)

    monkeypatch.setattr(Policy, "hidden", counted)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", room)
    one_step(tiny_base, [turn])
    assert passes == [9]
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", room - 1)
    one_step(tiny_base, [turn])
    assert max(passes[1:]) < 9


def test_of_a_long_ranking_one_pass_at_a_time_is_in_memory(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1)
    inputs: list[StorageWeakRef] = []
    """Of LoRA's layers, which the backward pass needs."""
    kept: list[int] = []
    hidden = Policy.hidden

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear) and module.weight.requires_grad:
            inputs.append(StorageWeakRef(args[0].untyped_storage()))

    def read(policy: Policy, batch: TokenBatch) -> Tensor:
        kept.append(sum(not storage.expired() for storage in inputs))
        return hidden(policy, batch)

    monkeypatch.setattr(Policy, "hidden", read)
    hook = register_module_forward_pre_hook(watch)
    try:
        one_step(tiny_base, LONG[:1])
    finally:
        hook.remove()
    assert inputs and kept == [0] * 10  # each of five replies is read twice


@pytest.mark.parametrize("batch", [1, 2], ids=["a step each", "in one step"])
def test_a_heavier_ranking_pulls_harder(tiny_base: Base, batch: int) -> None:
    one, other = (ranked(["aaa", "bbb"], places, conversation="c") for places in ((1, 2), (2, 1)))
    for weights, winner in (((1.0, 0.1), 0), ((0.1, 1.0), 1)):
        turns = [replace(t, weight=w) for t, w in zip((one, other), weights, strict=True)]
        policy = a_trained(tiny_base, turns, replace(CONFIG, reward_epochs=8, reward_batch=batch))
        scores = scores_of(policy, "reward", tokenise([one], tiny_base.format)[0].replies)
        assert scores[winner] == max(scores)


def test_all_bad_replies_come_to_score_less_than_ranked_ones(tiny_base: Base) -> None:
    bad = [ranked(["mm", "m"], (1, 1), "all_bad", conversation=f"b{i}", question=f"q{i}") for i in range(12)]
    even = [
        ranked(["nn", "n"], (1 + i % 2, 2 - i % 2), conversation=f"e{i}", question=f"q{i}") for i in range(12)
    ]
    replies = [reply for t in tokenise([bad[0], even[0]], tiny_base.format) for reply in t.replies]
    gaps = []
    for turns in (even, [*bad, *even]):
        policy = a_trained(tiny_base, turns, replace(CONFIG, reward_epochs=8))
        scores = scores_of(policy, "reward", replies)
        gaps.append(sum(scores[:2]) / 2 - sum(scores[2:]) / 2)
    assert gaps[1] < gaps[0] - 0.5 and gaps[1] < 0


def a_high_one(base: Base, folder: Path, *, mean: float) -> Path:
    """A saved reward model that gives every reply a raw score of 5; `mean` is what it was normalised by."""
    policy = Policy(base, device=CPU, dtype=torch.float32)
    policy.add("reward", seed=0, rank=4, with_head=True)
    head = policy.heads["reward"]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(5.0)
        head.mean.fill_(mean)
        head.std.fill_(2.0)
    policy.save("reward", folder)
    return folder


def losses(base: Base, turns: Sequence[RankedTurn], start: Path, batch: int) -> list[float]:
    """Of each step, by a model that hardly moves."""
    heard: list[float] = []
    config = replace(CONFIG, reward_epochs=1, reward_batch=batch, reward_lr=1e-9)
    policy = Policy(base, device=CPU, dtype=torch.float32)
    train_reward(
        policy,
        "reward",
        turns,
        config,
        seed=0,
        tell=lambda step, fraction, metrics: heard.append(metrics["loss"]),
        start=start,
    )
    return heard


@pytest.mark.parametrize("bad", ["m", "m" * 200], ids=["before", "after"])
def test_all_bad_is_held_against_the_ranked_replies_of_its_step_wherever_they_come(
    tiny_base: Base, tmp_path: Path, bad: str
) -> None:
    turns = [
        ranked([bad, bad], (1, 1), "all_bad"),
        ranked(["n" * 100, "o"], (1, 2)),
    ]
    start = a_high_one(tiny_base, tmp_path, mean=0.0)
    expected = (math.log(2) + 0.1 * math.log(2)) / 2  # softplus(5 - 5), not softplus(5 - 0)
    assert losses(tiny_base, turns, start, batch=2) == [pytest.approx(expected, abs=1e-4)]


@pytest.mark.parametrize("bad", [["m", "mm"], ["m"]], ids=["two", "a thumb down"])
def test_all_bad_by_itself_is_held_against_what_was_ranked_before(
    tiny_base: Base, tmp_path: Path, bad: list[str]
) -> None:
    turns = [ranked(bad, (1,) * len(bad), "all_bad")] * 5 + [ranked(["n", "o"], (1, 2))]
    start = a_high_one(tiny_base, tmp_path, mean=5.0)
    steps = losses(tiny_base, turns, start, batch=1)
    assert sorted(steps) == [pytest.approx(0.1 * math.log(2), abs=1e-4)] * 5 + [
        pytest.approx(math.log(2), abs=1e-4)
    ]


def test_a_model_that_goes_on_begins_with_the_raw_scores_it_ended_with(
    tiny_base: Base, tmp_path: Path
) -> None:
    policy, replies = a_trained(tiny_base, likes_z(8)), some_replies()
    raw = scores_of(policy, "reward", replies)
    normalise(policy, "reward", some_replies())
    normalised = scores_of(policy, "reward", replies)
    policy.save("reward", tmp_path)
    later = Policy(tiny_base, device=CPU, dtype=torch.float32)
    add_reward_model(later, "reward", CONFIG, seed=1, start=tmp_path)
    assert scores_of(later, "reward", replies) == pytest.approx(raw, abs=1e-5)
    assert float(later.heads["reward"].usual_length) == 0
    normalise(later, "reward", some_replies())
    assert scores_of(later, "reward", replies) == pytest.approx(normalised, abs=1e-4)


def test_a_model_that_goes_on_needs_fewer_rankings_than_a_fresh_one(tiny_base: Base, tmp_path: Path) -> None:
    a_trained(tiny_base, likes_z(24)).save("reward", tmp_path)
    few, quiet = replace(CONFIG, reward_epochs=1, reward_lr=1e-3), likes_z(4, first=40)
    found = []
    for start in (None, tmp_path):
        policy = Policy(tiny_base, device=CPU, dtype=torch.float32)
        train_reward(policy, "reward", quiet, few, seed=0, tell=lambda *heard: None, start=start)
        found.append(accuracy(policy, likes_z(16, first=100)))
    assert found[1] > 0.9 > found[0]


def test_rankings_without_a_preference_are_refused(tiny_base: Base) -> None:
    ties = [ranked(["a", "b"], (1, 1))]
    with pytest.raises(Refused, match="The rankings hold no preference, only ties - rank some"):
        a_trained(tiny_base, ties)


def test_few_rankings_are_gone_over_more_often_but_not_for_ever() -> None:
    config = RefreshConfig(reward_epochs=2, reward_batch=2, reward_steps=60)
    assert [passes(n, config) for n in (2, 30, 40, 60, 1000)] == [4, 4, 3, 2, 2]


def test_after_normalisation_the_reference_scores_0_with_a_spread_of_1(tiny_base: Base) -> None:
    policy, replies = a_learner(tiny_base), some_replies()
    raw = torch.tensor(scores_of(policy, "judge", replies))
    for _ in range(2):  # normalising again changes nothing
        normalise(policy, "judge", replies)
        scores = torch.tensor(scores_of(policy, "judge", replies))
        assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
        assert float(scores.std()) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std(), atol=1e-4, rtol=0)


def test_one_reply_is_no_reference(tiny_base: Base) -> None:
    with pytest.raises(Refused, match="give at least two prompts"):
        normalise(a_learner(tiny_base), "judge", some_replies()[:1])


def test_scores_come_in_order_however_they_are_batched(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, replies = a_learner(tiny_base), some_replies()
    alone = [scores_of(policy, "judge", [one])[0] for one in replies]
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 20)
    assert scores_of(policy, "judge", replies) == pytest.approx(alone, abs=1e-5)
    assert F.mse_loss(torch.tensor(alone), torch.tensor(alone[::-1])) > 0


def test_the_winners_direction_is_the_rankings_own_taste_for_length() -> None:
    assert length_preference([ranked(["a", "bbb", "cc"], (1, 3, 2))]) == -1
    assert length_preference([ranked(["a", "bbb", "cc"], (3, 1, 2))]) == 1
    assert length_preference([ranked(["a", "bb"], (1, 2)), ranked(["a", "bb"], (2, 1))]) == 0
    assert length_preference([ranked(["aa", "bb"], (1, 2)), ranked(["a", "bb"], (1, 1))]) == 0


def test_a_long_ranking_has_one_voice_on_length_and_a_light_one_less() -> None:
    short_wins = [ranked(["a", "bb"], (1, 2)) for _ in range(9)]
    long = ranked(["a" * n for n in range(1, 33)], range(32, 0, -1))  # 496 pairs, in all of them the longer
    assert length_preference([*short_wins, long]) == pytest.approx(-0.8)
    assert length_preference([*short_wins, replace(long, weight=0.1)]) == pytest.approx(-8.9 / 9.1)
