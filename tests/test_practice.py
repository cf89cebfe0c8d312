"""trainer/practice.py: what a night practises on and is judged on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatbot.basemodel import Base
from data import asked, conversations, messages, people
from data.database import Database
from data.errors import NotFound, Refused
from data.home import Home
from data.prompts import borderline_prompts, judging_prompts, practice_prompts
from data.records import Prompt
from data.snapshots import taught_turns
from tests.learners import ranked
from tests.nights import JUDGING, PRACTICE, known_conversations, short_prompts, tiny_night, write_prompts
from tests.stories import a_turn, rank, somebody
from tests.tiny import byte_tokenizer
from trainer.config import RefreshConfig
from trainer.forward import Reply
from trainer.practice import (
    check_prompts,
    choose,
    choose_gate_prompts,
    choose_practice_prompts,
    is_still_allowed,
    ptx_examples,
    read_exercises,
    reference_prompts,
    shipped_gate_prompts,
    still_allowed,
    to_imitate,
    write_exercises,
)

PRACTISED, KEPT = 16, 3
"""Where to number conversations from: two that are practised on, two that are kept for judging."""


def words(prompts: list[Prompt]) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts]


def ask(db: Database, first: int, *questions: str) -> None:
    """Ada asks each in a conversation of its own."""
    with known_conversations(first):
        for question in questions:
            a_turn(db, somebody(db), question=question)


def ptx(db: Database, base: Base, **settings: Any) -> list[Reply]:
    config = RefreshConfig(**settings)
    return ptx_examples(base, config, to_imitate(db, config))


def test_practice_prompts_are_as_many_as_needed_and_none_twice(db: Database, tiny_base: Base) -> None:
    config = RefreshConfig(updates=3, prompts_per_update=8)

    prompts = choose_practice_prompts(db, tiny_base, config, [])

    assert len(prompts) == 4 * 8
    assert len({str(prompt.messages) for prompt in prompts}) == 4 * 8
    assert max(len(tiny_base.format.encode(prompt.messages)) for prompt in prompts) <= 384


def dialogue(*said: str) -> Prompt:
    """What a user and the model have said in turn."""
    roles = ("user", "assistant")
    return Prompt(tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(said)), None, "test")


def made_for_chinese(base: Base) -> Base:
    """The same with a token for every Chinese character of our prompts."""
    tokenizer = byte_tokenizer()
    texts = (prompt.messages[-1]["content"] for prompt in borderline_prompts("zh"))
    tokenizer.add_tokens(sorted({character for text in texts for character in text if character > "\u3000"}))
    return replace(base, tokenizer=tokenizer)


def test_our_chinese_prompts_are_asked_of_a_base_that_was_made_for_it_and_of_no_other(
    db: Database, tiny_base: Base
) -> None:
    config = RefreshConfig(updates=41, gate_prompts=1000)  # more than there are
    chinese = set(words([*practice_prompts("zh"), *judging_prompts("zh")]))
    for base, is_asked in ((tiny_base, False), (made_for_chinese(tiny_base), True)):
        chosen = (
            choose_practice_prompts(db, base, config, []),
            shipped_gate_prompts(base, config),
            choose_gate_prompts(db, base, config, []),
        )
        for prompts in chosen:
            assert len(prompts) > 250
            assert (not chinese.isdisjoint(words(prompts))) == is_asked
        assert len(reference_prompts(base, config)) == 64


def test_an_operator_s_own_prompts_may_be_in_any_language(db: Database, home: Home, tiny_base: Base) -> None:
    ours = [*practice_prompts("zh")[:8], *short_prompts("\u4f60\u597d")]
    file = write_prompts(home.root / "zh.jsonl", ours)
    config = tiny_night(home, practice=file, judging=None)
    assert sorted(words(choose_practice_prompts(db, tiny_base, config, []))) == sorted(words(ours))


def test_people_s_turns_that_are_too_long_leave_their_places_to_older_ones(
    db: Database, home: Home, tiny_base: Base
) -> None:
    config = tiny_night(home, updates=1, prompts_per_update=4, minibatch=4)
    ask(db, 40, "Why?", "Where?", "Who?", "How?")
    ask(db, 53, *(f"{number}" + "x" * 400 for number in range(4)))

    prompts = choose_practice_prompts(db, tiny_base, config, [])

    assert {"Why?", "Where?", "Who?", "How?"} <= set(words(prompts)) and len(prompts) == 8


@pytest.mark.parametrize("given, needed", [(4, 32), (16, 16)])
def test_at_most_half_of_what_is_practised_on_is_people_s_own(
    db: Database, home: Home, tiny_base: Base, given: int, needed: int
) -> None:
    """Also where an operator gives few prompts, and where people asked word for word what was given."""
    file = write_prompts(home.root / "given.jsonl", PRACTICE[:given])
    config = tiny_night(home, practice=file, updates=needed // 4 - 1, prompts_per_update=4, minibatch=4)
    ask(db, 53, *(f"Question {number}?" for number in range(20)), *words(PRACTICE[:2]))

    prompts = choose_practice_prompts(db, tiny_base, config, [])

    assert len(prompts) == min(2 * given, needed)
    assert sum(prompt.turn_id is not None for prompt in prompts) == len(prompts) // 2


def test_people_s_own_turns_are_practised_on_unless_they_were_ranked(
    db: Database, home: Home, tiny_base: Base
) -> None:
    ada = somebody(db)
    with known_conversations(PRACTISED):
        a_turn(db, ada, question="Why is the sky blue?")
        rank(db, ada, a_turn(db, ada, question="Why is grass green?"), (1, 2, 3))

    said = words(choose_practice_prompts(db, tiny_base, tiny_night(home), taught_turns(db)))

    assert "Why is the sky blue?" in said
    assert "Why is grass green?" not in said


def test_a_prompt_that_raters_ranked_is_practised_on_where_too_few_others_are_there(
    db: Database, home: Home, tiny_base: Base
) -> None:
    config = tiny_night(home, updates=3, prompts_per_update=4, minibatch=4)
    every = [ranked(["a", "b"], (1, 2), question=word) for word in words(PRACTICE)]
    fox = ranked(["a", "b"], (1, 2), question="fox")

    chosen = choose_practice_prompts(db, tiny_base, config, [fox, every[5]])
    assert set(words(PRACTICE)) - set(words(chosen)) == {words(PRACTICE)[5]}
    assert len(choose_practice_prompts(db, tiny_base, config, every)) == 16


def test_the_same_seed_practises_in_the_same_order(db: Database, home: Home, tiny_base: Base) -> None:
    assert choose_practice_prompts(db, tiny_base, tiny_night(home, seed=5), []) == choose_practice_prompts(
        db, tiny_base, tiny_night(home, seed=5), []
    )
    assert choose_practice_prompts(db, tiny_base, tiny_night(home, seed=5), []) != choose_practice_prompts(
        db, tiny_base, tiny_night(home, seed=6), []
    )


def test_an_operator_s_own_files_replace_ours(db: Database, home: Home, tiny_base: Base) -> None:
    config = tiny_night(home)
    ask(db, KEPT, "Is this asked here?")

    assert len(choose_practice_prompts(db, tiny_base, config, [])) == len(PRACTICE)
    assert sorted(words(shipped_gate_prompts(tiny_base, config))) == sorted(words(JUDGING))
    assert choose_gate_prompts(db, tiny_base, config, []) == shipped_gate_prompts(tiny_base, config)
    assert len(reference_prompts(tiny_base, config)) == len(PRACTICE)


def test_the_gate_judges_first_on_people_s_newest_turns_that_nobody_practised_on(
    db: Database, home: Home, tiny_base: Base
) -> None:
    config = tiny_night(home, judging=None, gate_prompts=4)
    ask(db, PRACTISED, "Wie lege ich Berufung ein?")
    ask(db, KEPT, "Was ist eine Frist?", "Was kostet das?")
    ask(db, 0, "Und nun?", "x" * 500)

    judged = choose_gate_prompts(db, tiny_base, config, [])
    practised = choose_practice_prompts(db, tiny_base, config, [], judged)

    assert words(judged)[:2] == ["Und nun?", "Was kostet das?"], "the newest, half of all"
    assert len(judged) == 4 and all(prompt.turn_id is None for prompt in judged[2:])
    assert judged[2:] == shipped_gate_prompts(tiny_base, config)[:2]
    assert "Wie lege ich Berufung ein?" in words(practised)
    assert {"Und nun?", "Was kostet das?", "Was ist eine Frist?"}.isdisjoint(words(practised))


def test_a_long_conversation_judges_with_its_newest_turns_only(
    db: Database, home: Home, tiny_base: Base
) -> None:
    """They stand or fall together: thirty turns of one chat would decide a night of sixty prompts."""
    config = tiny_night(home, judging=None, gate_prompts=20)
    ada = somebody(db)
    with known_conversations(KEPT):
        chat = conversations.create(db, ada.id)
    for number in range(9):
        conversations.add_user_message(db, chat.id, None, f"Question {number}?", ada.id)
    judged = choose_gate_prompts(db, tiny_base, config, [])
    assert words(judged)[:5] == [f"Question {number}?" for number in (8, 7, 6, 5, 4)]
    assert len({prompt.group for prompt in judged[:5]}) == 1
    assert len(judged) == 20 and all(prompt.turn_id is None for prompt in judged[5:])


def test_prompts_stand_together_as_rankings_do_however_a_first_message_was_reworded(db: Database) -> None:
    ada, first = somebody(db), "Write a short poem about cats."
    with known_conversations(PRACTISED):
        here, elsewhere = (a_turn(db, ada, question=first)[0] for _ in range(2))
    for wording in ("Write a short poem about dogs.", "Write a long poem about cats."):
        turn = conversations.add_user_message(db, here.conversation_id, None, wording, ada.id)
        rank(db, ada, [conversations.add_written_reply(db, turn.id, it, None) for it in "ab"], [1, 2])
    conversations.add_user_message(db, elsewhere.conversation_id, elsewhere.id, "And dogs?", ada.id)

    prompts = asked.user_prompts(db, 10, for_judging=False)

    assert len(prompts) == 4 and len({prompt.conversation_id for prompt in prompts}) == 2
    assert {prompt.group for prompt in prompts} == {turn.group for turn in taught_turns(db)}
    assert len({prompt.group for prompt in prompts}) == 1


def test_a_young_installation_s_gate_is_that_of_our_prompts(
    db: Database, home: Home, tiny_base: Base
) -> None:
    config = tiny_night(home, judging=None)
    assert choose_gate_prompts(db, tiny_base, config, []) == shipped_gate_prompts(tiny_base, config)


def test_what_was_ranked_or_is_practised_on_word_for_word_judges_nothing(
    db: Database, home: Home, tiny_base: Base
) -> None:
    config = tiny_night(home, judging=None)
    ask(db, KEPT, words(PRACTICE)[0], "Why is grass green?")
    turn = ranked(["a", "b"], (1, 2), question="Why is grass green?")
    assert choose_gate_prompts(db, tiny_base, config, [turn]) == shipped_gate_prompts(tiny_base, config)
    ask(db, 0, "hello")
    ask(db, PRACTISED, "hello")
    judged = choose_gate_prompts(db, tiny_base, config, [turn])
    assert words(judged)[0] == "hello"
    assert "hello" not in words(choose_practice_prompts(db, tiny_base, config, [turn], judged))


def test_exercises_are_read_as_they_were_written(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    ask(db, PRACTISED, "Why is the sky blue?")
    ada = somebody(db)
    conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id)
    chosen = choose(db, tiny_base, tiny_night(home, ptx=1.0), [])
    assert len(chosen.demonstrations) == len(chosen.ptx) == 1
    write_exercises(chosen, tmp_path / "exercises.json")
    assert read_exercises(tmp_path / "exercises.json") == chosen


def test_what_was_taken_back_is_practised_on_no_longer(db: Database, home: Home, tiny_base: Base) -> None:
    ask(db, PRACTISED, "Why is the sky blue?")
    chosen = choose(db, tiny_base, tiny_night(home), [])
    ask(db, 0, "Why is the sky blue?")
    assert is_still_allowed(db, chosen), "others may go on asking"
    people.set_disabled(db, somebody(db).id, True)
    assert not is_still_allowed(db, chosen)


def test_a_demonstration_that_was_taken_back_is_repeated_no_longer(
    db: Database, home: Home, tiny_base: Base
) -> None:
    ada = somebody(db)
    edit = conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id)
    chosen = choose(db, tiny_base, tiny_night(home, ptx=1.0, ptx_data=None), taught_turns(db))
    assert is_still_allowed(db, chosen)
    conversations.set_may_train(db, edit.conversation_id, False)
    assert not is_still_allowed(db, chosen)


def test_a_turn_that_was_taken_back_judges_no_longer(db: Database, home: Home, tiny_base: Base) -> None:
    config = tiny_night(home, judging=None, gate_prompts=6)
    ask(db, KEPT, "Was ist eine Frist?", "Was kostet das?")
    judged = choose_gate_prompts(db, tiny_base, config, [])
    assert still_allowed(db, judged) == judged
    turn = messages.get(db, str(judged[0].turn_id))
    conversations.delete(db, turn.conversation_id)
    assert still_allowed(db, judged) == judged[1:]


def test_a_file_that_is_missing_or_too_long_is_a_sentence(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        choose_practice_prompts(db, tiny_base, tiny_night(home, practice="nowhere.jsonl"), [])
    long = write_prompts(tmp_path / "long.jsonl", short_prompts("x" * 500))
    with pytest.raises(Refused, match="No prompt to practise on has fewer than 384 tokens"):
        choose_practice_prompts(db, tiny_base, tiny_night(home, practice=long), [])
    with pytest.raises(Refused, match="No prompt to judge on has fewer than 512 tokens"):
        shipped_gate_prompts(tiny_base, tiny_night(home, judging=long))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"judging": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"practice": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"ptx": 1.0, "ptx_data": "nowhere.txt"}, "nowhere.txt"),
        ({"ptx": 1.0}, "no demonstrations for PPO-ptx"),
    ],
)
def test_what_would_end_the_night_later_is_said_at_once(
    db: Database, home: Home, tiny_base: Base, change: dict[str, Any], sentence: str
) -> None:
    check_prompts(db, tiny_base, tiny_night(home), 24)
    with pytest.raises((NotFound, Refused), match=sentence):
        check_prompts(db, tiny_base, tiny_night(home, **change), 24)


def test_a_single_prompt_to_practise_on_is_too_few_at_once(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    one = write_prompts(tmp_path / "one.jsonl", short_prompts("Why is that so?")[:1])
    with pytest.raises(
        Refused, match="There is one prompt to practise on - give at least two with --practice"
    ):
        check_prompts(db, tiny_base, tiny_night(home, practice=one), 24)


def test_too_few_prompts_to_judge_on_are_refused_at_once(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    """A candidate that won all three would not be told from one that is no better."""
    few, enough = (write_prompts(tmp_path / f"{count}.jsonl", JUDGING[:count]) for count in (3, 4))
    check_prompts(db, tiny_base, tiny_night(home, judging=enough), 24)
    check_prompts(db, tiny_base, tiny_night(home, judging=few, margin=0.1), 24)
    with pytest.raises(Refused, match="Prompts to judge on that begin differently: 3, too few"):
        check_prompts(db, tiny_base, tiny_night(home, judging=few), 24)


def test_prompts_to_judge_on_that_begin_alike_are_counted_as_the_gate_counts_them(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    """Twelve that begin in two ways are two witnesses, and no candidate could pass."""
    topics = [f"Let us speak about the {word} today." for word in words(JUDGING[:4])]
    ways = {count: [dialogue(topics[i % count], "Yes.", f"No. {i}?") for i in range(12)] for count in (2, 4)}
    few, enough = (write_prompts(tmp_path / f"{count}.jsonl", rows) for count, rows in ways.items())
    check_prompts(db, tiny_base, tiny_night(home, judging=enough), 24)
    with pytest.raises(Refused, match="judge on that begin differently: 2, too few"):
        check_prompts(db, tiny_base, tiny_night(home, judging=few), 24)


def test_replies_leave_half_of_the_context_to_the_prompt(db: Database, home: Home, tiny_base: Base) -> None:
    check_prompts(db, tiny_base, tiny_night(home), 512)
    with pytest.raises(Refused, match="sees - use --max-new-tokens 512 or less"):
        check_prompts(db, tiny_base, tiny_night(home), 513)


def test_what_we_ship_for_judging_is_not_what_we_ship_for_practice() -> None:
    practised = {p.messages[-1]["content"].casefold() for p in practice_prompts()}
    judged = {p.messages[-1]["content"].casefold() for p in judging_prompts()}

    assert len(practised) >= 600
    assert len(judged) >= 300
    assert not practised & judged


def test_a_template_without_a_place_for_system_messages_is_asked_the_other_prompts(
    db: Database, tiny_base: Base
) -> None:
    strict = byte_tokenizer()
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}"
        + str(strict.chat_template)
    )
    base = replace(tiny_base, tokenizer=strict)
    config = RefreshConfig()
    check_prompts(db, base, config, 64)
    for chosen in (choose_practice_prompts(db, base, config, []), shipped_gate_prompts(base, config)):
        assert chosen and not any(prompt.messages[0]["role"] == "system" for prompt in chosen)
    assert any(prompt.messages[0]["role"] == "system" for prompt in shipped_gate_prompts(tiny_base, config))


def test_what_an_operator_s_files_share_is_judged_on_alone(db: Database, home: Home, tiny_base: Base) -> None:
    both = write_prompts(home.root / "both.jsonl", [*PRACTICE, *JUDGING])
    config = tiny_night(home, judging=write_prompts(home.root / "judging.jsonl", JUDGING), practice=both)
    few = replace(config, gate_prompts=4)  # of which another night takes others
    prompts = choose_practice_prompts(db, tiny_base, few, [], shipped_gate_prompts(tiny_base, few))
    assert sorted(words(prompts)) == sorted(words(PRACTICE))
    with pytest.raises(Refused, match="Every prompt to practise on is also judged on"):
        check_prompts(db, tiny_base, replace(config, judging=both), 64)


def test_ptx_learns_from_a_text_file_or_from_demonstrations(
    db: Database, tiny_base: Base, tmp_path: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("Once upon a time. " * 40)
    assert ptx(db, tiny_base, ptx_data=str(text)) == []
    examples = ptx(db, tiny_base, ptx=1.0, ptx_data=str(text))
    ids = [i for example in examples for i in example.ids]
    assert tiny_base.format.decode(ids) == text.read_text() and len(examples) == 3
    with pytest.raises(Refused, match="no demonstrations for PPO-ptx"):
        ptx(db, tiny_base, ptx=1.0)
    with pytest.raises(Refused, match="nowhere"):
        ptx(db, tiny_base, ptx=1.0, ptx_data="nowhere.txt")


def test_ptx_that_would_learn_from_nothing_is_a_sentence(
    db: Database, tiny_base: Base, tmp_path: Path
) -> None:
    text, ada = tmp_path / "book.txt", somebody(db)
    text.write_text("x")
    with pytest.raises(Refused, match="has no text for PPO-ptx"):
        ptx(db, tiny_base, ptx=1.0, ptx_data=str(text))
    conversations.add_edit(db, a_turn(db, ada, question="x" * 2000)[0].id, "better", ada.id)
    with pytest.raises(Refused, match="Every demonstration for PPO-ptx is too long"):
        ptx(db, tiny_base, ptx=1.0)
