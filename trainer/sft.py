"""Stage 1, supervised fine-tuning: the base learns to imitate what people wrote, and becomes the reference.

    python -m trainer sft

    L = - sum_i w_i sum_t log pi(a_it | s_it)  /  sum_i w_i T_i

over the tokens of the replies alone, their end of turn included (InstructGPT, arXiv 2203.02155, step 1). The
held-out loss is read after every pass; training stops where it no longer falls, and the best pass is kept.
The result is the `reference`: PPO's start on a first night and the anchor of the KL on every night.

It begins with the bare base, however often it is done, so that what was deleted is forgotten. Left out on
purpose: packing several dialogues into one sequence, and learning from the earlier replies of a dialogue.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatbot.basemodel import Base
from chatbot.policy import Policy
from data import audit, demonstrations, lessons, runs, versions
from data.database import Database
from data.demonstrations import Demonstration
from data.errors import Problem, Refused
from data.home import Home
from data.records import BASE_VERSION, Prompt, Run, RunState
from trainer.canary import canaries
from trainer.config import RefreshConfig
from trainer.examples import as_replies, split
from trainer.forward import Reply, forward_replies, micro_batches, reply_logprobs, training_policy
from trainer.optimiser import adamw
from trainer.outcome import PATIENCE, finish, recorded
from trainer.practice import shipped_gate_prompts
from trainer.progress import FINE_TUNING, Progress
from trainer.publish import Candidate, write_candidate
from trainer.team import SOLO, Team
from trainer.telling import Step


class TooFewDemonstrations(Problem):
    """There is not enough to imitate. The run is recorded; the reference stays what it was."""

    exit_code = 3


def fine_tune(
    db: Database,
    home: Home,
    base: Base,
    config: RefreshConfig,
    run: Run,
    *,
    quiet: bool = False,
    team: Team = SOLO,
) -> Run:
    """Learn from the demonstrations and make the result the reference; what serves stays.

    `run` is claimed by the caller; the chief of `team` finishes it here whatever happens. Raises
    TooFewDemonstrations, Cancelled and what else went wrong after recording it; that imitation helped nothing
    is a normal return.
    """
    with (
        recorded(db, run, TooFewDemonstrations, team=team),
        Progress(db, run, stages=FINE_TUNING, quiet=quiet, is_told=team.is_chief) as progress,
    ):
        before = versions.serving(db).reference
        folder = home.runs / run.id
        prompts = shipped_gate_prompts(base, config)  # a file that is none must not cost the training
        chosen = _freeze_demonstrations(db, folder, config, run, progress) if team.is_chief else []
        found = team.broadcast(chosen)
        policy = training_policy(base, config)
        report = _imitate(policy, found, config, progress, team)
        team.leave()
        if not team.is_chief:
            return run
        if report["sft"]["best_epoch"] == 0:
            reason = "Imitating the demonstrations made no held-out reply likelier: the reference stays."
            return finish(db, run, state="refused", reason=reason)
        progress.enter("publish", "Writing the version.")
        policy.save("reference", folder / "reference")
        report["seconds"] = {stage: round(spent, 1) for stage, spent in progress.seconds.items()}
        return _publish(db, home, base, config, run, report, prompts, before)


def _freeze_demonstrations(
    db: Database, folder: Path, config: RefreshConfig, run: Run, progress: Progress
) -> list[Demonstration]:
    """What this run learns from: taken once, written down, hashed."""
    progress.enter("demonstrations", "Reading the demonstrations.")
    found = demonstrations.collect(db)
    if len(found) < config.min_demonstrations:
        counted = f"{len(found)} demonstration{'s' if len(found) != 1 else ''}"
        raise TooFewDemonstrations(
            f"There {'is' if len(found) == 1 else 'are'} {counted} to imitate and fine-tuning needs "
            f"{config.min_demonstrations} - edit more replies, import some, or lower --min-demonstrations."
        )
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = demonstrations.write_file(folder / "demonstrations.jsonl", found)
    lessons.set_taught(db, run.id, [(entry.message_id, entry.person_id) for entry in found], sha256)
    return found


def _imitate(
    policy: Policy, found: Sequence[Demonstration], config: RefreshConfig, progress: Progress, team: Team
) -> dict[str, Any]:
    """Train the adapter `reference`, and tell what it was taught by."""
    taught, held_out = (as_replies(part, policy.base) for part in split(found))
    if not taught:
        raise TooFewDemonstrations("Every demonstration is too long for this model - add shorter ones.")
    message = f"Learning from {len(taught)} demonstrations, measuring on {len(held_out)} others."
    progress.enter("sft", message)

    def tell(step: int, fraction: float, metrics: dict[str, float]) -> None:
        progress.log(step, metrics)
        progress.tell(fraction, message)

    result = train_sft(policy, "reference", taught, held_out, config, tell=tell, team=team)
    return {
        "parent": BASE_VERSION,
        "reference": None,
        "rankings": 0,
        "algorithm": "sft",
        "demonstrations": len(found),
        "left_out": len(found) - len(taught) - len(held_out),
        "sources": dict(Counter(demonstration.source for demonstration in found)),
        "people": len({demonstration.person_id for demonstration in found}),
        "sft": result,
        "config": asdict(config),
    }


def _publish(
    db: Database,
    home: Home,
    base: Base,
    config: RefreshConfig,
    run: Run,
    report: dict[str, Any],
    prompts: Sequence[Prompt],
    before: str | None,
) -> Run:
    """Write the version, which waits as a candidate, and anchor the learning at it instead of at `before`."""
    adapter = home.runs / run.id / "reference"
    writing = write_candidate(
        db,
        home,
        base,
        adapter_dir=adapter,
        run=run,
        parent=BASE_VERSION,
        canary=canaries(base, adapter, prompts, seed=config.seed, four_bit=config.four_bit),
        snapshot_sha256=runs.get(db, run.id).snapshot_hash,
        rankings=0,
    )
    with writing as candidate, db.write(patience=PATIENCE):  # all or nothing
        return _settle(db, run, candidate, report, before)


def _settle(db: Database, run: Run, candidate: Candidate, report: dict[str, Any], before: str | None) -> Run:
    """The version appears and becomes the reference, unless another one did while it learned."""
    name = candidate.appear(report=report, status="candidate").name
    present = versions.serving(db).reference
    is_next = present == before
    reason = f"{name} imitates {report['demonstrations']} demonstrations"
    if is_next:
        versions.set_reference(db, name, actor=audit.TRAINER, run=run)
        reason += " and is the reference now"
    if losses := report["sft"]["held_out_loss"]:
        best = losses[report["sft"]["best_epoch"]]
        reason += f"; its loss on others fell from {losses[0]:.2f} to {best:.2f} nats a token"
    reason += ". What serves stays."
    if not is_next:
        reason += f" While it learned, {present or BASE_VERSION} was made the reference and stays it"
        reason += f' - to change that, run "trainer reference {name}".'
    state: RunState = "published" if is_next else "refused"
    return finish(db, run, state=state, reason=reason, version=name)


# Its steps


def train_sft(
    policy: Policy,
    name: str,
    examples: Sequence[Reply],
    held_out: Sequence[Reply],
    config: RefreshConfig,
    *,
    tell: Step,
    team: Team = SOLO,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Teach the adapter `name`, made where it is not there yet, to write the replies of `examples`.

    `weights`, one for each example, weigh its tokens; `temperature` divides the logits. `tell` hears the loss
    of every step and the held-out loss after every pass. Without `held_out` all passes are made and the last
    one is kept. Returns the losses by pass (`held_out_loss` begins with that before the first), `best_epoch`
    (0 where none helped) and `stopped_early`. Raises Refused where a loss is not finite.
    """
    assert examples, "there is nothing to imitate"
    if name not in policy.adapters:
        policy.add(name, seed=config.seed, rank=config.rank, depth=config.depth)
    rows = list(zip(examples, weights or [1.0] * len(examples), strict=True))
    steps = math.ceil(len(rows) / config.minibatch) * config.sft_epochs
    optimiser, schedule = adamw(policy.parameters(name), config.sft_lr, steps)
    shuffle, step = random.Random(config.seed), 0
    losses, measured = [], [mean_loss(policy, name, held_out, team)] if held_out else []
    best, best_epoch = policy.keep(name), 0
    for epoch in range(1, config.sft_epochs + 1):
        shuffle.shuffle(rows)
        seen = []
        for start in range(0, len(rows), config.minibatch):
            batch = rows[start : start + config.minibatch]
            metrics = _take_step(policy, name, batch, temperature, optimiser, team)
            schedule.step()
            step += 1
            seen.append(metrics["loss"])
            tell(step, step / steps, metrics)
        losses.append(sum(seen) / len(seen))
        if held_out:
            measured.append(mean_loss(policy, name, held_out, team))
            tell(step, step / steps, {"held_out_loss": measured[-1]})
            if not measured[-1] < measured[best_epoch]:
                break
        best, best_epoch = policy.keep(name), epoch
    policy.bring_back(name, best)
    return {
        "examples": len(examples),
        "held_out": len(held_out),
        "loss": losses,
        "held_out_loss": measured,
        "best_epoch": best_epoch,
        "stopped_early": best_epoch < len(losses),
    }


def _take_step(
    policy: Policy,
    name: str,
    batch: Sequence[tuple[Reply, float]],
    temperature: float,
    optimiser: torch.optim.Optimizer,
    team: Team,
) -> dict[str, float]:
    """One optimiser step on the weighted mean over the tokens of `batch`, each member on its share."""
    total = sum(weight * len(reply.reply) for reply, weight in batch)
    mine = team.share(batch)
    optimiser.zero_grad(set_to_none=True)
    own = 0.0
    for rows in micro_batches([len(reply.ids) for reply, _ in mine], policy.device):
        weights = torch.tensor([mine[i][1] for i in rows], device=policy.device)
        costs = reply_losses(policy, name, [mine[i][0] for i in rows], temperature)
        loss = (costs * weights).sum() / total
        loss.backward()
        own += float(loss.detach())
    (loss_of_all,) = team.sum([own])
    if not math.isfinite(loss_of_all):
        raise Refused(f"The loss of {name!r} is not finite - lower --sft-lr.")
    parameters = policy.parameters(name)
    team.sum_gradients(parameters)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    optimiser.step()
    return {"loss": loss_of_all, "grad_norm": norm}


def reply_losses(
    policy: Policy, name: str | None, replies: Sequence[Reply], temperature: float = 1.0
) -> Tensor:
    """What each reply costs, - sum_t log pi(a_t | s_t) over its own tokens: (B,). Prompts cost nothing."""
    with policy.wear(name):
        return -reply_logprobs(policy, forward_replies(policy, replies), temperature).sum(1)


@torch.no_grad()
def mean_loss(policy: Policy, name: str, replies: Sequence[Reply], team: Team = SOLO) -> float:
    """The mean loss over the tokens of all `replies`, in nats a token."""
    mine, own = team.share(replies), 0.0
    for rows in micro_batches([len(reply.ids) for reply in mine], policy.device):
        own += float(reply_losses(policy, name, [mine[i] for i in rows]).sum())
    (loss,) = team.sum([own])
    return loss / sum(len(reply.reply) for reply in replies)
