"""What a version is called on servers, and by what they are held to it."""

from pathlib import Path

from chatbot.basemodel import Base
from chatbot.edition import Edition
from data.database import Database
from data.home import Home
from tests.adapter_files import write_adapter
from tests.test_following import with_canary


def test_a_name_means_the_same_files_for_ever(tiny_base: Base, tmp_path: Path) -> None:
    one, other, copy = (
        Edition.of("v000001", write_adapter(tmp_path / f"{place}", tiny_base.config, seed=seed))
        for place, seed in enumerate((1, 2, 1))
    )
    assert one.tag == copy.tag != other.tag
    assert one.tag.startswith("v000001-") and other.tag.startswith("v000001-")


def test_a_version_has_its_manifests_canaries_and_one_made_by_hand_has_none(
    db: Database, home: Home, tiny_base: Base, adapter: Path
) -> None:
    version = with_canary(db, home, tiny_base, 0.0)
    assert len(Edition.of(version.name, home.adapters / version.path).canary) > 0
    assert not Edition.of("by-hand", adapter).canary
