"""trainer/gate.py: each check refuses its own case, and two equal models are no worse than each other."""

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.records import Prompt, Sampling
from tests.learners import CPU, END, a_learner, some_replies
from tests.nights import JUDGING
from trainer.config import RefreshConfig
from trainer.forward import Reply
from trainer.gate import (
    Probes,
    Verdict,
    check_judge,
    check_replies,
    check_wins,
    judge_candidate,
    profile,
    replay,
    report_lines,
)
from trainer.intervals import bootstrap_by_group
from trainer.reward import scores_of

LIKE = {"length": 60.0, "eos_rate": 0.5, "empty_rate": 0.0, "duplicate_rate": 0.02, "distinct_2": 0.8}
GOOD_JUDGE = {"accuracy": 0.7, "accuracy_interval": [0.6, 0.8]}
NO_PROBES: Probes = ({}, {})


def test_a_judge_that_beats_a_coin_may_judge() -> None:
    assert check_judge(GOOD_JUDGE) == []


@pytest.mark.parametrize("interval", [[0.5, 0.9], [0.4, 0.6], [0.0, 1.0]])
def test_a_judge_that_may_be_a_coin_cannot_judge(interval: list[float]) -> None:
    (reason,) = check_judge({"accuracy": 0.6, "accuracy_interval": interval})
    assert "agrees with 60% of held-out comparisons" in reason
    assert "it cannot judge - rank replies in more conversations" in reason


@pytest.mark.parametrize("low, passes", [(0.6, True), (0.48, True), (0.47, False), (0.3, False)])
def test_the_lower_bound_must_lie_above_one_half_less_the_margin(low: float, passes: bool) -> None:
    reasons = check_wins(0.55, [low, 0.7], margin=0.03)
    assert (reasons == []) == passes
    assert passes or f"the lower bound, {low:.0%}, is not above 47%" in reasons[0]


def test_a_candidate_that_loses_is_refused_and_one_that_wins_is_not() -> None:
    for wins, passes in ((180, True), (150, False), (100, False)):
        outcomes = [[float(i < wins)] for i in range(300)]
        assert (check_wins(wins / 300, bootstrap_by_group(outcomes, 0), 0.03) == []) == passes


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"empty_rate": 0.02}, "2.0% of the candidate's replies are empty"),
        ({"empty_rate": 2 / 300}, "0.7% of the candidate's replies are empty"),
        ({"duplicate_rate": 0.1}, "repeat another prompt's reply word for word"),
        ({"distinct_2": 0.3}, "The candidate repeats itself"),
        ({"eos_rate": 0.3}, "Only 30% of the candidate's replies end by themselves"),
        ({"length": 400.0}, "have 400 tokens, the current's 60, which the rankings do not ask for"),
        ({"length": 5.0}, "have 5 tokens"),
    ],
)
def test_no_vote_buys_off_a_veto(change: dict[str, float], sentence: str) -> None:
    (reason,) = check_replies(LIKE | change, LIKE, length_preference=0.0, count=300)
    assert sentence in reason


@pytest.mark.parametrize(
    "figure, allowed, too_much",
    [
        ("empty_rate", 1 / 300, 2 / 300),
        ("duplicate_rate", 0.06, 0.08),
        ("distinct_2", 0.41, 0.39),
        ("eos_rate", 0.41, 0.39),
        ("length", 290.0, 310.0),
        ("length", 13.0, 11.0),
    ],
)
def test_a_veto_begins_at_its_limit(figure: str, allowed: float, too_much: float) -> None:
    for value, vetoes in ((allowed, 0), (too_much, 1)):
        assert len(check_replies(LIKE | {figure: value}, LIKE, 0.0, 300)) == vetoes


@pytest.mark.parametrize("direction", [-1.0, 0.0, 1.0])
def test_replies_like_the_current_ones_meet_no_veto(direction: float) -> None:
    near = {"length": 70.0, "eos_rate": 0.45, "empty_rate": 1 / 300}
    near |= {"duplicate_rate": 0.05, "distinct_2": 0.6}
    assert check_replies(near, LIKE, direction, 300) == []


def test_replies_may_shorten_where_short_ones_win_and_only_there() -> None:
    shorter = LIKE | {"length": 30.0}
    assert check_replies(shorter, LIKE, length_preference=-0.5, count=300) == []
    assert len(check_replies(shorter, LIKE, length_preference=0.5, count=300)) == 1


def test_several_vetoes_are_all_told() -> None:
    wrong = LIKE | {"length": 400.0, "eos_rate": 0.0, "empty_rate": 0.5}
    assert len(check_replies(wrong, LIKE, 0.0, 300)) == 3


def test_a_profile_counts_what_needs_no_reading(tiny_base: Base) -> None:
    same = Reply([1, 6], [*some_replies()[2].reply, END], True)  # as the third of the five, but whole
    found = profile([*some_replies(), same], tiny_base.format.decode)
    assert found["length"] == pytest.approx(25 / 6)
    assert (found["eos_rate"], found["empty_rate"], found["duplicate_rate"]) == (2 / 3, 1 / 6, 1 / 3)


def said(base: Base, *texts: str) -> list[Reply]:
    return [Reply([1], base.format.encode_reply(text), True) for text in texts]


@pytest.mark.parametrize("blank", ["", "\n", " ", " \n\t "])
def test_a_reply_of_which_a_person_sees_nothing_is_empty(tiny_base: Base, blank: str) -> None:
    found = profile(said(tiny_base, blank, blank, "No."), tiny_base.format.decode)
    assert (found["empty_rate"], found["duplicate_rate"]) == (2 / 3, 0.0)


def test_a_few_short_replies_may_be_alike(tiny_base: Base) -> None:
    others = [f"Number {i}, of many." for i in range(47)]
    for text, times, share in (("Sure!", 2, 0.0), ("Surely", 2, 0.04), ("Sure!", 3, 0.06)):
        replies = said(tiny_base, *others, *[text] * times, *["?"] * (3 - times))
        assert profile(replies, tiny_base.format.decode)["duplicate_rate"] == share
    alike = said(tiny_base, *others, "Sure!", "Sure!\n", " Sure!")
    assert profile(alike, tiny_base.format.decode)["duplicate_rate"] == 0.06


def test_a_current_version_with_empty_replies_allows_hardly_more_of_them() -> None:
    old = LIKE | {"empty_rate": 0.02}
    assert check_replies(old, old, 0.0, 300) == []
    assert check_replies(LIKE | {"empty_rate": 9 / 300}, old, 0.0, 300) == []
    assert len(check_replies(LIKE | {"empty_rate": 0.07}, old, 0.0, 300)) == 1


def judged(
    policy: Policy,
    change: Callable[[PreTrainedModel], None],
    judge: dict[str, Any],
    probes: Probes = NO_PROBES,
    prompts: Sequence[Prompt] = JUDGING,
) -> Verdict:
    """A verdict on a changed base against the base, over all judging prompts."""
    sampling = Sampling(max_new_tokens=12)
    model = load_model(policy.base, device=CPU, dtype=torch.float32)
    current = replay(model, policy.base, prompts, sampling=sampling, seed=0)
    change(model)
    candidate = replay(model, policy.base, prompts, sampling=sampling, seed=0)
    return judge_candidate(
        policy,
        (candidate, current),
        prompts,
        judge,
        RefreshConfig(gate_prompts=len(JUDGING)),
        sampling=sampling,
        length_preference=0.0,
        probes=probes,
        tell=lambda fraction, message: None,
    )


def weighed(policy: Policy, replies: tuple[list[Reply], list[Reply]], prompts: Sequence[Prompt]) -> Verdict:
    """A verdict on what candidate and current said, by a good judge."""
    return judge_candidate(
        policy,
        replies,
        prompts,
        GOOD_JUDGE,
        RefreshConfig(),
        sampling=Sampling(),
        length_preference=0.0,
        probes=NO_PROBES,
        tell=lambda fraction, message: None,
    )


def scramble(model: PreTrainedModel) -> None:
    """Another model: tokens trade places."""
    with torch.no_grad():
        weight = cast(Any, model.get_output_embeddings()).weight
        weight.copy_(weight.flip(0))


def test_two_equal_models_draw_and_pass(tiny_base: Base) -> None:
    verdict = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE)
    assert (verdict.passed, verdict.win_rate, verdict.win_rate_interval) == (True, 0.5, [0.5, 0.5])
    assert verdict.replies["candidate"] == verdict.replies["current"]
    assert all(sample["candidate"] == sample["current"] for sample in verdict.samples)


def test_what_one_judge_prefers_its_opposite_refuses(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    verdicts = []
    for _ in range(2):
        verdicts.append(judged(policy, scramble, GOOD_JUDGE))
        policy.heads["judge"].weight.data.neg_()
    low, high = sorted(verdict.win_rate for verdict in verdicts)
    assert low < 0.47 and high == pytest.approx(1 - low)
    loser = min(verdicts, key=lambda verdict: verdict.win_rate)
    assert not loser.passed
    assert loser.reasons[0].startswith(f"The judge prefers the candidate on {low:.0%} of prompts")


def test_a_candidate_that_answers_two_prompts_with_a_line_break_is_refused(tiny_base: Base) -> None:
    current = said(tiny_base, *(f"Reply number {i}." for i in range(len(JUDGING))))
    candidate = [*said(tiny_base, "\n", "\n"), *current[2:]]
    verdict = weighed(a_learner(tiny_base), (candidate, current), JUDGING)
    assert not verdict.passed and any("of the candidate's replies are empty" in r for r in verdict.reasons)


def test_a_verdict_shows_samples_and_says_by_how_much(tiny_base: Base) -> None:
    verdict = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE)
    (reason,) = verdict.reasons
    assert reason.startswith(f"The judge prefers the candidate on 50% of {len(JUDGING)} prompts (95 %")
    assert len(verdict.samples) == 10
    assert verdict.report()["sampling"] == {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 12}


def test_turns_of_one_conversation_count_as_one_witness_for_the_interval(tiny_base: Base) -> None:
    policy, message = a_learner(tiny_base), {"role": "user", "content": "Hello"}
    current = said(tiny_base, *(f"Reply number {i}." for i in range(60)))
    candidate = said(tiny_base, *(f"Answer number {i}." for i in range(60)))

    def width(conversations: int) -> float:
        prompts = [Prompt((message,), f"t{i}", "people", f"c{i % conversations}") for i in range(60)]
        verdict = weighed(policy, (candidate, current), prompts)
        assert ("of 60 prompts of 5 dialogues (" in verdict.sentences[1]) == (conversations == 5)
        low, high = verdict.win_rate_interval
        return high - low

    assert width(5) > 2 * width(60) > 0


def test_no_turn_of_a_person_is_shown_in_the_report(tiny_base: Base) -> None:
    asked = [Prompt(({"role": "user", "content": f"secret {i}"},), f"turn-{i}", "people") for i in range(3)]
    verdict = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE, prompts=[*asked, *JUDGING])
    assert f"of {len(JUDGING) + 3} prompts" in verdict.reasons[0]
    assert [s["prompt"] for s in verdict.samples] == [p.messages[0]["content"] for p in JUDGING[:10]]
    assert "secret" not in json.dumps(verdict.report())


def test_a_good_candidate_fails_where_the_judge_is_a_coin(tiny_base: Base) -> None:
    coin = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    verdict = judged(a_learner(tiny_base), lambda model: None, coin)
    assert not verdict.passed
    assert len(verdict.reasons) == 1 and "cannot judge" in verdict.reasons[0]


SOUND = {"refusal_rate": 0.05, "repetition": 0.03, "perplexity": 27.0, "capability": 0.9}


def test_a_probe_vetoes_a_candidate_that_wins(tiny_base: Base) -> None:
    verdict = judged(a_learner(tiny_base), lambda m: None, GOOD_JUDGE, (SOUND | {"capability": 0.6}, SOUND))
    assert not verdict.passed
    (reason,) = verdict.reasons
    assert "has lost knowledge: it solves 60% of short items, the current 90%" in reason
    assert verdict.sentences[-1] == "Refused for 1 reason; what serves stays."


def test_probes_stand_in_the_report_and_in_sentences(tiny_base: Base) -> None:
    verdict = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE, (SOUND, SOUND))
    assert verdict.passed
    assert verdict.report()["probes"] == {"candidate": SOUND, "current": SOUND}
    told = " ".join(verdict.sentences)
    assert "agrees with 70% of held-out comparisons (95 % interval 60% to 80%)" in told
    assert "The candidate refuses 5% of harmless prompts" in told and "solves 90% of short items" in told
    assert told.endswith("Accepted: the lower bound lies above 47%, and no veto speaks against it.")


def test_samples_carry_the_judge_s_score_of_what_was_said(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    chat = tiny_base.format
    for sample in judged(policy, scramble, GOOD_JUDGE).samples:
        prompt = next(p for p in JUDGING if p.messages[-1]["content"] == sample["prompt"])
        for side in ("candidate", "current"):
            ends = [chat.encode_reply(sample[side], finished=finished) for finished in (True, False)]
            asked = chat.encode(prompt.messages)
            scores = scores_of(policy, "judge", [Reply(asked, said, False) for said in ends])
            if "\ufffd" not in sample[side]:  # half a character does not survive being decoded
                assert min(abs(sample[f"{side}_score"] - score) for score in scores) < 1e-3


def test_a_report_for_the_terminal_tells_all_of_it(tiny_base: Base) -> None:
    gate = judged(a_learner(tiny_base), lambda m: None, GOOD_JUDGE, (SOUND | {"capability": 0.6}, SOUND))
    lines = report_lines(json.loads(json.dumps(gate.report())))
    assert lines[: len(gate.sentences)] == gate.sentences
    assert "capability      0.6        0.9" in lines
    assert any(line.startswith("eos rate ") for line in lines)
    assert "Replies drawn at temperature 0.8, at most 12 tokens." in lines
    assert sum(line.startswith("> ") for line in lines) == 10
    assert lines[-1] == gate.reasons[0]
    assert max(map(len, lines)) < 240


def test_a_report_without_probes_or_with_few_is_told_too(tiny_base: Base) -> None:
    gate = judged(a_learner(tiny_base), lambda m: None, GOOD_JUDGE)
    assert gate.passed and gate.probes == {"candidate": {}, "current": {}}
    for old in (gate.report(), gate.report() | {"probes": None}):
        assert not any("perplexity" in line for line in report_lines(old))
    few = judged(a_learner(tiny_base), lambda m: None, GOOD_JUDGE, ({"perplexity": 27.0}, SOUND))
    assert few.passed and any(line.startswith("capability") for line in report_lines(few.report()))


def test_a_score_that_is_no_number_is_told_as_none(tiny_base: Base) -> None:
    gate = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE).report()
    gate["samples"] = [gate["samples"][0] | {"candidate_score": None}]
    assert any(line.startswith("  candidate   -    ") for line in report_lines(gate))


def test_a_reply_cannot_command_the_terminal(tiny_base: Base) -> None:
    gate = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE).report()
    gate["samples"] = [gate["samples"][0] | {"candidate": "\x1b[2J\r\nall\x07 gone " + "x" * 500}]
    text = "\n".join(report_lines(gate))
    assert "[2J all gone xxx" in text and "..." in text
    assert all(character.isprintable() for character in text.replace("\n", ""))
