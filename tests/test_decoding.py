"""Decoding: greedy equals transformers, a seed is a reply, draws follow the distribution, stops end rows."""

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.decoding import Decoding, Row, sample
from chatbot.models import merged_model
from data.records import Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=24)
END = 2
PROMPTS = [[1, 80, 90, 100], [1] + [60, 61, 62] * 9, [9], list(range(30, 95))]


@pytest.fixture
def model(tiny_base: Base) -> PreTrainedModel:
    return merged_model(tiny_base, None, device=torch.device("cpu"), dtype=torch.float32)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling] = GREEDY,
) -> list[list[Row]]:
    """The rows of each prompt, decoded together to their end."""
    rows = [[Row(seed) for seed in group] for group in seeds]
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    decoding = Decoding(model, prompts, rows, each, END)
    while not decoding.is_finished:
        decoding.step()
    return rows


@torch.no_grad()
def generated(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What transformers itself writes greedily."""
    ids = torch.tensor([prompt])
    out = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=0,
    )
    return list(out[0, len(prompt) :].tolist())


def test_greedy_alone_is_transformers_generate_token_for_token(model: PreTrainedModel) -> None:
    for prompt in PROMPTS:
        [[row]] = decode(model, [prompt], [[0]])
        assert row.token_ids == generated(model, prompt)


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (3, 1, 9, 2)])
def test_greedy_in_a_mixed_batch_is_transformers_generate(
    model: PreTrainedModel, counts: tuple[int, ...]
) -> None:
    rows = decode(model, PROMPTS, [range(count) for count in counts])
    for prompt, group in zip(PROMPTS, rows, strict=True):
        assert [row.token_ids for row in group] == [generated(model, prompt)] * len(group)


def test_a_seed_is_a_reply_whatever_else_is_in_the_batch(model: PreTrainedModel) -> None:
    wanted, other = Sampling(max_new_tokens=40), Sampling(temperature=1.5, top_p=0.7, max_new_tokens=5)
    [[alone]] = decode(model, [PROMPTS[0]], [[7]], wanted)
    beside = decode(model, PROMPTS[:3], [[1, 7], [2], [3, 4]], [wanted, GREEDY, other])
    last = decode(model, PROMPTS[::-1], [[4], [3, 9], [1], [8, 7, 2]], wanted)
    assert beside[0][1].token_ids == last[3][1].token_ids == alone.token_ids


def test_other_seeds_are_other_replies(model: PreTrainedModel) -> None:
    [rows] = decode(model, [PROMPTS[0]], [range(9)], Sampling(max_new_tokens=12))
    assert len({tuple(row.token_ids) for row in rows}) == 9


def test_a_row_ends_by_its_end_of_turn_or_its_length(model: PreTrainedModel) -> None:
    [rows] = decode(model, [PROMPTS[0]], [range(60)], Sampling(temperature=2, max_new_tokens=80))
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    for row in rows:
        assert (row.finish_reason == "stop") == (row.token_ids[-1] == END)
        assert END not in row.token_ids[:-1]
        assert row.finish_reason == "stop" or len(row.token_ids) == 80


def test_rows_of_a_batch_have_lengths_of_their_own(model: PreTrainedModel) -> None:
    lengths = [1, 7, 3]
    each = [Sampling(temperature=0, max_new_tokens=length) for length in lengths]
    rows = decode(model, PROMPTS[:3], [[0], [0], [0]], each)
    for prompt, [row], length in zip(PROMPTS, rows, lengths, strict=False):
        assert row.token_ids == generated(model, prompt)[:length]


def test_a_stop_from_outside_ends_a_row_and_spares_the_others(model: PreTrainedModel) -> None:
    stopped, going = Row(0), Row(0)
    decoding = Decoding(model, PROMPTS[:2], [[stopped], [going]], [GREEDY, GREEDY], END)
    for _ in range(5):
        decoding.step()
    stopped.finish_reason = "cancelled"
    while not decoding.is_finished:
        decoding.step()
    assert stopped.token_ids == generated(model, PROMPTS[0])[:5]
    assert stopped.finish_reason == "cancelled"
    assert going.token_ids == generated(model, PROMPTS[1])


def test_a_stop_during_a_step_stands(model: PreTrainedModel) -> None:
    row = Row(0)
    decoding = Decoding(model, PROMPTS[:1], [[row]], [Sampling(max_new_tokens=1)], END)
    uniform = row.uniform

    def stop_meanwhile() -> float:
        row.finish_reason = "cancelled"
        return uniform()

    row.uniform = stop_meanwhile
    decoding.step()
    assert (row.finish_reason, row.token_ids, decoding.is_finished) == ("cancelled", [], True)


def test_a_row_stopped_before_the_first_step_writes_nothing(model: PreTrainedModel) -> None:
    stopped, going = Row(0, finish_reason="cancelled"), Row(0)
    decoding = Decoding(model, PROMPTS[:1], [[stopped, going]], [GREEDY], END)
    while not decoding.is_finished:
        decoding.step()
    assert stopped.token_ids == []
    assert going.token_ids == generated(model, PROMPTS[0])


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic of the tokens that can occur; those that cannot must not."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    return float(((counts[possible] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(temperature=1, top_p=0.8), 3),
        (Sampling(temperature=2, top_p=0.999), 6),
        (Sampling(temperature=1, top_p=0.001), 1),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling, kept: int) -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.5, 0.1, 1.0])
    wanted = torch.softmax(logits / sampling.temperature, 0).double()
    smallest = wanted.sort(descending=True).values[kept - 1]
    wanted = torch.where(wanted >= smallest, wanted, 0.0)
    draws = 20_000
    uniforms = torch.tensor([Row(seed).uniform() for seed in range(draws)], dtype=torch.float64)
    tokens = sample(logits.expand(draws, -1), [sampling] * draws, uniforms)
    counts = torch.bincount(torch.tensor(tokens), minlength=6).double()
    assert chi_square(counts, wanted / wanted.sum()) < 20.5  # p = 0.001 at 5 degrees of freedom


def test_temperature_0_takes_the_likeliest_beside_rows_that_draw() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    uniforms = torch.tensor([0.999, 0.999], dtype=torch.float64)
    assert sample(logits, [Sampling(temperature=0), Sampling(temperature=1)], uniforms) == [1, 2]


def test_a_row_that_asks_for_all_tokens_keeps_the_rarest_beside_a_nucleus() -> None:
    logits = torch.zeros(2, 50_000).index_fill_(1, torch.tensor([49_999]), -12.0)
    uniforms = torch.tensor([1 - 1e-12, 1 - 1e-12], dtype=torch.float64)
    drawn = sample(logits, [Sampling(temperature=1), Sampling(temperature=1, top_p=0.5)], uniforms)
    assert drawn[0] == 49_999 != drawn[1]


def test_the_ends_of_the_uniform_draw_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits, [Sampling()] * 2, uniforms) == [1, 2]


def test_logits_that_are_not_finite_are_an_error_not_a_reply() -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0]])
    with pytest.raises(AssertionError, match="not finite"):
        sample(logits, [Sampling()], torch.tensor([0.5], dtype=torch.float64))
