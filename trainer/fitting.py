"""Stage 2 of a night: what the rankings say, as a snapshot and as reward models that know it.

The rankings are frozen first, so that all that follows learns from the same ones. The ensemble learns from
conversations of part A, the judge from part B, and each is examined on the other's part. Where last night's
reward models are there and nothing they learned from was taken back, they go on from where they were. Each
step leaves its result in the run's folder; a run that is taken up again finds it there.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from chatbot.manifest import read_manifest
from chatbot.policy import Policy
from data import lessons, runs, versions
from data.comparisons import RankedTurn, Snapshot, in_rounds, read_snapshot, weigh, write_snapshot
from data.errors import Problem
from data.files import replace_durably, write_json
from data.prompts import paraphrases
from data.runfolder import EXAMINATIONS, JUDGE, LEARNED, LOG, SNAPSHOT, TAKEN_UP, can_go_on
from data.snapshots import last_taught, taught_turns, turns_by_id
from trainer import ensemble
from trainer.config import RefreshConfig
from trainer.examine import examine
from trainer.forward import Reply, hash_seed
from trainer.members import members_of
from trainer.night import Night
from trainer.practice import reference_prompts
from trainer.reliability import relied_on
from trainer.reward import can_teach
from trainer.sampler import sample_replies
from trainer.scoring import check_unchanged
from trainer.telling import ModelStep, within

log = logging.getLogger(__name__)

_REFERENCE = "reference.json"
_REFERENCE_DRAWS = 77
"""Any number that no other draws from the operator's seed go by."""
_BEGINNING = "beginning.json"
"""What served and what anchored the KL when the run began."""
_EXAMINED = 200
"""Held-out rankings that a model is examined on. All of them may take longer than the lesson."""
_ENOUGH_HERE = 100
"""From so many held-out rankings made here on, imported ones are not examined: the taste of strangers must
neither pass a model nor fail it. With 100, one that is right 70 % of the time is told from chance in 98
nights of 100; with 20, in 40."""
_TRAINING = 0.9
"""The part of a stage's time that is training; the rest is the examination."""


class NothingToLearn(Problem):
    """Too few rankings, or none that prefers anything. The run is recorded; what serves stays."""

    exit_code = 3


@dataclass(frozen=True)
class Before:
    """The reward models of an earlier night, and what they had learned from."""

    folder: Path
    learned: Mapping[str, Mapping[str, str]]
    """By part: ranking -> hash of its content, of all nights up to that one."""
    rank: int
    """Of their adapters."""


def freeze_snapshot(night: Night) -> Snapshot:
    """What this night learns from: taken once, written down, hashed. Later rankings wait for another.

    A run that is taken up again keeps its snapshot, unless one of its rankings was deleted since, or what
    serves, the reference or the base has changed: then what it had learned goes, and it begins anew.
    """
    night.progress.enter("snapshot", "Reading the rankings.")
    file = night.folder / SNAPSHOT
    newest: float | None = None
    if night.team.is_chief:
        newest = last_taught(night.db)  # also where it finds no place
        if not _may_go_on(night):
            past = [v for v in versions.list_all(night.db) if v.base_sha256 == night.base.sha256]
            present = taught_turns(night.db, night.config.max_rankings)
            turns = weigh(relied_on(present, past))
            _check(turns, night.config.min_rankings)
            _clear(night.folder)
            night.progress.begin_anew()
            runs.forget_metrics(night.db, night.run)
            lessons.forget(night.db, night.run)
            write_json(night.folder / _BEGINNING, _beginning(night))
            write_snapshot(turns, file.with_suffix(".part"))
            replace_durably(file.with_suffix(".part"), file)
    night.team.wait()
    snapshot = read_snapshot(file)  # exactly what the hash stands for
    if night.team.is_chief:
        runs.set_snapshot(night.db, night.run.id, snapshot, newest)
    return snapshot


def _may_go_on(night: Night) -> bool:
    """Whether all that an earlier process left in the run's folder may be used: of what it learned from,
    everything is still there, in the same part."""
    files = (night.folder / SNAPSHOT, night.folder / _BEGINNING)
    if not all(file.is_file() for file in files):
        return False
    is_same = json.loads(files[1].read_text()) == _beginning(night)
    used: set[tuple[str, str]] = {(turn.ranking_id, turn.part) for turn in read_snapshot(files[0]).turns}
    used |= {(ranking, part) for part, rankings in learned_in(night.folder).items() for ranking in rankings}
    present = turns_by_id(night.db, [ranking for ranking, _ in used])
    return is_same and used <= {(turn.ranking_id, turn.part) for turn in present}


def learned_in(folder: Path) -> dict[str, list[str]]:
    """By part, the rankings that this run's reward models learned from, those of earlier nights too."""
    file = folder / LEARNED
    learned = json.loads(file.read_text()) if file.is_file() else {}
    return {part: list(rankings) for part, rankings in learned.items()}


def _beginning(night: Night) -> dict[str, str | None]:
    return {"parent": night.parent, "reference": night.reference, "base": night.base.sha256}


def _clear(folder: Path) -> None:
    """Nothing but the log and the watcher's mark stays; first goes what all else is nothing without."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir(), key=lambda path: path.name != SNAPSHOT):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (LOG, TAKEN_UP):
            path.unlink()


def _check(turns: Sequence[RankedTurn], fewest: int) -> None:
    if len(turns) < fewest:
        counted = "1 ranking" if len(turns) == 1 else f"{len(turns)} rankings and edited replies"
        raise NothingToLearn(
            f"There {'is' if len(turns) == 1 else 'are'} {counted} to learn from and a night needs {fewest} "
            'in all, however few a slot asks for - rank more replies, or "trainer refresh --min-rankings N".'
        )
    for part, who in (("A", "the reward model"), ("B", "the judge")):
        if not can_teach(_part(turns, part)):
            raise NothingToLearn(
                f"None of the {len(turns)} rankings lets {who} prefer one reply over another - "
                "rank replies in more conversations, to other questions."
            )


def sample_reference(night: Night, merged: PreTrainedModel) -> list[Reply]:
    """Replies of the reference to practice prompts: the zero of all scores, and how many it ends itself."""
    night.progress.enter("reference", "Sampling replies of the reference.")
    file = night.folder / _REFERENCE
    if not night.team.broadcast(file.is_file()):
        replies = sample_replies(
            merged,
            reference_prompts(night.base, night.config),
            sampling=night.sampling,
            end_of_turn=night.base.format.end_of_turn,
            seed=hash_seed(night.config.seed, _REFERENCE_DRAWS),
            tell=partial(night.progress.tell, message="Sampling replies of the reference."),
            team=night.team,
        )
        if night.team.is_chief:
            write_json(file, [asdict(reply) for reply in replies])
        night.team.wait()
    return [Reply(**row) for row in json.loads(file.read_text())]


def fit_rewards(
    night: Night, policy: Policy, snapshot: Snapshot, reference_replies: list[Reply]
) -> dict[str, dict[str, Any]]:
    """The reward models from part A and the judge from part B, each examined on the other's part."""
    file = night.folder / EXAMINATIONS
    reports: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    before, sets = None, dict[str, ensemble.TrainingSet]()
    if night.team.is_chief:  # what a member read a moment later might differ, and then so would its steps
        before = newest_accepted(night) if night.config.warm_start else None
        sets = _training_sets(night, snapshot, before)
        _note_lessons(night, sets)
    sets, warm = night.team.broadcast((sets, before.folder if before else None))
    for name, own, other in (("reward", "A", "B"), (JUDGE, "B", "A")):
        seed, lesson = _seed(night.config, own), sets[own]
        message = _message(night, name, lesson)
        night.progress.enter(name, message)
        fit = ensemble.fit if name == "reward" else partial(ensemble.fit_one, name=JUDGE)
        fit(
            policy,
            turns=lesson.turns,
            config=night.config,
            folder=night.folder,
            reference_replies=reference_replies,
            warm=warm if lesson.is_warm else None,
            seed=seed,
            tell=_teller(night, message),
            team=night.team,
        )
        if night.team.is_chief and name not in reports:
            report = _examine(night, policy, name, _part(snapshot.turns, other), seed)
            reports[name] = {**report, "warm_start": {"is_warm": lesson.is_warm, "reason": lesson.reason}}
            write_json(file, reports)
        reports = night.team.broadcast(reports)
        night.progress.log(0, {f"held_out_{k}": v for k, v in reports[name].items() if isinstance(v, float)})
    return reports


def _seed(config: RefreshConfig, part: str) -> int:
    """The judge, which learns from part B, begins and draws otherwise than the ensemble."""
    return config.seed + (1 if part == "B" else 0)


def _training_sets(
    night: Night, snapshot: Snapshot, before: Before | None
) -> dict[str, ensemble.TrainingSet]:
    """By part, what tonight's models learn from; models of `before` go on if all they know is still there."""
    known = [ranking for rankings in before.learned.values() for ranking in rankings] if before else []
    still = list(turns_by_id(night.db, known))
    return {
        part: ensemble.warm_start(
            _part(snapshot.turns, part),
            night.config,
            _seed(night.config, part),
            learned=before.learned[part] if before else None,
            still=_part(still, part),
            saved_rank=before.rank if before else None,
        )
        for part in "AB"
    }


def _note_lessons(night: Night, sets: Mapping[str, ensemble.TrainingSet]) -> None:
    """Before anything learns: a run taken up again must know what it may have to forget."""
    write_json(night.folder / LEARNED, {part: dict(lesson.learned) for part, lesson in sets.items()})
    lessons.note(night.db, night.run.id, [ranking for lesson in sets.values() for ranking in lesson.learned])


def newest_accepted(night: Night) -> Before | None:
    """The reward models of the newest accepted version on this base, where all that a warm start needs is
    still there. Damaged ones are passed over: a night must not fail for what it can do without."""
    for version in reversed(versions.list_all(night.db)):
        folder = night.home.runs / str(version.run_id)
        is_ours = version.status == "accepted" and version.base_sha256 == night.base.sha256
        if is_ours and can_go_on(folder, night.config.members):
            try:
                manifest = read_manifest(night.home.adapters / version.path)
                check_unchanged(night.home, version, manifest.rewards)
                learned = json.loads((folder / LEARNED).read_text())
                return Before(folder, learned, rank=ensemble.rank_of(folder / JUDGE))
            except (Problem, OSError, ValueError) as error:
                log.warning("The reward models of %s are passed over: %s", version.name, error)
    return None


def _part(turns: Sequence[RankedTurn], part: str) -> list[RankedTurn]:
    return [turn for turn in turns if turn.part == part]


def _message(night: Night, name: str, lesson: ensemble.TrainingSet) -> str:
    how = "from last night's, " if lesson.is_warm else ""
    return f"Training {_who(night, name)} {how}on {len(lesson.turns)} rankings."


def _who(night: Night, name: str) -> str:
    members = night.config.members
    return "the judge" if name == JUDGE else f"{members} reward model{'s' if members > 1 else ''}"


def _teller(night: Night, message: str) -> ModelStep:
    def tell(name: str, step: int, fraction: float, metrics: dict[str, float]) -> None:
        mark = name.replace("-", "_")
        night.progress.log(step, {f"{mark}_{k}": v for k, v in metrics.items()})
        night.progress.tell(_TRAINING * fraction, message)

    return tell


def _examine(
    night: Night, policy: Policy, name: str, held_out: Sequence[RankedTurn], seed: int
) -> dict[str, Any]:
    """The report of examine() on `held_out`, those made here first, in rounds by person, so that nobody
    passes or fails a model alone; the stage's last tenth."""
    message = f"Examining {_who(night, name)} on rankings of the other part."
    newest_first = (turn for turn in reversed(held_out) if turn.pairs())
    newest_last = in_rounds(newest_first, lambda turn: turn.person_id)[::-1]
    here = [turn for turn in newest_last if turn.source != "imported"]
    imports_first = sorted(newest_last, key=lambda turn: turn.source != "imported")  # the last are taken
    return examine(
        policy,
        members_of(policy) if name == "reward" else [JUDGE],
        here if len(here) >= _ENOUGH_HERE else imports_first,
        most=_EXAMINED,
        seed=seed,
        paraphrases=paraphrases(),
        tell=within(partial(night.progress.tell, message=message), _TRAINING, 1.0),
    )
