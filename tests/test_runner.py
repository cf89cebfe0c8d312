"""Runners, both kinds: greedy equals transformers, a seed is a reply, rows join and leave at any step."""

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.attention import Piece
from chatbot.basemodel import Base
from chatbot.llama import Llama
from chatbot.models import merged_model
from chatbot.padded import TransformersModel
from chatbot.prefixes import Prefixes
from chatbot.runner import ALONE, MOST_PIECES, ON_GPU, PIECE, LlamaRunner, Runner, prepare, runner_for
from chatbot.sampling import PlainJob, Row
from chatbot.shelves import Place, Shelves
from data.records import Sampling
from tests.jobs import a_job

GREEDY = Sampling(temperature=0, max_new_tokens=24)
END = 2
PROMPTS = [[1, 80, 90, 100], [1] + [60, 61, 62] * 9, [9], list(range(30, 95))]


@pytest.fixture
def model(tiny_base: Base) -> PreTrainedModel:
    return merged_model(tiny_base, None, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(params=["llama", "any model"])
def weights(model: PreTrainedModel, request: pytest.FixtureRequest) -> Llama | TransformersModel:
    """The same model, decoded by us and by transformers."""
    return prepare(model, "float32") if request.param == "llama" else TransformersModel(model)


def run(runner: Runner) -> None:
    """To the end of all its rows."""
    while not runner.is_idle:
        runner.step()


def decode(
    weights: Llama | TransformersModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling] = GREEDY,
) -> list[list[Row]]:
    """The rows of each prompt, decoded together to their end."""
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    jobs = [a_job(*job) for job in zip(prompts, seeds, each, strict=False)]
    runner = runner_for(weights, END)
    for job in jobs:
        runner.add(job)
    run(runner)
    return [job.rows for job in jobs]


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


def test_greedy_alone_is_transformers_generate_token_for_token(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    for prompt in PROMPTS:
        [[row]] = decode(weights, [prompt], [[0]])
        assert row.token_ids == generated(model, prompt)


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (3, 1, 9, 2)])
def test_greedy_in_a_mixed_batch_is_transformers_generate(
    weights: Llama | TransformersModel, model: PreTrainedModel, counts: tuple[int, ...]
) -> None:
    rows = decode(weights, PROMPTS, [range(count) for count in counts])
    for prompt, group in zip(PROMPTS, rows, strict=True):
        assert [row.token_ids for row in group] == [generated(model, prompt)] * len(group)


def test_a_seed_is_a_reply_whatever_else_is_in_the_batch(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    wanted, other = Sampling(max_new_tokens=40), Sampling(temperature=1.5, top_p=0.7, max_new_tokens=5)
    [[alone]] = decode(weights, [PROMPTS[0]], [[7]], wanted)
    beside = decode(weights, PROMPTS[:3], [[1, 7], [2], [3, 4]], [wanted, GREEDY, other])
    last = decode(weights, PROMPTS[::-1], [[4], [3, 9], [1], [8, 7, 2]], wanted)
    assert beside[0][1].token_ids == last[3][1].token_ids == alone.token_ids


def test_other_seeds_are_other_replies(weights: Llama | TransformersModel, model: PreTrainedModel) -> None:
    [rows] = decode(weights, [PROMPTS[0]], [range(9)], Sampling(max_new_tokens=12))
    assert len({tuple(row.token_ids) for row in rows}) == 9


def test_a_row_ends_by_its_end_of_turn_or_its_length(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    [rows] = decode(weights, [PROMPTS[0]], [range(60)], Sampling(temperature=2, max_new_tokens=80))
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    for row in rows:
        assert (row.finish_reason == "stop") == (row.token_ids[-1] == END)
        assert END not in row.token_ids[:-1]
        assert row.finish_reason == "stop" or len(row.token_ids) == 80


def test_rows_of_a_batch_have_lengths_of_their_own(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    lengths = [1, 7, 3]
    each = [Sampling(temperature=0, max_new_tokens=length) for length in lengths]
    rows = decode(weights, PROMPTS[:3], [[0], [0], [0]], each)
    for prompt, [row], length in zip(PROMPTS, rows, lengths, strict=False):
        assert row.token_ids == generated(model, prompt)[:length]


def test_a_stop_from_outside_ends_a_row_and_spares_the_others(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    stopped, going = a_job(PROMPTS[0], [0], GREEDY), a_job(PROMPTS[1], [0], GREEDY)
    runner = runner_for(weights, END)
    runner.add(stopped)
    runner.add(going)
    for _ in range(5):
        runner.step()
    stopped.rows[0].finish_reason = "cancelled"
    run(runner)
    assert stopped.rows[0].token_ids == generated(model, PROMPTS[0])[:5]
    assert stopped.rows[0].finish_reason == "cancelled"
    assert going.rows[0].token_ids == generated(model, PROMPTS[1])


def test_a_stop_during_a_step_stands(weights: Llama | TransformersModel) -> None:
    job = a_job(PROMPTS[0], [0], Sampling(max_new_tokens=1))
    (row,) = job.rows
    uniform = row.uniform

    def stop_meanwhile() -> float:
        row.finish_reason = "cancelled"
        return uniform()

    row.uniform = stop_meanwhile
    runner = runner_for(weights, END)
    runner.add(job)
    runner.step()
    assert (row.finish_reason, row.token_ids, runner.is_idle) == ("cancelled", [], True)


def test_a_row_stopped_before_the_first_step_writes_nothing(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    job, never = a_job(PROMPTS[0], [0, 0], GREEDY), a_job(PROMPTS[1], [0], GREEDY)
    stopped, going = job.rows
    stopped.finish_reason = never.rows[0].finish_reason = "cancelled"
    runner = runner_for(weights, END)
    runner.add(never)
    runner.add(job)
    run(runner)
    assert stopped.token_ids == never.rows[0].token_ids == []
    assert going.token_ids == generated(model, PROMPTS[0])


def test_the_log_probabilities_of_a_reply_are_what_reading_it_again_gives(
    weights: Llama | TransformersModel,
) -> None:
    [[row]] = decode(weights, [PROMPTS[1]], [[5]], Sampling(temperature=1.3, top_p=0.9, max_new_tokens=30))
    again = weights.logprobs([*PROMPTS[1], *row.token_ids], len(PROMPTS[1]))
    assert row.logprobs == pytest.approx(again.tolist(), abs=1e-4)


def test_a_prompt_longer_than_a_piece_is_read_beside_rows_that_go_on(
    weights: Llama | TransformersModel, model: PreTrainedModel
) -> None:
    long = [1 + i % 250 for i in range(300)]
    early, late = a_job(PROMPTS[0], [0], GREEDY), a_job(long, [0, 0], GREEDY)
    runner = runner_for(weights, END)
    runner.add(early)
    runner.step()
    runner.add(late)
    runner.step()
    assert len(early.rows[0].token_ids) == 2
    run(runner)
    assert early.rows[0].token_ids == generated(model, PROMPTS[0])
    assert [row.token_ids for row in late.rows] == [generated(model, long)] * 2


def test_a_crowd_that_has_just_come_is_read_faster(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    forward = Llama.forward

    def noted(
        self: Llama, shelves: Shelves, tokens: dict[Place, int], pieces: Sequence[Piece]
    ) -> torch.Tensor:
        read.append(sum(len(piece.token_ids) for piece in pieces))
        return forward(self, shelves, tokens, pieces)

    monkeypatch.setattr(Llama, "forward", noted)
    long = [1 + i % 250 for i in range(600)]
    runner = runner_for(prepare(model, "float32"), END)
    for seeds in ([], [0], [0, 1], range(9)):
        runner.add(a_job(long if seeds else PROMPTS[0], seeds or [0], GREEDY))
        runner.step()
    assert read == [4, PIECE, 3 * PIECE, MOST_PIECES * PIECE]


def test_a_prompt_is_read_in_pieces_where_rows_of_another_version_wait_beside_it(
    model: PreTrainedModel,
) -> None:
    runner = LlamaRunner(Llama(model, "float32"), END)
    runner.add(a_job([1 + i % 250 for i in range(500)], [0], GREEDY))
    assert [len(piece.token_ids) for piece in runner._next_pieces(under_way=1)] == [PIECE]
    runner.step(beside=1)
    assert [p.place.length for p in runner._prefilling] == [PIECE] and runner.under_way == 0
    runner.step()
    assert runner.under_way == 1  # alone the rest is read at once, and its row has its first token


def test_a_gpu_reads_longer_pieces(model: PreTrainedModel) -> None:
    llama = Llama(model, "float32")
    llama.context, llama.device = 9000, torch.device("meta")  # no memory, and nothing is computed
    runner = LlamaRunner(llama, END)
    runner.add(a_job([1] * 5000, [0], GREEDY))
    assert [len(piece.token_ids) for piece in runner._next_pieces(0)] == [ON_GPU * ALONE]
    runner._begin(runner._prefilling[0])
    runner.add(a_job([1] * 5000, [0], GREEDY))
    assert [len(piece.token_ids) for piece in runner._next_pieces(1)] == [ON_GPU * PIECE]


def test_an_urgent_prompt_overtakes_those_that_came_first_and_they_go_on_where_they_were(
    model: PreTrainedModel,
) -> None:
    long = [1 + i % 250 for i in range(900)]
    going, urgent = (a_job(prompt, [0], GREEDY) for prompt in PROMPTS[:2])
    crowd = [a_job(long, [0, 0], GREEDY) for _ in range(6)]
    runner = runner_for(prepare(model, "float32"), END)
    runner.add(going)
    runner.step()
    for job in crowd:
        runner.add(job, priority=1)
    runner.step()
    runner.add(urgent)
    runner.step()
    assert [len(job.rows[0].token_ids) for job in (going, urgent, *crowd)] == [3, 1] + [0] * 6
    run(runner)
    assert urgent.rows[0].token_ids == generated(model, urgent.prompt)
    assert [row.token_ids for job in crowd for row in job.rows] == [generated(model, long)] * 12


@pytest.mark.parametrize("seed", range(20))
def test_whoever_joins_and_leaves_when_writes_what_they_write_alone(tiny_base: Base, seed: int) -> None:
    check_schedules(tiny_base, range(seed * 5, seed * 5 + 5))


@pytest.mark.slow
def test_five_hundred_schedules_of_joining_and_leaving(tiny_base: Base) -> None:
    check_schedules(tiny_base, range(100, 600))


def check_schedules(base: Base, seeds: range) -> None:
    """Jobs of random prompts, widths, lengths and temperatures, begun and stopped at random steps."""
    model = merged_model(base, None, device=torch.device("cpu"), dtype=torch.float32)
    weights = prepare(model, "float32")
    for seed in seeds:
        dice = random.Random(seed)
        runner, jobs = runner_for(weights, END, prefixes=Prefixes(2**16)), []
        for _ in range(dice.randint(2, 7)):
            prompt = [dice.randrange(3, 259) for _ in range(int(dice.choice([1, 5, 40, 130, 200])))]
            if jobs and dice.random() < 0.3:  # the next turn of an earlier one
                prompt = [*jobs[-1].prompt, *jobs[-1].rows[0].token_ids, *prompt[:20]]
            sampling = Sampling(dice.choice([0.0, 0.7, 1.2]), 1.0, dice.randint(1, 40))
            jobs.append(a_job(prompt, [dice.getrandbits(31) for _ in range(dice.randint(1, 4))], sampling))
            runner.add(jobs[-1], priority=len(jobs) % 3)
            for _ in range(dice.randint(0, 20)):
                runner.step()
            if dice.random() < 0.2:
                dice.choice(dice.choice(jobs).rows).finish_reason = "cancelled"
        run(runner)
        for job in jobs:
            for row in job.rows:
                [[alone]] = decode(weights, [job.prompt], [[row.seed]], job.sampling)
                assert_same(weights, job, row, alone)


def assert_same(weights: Llama | TransformersModel, job: PlainJob, row: Row, alone: Row) -> None:
    """Token for token, as far as `row` came; or first differing where rounding decides between two tokens."""
    assert isinstance(weights, Llama)
    pairs = enumerate(zip(row.token_ids, alone.token_ids, strict=False))
    differing = next((i for i, (ours, theirs) in pairs if ours != theirs), None)
    if differing is None:
        assert len(row.token_ids) == len(alone.token_ids) or row.finish_reason == "cancelled"
        return
    before = [*job.prompt, *row.token_ids[:differing]]
    shelves = weights.shelves()
    [logits] = weights.forward(shelves, {}, [Piece(shelves.take(len(before)), before)])
    if job.sampling.temperature == 0:
        two = logits.topk(2).values
        assert float(two[0] - two[1]) < 1e-3
    else:
        bounds = torch.softmax(logits / job.sampling.temperature, -1).double().cumsum(-1)
        again = random.Random(row.seed)
        uniform = [again.random() for _ in range(differing + 1)][-1]
        assert float((bounds / bounds[-1] - uniform).abs().min()) < 1e-5
