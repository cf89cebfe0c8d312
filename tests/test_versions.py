"""versions.py: what serves and what anchors the learning is one row, changed only under a living lease."""

from dataclasses import replace
from typing import Any

import pytest

from data import audit, runs, versions
from data.database import Database
from data.errors import NotFound, Refused
from data.records import Run, Version, VersionStatus
from tests.stories import a_turn, frozen, rank, somebody


def made(
    db: Database,
    parent: str = "base",
    status: VersionStatus = "accepted",
    run: Run | None = None,
    reference: str | None = None,
    report: dict[str, Any] | None = None,
) -> Version:
    name = versions.next_name(db)
    return versions.add(
        db,
        name=name,
        parent=parent,
        base_model="tiny",
        base_sha256="0" * 64,
        path=name,
        sha256="1" * 64,
        status=status,
        report=report or {"win_rate": 0.6, "reference": reference},
        run_id=run.id if run else None,
        rankings=3,
    )


def claimed(db: Database, key: str = "tonight") -> Run:
    run = runs.claim(db, key, config={})
    assert run is not None
    return run


def test_versions_are_counted_from_one(db: Database) -> None:
    assert versions.next_name(db) == "v000001"
    first = made(db)
    assert first.name == "v000001"
    assert versions.next_name(db) == "v000002"
    assert versions.get(db, "v000001") == first
    assert versions.list_all(db) == [first]


def test_the_base_is_always_there_and_serves_first(db: Database) -> None:
    assert versions.get(db, "base").status == "accepted"
    assert versions.serving(db).current == "base"
    assert versions.list_all(db) == []


def test_an_unknown_version_is_a_sentence_with_the_remedy(db: Database) -> None:
    with pytest.raises(NotFound, match=r"No version 'v000099' - run \"trainer versions\" to list"):
        versions.get(db, "v000099")


def test_a_published_version_serves_and_the_audit_tells_who(db: Database) -> None:
    made(db, status="candidate")
    serving = versions.publish(db, "v000001", actor="ada", reason="It won.")
    assert (serving.current, serving.previous, serving.reason) == ("v000001", "base", "It won.")
    assert versions.serving(db) == serving
    assert versions.get(db, "v000001").status == "accepted"
    (entry,) = versions.history(db)
    assert (entry.person, entry.action, entry.detail["version"]) == ("ada", "publish", "v000001")
    assert [entry.action for entry in audit.entries(db)] == ["publish", "add_version"]


def test_publishing_what_serves_changes_nothing(db: Database) -> None:
    made(db)
    first = versions.publish(db, "v000001", actor="ada", reason="once")
    assert versions.publish(db, "v000001", actor="ada", reason="twice") == first
    assert len(versions.history(db)) == 1


def test_a_refused_version_serves_only_by_force(db: Database) -> None:
    made(db, status="refused")
    with pytest.raises(Refused, match="gate refused v000001"):
        versions.publish(db, "v000001", actor="ada", reason="")
    assert versions.publish(db, "v000001", actor="ada", reason="", force=True).current == "v000001"
    assert versions.get(db, "v000001").status == "refused"


def test_a_run_that_lost_its_lease_cannot_publish(db: Database) -> None:
    late = claimed(db)
    made(db, run=late)
    assert runs.claim(db, "next", config={}, now=late.lease_until + 1) is not None
    with pytest.raises(Refused, match="lease was lost"):
        versions.publish(db, "v000001", actor="trainer", reason="", run=late)
    assert versions.serving(db).current == "base"
    assert versions.history(db) == []


def test_a_run_publishes_with_its_own_token_only(db: Database) -> None:
    run = claimed(db)
    made(db, run=run)
    with pytest.raises(Refused):
        versions.publish(db, "v000001", actor="trainer", reason="", run=replace(run, fencing_token=99))
    serving = versions.publish(db, "v000001", actor="trainer", reason="", run=run)
    assert serving.current == "v000001"


def test_rolling_back_goes_to_the_previous_then_up_the_parents_to_the_base(db: Database) -> None:
    for parent in ("base", "v000001", "v000002"):
        versions.publish(db, made(db, parent).name, actor="trainer", reason="night")
    line = [versions.rollback(db, actor="ada").current for _ in range(3)]
    assert line == ["v000002", "v000001", "base"]
    with pytest.raises(Refused, match="base model serves already"):
        versions.rollback(db, actor="ada")
    assert versions.history(db)[0].detail == {"version": "base", "before": "v000001", "reason": ""}


def test_publishing_the_base_can_be_rolled_back_like_any_other_change(db: Database) -> None:
    versions.publish(db, made(db).name, actor="trainer", reason="night")
    versions.publish(db, "base", actor="ada", reason="by mistake")
    assert versions.rollback_target(db) == "v000001"
    assert versions.rollback(db, actor="ada").current == "v000001"


def test_the_line_of_a_version_is_its_parents_up_to_the_base(db: Database) -> None:
    for parent in ("base", "v000001", "v000001", "v000003"):
        made(db, parent)
    assert versions.line_of(db, "v000004") == ["v000004", "v000003", "v000001", "base"]
    assert versions.line_of(db, "base") == ["base"]
    with pytest.raises(NotFound, match="No version 'v000009'"):
        versions.line_of(db, "v000009")


def test_a_taken_name_and_an_unknown_parent_are_refused(db: Database) -> None:
    version = made(db)
    with pytest.raises(NotFound, match="No version 'v000007'"):
        made(db, parent="v000007")
    with pytest.raises(Refused, match="is there already"):
        values = {
            name: getattr(version, name) for name in Version.__dataclass_fields__ if name != "created_at"
        }
        versions.add(db, **values)


def test_versions_that_learned_from_a_ranking_are_found_with_their_descendants(db: Database) -> None:
    ada = somebody(db)
    made(db)
    ranking = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    run = claimed(db)
    runs.set_snapshot(db, run.id, frozen(db))
    made(db, "v000001", run=run)
    made(db, "v000002")
    made(db)
    assert versions.learned_from(db, [ranking.id]) == ["v000002", "v000003"]
    assert versions.learned_from(db, []) == []


def test_a_version_descends_from_its_reference_too(db: Database) -> None:
    ada = somebody(db)
    ranking = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    run = claimed(db)
    runs.set_snapshot(db, run.id, frozen(db))
    made(db, run=run)
    made(db, reference="v000001")
    made(db, "v000002")
    made(db)
    assert versions.learned_from(db, [ranking.id]) == ["v000001", "v000002", "v000003"]


def test_the_way_back_leads_past_what_learned_from_a_person_and_what_the_gate_refused(db: Database) -> None:
    made(db)
    made(db, "v000001", status="refused")
    made(db, "v000002")
    assert versions.untouched(db, "v000003", []) == "v000003"
    assert versions.untouched(db, "v000003", ["v000003"]) == "v000001"
    assert versions.untouched(db, "v000003", ["v000001", "v000003"]) == "base"


def test_redacting_takes_samples_and_one_persons_figures_out_of_the_reports_of_these_runs(
    db: Database,
) -> None:
    run = claimed(db)
    told = {"accuracy": 0.7, "accuracy_by_person": {"ada-id": 0.9, "eve-id": 0.5}}
    report = {"ppo": {"kept": "all", "samples": {"4": [{"prompt": "words"}]}}, "reward": told, "judge": told}
    version = made(db, run=run, report=report)
    other = made(db, report=report)
    assert versions.redact(db, [run.id], "ada-id") == [version.name]
    left = {"accuracy": 0.7, "accuracy_by_person": {"eve-id": 0.5}}
    expected = {"ppo": {"kept": "all", "samples": {}}, "reward": left, "judge": left}
    assert versions.get(db, version.name) == replace(version, report=expected)
    assert versions.get(db, other.name) == other
    assert versions.redact(db, [run.id], "ada-id") == []


BASE = "0" * 64


def test_the_base_itself_is_the_reference_until_a_version_is(db: Database) -> None:
    assert versions.reference(db, BASE) is None
    version = made(db, status="candidate")
    serving = versions.set_reference(db, version.name, actor="ada")
    assert (serving.reference, serving.current) == ("v000001", "base")
    assert versions.reference(db, BASE) == version
    assert versions.set_reference(db, None, actor="ada").reference is None
    assert versions.reference(db, BASE) is None


def test_a_reference_anchors_nothing_on_another_base(db: Database) -> None:
    versions.set_reference(db, made(db).name, actor="ada")
    assert versions.reference(db, "f" * 64) is None
    assert versions.reference(db, BASE) is not None


def test_serving_and_the_reference_leave_each_other_alone(db: Database) -> None:
    before = versions.serving(db)
    serving = versions.set_reference(db, made(db, status="candidate").name, actor="ada")
    assert serving == replace(before, reference="v000001")
    assert versions.publish(db, made(db).name, actor="ada", reason="").reference == "v000001"
    assert versions.rollback(db, actor="ada").reference == "v000001"
    assert versions.get(db, "v000001").status == "candidate"


def test_the_audit_tells_who_set_the_reference_and_what_it_was(db: Database) -> None:
    for name in (made(db).name, made(db).name, "base", "base"):
        versions.set_reference(db, name, actor="ada")
    said = [e.detail for e in audit.entries(db) if (e.person, e.action) == ("ada", "set_reference")]
    assert [(entry["before"], entry["version"]) for entry in said[::-1]] == [
        ("base", "v000001"),
        ("v000001", "v000002"),
        ("v000002", "base"),
    ]


def test_what_the_gate_refused_and_what_is_not_there_cannot_be_the_reference(db: Database) -> None:
    refused = made(db, status="refused")
    with pytest.raises(Refused, match="gate refused v000001"):
        versions.set_reference(db, refused.name, actor="ada")
    with pytest.raises(NotFound, match="No version 'v000099'"):
        versions.set_reference(db, "v000099", actor="ada")
    assert versions.serving(db).reference is None


def test_a_run_that_lost_its_lease_cannot_set_the_reference(db: Database) -> None:
    late = claimed(db)
    made(db, run=late)
    assert runs.claim(db, "next", config={}, now=late.lease_until + 1) is not None
    with pytest.raises(Refused, match="lease was lost"):
        versions.set_reference(db, "v000001", actor="trainer", run=late)
    assert versions.serving(db).reference is None
