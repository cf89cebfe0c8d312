"""A whole night, top to bottom: rankings in, a version out, or a sentence that says why not.

    python -m trainer refresh

`refresh` is the story; each of its calls is a stage with a file of its own, and leaves its result in the
run's folder, so that a run that was killed goes on where it was. Nothing here touches the server: the only
thing it sees of a night is the row that says which version serves.

In a team (trainer/team.py) every member goes through stages 2 and 3; the gate and all that is written is the
chief's.
"""

import shutil
from contextlib import suppress
from typing import Any, Literal

from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from data import runs, versions
from data.comparisons import Snapshot
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.records import BASE_VERSION, Run, RunState
from trainer.canary import canaries
from trainer.config import RefreshConfig
from trainer.ensemble import records
from trainer.fitting import NothingToLearn, fit_rewards, freeze_snapshot, sample_reference
from trainer.gate import Verdict, check_judge, judge_candidate
from trainer.improving import improve_policy, prompts_to_judge, wear_reference
from trainer.night import Night, begin, tonight, write_report
from trainer.ppo import PPOResult
from trainer.practice import judging
from trainer.probes import probe
from trainer.progress import Cancelled, Progress
from trainer.publish import publish_candidate
from trainer.reward import winners_direction
from trainer.team import SOLO, Team

Stage = Literal["reward", "ppo", "gate"]

_PROBING = 0.3
"""The part of the gate's time that the probes of both sides take."""

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
    until: Stage = "gate",
    quiet: bool = False,
    score_sign: float = 1.0,
    team: Team = SOLO,
) -> Run:
    """Learn from the rankings and, where the gate agrees, let the new version serve.

    `run` is claimed by the caller; it is finished here whatever happens. What an earlier process has done
    for the same run is not done again. After the stage `until` the run pauses, to be resumed. Raises
    NothingToLearn, Cancelled and what else went wrong after recording it; a refusal by the gate is a normal
    return. `score_sign` -1 trains a policy that is worse on purpose, for tests of the gate.
    """
    try:
        with Progress(db, run, quiet=quiet, silent=not team.is_chief) as progress:
            night = begin(db, home, base, config, run, progress, team)
            snapshot = freeze_snapshot(night)
            policy = Policy(base, device=pick_device(), dtype=_dtype(config), four_bit=config.four_bit)
            merged = _generating(night, None)
            wear_reference(night, policy, merged)
            reference = sample_reference(night, merged)
            reports = fit_rewards(night, policy, snapshot, reference)
            if until == "reward":
                return _pause(night, until)
            if reasons := check_judge(reports["judge"]):  # known now: all that follows would be for nothing
                return _no_judge(night, snapshot, reports, reasons)
            result = improve_policy(night, policy, merged, snapshot, reference, score_sign)
            if until == "ppo":
                return _pause(night, until)
            if not team.is_chief:
                return run
            if result.best_update == 0:
                done = _nothing_better(night, snapshot, reports, result)
            else:
                verdict = _judge(night, policy, merged, snapshot, reports["judge"])
                report = write_report(night, snapshot, reports, result, verdict)
                done = _publish(night, policy, snapshot, verdict, report)
            for leftover in ("ppo", "bestofk"):  # checkpoints: nothing is left to resume
                shutil.rmtree(night.folder / leftover, ignore_errors=True)
            return done
    except BaseException as error:
        state: RunState = _ENDS.get(type(error), "failed")
        with suppress(Refused):  # the lease was lost: whoever holds it now has written this run off
            if team.is_chief:
                reason = str(error) or type(error).__name__
                runs.finish(db, run.id, run.fencing_token, state=state, reason=reason)
        raise


def _dtype(config: RefreshConfig) -> Any:
    return pick_dtype(config.precision, pick_device())


def _generating(night: Night, version: str | None) -> PreTrainedModel:
    """A model to generate with: the base, or a version."""
    path = versions.get(night.db, version).path if version not in (None, BASE_VERSION) else None
    adapter = night.home.adapters / path if path else None
    return merged_model(
        night.base, adapter, device=pick_device(), dtype=_dtype(night.config), four_bit=night.config.four_bit
    )


def _pause(night: Night, until: Stage) -> Run:
    """The run rests after a stage that was asked for by itself."""
    following = {"reward": "trainer ppo", "ppo": "trainer gate"}[until]
    reason = f'Stopped after the stage {until!r}, as asked - go on with "{following} {night.run.id}".'
    if not night.team.is_chief:
        return night.run
    return runs.finish(night.db, night.run.id, night.run.fencing_token, state="interrupted", reason=reason)


def _no_judge(
    night: Night, snapshot: Snapshot, reports: dict[str, dict[str, Any]], reasons: list[str]
) -> Run:
    """No judge worth the name, so no candidate could pass the gate."""
    if not night.team.is_chief:
        return night.run
    write_report(night, snapshot, reports, None, None)
    reason = " ".join(reasons)
    return runs.finish(night.db, night.run.id, night.run.fencing_token, state="refused", reason=reason)


def _nothing_better(
    night: Night, snapshot: Snapshot, reports: dict[str, dict[str, Any]], result: PPOResult
) -> Run:
    """No candidate: what the night began with was the best of it."""
    write_report(night, snapshot, reports, result, None)
    reason = f"None of {result.updates} updates was better than the start in the eyes of the judge."
    reason += f" {result.stopped}" if result.stopped else ""
    return runs.finish(night.db, night.run.id, night.run.fencing_token, state="refused", reason=reason)


def _judge(
    night: Night, policy: Policy, merged: PreTrainedModel, snapshot: Snapshot, judge_report: dict[str, Any]
) -> Verdict:
    """The gate: candidate against what serves, on prompts that no selection saw."""
    night.progress.enter("gate", "Comparing the candidate with what serves.")
    policy.write_merged("policy", merged)
    models = (merged, _generating(night, night.parent))
    probes = (_probe(night, models[0], 0), _probe(night, models[1], 1))
    return judge_candidate(
        policy,
        models,
        prompts_to_judge(night),
        judge_report,
        tonight(night, snapshot),
        sampling=night.sampling,
        winners_direction=winners_direction(snapshot.turns),
        probes=probes,
        tell=lambda fraction, message: night.progress.tell(_PROBING + (1 - _PROBING) * fraction, message),
    )


def _probe(night: Night, model: PreTrainedModel, side: int) -> dict[str, float]:
    def tell(fraction: float) -> None:
        night.progress.tell((side + fraction) * _PROBING / 2, "Probing both sides for harm.")

    return probe(model, night.base, sampling=night.sampling, seed=night.config.seed, tell=tell)


def _publish(
    night: Night, policy: Policy, snapshot: Snapshot, verdict: Verdict, report: dict[str, Any]
) -> Run:
    """Write the version, accepted or refused; an accepted one serves the next turn."""
    night.progress.enter("publish", "Writing the version.")
    adapter = night.folder / "policy"
    policy.save("policy", adapter)
    prompts, four_bit = judging(night.base, night.config), night.config.four_bit
    canary = canaries(night.base, adapter, prompts, seed=night.config.seed, four_bit=four_bit)
    reason = " ".join(verdict.reasons)
    with night.db.write():  # all three or none: a night ends with at most one version
        version = publish_candidate(
            night.db,
            night.home,
            night.base,
            adapter_dir=adapter,
            run=night.run,
            parent=night.parent,
            canary=canary,
            snapshot_sha256=snapshot.sha256,
            rankings=len(snapshot.turns),
            report=report,
            status="accepted" if verdict.passed else "refused",
            rewards=records(policy, night.folder),
        )
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
