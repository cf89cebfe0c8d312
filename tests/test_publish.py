"""A version appears whole or not at all, and what is published is what was trained."""

import os
from pathlib import Path
from typing import Any

import pytest

from chatbot.adapters import TENSORS
from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.following import load_verified
from chatbot.manifest import MANIFEST, hash_file, read_manifest
from data import runs, versions
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.records import Run
from tests.adapter_files import make_version, write_adapter
from trainer.publish import check_files, verify_for, write_candidate


def test_a_version_is_a_directory_that_verifies_and_a_row_that_names_it(
    db: Database, home: Home, tiny_base: Base
) -> None:
    version = make_version(db, home, tiny_base)
    directory = home.adapters / "v000001"
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        ["adapter_config.json", TENSORS, MANIFEST]
    )
    assert verify_for(tiny_base, directory).delta_norm > 0
    assert version == versions.get(db, "v000001") and version.sha256 == hash_file(directory / MANIFEST)
    assert versions.serving(db).current == "base"  # publishing files lets nobody be answered by them


def test_versions_are_numbered_and_know_their_parent_and_run(
    db: Database, home: Home, tiny_base: Base
) -> None:
    run = runs.claim(db, "manual-1", config={})
    make_version(db, home, tiny_base)
    adapter = write_adapter(home.runs / "mine", tiny_base.config, seed=1)
    canary = {"ids": [5, 6, 7], "reply_start": 1, "logprob": -5.5}
    with write_candidate(
        db,
        home,
        tiny_base,
        adapter_dir=adapter,
        run=run,
        parent="v000001",
        canary=[canary],  # type: ignore[list-item]
        snapshot_sha256="d" * 64,
        rankings=40,
    ) as candidate:
        version = candidate.appear(report={"gate": "no"}, status="refused")
    manifest = read_manifest(home.adapters / version.path)
    assert run is not None and (version.name, version.status) == ("v000002", "refused")
    assert (manifest.parent, manifest.run_id, manifest.rankings) == ("v000001", run.id, 40)
    assert manifest.canary == [canary] and manifest.snapshot_sha256 == "d" * 64


def test_a_published_version_loads_into_the_engine(db: Database, home: Home, engine: Engine) -> None:
    make_version(db, home, engine.base)
    load_verified(db, home, engine, "v000001")
    assert engine.known_versions == ["base", "v000001"]


def test_a_damaged_candidate_leaves_nothing_behind(db: Database, home: Home, tiny_base: Base) -> None:
    with pytest.raises(Refused, match="changes nothing"):
        make_version(db, home, tiny_base, size=0.0)
    assert list(home.adapters.iterdir()) == [] and versions.list_all(db) == []


def a_candidate(home: Home, run: Run | None = None) -> dict[str, Any]:
    """What `write_candidate` is asked for in these tests."""
    return {
        "adapter_dir": home.runs / "mine",
        "run": run,
        "parent": "base",
        "canary": [],
        "snapshot_sha256": None,
        "rankings": 0,
    }


def test_a_folder_that_is_no_adapter_is_refused(db: Database, home: Home, tiny_base: Base) -> None:
    writing = write_candidate(db, home, tiny_base, **a_candidate(home))
    with pytest.raises(Refused, match=r"has no adapter_config\.json - give the folder of a PEFT"), writing:
        pass
    assert list(home.adapters.iterdir()) == []


def test_what_has_not_appeared_is_nowhere(db: Database, home: Home, tiny_base: Base) -> None:
    write_adapter(home.runs / "mine", tiny_base.config)
    with write_candidate(db, home, tiny_base, **a_candidate(home)) as candidate:
        assert verify_for(tiny_base, candidate.directory) == candidate.manifest
        assert not candidate.target.exists() and versions.list_all(db) == []
    assert list(home.adapters.iterdir()) == []


def test_a_run_that_lost_its_lease_makes_nothing_appear(db: Database, home: Home, tiny_base: Base) -> None:
    write_adapter(home.runs / "mine", tiny_base.config)
    run = runs.claim(db, "manual-1", config={})
    assert run is not None
    with write_candidate(db, home, tiny_base, **a_candidate(home, run)) as candidate:
        runs.interrupt_expired(db, run.lease_until)
        with pytest.raises(Refused, match="lease was lost"):
            candidate.appear(report={}, status="accepted")
    assert list(home.adapters.iterdir()) == [] and versions.list_all(db) == []


def test_a_name_that_was_taken_meanwhile_keeps_its_files(db: Database, home: Home, tiny_base: Base) -> None:
    write_adapter(home.runs / "mine", tiny_base.config, seed=1)
    with write_candidate(db, home, tiny_base, **a_candidate(home)) as candidate:
        first = make_version(db, home, tiny_base)
        with pytest.raises(Refused, match="'v000001' is there already"):
            candidate.appear(report={}, status="accepted")
    check_files(home, first)
    assert versions.list_all(db) == [first]


def test_a_crash_before_the_rename_shows_no_version(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_power(*_: object) -> None:
        raise OSError("power")

    with monkeypatch.context() as patch:
        patch.setattr("data.files.os.rename", lose_power)
        with pytest.raises(OSError, match="power"):
            make_version(db, home, tiny_base)
    assert list(home.adapters.iterdir()) == [] and versions.list_all(db) == []
    assert make_version(db, home, tiny_base, seed=1).name == "v000001"


def test_a_directory_without_a_row_is_replaced_by_the_next_publication(
    db: Database, home: Home, tiny_base: Base
) -> None:
    orphan = home.adapters / "v000001"
    orphan.mkdir()
    (orphan / "leftover").write_text("from a crash between the rename and the row")
    make_version(db, home, tiny_base)
    assert not (orphan / "leftover").exists() and verify_for(tiny_base, orphan)


def test_what_a_killed_trainer_left_goes_with_a_publication_a_day_later(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # kill -9 cleans nothing up
        patch.setattr("tempfile.TemporaryDirectory.cleanup", lambda self: self._finalizer.detach())
        write_adapter(home.runs / "mine", tiny_base.config)
        with write_candidate(db, home, tiny_base, **a_candidate(home)):
            pass
    (left,) = home.adapters.iterdir()
    make_version(db, home, tiny_base)
    assert left.is_dir()  # it might be another trainer's
    day = 86_400
    os.utime(left, (left.stat().st_atime - day, left.stat().st_mtime - day))
    make_version(db, home, tiny_base, seed=1)
    assert not left.exists() and sorted(p.name for p in home.adapters.iterdir()) == ["v000001", "v000002"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_files_that_changed_or_went_since_are_noticed(db: Database, home: Home, tiny_base: Base) -> None:
    version = make_version(db, home, tiny_base)
    check_files(home, version)
    flip(home.adapters / "v000001" / TENSORS)
    with pytest.raises(Refused, match="are damaged - publish another"):
        check_files(home, version)
    flip(home.adapters / "v000001" / TENSORS)
    os.rename(home.adapters / "v000001" / MANIFEST, home.root / "elsewhere")
    with pytest.raises(Refused, match="are gone - publish another"):
        check_files(home, version)
    check_files(home, versions.get(db, "base"))
