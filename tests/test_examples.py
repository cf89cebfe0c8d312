"""trainer/examples.py: demonstrations as token ids, cut where they must be, and parted by dialogue."""

from dataclasses import replace

from chatbot.basemodel import Base
from data.demonstrations import Demonstration
from tests.learners import END
from trainer.examples import LONGEST, LONGEST_REPLY, as_replies, split


def shown(
    reply: str = "Hello.", *before: str, conversation: str = "c", question: str = "Hi"
) -> Demonstration:
    """A demonstration; `before` are earlier turns, a user's and a reply in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate((*before, question))]
    return Demonstration(tuple(messages), reply, conversation, "human", "m", "p")


def test_a_demonstration_is_the_prompt_of_the_chat_and_a_reply_that_ends(tiny_base: Base) -> None:
    (example,) = as_replies([shown("Yes.", "One?", "Two.")], tiny_base)
    chat = tiny_base.format
    assert example.prompt == chat.encode(shown("Yes.", "One?", "Two.").messages)
    assert (example.reply, example.finished) == (chat.encode_reply("Yes."), True)
    assert example.reply[-1] == END


def test_a_long_history_loses_its_oldest_turns(tiny_base: Base) -> None:
    (example,) = as_replies([shown("Yes.", "x" * 700, "y" * 400)], tiny_base)
    assert example.prompt == tiny_base.format.encode(shown().messages)
    assert len(example.ids) <= LONGEST


def test_a_reply_beyond_the_limit_teaches_its_beginning_without_an_end(tiny_base: Base) -> None:
    (example,) = as_replies([shown("z" * 2000)], tiny_base)
    assert (len(example.reply), example.finished) == (LONGEST_REPLY, False)
    assert END not in example.reply


def test_a_question_that_does_not_fit_is_left_out(tiny_base: Base) -> None:
    assert len(as_replies([shown(question="x" * 5000), shown()], tiny_base)) == 1


def test_a_tenth_of_the_conversations_measures_and_none_is_in_both_parts() -> None:
    found = [shown(f"reply {i} {j}", conversation=f"c{i}") for i in range(30) for j in range(2)]
    taught, held_out = split(found)
    assert {d.conversation_id for d in taught}.isdisjoint(d.conversation_id for d in held_out)
    assert (len(taught), len(held_out)) == (54, 6)
    assert split(found[::-1])[1] == held_out[::-1]


def test_what_begins_alike_is_wholly_in_one_part() -> None:
    """As imports have it: a row for each reply of a dialogue, each row a conversation of its own."""
    found = [
        shown("Yes.", *[f"What is to be said of number {i}?", "This."] * turns, conversation=f"c{i} {turns}")
        for i in range(20)
        for turns in (1, 2, 3)
    ]
    taught, held_out = split(found)
    assert {d.messages[0]["content"] for d in taught}.isdisjoint(d.messages[0]["content"] for d in held_out)
    assert (len(taught), len(held_out)) == (54, 6)


def test_a_reworded_first_message_is_of_the_conversation_it_was_reworded_in() -> None:
    opening = "What is to be said of this?"
    both = [replace(shown(question=f"{word} {opening}"), opening=opening) for word in ("Well,", "So,")]
    assert split(both) == (both, [])


def test_one_conversation_alone_teaches_and_two_are_one_each() -> None:
    assert split([shown("a"), shown("b")]) == ([shown("a"), shown("b")], [])
    taught, held_out = split([shown("a"), shown("b", conversation="d")])
    assert (len(taught), len(held_out)) == (1, 1)
