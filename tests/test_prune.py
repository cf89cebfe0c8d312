"""Pruning: what only old runs needed goes; what serves, served, anchors or teaches the next night stays."""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chatbot.manifest import Manifest, write_manifest
from data import runs, versions
from data.comparisons import RankedTurn, write_snapshot
from data.database import Database, connect
from data.errors import Problem, Refused
from data.home import Home
from data.records import Run, RunState, Version, VersionStatus
from data.runfolder import JUDGE, LEARNED, can_go_on, is_reward_model, reward_model
from data.snapshots import taught_turns
from tests.operating import add_version, end_run, start_run
from tests.stories import a_turn, rank, somebody
from trainer import prune as prune_module
from trainer.config import RefreshConfig
from trainer.ensemble import TrainingSet, warm_start
from trainer.fitting import Before, newest_accepted
from trainer.prune import prune
from trainer.publish import check_files

SHA = "0" * 64
WORK = ("beginning.json", "exercises.json", "learned.json", "ppo.json", "reference.json", "snapshot.jsonl")
MODELS = ("judge", "reward-0", "reward-1", "reward-2")
STAYS = {"output.log", "report.json", "reports.json"}


def a_run(db: Database, home: Home, number: int, state: RunState = "refused", version: str = "") -> Run:
    """A run that is over, with all that a night leaves in its folder."""
    run = start_run(db, f"manual-{number}")
    folder = home.runs / run.id
    for name in (*MODELS, "policy", "ppo/update-00001"):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_model.safetensors").write_bytes(b"w" * 1000)
    for name in (*WORK, *STAYS):
        (folder / name).write_text(json.dumps({"A": {}, "B": {}}))
    write_snapshot(taught_turns(db), folder / "snapshot.jsonl")
    return run if state == "running" else end_run(db, run, state, version or None)


def a_night(db: Database, home: Home, number: int, status: VersionStatus = "accepted", **changes: Any) -> Run:
    """A run that made the version of this number, whose files lie there."""
    name = f"v{number:06d}"
    state: RunState = "published" if status == "accepted" else "refused"
    run = a_run(db, home, number, state, name)
    (home.adapters / name).mkdir()
    (home.adapters / name / "adapter_model.safetensors").write_bytes(b"w" * 1000)
    settings = {"status": status, "run_id": run.id, "serve": status == "accepted"} | changes
    add_version(db, name, settings.pop("parent", "base"), **settings)
    return run


def a_manifest(version: Version) -> Manifest:
    """One that names no files."""
    return Manifest(
        name=version.name,
        parent=version.parent,
        base_model=version.base_model,
        base_sha256=version.base_sha256,
        template_sha256=SHA,
        files={},
        run_id=version.run_id,
        snapshot_sha256=None,
        rankings=7,
        delta_norm=1.0,
        canary=[],
        created_at=1.0,
    )


def start_of(db: Database, home: Home, sha256: str, members: int) -> Before | None:
    """What a night with so many reward models on this base goes on from."""
    config = SimpleNamespace(members=members)
    night = SimpleNamespace(db=db, home=home, base=SimpleNamespace(sha256=sha256), config=config)
    return newest_accepted(cast(Any, night))


def lesson(present: Sequence[RankedTurn], learned: Mapping[str, str] | None) -> TrainingSet:
    """What a night learns from all that is `present`, with models that know what they `learned`."""
    return warm_start(present, RefreshConfig(), 0, learned=learned, still=present, saved_rank=None)


def left(home: Home, run: Run) -> set[str]:
    return {path.name for path in (home.runs / run.id).iterdir()}


def test_a_night_goes_on_from_as_many_models_as_lie_there(tmp_path: Path) -> None:
    for name in (LEARNED, JUDGE, reward_model(0)):
        assert not can_go_on(tmp_path, members=1)
        (tmp_path / name).touch()
    assert can_go_on(tmp_path, members=1) and not can_go_on(tmp_path, members=2)


def test_reward_models_are_known_by_their_names() -> None:
    assert all(map(is_reward_model, MODELS)) and not any(map(is_reward_model, ("policy", ".reward-0")))


def test_old_runs_keep_reports_and_logs_and_the_newest_keep_everything(db: Database, home: Home) -> None:
    old, new = a_run(db, home, 1, "failed"), a_run(db, home, 2, "interrupted")
    whole, before = left(home, new), sum(p.stat().st_size for p in home.runs.rglob("*") if p.is_file())
    done = prune(db, home, keep=1)
    assert left(home, old) == STAYS and left(home, new) == whole
    after = sum(p.stat().st_size for p in home.runs.rglob("*") if p.is_file())
    assert (done.runs, done.bytes) == ([old.id], before - after) and done.bytes > 6000
    assert runs.get(db, old.id) == old
    assert prune(db, home, keep=1).runs == []


def test_nights_that_left_nothing_push_nobody_out(db: Database, home: Home) -> None:
    run = a_run(db, home, 1, "failed")
    for number in range(2, 6):
        end_run(db, start_run(db, f"manual-{number}"), "nothing_to_learn")
    assert prune(db, home, keep=1).runs == [] and "judge" in left(home, run)


def test_a_dry_run_says_the_same_and_removes_nothing(db: Database, home: Home) -> None:
    for number in range(1, 4):
        a_night(db, home, number, "refused")
    there = sorted(home.root.rglob("*"))
    told = prune(db, home, keep=1, dry_run=True)
    assert sorted(home.root.rglob("*")) == there
    assert told == prune(db, home, keep=1) and told.versions == ["v000002", "v000001"]


def test_a_refused_version_loses_its_weights_and_keeps_its_row(db: Database, home: Home) -> None:
    a_night(db, home, 1, "refused")
    a_night(db, home, 2, "refused")
    prune(db, home, keep=1)
    assert [path.name for path in home.adapters.iterdir()] == ["v000002"]
    refused = versions.get(db, "v000001")
    with pytest.raises(Refused, match="The files of version 'v000001' are gone"):
        check_files(home, refused)
    assert refused.report["gate"]["reasons"]


def test_what_serves_served_anchors_or_has_children_keeps_its_weights(db: Database, home: Home) -> None:
    served = a_night(db, home, 1, "refused")
    versions.publish(db, "v000001", actor="ada", reason="In spite of it.", force=True)
    a_night(db, home, 2)
    a_night(db, home, 3, "candidate")
    versions.set_reference(db, "v000003", actor="ada")
    versions.set_reference(db, None, actor="ada")
    a_night(db, home, 4, "refused")  # a parent only
    a_night(db, home, 5, "refused", parent="v000004")
    a_night(db, home, 6)
    a_night(db, home, 7, serve=False)  # passed, and was never compared with what serves now
    for number in range(8, 10):
        a_night(db, home, number, "refused")
    done = prune(db, home, keep=1)
    assert done.versions == ["v000008", "v000005"]
    assert {path.name for path in home.adapters.iterdir()} == {f"v00000{n}" for n in (1, 2, 3, 4, 6, 7, 9)}
    assert left(home, served) == {*STAYS, *MODELS}  # it is still scored by its reward models


@pytest.mark.parametrize("members", [1, 3])
def test_the_next_night_goes_on_from_what_it_would_have_gone_on_from(
    db: Database, home: Home, members: int
) -> None:
    for number in range(1, 4):
        a_night(db, home, number)
    short = a_night(db, home, 4)  # one of `--quick`
    for name in MODELS[2:]:
        (home.runs / short.id / name / "adapter_model.safetensors").unlink()
        (home.runs / short.id / name).rmdir()
    a_night(db, home, 5, base_sha256="f" * 64)
    for number in range(6, 8):
        a_night(db, home, number, "refused")
    for version in versions.list_all(db)[1:]:
        write_manifest(home.adapters / version.name, a_manifest(version))
        (home.runs / str(version.run_id) / "judge" / "adapter_config.json").write_text('{"r": 8}')

    def folders() -> list[Path | None]:
        found = [start_of(db, home, sha256, members) for sha256 in (SHA, "f" * 64)]
        return [before.folder if before else None for before in found]

    before = folders()
    assert None not in before
    done = prune(db, home, keep=1)
    assert folders() == before and len(done.runs) == 6


def test_the_models_that_a_night_goes_on_from_stay_without_the_words_that_taught_them(
    db: Database, home: Home
) -> None:
    person = somebody(db)
    rank(db, person, a_turn(db, person), (1, 2, 3))
    taught = taught_turns(db)
    everything = lesson(taught, None).learned
    accepted = a_night(db, home, 1)
    write_manifest(home.adapters / "v000001", a_manifest(versions.get(db, "v000001")))
    folder = home.runs / accepted.id
    (folder / "learned.json").write_text(json.dumps({"A": everything, "B": {}}))
    (folder / "judge" / "adapter_config.json").write_text('{"r": 8}')
    assert "Count for me." in (folder / "snapshot.jsonl").read_text()
    a_night(db, home, 2, "refused")
    assert prune(db, home, keep=1, dry_run=True) == prune(db, home, keep=1)
    assert left(home, accepted) == {*STAYS, *MODELS, "learned.json"}
    assert not [path for path in folder.rglob("*") if path.is_file() and b"Count" in path.read_bytes()]
    assert prune(db, home, keep=1).runs == [], "there is nothing left to remove"

    before = start_of(db, home, SHA, members=3)
    assert before is not None and before.folder == folder
    for present, is_warm in ((taught, True), ([], False)):  # the second time it was deleted
        tonight = lesson(present, before.learned["A"])
        assert tonight.is_warm == is_warm, tonight.reason
    newer = a_night(db, home, 3)
    prune(db, home, keep=1)
    assert left(home, accepted) == {*STAYS, *MODELS} and "exercises.json" in left(home, newer)


def test_a_living_run_and_folders_of_no_run_are_left_alone(db: Database, home: Home) -> None:
    living, old, new = (a_run(db, home, number, "failed") for number in range(1, 4))
    (home.runs / "mine").mkdir()
    (home.runs / "mine" / "notes.txt").write_text("kept")
    assert runs.resume(db, living.id) is not None
    whole = left(home, living)
    assert prune(db, home, keep=1).runs == [old.id]
    assert left(home, living) == left(home, new) == whole and (home.runs / "mine" / "notes.txt").is_file()


def test_a_version_that_is_published_meanwhile_keeps_its_files(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = a_night(db, home, 1, "refused")
    a_night(db, home, 2, "refused")
    remove = prune_module._remove

    def publish_first(db: Database, home: Home, run: Run, pruned: prune_module.Pruned) -> None:
        versions.publish(db, "v000001", actor="ada", reason="In spite of it.", force=True)
        remove(db, home, run, pruned)

    monkeypatch.setattr(prune_module, "_remove", publish_first)
    assert prune(db, home, keep=1).versions == []
    assert list((home.adapters / "v000001").iterdir())
    assert set(MODELS) <= left(home, chosen)


def test_a_run_that_is_taken_up_meanwhile_stays_whole(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = a_run(db, home, 1, "failed"), a_run(db, home, 2, "failed")
    whole, remove = left(home, old), prune_module._remove

    def take_up_first(db: Database, home: Home, run: Run, pruned: prune_module.Pruned) -> None:
        assert runs.resume(db, run.id) is not None
        remove(db, home, run, pruned)

    monkeypatch.setattr(prune_module, "_remove", take_up_first)
    assert prune(db, home, keep=1).runs == [] and left(home, old) == whole


def test_what_cannot_be_removed_is_told_when_the_rest_is_gone(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest, stuck, _ = (a_run(db, home, number, "failed") for number in range(1, 4))
    rename = Path.rename

    def unless_stuck(path: Path, target: Path) -> Path:
        if path.parent.name == stuck.id:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", unless_stuck)
    with pytest.raises(Problem, match=r"cannot be removed \(Permission denied\) - make it writable"):
        prune(db, home, keep=1)
    assert left(home, oldest) == STAYS and "judge" in left(home, stuck)


def test_adapters_on_another_volume_give_back_their_room(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = a_night(db, home, 1, "refused")
    for number in (2, 3):
        a_night(db, home, number)
    rename, rmtree = Path.rename, shutil.rmtree

    def within_a_volume(path: Path, target: Path) -> Path:
        if (home.adapters in path.parents) != (home.adapters in target.parents):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        return rename(path, target)

    def die(path: Path, **_: object) -> None:
        if home.adapters in path.parents:
            raise KeyboardInterrupt
        rmtree(path)

    monkeypatch.setattr(Path, "rename", within_a_volume)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", die)
        prune(db, home, keep=2)
    assert not (home.adapters / "v000001").exists() and list(home.adapters.glob(".pruned-*/v000001"))
    told = prune(db, home, keep=2, dry_run=True)
    assert told == prune(db, home, keep=2) and (told.runs, told.versions) == ([refused.id], [])
    assert {path.name for path in home.adapters.iterdir()} == {"v000002", "v000003"}


def test_what_a_killed_prune_had_set_aside_goes_with_the_next(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = a_run(db, home, 1, "failed"), a_run(db, home, 2, "failed")
    whole = left(home, new)

    def die(path: Path, **_: object) -> None:
        if not path.exists():
            return
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", die)
        prune(db, home, keep=1)
    assert list(home.runs.glob(".pruned-*/snapshot.jsonl"))
    told = prune(db, home, keep=1, dry_run=True)
    assert told == prune(db, home, keep=1) and (told.runs, told.bytes > 6000) == ([old.id], True)
    assert {path.name for path in home.runs.iterdir()} == {old.id, new.id} and left(home, new) == whole


def test_what_is_set_aside_and_cannot_be_removed_is_told_every_time_until_it_can(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, next_one, _ = (a_run(db, home, number, "failed") for number in range(1, 4))
    told = rf"pruned-{stuck.id}' cannot be removed \(Permission denied\) - make it writable"
    rmtree = shutil.rmtree

    def unless_stuck(path: Path, ignore_errors: bool = False) -> None:
        if path.name != f".pruned-{stuck.id}":
            rmtree(path)
        elif not ignore_errors:
            raise PermissionError(13, "Permission denied", "output.log")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", unless_stuck)
        for _ in range(2):
            with pytest.raises(Problem, match=told):
                prune(db, home, keep=1)
    assert left(home, next_one) == STAYS
    assert prune(db, home, keep=1).runs == [stuck.id]
    assert not list(home.runs.glob(".pruned-*"))


def test_what_another_removes_meanwhile_is_gone_all_the_same(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, rmtree = a_run(db, home, 1, "failed"), shutil.rmtree
    a_run(db, home, 2, "failed")

    def too_late(path: Path, **_: object) -> None:
        rmtree(path)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(shutil, "rmtree", too_late)
    assert prune(db, home, keep=1).runs == [old.id]


def test_what_another_removes_while_it_is_counted_counts_no_more(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, walk = a_run(db, home, 1, "failed"), os.walk
    a_run(db, home, 2, "failed")

    def too_late(path: Path) -> list[tuple[str, list[str], list[str]]]:
        return [(folder, names, [*files, "gone"]) for folder, names, files in walk(path)]

    monkeypatch.setattr(os, "walk", too_late)
    assert prune(db, home, keep=1).runs == [old.id]


def test_a_dry_run_waits_for_nobody_s_write(db: Database, home: Home) -> None:
    other = connect(home.database)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert prune(db, home, keep=1, dry_run=True).bytes == 0
    finally:
        other.close()


def test_keeping_none_is_refused(db: Database, home: Home) -> None:
    with pytest.raises(Refused, match="keep is 0 - use 1 or more"):
        prune(db, home, keep=0)
