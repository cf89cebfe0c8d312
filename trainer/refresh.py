"""A whole night, top to bottom: rankings in, a version out, or a sentence that says why not.

    python -m trainer refresh

`refresh` is the story; each of its calls is a stage with a file of its own. Nothing here touches the server:
the only thing it sees of a night is the row that says which version serves.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from data import runs, versions
from data.comparisons import Snapshot, read_snapshot, take_snapshot, write_snapshot
from data.database import Database
from data.errors import Problem, Refused
from data.home import Home
from data.records import BASE_VERSION, Run, RunState
from trainer import reward
from trainer.canary import canaries
from trainer.config import RefreshConfig
from trainer.gate import Verdict, judge_candidate
from trainer.night import Night, begin, write_report
from trainer.ppo import PPOResult, train_ppo
from trainer.practice import judging, practice, reference_prompts
from trainer.progress import Cancelled, Progress
from trainer.publish import publish_candidate
from trainer.rollout import Reply, hash_seed, sample_replies


class NothingToLearn(Problem):
    """Too few rankings, or none that prefers anything. The run is recorded; what serves stays."""

    exit_code = 3


_ENDS: dict[type[BaseException], RunState] = {
    NothingToLearn: "nothing_to_learn",
    Cancelled: "cancelled",
    KeyboardInterrupt: "interrupted",
}


def refresh(
    db: Database,
    home: Home,
    base: Base,
    config: RefreshConfig,
    run: Run,
    *,
    quiet: bool = False,
    score_sign: float = 1.0,
) -> Run:
    """Learn from the rankings and, where the gate agrees, let the new version serve.

    `run` is claimed by the caller; it is finished here whatever happens. Raises NothingToLearn, Cancelled
    and what else went wrong after recording it; a refusal by the gate is a normal return. `score_sign` -1
    trains a policy that is worse on purpose, for tests of the gate.
    """
    try:
        with Progress(db, run, quiet=quiet) as progress:
            night = begin(db, home, base, config, run, progress)
            snapshot = _freeze_snapshot(night)
            policy = Policy(base, device=pick_device(), dtype=pick_dtype(config.precision, pick_device()))
            merged = merged_model(
                base, None, device=policy.device, dtype=pick_dtype(config.precision, policy.device)
            )
            reference = _sample_reference(night, merged)
            reports = _fit_rewards(night, policy, snapshot, reference)
            result = _improve_policy(night, policy, merged, snapshot, reference, score_sign)
            if result.best_update == 0:
                return _nothing_better(night, result)
            verdict = _judge(night, policy, merged, snapshot, reports["judge"])
            report = write_report(night, snapshot, reports, result, verdict)
            return _publish(night, policy, snapshot, verdict, report)
    except BaseException as error:
        state: RunState = _ENDS.get(type(error), "failed")
        with suppress(Refused):  # the lease was lost: whoever holds it now has written this run off
            runs.finish(db, run.id, run.fencing_token, state=state, reason=str(error) or type(error).__name__)
        raise


def _freeze_snapshot(night: Night) -> Snapshot:
    """What this night learns from: taken once, written down, hashed. Later rankings wait for another."""
    night.progress.enter("snapshot", "Reading the rankings.")
    turns = take_snapshot(night.db).turns[-night.config.max_rankings :]
    if len(turns) < night.config.min_rankings:
        counted = f"{len(turns)} ranking{'s' if len(turns) != 1 else ''}"
        raise NothingToLearn(
            f"There {'is' if len(turns) == 1 else 'are'} {counted} to learn from and a night needs "
            f"{night.config.min_rankings} - rank more replies, or lower --min-rankings."
        )
    for part, who in (("A", "the reward model"), ("B", "the judge")):
        if not any(q != 0.5 for t in turns if t.part == part for _, _, q in t.pairs()):
            raise NothingToLearn(
                f"None of the {len(turns)} rankings lets {who} prefer one reply over another - "
                "rank replies in more conversations."
            )
    night.folder.mkdir(parents=True, exist_ok=True)
    write_snapshot(Snapshot(turns, ""), night.folder / "snapshot.jsonl")
    snapshot = read_snapshot(night.folder / "snapshot.jsonl")  # exactly what the hash stands for
    runs.set_snapshot(night.db, night.run.id, snapshot)
    return snapshot


def _sample_reference(night: Night, merged: PreTrainedModel) -> list[Reply]:
    """Replies of the base to practice prompts: the zero of every score, and how often it ends a reply."""
    night.progress.enter("reference", "Sampling replies of the reference.")
    return sample_replies(
        merged,
        reference_prompts(night.base, night.config),
        sampling=night.sampling,
        end_of_turn=night.base.format.end_of_turn,
        seed=hash_seed(night.config.seed, 77),
        tell=lambda fraction: night.progress.tell(fraction, "Sampling replies of the reference."),
    )


def _fit_rewards(
    night: Night, policy: Policy, snapshot: Snapshot, reference: list[Reply]
) -> dict[str, dict[str, Any]]:
    """The reward model from part A and the judge from part B, each examined on the other's part."""
    reports = {}
    parts = {part: [t for t in snapshot.turns if t.part == part] for part in "AB"}
    for name, own, other in (("reward", "A", "B"), ("judge", "B", "A")):
        message = f"Training the {name} {'model ' if name == 'reward' else ''}on {len(parts[own])} rankings."
        night.progress.enter(name, message)
        seed = night.config.seed + (own == "B")
        reward.train_reward(
            policy, name, parts[own], night.config, seed=seed, tell=_teller(night, message, 0.85)
        )
        reward.normalise(policy, name, reference)
        reports[name] = reward.evaluate(policy, name, parts[other], seed=seed)
        night.progress.log(0, {f"held_out_{k}": v for k, v in reports[name].items() if isinstance(v, float)})
        policy.save(name, night.folder / name)
    return reports


def _teller(night: Night, message: str, scale: float = 1.0) -> Callable[[int, float, dict[str, float]], None]:
    def tell(step: int, fraction: float, metrics: dict[str, float]) -> None:
        night.progress.log(step, metrics)
        night.progress.tell(fraction * scale, message)

    return tell


def _improve_policy(
    night: Night,
    policy: Policy,
    merged: PreTrainedModel,
    snapshot: Snapshot,
    reference: list[Reply],
    score_sign: float,
) -> PPOResult:
    """PPO from what serves, against the reward model, within reach of the base."""
    night.progress.enter("ppo", "Improving the policy with PPO.")
    if night.parent == BASE_VERSION:
        policy.add("policy", seed=night.config.seed, rank=night.config.rank)
    else:
        policy.load("policy", night.home.adapters / versions.get(night.db, night.parent).path)

    def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
        night.progress.log(update, metrics)
        message = (
            f"PPO update {update + 1} of {night.config.updates}: score {metrics['score']:+.2f}, judge "
            f"{metrics['judge']:+.2f}, KL {metrics['kl']:.1f}, {metrics['length']:.0f} tokens."
        )
        night.progress.tell(fraction, message)

    return train_ppo(
        policy,
        merged,
        practice(night.db, night.base, night.config, snapshot.turns),
        night.config,
        sampling=night.sampling,
        reference_finish_rate=sum(r.finished for r in reference) / len(reference),
        starts_at_base=night.parent == BASE_VERSION,
        winners_direction=reward.winners_direction(snapshot.turns),
        tell=tell,
        score_sign=score_sign,
    )


def _nothing_better(night: Night, result: PPOResult) -> Run:
    """No candidate: what the night began with was the best of it."""
    (night.folder / "ppo.json").write_text(json.dumps(result.history))
    reason = f"None of {result.updates} PPO updates was better than the start in the eyes of the judge."
    reason += f" {result.stopped}" if result.stopped else ""
    return runs.finish(night.db, night.run.id, night.run.fencing_token, state="refused", reason=reason)


def _judge(
    night: Night, policy: Policy, merged: PreTrainedModel, snapshot: Snapshot, judge_report: dict[str, Any]
) -> Verdict:
    """The gate: candidate against what serves, on prompts that no selection saw."""
    night.progress.enter("gate", "Comparing the candidate with what serves.")
    policy.write_merged("policy", merged)
    path = versions.get(night.db, night.parent).path
    adapter = night.home.adapters / path if night.parent != BASE_VERSION else None
    current = merged_model(night.base, adapter, device=policy.device, dtype=merged.dtype)
    return judge_candidate(
        policy,
        (merged, current),
        judging(night.base, night.config),
        judge_report,
        night.config,
        sampling=night.sampling,
        winners_direction=reward.winners_direction(snapshot.turns),
        tell=night.progress.tell,
    )


def _publish(
    night: Night,
    policy: Policy,
    snapshot: Snapshot,
    verdict: Verdict,
    report: dict[str, Any],
) -> Run:
    """Write the version, accepted or refused; an accepted one serves the next turn."""
    night.progress.enter("publish", "Writing the version.")
    policy.save("policy", night.folder / "policy")
    version = publish_candidate(
        night.db,
        night.home,
        night.base,
        adapter_dir=night.folder / "policy",
        run=night.run,
        parent=night.parent,
        canary=canaries(
            night.base, night.folder / "policy", judging(night.base, night.config), seed=night.config.seed
        ),
        snapshot_sha256=snapshot.sha256,
        rankings=len(snapshot.turns),
        report=report,
        status="accepted" if verdict.passed else "refused",
    )
    reason = " ".join(verdict.reasons)
    if verdict.passed:
        versions.publish(
            night.db,
            version.name,
            actor="trainer",
            reason=reason,
            run_id=night.run.id,
            fencing_token=night.run.fencing_token,
        )
    return runs.finish(
        night.db,
        night.run.id,
        night.run.fencing_token,
        state="published" if verdict.passed else "refused",
        reason=reason,
        version=version.name,
    )
