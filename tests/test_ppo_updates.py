"""trainer/ppo.py: whole updates of a real policy, against a slow one in float64 and by what they do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import trainer.ppo
import trainer.rollout
from chatbot.basemodel import Base, load_base
from chatbot.policy import Policy
from data.home import Home
from data.records import Sampling
from tests.learners import a_config, a_learner, a_run, a_task, shake, some_replies
from tests.plain_ppo import (
    PlainModel,
    plain_episodes,
    plain_first_adam_step,
    plain_losses,
    plain_ptx,
)
from tests.tiny import make_tiny_model
from trainer.checkpoint import PPOState
from trainer.endings import Endings
from trainer.forward import PRIOR_TOKENS, TOKENS_PER_PASS, Reply
from trainer.guards import Guards
from trainer.members import pessimistic
from trainer.ppo import (
    adapt_beta,
    apply_eos_rule,
    begin,
    gae,
    take_step,
    token_rewards,
    whiten,
)
from trainer.rollout import Batch, Rollout, Task, measure_replies


def begun(policy: Policy, **changes: Any) -> tuple[PPOState, Task]:
    task = a_task(policy, a_config(**changes))
    return begin(policy, task, 0.0), task


def measured(policy: Policy, task: Task, replies: list[Reply]) -> Rollout:
    return measure_replies(policy, replies, temperature=task.config.temperature, roles=task.roles)


def prepared(rollout: Rollout, task: Task) -> Batch:
    """Whitened advantages and returns, as the loop makes them."""
    config = task.config
    score, _ = pessimistic(rollout.scores, config.pessimism)
    score = apply_eos_rule(score, rollout.finished, task.endings)
    rewards = token_rewards(rollout.logprob, rollout.ref_logprob, score, rollout.mask, config.beta)
    advantages, returns = gae(rewards, rollout.value, rollout.mask, config.gamma, config.lam)
    return Batch(rollout, whiten(advantages, rollout.mask), returns)


def test_the_value_head_starts_as_the_normalised_reward(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.heads["reward-0"].mean.fill_(0.7)
    policy.heads["reward-0"].std.fill_(2.5)
    _, task = begun(policy)
    hidden = torch.randn(5, policy.hidden_size)
    torch.testing.assert_close(policy.heads["value"](hidden), policy.heads["reward-0"](hidden))
    assert float(policy.heads["value"].std) == 1 and float(policy.heads["value"].mean) == 0
    rollout = measured(policy, task, [Reply([1, 5], [6], False)])
    alone = measured(policy, task, [Reply([1], [5], False)])
    foreseen = float(alone.scores[0, 0]) / (1 + PRIOR_TOKENS)
    assert float(rollout.value[0, 0]) == pytest.approx(foreseen, abs=1e-5)


def test_the_first_inner_step_has_ratio_1(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    state, task = begun(policy, ppo_lr=1e-12)
    batch = prepared(measured(policy, task, some_replies()), task)
    for rows in ([0, 3], [1, 2, 4]):
        stats = take_step(state, task, batch, rows, [])
        assert abs(stats["ratio_mean"] - 1) < 1e-3 and abs(stats["ratio_max"] - 1) < 1e-3
        assert stats["clip_fraction"] == 0


def plain(policy: Policy, name: str, head: str | None = None) -> PlainModel:
    return PlainModel(policy.base, policy.state(name), policy.heads[head].state_dict() if head else None)


@pytest.mark.parametrize("ptx", [0.0, 0.7], ids=["without ptx", "with ptx"])
def test_one_whole_update_equals_a_slow_one_in_float64(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, ptx: float
) -> None:
    """From replies to moved weights, policy and value, with ratios away from 1 and some of them clipped.

    With a pessimistic ensemble, a reference adapter, the EOS rule, and small passes that add up to a step.
    """
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 24)
    policy = a_learner(tiny_base)
    policy.heads["reward-0"].std.fill_(0.5)
    policy.heads["reward-0"].usual_length.fill_(1.2)
    with torch.no_grad():
        policy.heads["reward-0"].length.fill_(-0.3)
    policy.copy("policy", "reference")
    shake(policy, "reference", 0.02, seed=19)
    replies, examples = some_replies(), some_replies()[:3]
    config = a_config(ppo_lr=1e-3, value_coefficient=0.5, pessimism=0.6, ptx=ptx)
    task = a_task(policy, config, reference="reference", endings=Endings(0.9))
    reference, was = plain(policy, "reference"), plain(policy, "policy")
    rewards = [plain(policy, name, name) for name in ("reward-0", "reward-1")]

    state = begin(policy, task, 0.0)
    batch = prepared(measured(policy, task, replies), task)
    shake(policy, "policy", 0.01, seed=20)  # as if some steps had gone before
    shake(policy, "value", 0.03, seed=21)
    now, value = plain(policy, "policy"), plain(policy, "value", "value")
    stats = take_step(state, task, batch, list(range(len(replies))), examples if ptx else [])

    episodes = plain_episodes(
        replies, was, reference, rewards,
        pessimism=config.pessimism, punish_cut=True,
        beta=config.beta, lam=config.lam, temperature=config.temperature,
    )  # fmt: skip
    policy_slow, value_slow = plain_losses(episodes, now, value, clip=0.2, temperature=config.temperature)
    ptx_slow = plain_ptx([(r.prompt, r.reply) for r in examples], now)
    (policy_slow + config.value_coefficient * value_slow + ptx * ptx_slow).backward()
    assert 0 < stats["clip_fraction"] < 1
    assert stats["policy_loss"] == pytest.approx(policy_slow.item(), abs=1e-4)
    assert stats["value_loss"] == pytest.approx(value_slow.item(), rel=1e-3)
    if ptx:
        assert stats["ptx_loss"] == pytest.approx(ptx_slow.item(), rel=1e-4)
    for name, model in (("policy", now), ("value", value)):
        leaves = [
            *model.tensors.values(),
            *(model.head[k] for k in ("weight", "bias", "length") if model.head),
        ]
        norm = plain_first_adam_step(leaves, config.ppo_lr)
        if name == "value" or not ptx:  # with ptx the two norms of the policy are logged apart
            assert stats[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-3)
        for key, tensor in policy.state(name).items():
            assert (tensor - model.tensors[key]).abs().max() < 0.02 * config.ppo_lr, key


def test_returns_are_made_before_whitening(tiny_base: Base) -> None:
    """The value learns towards returns in the units of the score: a constant score of 5 is a return of 5."""
    policy = a_learner(tiny_base)
    _, task = begun(policy, beta=0.0, lam=1.0)
    rollout = measured(policy, task, some_replies())
    rollout = replace(rollout, scores=torch.full((2, 5), 5.0), value=torch.zeros_like(rollout.value))
    assert prepared(rollout, task).returns[rollout.mask].unique().tolist() == [5.0]


def test_nothing_but_policy_and_value_moves(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("policy", "reference")
    roles = ("reward-0", "reward-1", "judge", "reference")
    before = {name: policy.keep(name) for name in (*roles, "policy")}
    heads = {n: {k: t.clone() for k, t in h.state_dict().items()} for n, h in policy.heads.items()}
    base = {n: p.clone() for n, p in policy._plain.named_parameters() if "lora_" not in n}
    moved: list[bool] = []

    def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
        moved.append(any(not torch.equal(t, before["policy"][k]) for k, t in policy.state("policy").items()))

    a_run(policy, a_config(updates=2, ppo_lr=1e-2), reference="reference", start="start", tell=tell)
    assert all(moved)
    for name in roles:
        assert all(torch.equal(t, before[name][k]) for k, t in policy.state(name).items()), name
    for name, head in heads.items():
        assert all(torch.equal(t, head[k]) for k, t in policy.heads[name].state_dict().items()), name
    for n, p in policy._plain.named_parameters():
        assert "lora_" in n or torch.equal(p, base[n]), n
    assert policy.adapters == ["policy", "reward-0", "reward-1", "judge", "reference"]


def test_a_run_logs_what_the_night_is_judged_by(tiny_base: Base) -> None:
    policy, heard = a_learner(tiny_base, size=0.0), []
    result = a_run(
        policy, a_config(updates=2), tell=lambda update, done, metrics: heard.append((update, done))
    )
    assert heard == [(0, 0.5), (1, 1.0), (2, 1.0)]
    assert (result.updates, result.stopped, len(result.history)) == (2, None, 3)
    first = result.history[0]
    assert abs(first["kl"]) < 1e-4 and abs(first["start_kl"]) < 1e-4
    assert first["first_ratio_error"] < 1e-3
    logged = """score score_std disagreement judge beta total_reward kl kl_per_token start_kl entropy eos_rate
        length distinct_2 reward_length_correlation ratio_mean ratio_max approx_kl clip_fraction
        value_clip_fraction explained_variance advantage_mean advantage_std grad_norm_policy grad_norm_value
        learning_rate policy_loss value_loss sampler_gap seconds_sampling seconds_measuring
        seconds_training"""
    assert set(logged.split()) <= set(first)
    assert list(result.samples) == [0]
    assert set(result.samples[0][0]) == {"prompt", "reply", "score", "judge"}


def test_a_run_that_a_guard_stops_goes_back_to_the_best_checkpoint(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    before = policy.keep("policy")
    result = a_run(policy, a_config(updates=6, ppo_lr=1e-3, inner_epochs=2, max_kl=0.001), start="start")
    assert result.stopped is not None and "nats a reply from where it started" in result.stopped
    assert result.best_update == 0 < result.updates < 6
    assert all(torch.equal(tensor, before[key]) for key, tensor in policy.state("policy").items())


def test_a_checkpoint_too_far_from_the_start_is_never_the_best(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Guards, "check_rollout", lambda guards, metrics: guards.__dict__.update(liked=metrics)
    )
    monkeypatch.setattr(
        Guards, "judge", property(lambda guards: guards.liked["start_kl"])
    )  # the further the better
    monkeypatch.setattr(Guards, "keeps_endings", True)
    monkeypatch.setattr(Guards, "more_endings", 0.0)
    policy = a_learner(tiny_base)
    result = a_run(policy, a_config(updates=3, ppo_lr=1e-2, max_kl=0.01), start="start")
    assert max(metrics["start_kl"] for metrics in result.history[1:]) > 0.01
    assert result.history[result.best_update]["start_kl"] <= 0.01


@pytest.mark.parametrize("keeps, best", [(True, 3), (False, 0)])
def test_a_checkpoint_that_ends_fewer_replies_than_the_gate_allows_is_never_the_best(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, keeps: bool, best: int
) -> None:
    seen = property(lambda guards: keeps or guards._seen.batches == 1)
    monkeypatch.setattr(Guards, "keeps_endings", seen)
    monkeypatch.setattr(Guards, "judge", property(lambda guards: float(guards._seen.batches)))  # ever better
    assert a_run(a_learner(tiny_base), a_config(updates=3)).best_update == best


def test_how_far_an_update_went_is_read_off_its_last_inner_epoch(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, float]] = []

    def noted(*given: Any) -> dict[str, float]:
        steps.append(take_step(*given))
        return steps[-1]

    monkeypatch.setattr(trainer.ppo, "take_step", noted)
    result = a_run(a_learner(tiny_base), a_config(minibatch=2, inner_epochs=3, ppo_lr=1e-2))
    each = len(steps) // 3
    for name in ("approx_kl", "clip_fraction"):
        assert result.history[0][name] == pytest.approx(sum(s[name] for s in steps[-each:]) / each)
    assert result.history[0]["approx_kl"] > sum(s["approx_kl"] for s in steps) / len(steps) > 0
    losses = [step["policy_loss"] for step in steps]
    assert result.history[0]["policy_loss"] == pytest.approx(sum(losses) / len(losses))


def test_the_learning_rate_rises_over_the_first_updates(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []

    def noted(state: PPOState, *rest: Any) -> dict[str, float]:
        used.extend(group["lr"] for group in state.optimiser.param_groups)
        return take_step(state, *rest)

    monkeypatch.setattr(trainer.ppo, "take_step", noted)
    result = a_run(a_learner(tiny_base), a_config(updates=3, warmup_updates=2, ppo_lr=1e-4))
    assert used == pytest.approx([5e-5, 1e-4, 1e-4])
    assert [m["learning_rate"] for m in result.history[:-1]] == used


def test_a_weight_that_no_loss_pulls_on_stays(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    state, _ = begun(policy, ppo_lr=0.1)
    before = policy.keep("policy")
    for parameter in policy.parameters("policy"):
        parameter.grad = torch.zeros_like(parameter)
    state.optimiser.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in policy.state("policy").items())


def test_beta_follows_the_kl_that_is_wanted_and_weighs_the_next_update(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []

    def noted(*given: Any) -> Tensor:
        used.append(given[-1])
        return token_rewards(*given)

    monkeypatch.setattr(trainer.ppo, "token_rewards", noted)
    config = a_config(updates=3, beta=0.1, target_kl=0.5)
    history = a_run(a_learner(tiny_base), config).history
    wanted = [config.beta]
    for metrics in history[:-1]:
        wanted.append(adapt_beta(wanted[-1], metrics["kl"], config.target_kl))
    assert [metrics["beta"] for metrics in history] == pytest.approx(wanted)
    assert used == pytest.approx(wanted[:-1]) and used[0] != used[1] != used[2]


def test_steps_see_whitened_advantages_and_plain_returns(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Task, Batch]] = []

    def step_and_note(state: PPOState, task: Task, batch: Batch, *rest: Any) -> dict[str, float]:
        seen.append((task, batch))
        return take_step(state, task, batch, *rest)

    monkeypatch.setattr(trainer.ppo, "take_step", step_and_note)
    a_run(a_learner(tiny_base), a_config(minibatch=2))
    for task, batch in seen:
        real = batch.advantages[batch.rollout.mask]
        assert float(real.mean()) == pytest.approx(0, abs=1e-5)
        assert float(real.std(correction=0)) == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(batch.returns, prepared(batch.rollout, task).returns)


def test_the_moving_average_is_what_is_kept(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bias-corrected: after three updates at decay 0.5 the weights are 1/7, 2/7 and 4/7."""
    policy, passed = a_learner(tiny_base), list[dict[str, Tensor]]()
    rising = iter(range(9))
    monkeypatch.setattr(Guards, "judge", property(lambda guards: next(rising)))
    result = a_run(
        policy,
        a_config(updates=3, ppo_lr=1e-2, ema=0.5),
        tell=lambda update, fraction, metrics: passed.append(policy.keep("policy")),
    )
    assert result.best_update == 3
    for key, kept in policy.state("policy").items():
        mean = (passed[0][key] + 2 * passed[1][key] + 4 * passed[2][key]) / 7
        torch.testing.assert_close(kept, mean)


def test_a_run_far_from_its_reference_says_so(tiny_base: Base) -> None:
    policy = a_learner(tiny_base, size=0.5)  # as different from the base as many nights would make it
    result = a_run(policy, a_config(), tokens=24, start="start")
    assert result.history[0]["kl"] > 30 > result.history[0]["start_kl"]
    assert (
        "nats a reply from the reference, past 30 - run trainer sft and publish it, or roll back."
        in result.notes[-1]
    )


def test_rollouts_at_another_temperature_than_the_losses_are_our_mistake(tiny_base: Base) -> None:
    with pytest.raises(AssertionError, match="rollouts off the policy"):
        a_run(a_learner(tiny_base), a_config(), sampling=Sampling(0.5))


@pytest.mark.parametrize("finish_rate, gets, loses", [(0.9, 0.0, 1.0), (0.5, 0.5, 0.0), (0.0, 0.0, 0.0)])
def test_the_eos_rule_knows_the_template_s_end_of_turn_and_who_pays_when(
    home: Home, finish_rate: float, gets: float, loses: float
) -> None:
    """With a tokenizer whose eos is another token; cut replies lose only where the reference finishes."""
    base = load_base(str(make_tiny_model(home.root / "other", eos="<|endoftext|>")), home, lambda text: None)
    assert base.tokenizer.eos_token_id != base.format.end_of_turn
    policy = a_learner(base, size=0.0)
    for name in ("reward-0", "reward-1"):
        policy.heads[name].weight.data.zero_()  # nothing counts but the rule
    config = a_config(prompts_per_update=32, seed=3)
    result = a_run(policy, config, tokens=24, endings=Endings(finish_rate))
    first, replies = result.history[0], result.samples[0]
    assert 0 < first["eos_rate"] < 1
    assert all((s["reply"][-1] == base.format.end_of_turn) or len(s["reply"]) == 24 for s in replies)
    ended = first["eos_rate"]
    assert first["total_reward"] == pytest.approx(gets * ended - loses * (1 - ended), abs=1e-5)
    assert any(f"one that ends gets {gets:.2f} more" in note for note in result.notes) == (finish_rate < 0.8)


def test_what_is_paid_for_ending_follows_the_policys_own_replies(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[bool], list[float], Endings]] = []

    def noted(score: torch.Tensor, finished: torch.Tensor, endings: Endings) -> torch.Tensor:
        seen.append((finished.tolist(), score.tolist(), endings))
        return apply_eos_rule(score, finished, endings)

    monkeypatch.setattr(trainer.ppo, "apply_eos_rule", noted)
    known = Endings(0.4, 64, difference=0.5, weight=8.0)
    config = a_config(prompts_per_update=32, updates=2, seed=3)
    watch = Guards(config, 0.0, known)
    result = a_run(a_learner(tiny_base), config, tokens=24, endings=known)
    for metrics, (finished, scores, endings) in zip(result.history, seen, strict=False):
        assert len(set(finished)) == 2
        watch.check_rollout(metrics)
        known = known.after(finished, scores, watch.more_endings)
        assert endings == known
    gains = [metrics["cut_gain"] for metrics in result.history[:2]]
    assert gains == [endings.cut_gain for _, _, endings in seen] and gains[0] != gains[1] > 0
    assert f"gets 0.40 more, in the end {gains[1]:.2f} besides" in result.notes[0]


def test_without_a_penalty_the_score_is_paid_and_the_judge_s_favourite_is_kept(
    tiny_base: Base,
) -> None:
    result = a_run(a_learner(tiny_base), a_config(updates=3, beta=0.0))
    first = result.history[0]
    assert first["total_reward"] == pytest.approx(first["score"], abs=1e-5)
    smooth = [result.history[0]["judge"]]
    for metrics in result.history[1:]:
        smooth.append(0.6 * smooth[-1] + 0.4 * metrics["judge"])
    assert result.best_update == smooth.index(max(smooth))


@pytest.mark.parametrize("reference", [None, "anchor"])
def test_the_penalty_pulls_towards_the_reference_wherever_the_run_began(
    tiny_base: Base, reference: str | None
) -> None:
    policy = a_learner(tiny_base, size=0.3)
    if reference:
        policy.add(reference, seed=5, rank=4)
        shake(policy, reference, 0.3, seed=5)
    run = a_run(policy, a_config(beta=0.1), reference=reference, start="start")
    first = run.history[0]
    assert first["eos_rate"] == 0 and first["start_kl"] == pytest.approx(0, abs=1e-5)
    assert abs(first["kl"]) > 0.05
    assert first["total_reward"] == pytest.approx(first["score"] - 0.1 * first["kl"], abs=1e-4)
