"""trainer/examine.py: every figure of the report, against cases small enough to work out by hand."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from chatbot.basemodel import Base
from chatbot.policy import Policy
from data.comparisons import RankedTurn
from data.database import Database
from data.exchange import import_rows
from data.prompts import Paraphrase
from data.snapshots import taught_turns
from tests.learners import CPU, ranked, shake
from trainer.examine import (
    calibration_bins,
    ensemble_scores,
    examine,
    expected_calibration_error,
    flip_rate,
)
from trainer.forward import Reply, reply_scores
from trainer.reward import tokenise


def an_ensemble(base: Base, members: int = 2) -> tuple[Policy, list[str]]:
    """Untrained reward models that disagree with one another."""
    policy = Policy(base, device=CPU, dtype=torch.float32)
    names = [f"reward-{i}" for i in range(members)]
    for seed, name in enumerate(names):
        policy.add(name, seed=seed, rank=4, with_head=True)
        shake(policy, name, 0.1, seed)
    return policy, names


def judged_by(policy: Policy, names: Sequence[str], turns: Sequence[RankedTurn]) -> list[RankedTurn]:
    """The turns ranked as these models would."""
    found = []
    for t in tokenise(turns, policy.base.format):
        scores = ensemble_scores(policy, names, t.replies).mean
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        found.append(replace(t.turn, places=tuple(order.index(i) + 1 for i in range(len(scores)))))
    return found


def some_turns(count: int, replies: int = 3) -> list[RankedTurn]:
    """Rankings of texts that differ, in conversations of their own."""
    pick = random.Random(0)
    texts = [
        ["".join(pick.choices("abcdefgh ", k=pick.randint(2, 12))) for _ in range(replies)]
        for _ in range(count)
    ]
    places = range(1, replies + 1)
    return [ranked(text, places, conversation=f"c{i}", question=f"q{i}") for i, text in enumerate(texts)]


def turned_round(turn: RankedTurn) -> RankedTurn:
    return replace(turn, places=tuple(max(turn.places) + 1 - place for place in turn.places))


def test_a_model_is_right_about_its_own_rankings_and_wrong_about_the_reverse(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    turns = judged_by(policy, names, some_turns(12))
    right = examine(policy, names, turns, seed=0)
    wrong = examine(policy, names, [turned_round(turn) for turn in turns], seed=0)
    assert (right["accuracy"], right["kendall_tau"], right["accuracy_interval"][1]) == (1, 1, 1)
    assert (wrong["accuracy"], wrong["kendall_tau"]) == (0, -1)
    assert (right["pairs"], right["rankings"], right["ties"]) == (36, 12, 0)


def test_the_interval_and_the_groups_go_by_who_said_it_and_where(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    agreed = judged_by(policy, names, some_turns(4))
    mixed = [
        *(replace(turn, person_id="ann") for turn in agreed),
        *(replace(turned_round(turn), person_id="bob", source="simulated") for turn in agreed[:2]),
    ]
    report = examine(policy, names, mixed, seed=0)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["accuracy_by_person"]["ann"] == {"accuracy": 1, "pairs": 12}
    assert report["accuracy_by_person"]["bob"] == {"accuracy": 0, "pairs": 6}
    assert report["accuracy_by_source"]["simulated"] == {"accuracy": 0, "pairs": 6}
    low, high = report["accuracy_interval"]
    assert low < 2 / 3 < high


def test_an_import_is_measured_as_a_source_and_not_as_a_person(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    agreed = judged_by(policy, names, some_turns(4))
    file = [replace(turn, person_id="file", source="imported") for turn in agreed[:2]]
    report = examine(policy, names, [*file, *agreed[2:]], seed=0)
    assert set(report["accuracy_by_person"]) == {"p"}
    assert report["accuracy_by_source"]["imported"] == {"accuracy": 1, "pairs": 6}
    assert report["pairs"] == 12


def test_two_baselines_are_measured_on_the_same_pairs(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base, 1)
    turns = [ranked(["long one", "x", "mid"], (1, 2, 3)), ranked(["b", "longer"], (2, 1), conversation="d")]
    report = examine(policy, names, turns, seed=0)
    assert report["always_longest"] == pytest.approx(3 / 4)  # all but "x" above "mid"
    assert report["always_first_shown"] == pytest.approx(3 / 4)  # all but the last


@pytest.mark.parametrize("fmt", ["preference", "tiers"])
def test_an_import_was_shown_to_nobody_however_its_rows_are_sorted(
    db: Database, tiny_base: Base, fmt: str
) -> None:
    asked = [{"prompt": f"Why is the number {i} one that people like?"} for i in range(6)]
    rows = {
        "preference": [{"chosen": f"good {i}", "rejected": f"bad {i}, at length"} for i in range(6)],
        "tiers": [{"completions": ["good", "bad"], "tiers": [[0], [1]], "kind": "full"} for _ in range(6)],
    }[fmt]
    assert import_rows(db, [a | row for a, row in zip(asked, rows, strict=True)], fmt).added == 6
    policy, names = an_ensemble(tiny_base, 1)
    report = examine(policy, names, taught_turns(db), seed=0)
    assert (report["pairs"], report["always_first_shown"]) == (6, 0.5)


def test_beside_the_accuracy_stands_how_often_two_people_say_the_same(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base, 1)
    ada = ranked(["long one", "x", "mid"], (1, 2, 3))
    bob = replace(ada, ranking_id="r-bob", person_id="bob", places=(1, 3, 2))
    alone = ranked(["a", "b"], (1, 2), conversation="d")
    assert examine(policy, names, [ada, bob, alone], seed=0)["people_agreement"] == pytest.approx(2 / 3)
    assert examine(policy, names, [ada, bob, alone], seed=0, most=2)["people_agreement"] is None


def test_without_a_decided_pair_it_knows_nothing_and_says_so(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base, 1)
    for turns in ([], [ranked(["a", "b"], (1, 1))]):
        report = examine(policy, names, turns, seed=0)
        assert (report["pairs"], report["accuracy"], report["accuracy_interval"]) == (0, 0.5, [0, 1])
        assert report["kendall_tau"] is report["ece"] is report["paraphrase_flip_rate"] is None
        assert report["reliability"] == []


def test_ties_and_best_enter_as_they_were_said(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base, 1)
    tied = ranked(["a", "bb", "c"], (1, 1, 2))
    best = ranked(["a", "bb", "c"], (1, 2, 2), "best", conversation="d")
    bad = ranked(["a", "bb"], (1, 1), "all_bad", conversation="e")
    report = examine(policy, names, [tied, best, bad], seed=0)
    assert (report["pairs"], report["rankings"], report["ties"]) == (4, 2, pytest.approx(1 / 5))


def test_tau_is_averaged_over_rankings_of_more_than_two(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    three, two = judged_by(policy, names, some_turns(4)), judged_by(policy, names, some_turns(4, replies=2))
    turns = [three[0], three[1], three[2], turned_round(three[3]), *map(turned_round, two)]
    assert examine(policy, names, turns, seed=0)["kendall_tau"] == pytest.approx(1 / 2)
    assert examine(policy, names, two, seed=0)["kendall_tau"] is None


def test_a_model_as_sure_as_it_is_right_is_calibrated() -> None:
    """d = ln 4 predicts 80 %: right in four of five."""
    d = math.log(4)
    (entry,) = bins = calibration_bins([d, d, d, d, -d])
    assert (entry["confidence"], entry["accuracy"], entry["pairs"]) == (pytest.approx(0.8), 0.8, 5)
    assert expected_calibration_error(bins) == pytest.approx(0)


def test_the_calibration_error_is_the_mean_gap_by_pairs() -> None:
    sure, unsure = 5.0, 0.05  # sigmoid: 0.9933 and 0.5125
    bins = calibration_bins([sure, -sure, unsure, unsure, 0.0])
    assert [entry["pairs"] for entry in bins] == [3, 2]
    assert bins[0]["accuracy"] == pytest.approx(2.5 / 3)  # equal scores are half a hit
    gaps = 3 * (2.5 / 3 - (2 * 0.512497 + 0.5) / 3) + 2 * (0.993307 - 0.5)
    assert expected_calibration_error(bins) == pytest.approx(gaps / 5, abs=1e-5)


def test_bins_are_ten_equal_steps_from_one_half_to_certainty() -> None:
    edges = [0.5 + i / 20 for i in range(10)]
    margins = [math.log(p / (1 - p)) + 1e-6 for p in edges]
    assert [entry["pairs"] for entry in calibration_bins([*margins, 800.0])] == [1] * 9 + [2]


def test_calibration_is_of_the_raw_scores_whatever_they_were_divided_by(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    before = examine(policy, names, some_turns(8), seed=0)
    for name, spread in zip(names, (7.0, 0.2), strict=True):
        policy.heads[name].mean.fill_(3.0)
        policy.heads[name].std.fill_(spread)
    after = examine(policy, names, some_turns(8), seed=0)
    assert after["ece"] == pytest.approx(before["ece"], abs=1e-4)
    assert after["disagreement"] != pytest.approx(before["disagreement"], rel=0.1)


def test_an_ensemble_is_examined_by_its_mean_and_its_spread_is_its_disagreement(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base, 3)
    replies = [reply for t in tokenise(some_turns(4), tiny_base.format) for reply in t.replies]
    mean, _, spread = ensemble_scores(policy, names, replies)
    with torch.no_grad():
        each = torch.stack([reply_scores(policy, name, replies) for name in names])
    assert mean == pytest.approx(each.mean(0).tolist(), abs=1e-5)
    assert spread == pytest.approx(each.std(0, correction=0).tolist(), abs=1e-5)
    assert examine(policy, names, some_turns(4), seed=0)["disagreement"] == pytest.approx(sum(spread) / 12)
    assert examine(policy, names[:1], some_turns(4), seed=0)["disagreement"] == 0


def test_the_correlation_with_length_tells_a_model_that_counts(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base, 1)
    turns = some_turns(12)
    found = examine(policy, names, turns, seed=0)["score_length_correlation"]
    replies = [reply for t in tokenise(turns, tiny_base.format) for reply in t.replies]
    scores = ensemble_scores(policy, names, replies).mean
    sizes = [len(reply) for turn in turns for reply in turn.replies]
    mx, my = sum(scores) / len(scores), sum(sizes) / len(sizes)
    covariance = sum((x - mx) * (y - my) for x, y in zip(scores, sizes, strict=True))
    spread = math.sqrt(sum((x - mx) ** 2 for x in scores) * sum((y - my) ** 2 for y in sizes))
    assert found == pytest.approx(covariance / spread, abs=1e-4)


def test_a_flip_is_two_replies_that_change_places_when_the_prompt_is_reworded(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    chat = tiny_base.format

    def order(prompt: str, replies: tuple[str, str]) -> bool:
        asked = chat.encode([{"role": "user", "content": prompt}])
        said = [Reply(asked, chat.encode_reply(reply), True) for reply in replies]
        first, second = ensemble_scores(policy, names, said).mean
        return first > second

    asked = [Paraphrase(f"ask {i}", f"{i}? say", ("aa", "ba")) for i in range(20)]
    flips = [order(p.prompt, p.replies) != order(p.reworded, p.replies) for p in asked]
    assert 0 < sum(flips) < 20
    assert flip_rate(policy, names, asked) == pytest.approx(sum(flips) / 20)
    same = [Paraphrase(p.prompt, p.prompt, p.replies) for p in asked]
    assert flip_rate(policy, names, same) == 0
    report = examine(policy, names, some_turns(2), seed=0, paraphrases=asked)
    assert (report["paraphrase_flip_rate"], report["paraphrases"]) == (sum(flips) / 20, 20)


def test_of_more_rankings_than_asked_the_newest_that_say_something_are_examined(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    turns = judged_by(policy, names, some_turns(12))
    silent = [replace(turn, kind="all_bad") for turn in turns[:3]]
    held_out = [*map(turned_round, turns[:7]), *turns[7:], *silent]
    report = examine(policy, names, held_out, seed=0, most=5)
    assert (report["rankings"], report["held_out"], report["accuracy"]) == (5, 12, 1)
    everything = examine(policy, names, held_out, seed=0)
    assert (everything["rankings"], everything["held_out"]) == (12, 12) and everything["accuracy"] < 1


def test_rankings_that_begin_alike_are_one_group_of_the_interval(tiny_base: Base) -> None:
    policy, names = an_ensemble(tiny_base)
    widths = []
    for begun in ("Why is it so?", "Why is it so, if I may ask?"):  # 40 groups, and then two
        asked = [({"role": "user", "content": f"{begun} {i % 2}"},) for i in range(40)]
        turns = [replace(t, prompt=prompt) for t, prompt in zip(some_turns(40), asked, strict=True)]
        right = judged_by(policy, names, turns)
        mixed = [turn if i % 2 else turned_round(turn) for i, turn in enumerate(right)]
        low, high = examine(policy, names, mixed, seed=0)["accuracy_interval"]
        widths.append(high - low)
    assert widths[0] < 0.6 < widths[1]


def test_an_examination_tells_how_far_it_is_and_ends_when_told(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, names = an_ensemble(tiny_base)
    asked = [Paraphrase(f"ask {i}", f"{i}? say", ("aa", "ba")) for i in range(4)]
    whole = examine(policy, names, some_turns(6), seed=0, paraphrases=asked)
    monkeypatch.setattr("trainer.examine._AT_ONCE", 4)
    heard: list[float] = []
    report = examine(policy, names, some_turns(6), seed=0, paraphrases=asked, tell=heard.append)
    assert len(heard) == 2 * (5 + 4) and heard == sorted(heard) and heard[-1] == 1.0
    assert report["disagreement"] == pytest.approx(whole["disagreement"], abs=1e-5)

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(policy, names, some_turns(6), seed=0, tell=stop)
