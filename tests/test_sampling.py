"""Drawing a token: it follows the distribution, temperature and nucleus; what cannot occur never does."""

import pytest
import torch

from chatbot.sampling import Row, _nucleus, draw, sample
from data.records import Sampling


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


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_p", [1e-44, 1e-46, 5e-324])
def test_the_likeliest_token_stays_however_small_the_nucleus(top_p: float, temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    uniforms = torch.tensor([0.999], dtype=torch.float64)
    assert sample(logits, [Sampling(temperature, top_p)], uniforms) == [1]


@pytest.mark.parametrize("spreads", [(9.0,), (0.5,), (9.0, 0.5, 2.0, 9.0)])
def test_a_nucleus_is_that_of_the_whole_vocabulary_however_wide_it_is(spreads: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(len(spreads), 20_000) * torch.tensor(spreads)[:, None]
    top_p, probabilities = torch.full((len(spreads),), 0.9), torch.softmax(logits, -1)
    kept = _nucleus(probabilities, top_p)
    for row, (mine, all_of_it) in enumerate(zip(kept, probabilities, strict=True)):
        chosen = mine > 0
        assert torch.equal(mine[chosen], all_of_it[chosen])
        assert float(mine.double().sum()) >= 0.9 - 1e-5
        assert float(mine.double().sum() - mine[chosen].min()) < 0.9 + 1e-5, (
            "without the last it is not reached"
        )
        assert all_of_it[~chosen].max() <= mine[chosen].min()
        assert torch.equal(_nucleus(probabilities[row : row + 1], top_p[:1])[0], mine), "whoever is beside it"


@pytest.mark.parametrize("nuclei", [[1.0, 1.0, 1.0], [1.0, 0.9, 1.0], [0.5, 1.0, 0.2]])
def test_a_row_without_a_nucleus_is_drawn_as_it_would_be_alone(nuclei: list[float]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 3)
    uniforms = torch.full((3,), 0.001, dtype=torch.float64)
    drawn = sample(logits, [Sampling(temperature=1, top_p=p) for p in nuclei], uniforms)
    assert drawn == [{1.0: 0, 0.9: 1, 0.5: 3, 0.2: 3}[p] for p in nuclei]


def test_the_ends_of_the_uniform_draw_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits, [Sampling()] * 2, uniforms) == [1, 2]


def test_logits_that_are_not_finite_are_an_error_not_a_reply() -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0]])
    with pytest.raises(AssertionError, match="not finite"):
        sample(logits, [Sampling()], torch.tensor([0.5], dtype=torch.float64))


def test_a_model_that_another_thread_loads_changes_no_draw() -> None:
    """While transformers loads one in bfloat16, that is what torch makes of plain numbers in all threads."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 20, generator=generator)
    uniforms = torch.rand(20_000, generator=generator, dtype=torch.float64)
    settings = [Sampling(temperature=0.7, top_p=0.95)] * 20_000
    wanted = sample(logits, settings, uniforms)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = sample(logits, settings, uniforms)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == wanted


def test_a_seed_below_zero_is_a_seed_of_its_own() -> None:
    below, above = Row(-1).uniform(), Row(1).uniform()
    assert below != above and below == Row(2**63 - 1).uniform()  # what vLLM is sent


def test_the_log_probability_of_a_token_is_the_model_s_own_at_any_temperature() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [Row(seed) for seed in range(3)]
    settings = [Sampling(temperature=0), Sampling(temperature=0.5), Sampling(temperature=2, top_p=0.5)]
    tokens = draw(logits, rows, settings, end_of_turn=-1)
    wanted = torch.log_softmax(logits, -1)[range(3), tokens].tolist()
    assert [row.logprobs[0] for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert [row.token_ids for row in rows] == [[token] for token in tokens]
