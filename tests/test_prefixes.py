"""Prefixes: what an ended reply leaves behind is found again by the next turn, and the oldest goes first."""

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.attention import Piece
from chatbot.basemodel import Base
from chatbot.llama import Llama
from chatbot.models import merged_model
from chatbot.prefixes import Prefixes
from chatbot.runner import LlamaRunner
from chatbot.sampling import PlainJob, Row
from data.records import Sampling
from tests.jobs import a_job

END = 2
PROMPT = [1, *range(40, 70)]
GREEDY = Sampling(temperature=0, max_new_tokens=12)
ONE_TOKEN = 2 * 2 * 2 * 8 * 4
"""Bytes that the tiny model leaves behind: keys and values x layers x heads x dim x bytes."""


@pytest.fixture
def llama(tiny_base: Base) -> Llama:
    model: PreTrainedModel = merged_model(tiny_base, None, device=torch.device("cpu"), dtype=torch.float32)
    return Llama(model, "float32")


def run(runner: LlamaRunner, job: PlainJob) -> list[Row]:
    runner.add(job)
    run_out(runner)
    return job.rows


def run_out(runner: LlamaRunner) -> None:
    while not runner.is_idle:
        runner.step()


def recalled(llama: Llama, kept: Prefixes, prompt: list[int]) -> int:
    """How many tokens of `prompt` need not be read."""
    return kept.recall(prompt, llama.shelves().take(len(prompt)))


def test_the_next_turn_begins_with_whichever_reply_the_person_goes_on_from(llama: Llama) -> None:
    kept = Prefixes(2**20)
    runner = LlamaRunner(llama, END, prefixes=kept)
    rows = run(runner, a_job(PROMPT, range(4), Sampling(max_new_tokens=12)))
    for row in rows:
        following = [*PROMPT, *row.token_ids, 99, 98, 97]
        assert recalled(llama, kept, following) == len(PROMPT) + len(row.token_ids) - 1
        [alone] = run(LlamaRunner(llama, END), a_job(following, [0], GREEDY))
        [again] = run(runner, a_job(following, [0], GREEDY))
        assert again.token_ids == alone.token_ids


def test_a_prompt_that_is_asked_again_reads_its_last_token_only(llama: Llama) -> None:
    kept = Prefixes(2**20)
    run(LlamaRunner(llama, END, prefixes=kept), a_job(PROMPT, [0], GREEDY))
    assert recalled(llama, kept, PROMPT) == len(PROMPT) - 1
    assert recalled(llama, kept, PROMPT[:9]) == 8
    assert recalled(llama, kept, [7, *PROMPT]) == 0


def test_what_is_recalled_is_what_reading_would_have_left(llama: Llama) -> None:
    kept = Prefixes(2**20)
    [row] = run(LlamaRunner(llama, END, prefixes=kept), a_job(PROMPT, [3], Sampling(max_new_tokens=12)))
    following = [*PROMPT, *row.token_ids, 50]
    shelves = llama.shelves()
    place, read = shelves.take(len(following)), shelves.take(len(following))
    count = kept.recall(following, place)
    llama.forward(shelves, {}, [Piece(read, following[:count])])
    for held in (place.shelf.keys, place.shelf.values):
        torch.testing.assert_close(
            held[:, place.index, :, :count], held[:, read.index, :, :count], atol=1e-5, rtol=1e-4
        )


def test_what_was_used_longest_ago_is_forgotten_first(llama: Llama) -> None:
    one = ONE_TOKEN * (len(PROMPT) + 11)
    kept = Prefixes(2 * one)
    runner = LlamaRunner(llama, END, prefixes=kept)
    prompts = [[first, *PROMPT[1:]] for first in (5, 6, 7)]
    for prompt in (prompts[0], prompts[1], prompts[0], prompts[2]):
        run(runner, a_job(prompt, [0], GREEDY))
    assert [recalled(llama, kept, prompt) > 0 for prompt in prompts] == [True, False, True]


def test_programs_have_a_quarter_of_it_where_chats_want_the_rest(llama: Llama) -> None:
    kept = Prefixes(4 * ONE_TOKEN * (len(PROMPT) + 11))
    runner = LlamaRunner(llama, END, prefixes=kept)

    def after(firsts: range, priority: int) -> list[int]:
        for first in firsts:
            runner.add(a_job([first, *PROMPT[1:]], [0], GREEDY), priority)
            run_out(runner)
        return sorted(key[0] for key in kept._prompts)

    assert after(range(10, 16), 1) == [12, 13, 14, 15], "all of it where nobody chats"
    assert after(range(5, 8), 0) == [5, 6, 7, 15]
    assert after(range(8, 9), 0) == [5, 6, 7, 8], "longest ago"
    assert after(range(20, 26), 1) == [6, 7, 8, 25]


def test_a_long_prompt_is_kept_up_to_half_of_the_memory_and_drives_nobody_out(llama: Llama) -> None:
    kept = Prefixes(80 * ONE_TOKEN)
    runner = LlamaRunner(llama, END, prefixes=kept)
    long = [1, *range(70, 169)]
    run(runner, a_job(PROMPT[:20], [0], GREEDY))
    for prompt in (long, [*long, 50, 51, 52]):
        [alone] = run(LlamaRunner(llama, END), a_job(prompt, [0], GREEDY))
        rows = run(runner, a_job(prompt, range(4), GREEDY))
        assert [row.token_ids for row in rows] == [alone.token_ids] * 4
        assert recalled(llama, kept, prompt) == 40
        assert recalled(llama, kept, PROMPT[:20]) == 19
        assert kept._held == sum(entry.size for entry in kept._prompts.values()) <= 80 * ONE_TOKEN


def test_replies_beyond_half_of_the_memory_are_not_kept(llama: Llama) -> None:
    kept = Prefixes(2 * (len(PROMPT) + 20) * ONE_TOKEN)
    rows = run(LlamaRunner(llama, END, prefixes=kept), a_job(PROMPT, range(4), Sampling(max_new_tokens=12)))
    found = [recalled(llama, kept, [*PROMPT, *row.token_ids, 99]) - len(PROMPT) for row in rows]
    assert sum(count > 8 for count in found) == 1, found
    assert kept._held <= (len(PROMPT) + 20) * ONE_TOKEN


def test_a_memory_of_no_size_keeps_nothing(llama: Llama) -> None:
    kept = Prefixes(0)
    run(LlamaRunner(llama, END, prefixes=kept), a_job(PROMPT, [0], GREEDY))
    assert recalled(llama, kept, PROMPT) == 0
