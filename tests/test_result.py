"""trainer/result.py: what an operator is told of a finished run."""

from trainer.endings import Endings
from trainer.result import PolicyResult, notes_on


def a_result(kl: float) -> PolicyResult:
    """Its second update is the best one, and lies `kl` nats a reply from the reference."""
    return PolicyResult(best_update=1, updates=2, history=[{"kl": 0.0}, {"kl": kl}, {"kl": 99.0}])


def test_a_policy_near_the_reference_that_ends_its_replies_needs_no_note() -> None:
    assert notes_on(a_result(30.0), Endings(rate=0.8)) == []


def test_of_one_far_away_the_operator_hears_how_far_and_what_to_do() -> None:
    (note,) = notes_on(a_result(31.0), Endings(rate=1.0))
    assert note == (
        "The policy is 31 nats a reply from the reference, past 30 - run trainer sft and publish it, or roll "
        "back."
    )


def test_where_the_reference_is_often_cut_the_operator_hears_what_ending_is_paid_with() -> None:
    usual, more = (notes_on(a_result(0.0), Endings(rate=0.4, at_first=gain)) for gain in (0.0, 0.25))
    assert usual[0].endswith("ends 40% of its replies within the limit: one that ends gets 0.40 more.")
    assert more[0].endswith("gets 0.40 more, in the end 0.25 besides for what being cut gains.")
