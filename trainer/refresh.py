"""A whole night, top to bottom: rankings in, a version out, or a sentence that says why not.

    python -m trainer refresh

`refresh` is the story; each of its calls is a stage with a file of its own, and leaves its result in the
run's folder, so that a run that was killed goes on where it was. Nothing here touches the server: the only
thing the server sees of a night is the row that says which version serves.

In a team (trainer/team.py) every member goes through stages 2 and 3; the gate and all that is written is the
chief's.
"""

import shutil
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from data import audit, versions
from data.comparisons import Snapshot
from data.database import Database
from data.files import write_json
from data.home import Home
from data.records import BASE_VERSION, Prompt, Run
from data.runfolder import HISTORY
from trainer.canary import canaries
from trainer.config import RefreshConfig
from trainer.ensemble import reward_records
from trainer.fitting import NothingToLearn, fit_rewards, freeze_snapshot, sample_reference
from trainer.forward import Reply, training_policy
from trainer.gate import Verdict, check_judge, judge_candidate, replay
from trainer.improving import improve_policy, prompts_to_judge
from trainer.night import Night, begin, load_reference, with_own_seed
from trainer.outcome import PATIENCE, finish, recorded
from trainer.practice import shipped_gate_prompts
from trainer.probes import probe
from trainer.progress import Progress
from trainer.publish import Candidate, write_candidate
from trainer.report import write_report
from trainer.result import PolicyResult
from trainer.reward import length_preference
from trainer.team import SOLO, Team
from trainer.telling import Done, within

Stage = Literal["reward", "ppo", "gate"]

_REPLAY_SHARE = 0.86
"""The part of the gate's time in which both sides reply; the rest is the judge's."""
_PROBING = 0.35
"""The part of each side's time that the probes take."""


def refresh(
    db: Database,
    home: Home,
    base: Base,
    config: RefreshConfig,
    run: Run,
    *,
    until: Stage = "gate",
    quiet: bool = False,
    team: Team = SOLO,
) -> Run:
    """Learn from the rankings and, where the gate agrees, let the new version serve.

    `run` is claimed by the caller; it is finished here whatever happens. What an earlier process has done
    for the same run is not done again. After the stage `until` the run pauses, to be resumed. Raises
    NothingToLearn, Cancelled and what else went wrong after recording it; a refusal by the gate is a normal
    return.
    """
    last = {"reward": "judge", "ppo": "ppo", "gate": "publish"}[until]
    with (
        recorded(db, run, NothingToLearn, team=team),
        Progress(db, run, last=last, quiet=quiet, is_told=team.is_chief) as progress,
    ):
        night = begin(db, home, base, config, run, progress, team)
        snapshot = freeze_snapshot(night)
        policy = training_policy(base, config)
        reference_replies = _load_and_sample_reference(night, policy)
        torch.cuda.empty_cache()  # of that model, which whoever else uses the GPU may need
        with policy.remembering():
            reports = fit_rewards(night, policy, snapshot, reference_replies)
        # A judge that cannot judge is known by now: what follows would be for nothing.
        reasons = [] if until == "reward" else check_judge(reports["judge"])
        goes_on = until != "reward" and not reasons
        result = _improve(night, policy, snapshot, reference_replies) if goes_on else None
        team.leave()  # the rest is the chief's
        if not team.is_chief:
            return run
        if reasons:
            return _no_candidate(night, snapshot, reports, None, " ".join(reasons))
        if result is None or until == "ppo":
            return _pause(night, until)
        if result.best_update == 0:
            done = _no_candidate(night, snapshot, reports, result, _nothing_better(result))
        else:
            verdict = _judge(night, policy, snapshot, reports["judge"])
            report = write_report(night, snapshot, reports, result, verdict)
            done = _publish(night, policy, snapshot, verdict, report)
        for leftover in ("ppo", "bestofk"):  # checkpoints: nothing is left to resume
            shutil.rmtree(night.folder / leftover, ignore_errors=True)
        return done


def _merged(night: Night, version: str | None) -> PreTrainedModel:
    """A model to generate with: the base, or a version. What the GPU holds of the stage before goes first."""
    torch.cuda.empty_cache()
    path = versions.get(night.db, version).path if version not in (None, BASE_VERSION) else None
    adapter = night.home.adapters / path if path else None
    device, config = pick_device(), night.config
    dtype = pick_dtype(config.precision, device)
    return merged_model(night.base, adapter, device=device, dtype=dtype, four_bit=config.four_bit)


def _load_and_sample_reference(night: Night, policy: Policy) -> list[Reply]:
    """The reference's replies, from a model that is freed before the reward models learn."""
    merged = _merged(night, None)
    load_reference(night, policy, merged)
    return sample_reference(night, merged)


def _improve(
    night: Night, policy: Policy, snapshot: Snapshot, reference_replies: list[Reply]
) -> PolicyResult:
    """Stage 3; its figures in the run's folder say that there is a candidate to judge."""
    result = improve_policy(night, policy, _merged(night, None), snapshot, reference_replies)
    if night.team.is_chief:
        write_json(night.folder / HISTORY, result.history)
    return result


def _pause(night: Night, until: Stage) -> Run:
    """The run rests after a stage that was asked for by itself."""
    following = {"reward": "trainer ppo", "ppo": "trainer gate"}[until]
    reason = f'Stopped after the stage {until!r}, as asked - go on with "{following} {night.run.id}".'
    return finish(night.db, night.run, state="interrupted", reason=reason)


def _no_candidate(
    night: Night,
    snapshot: Snapshot,
    reports: dict[str, dict[str, Any]],
    result: PolicyResult | None,
    reason: str,
) -> Run:
    """The night ends before the gate: the judge is not fit to judge, or nothing beat what it began with."""
    write_report(night, snapshot, reports, result, None)
    return finish(night.db, night.run, state="refused", reason=reason)


def _nothing_better(result: PolicyResult) -> str:
    reason = (
        f"Of {result.updates} updates, none that kept near the start and still ended its replies was better "
        "than it in the eyes of the judge."
    )
    return reason + (f" {result.stopped}" if result.stopped else "")


def _judge(night: Night, policy: Policy, snapshot: Snapshot, judge_report: dict[str, Any]) -> Verdict:
    """The gate: candidate against what serves, on prompts that no selection saw.

    One side is heard after the other: there is room for one plain model beside the policy.
    """
    night.progress.enter("gate", "Comparing the candidate with what serves.")
    prompts, config = prompts_to_judge(night), with_own_seed(night, snapshot)
    candidate, its_probes = _probe_and_replay(night, _candidate(night, policy), prompts, config.seed, 0)
    current, current_probes = _probe_and_replay(night, _merged(night, night.parent), prompts, config.seed, 1)
    verdict = judge_candidate(
        policy,
        (candidate, current),
        prompts,
        judge_report,
        config,
        sampling=night.sampling,
        length_preference=length_preference(snapshot.turns),
        probes=(its_probes, current_probes),
        tell=lambda fraction, message: night.progress.tell(
            _REPLAY_SHARE + (1 - _REPLAY_SHARE) * fraction, message
        ),
    )
    night.progress.log(0, {"win_rate": verdict.win_rate})
    return verdict


def _candidate(night: Night, policy: Policy) -> PreTrainedModel:
    """A model to generate with: what was learned."""
    model = _merged(night, None)
    policy.write_merged("policy", model)
    return model


def _probe_and_replay(
    night: Night, model: PreTrainedModel, prompts: Sequence[Prompt], seed: int, number: int
) -> tuple[list[Reply], dict[str, float]]:
    """What one side, `number` 0 or 1, replies, and what the probes find of it."""
    who, half = ("the candidate", "what serves")[number], _REPLAY_SHARE / 2

    def tell(message: str) -> Done:
        return within(partial(night.progress.tell, message=message), number * half, (number + 1) * half)

    probes = probe(
        model,
        night.base,
        sampling=night.sampling,
        seed=night.config.seed,
        tell=within(tell(f"Probing {who} for harm."), 0.0, _PROBING),
    )
    replies = replay(
        model,
        night.base,
        prompts,
        sampling=night.sampling,
        seed=seed,
        tell=within(tell(f"Replaying {len(prompts)} prompts with {who}."), _PROBING, 1.0),
    )
    return replies, probes


def _publish(
    night: Night, policy: Policy, snapshot: Snapshot, verdict: Verdict, report: dict[str, Any]
) -> Run:
    """Write the version, accepted or refused; an accepted one serves the next turn."""
    night.progress.enter("publish", "Writing the version.")
    adapter = night.folder / "policy"
    policy.save("policy", adapter)
    prompts, four_bit = shipped_gate_prompts(night.base, night.config), night.config.four_bit
    canary = canaries(night.base, adapter, prompts, seed=night.config.seed, four_bit=four_bit)
    torch.cuda.empty_cache()  # of that model: a server beside it is about to build the version
    writing = write_candidate(
        night.db,
        night.home,
        night.base,
        adapter_dir=adapter,
        run=night.run,
        parent=night.parent,
        canary=canary,
        snapshot_sha256=snapshot.sha256,
        rankings=len(snapshot.turns),
        rewards=reward_records(policy, night.folder),
    )
    # All or nothing: a night ends with at most one version.
    with writing as candidate, night.db.write(patience=PATIENCE):
        return _settle(night, candidate, verdict, report)


def _settle(night: Night, candidate: Candidate, verdict: Verdict, report: dict[str, Any]) -> Run:
    """The version appears and, where it passed, serves; unless what it was compared with serves no longer."""
    version = candidate.appear(report=report, status="accepted" if verdict.passed else "refused")
    reason, serving = " ".join(verdict.reasons), versions.serving(night.db).current
    is_published = verdict.passed and serving == night.parent
    if is_published:
        versions.publish(
            night.db,
            version.name,
            actor=audit.TRAINER,
            reason=reason,
            run=night.run,
        )
    elif verdict.passed:
        reason += (
            f" While it learned, {night.parent} was replaced by {serving}, with which it was never compared:"
            f' what serves stays - run "trainer publish {version.name}" to let it serve even so.'
        )
    return finish(
        night.db,
        night.run,
        state="published" if is_published else "refused",
        reason=reason,
        version=version.name,
    )
