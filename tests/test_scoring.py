"""trainer/scoring.py: files in, a report out; and replies scored as they are scored inside a night."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from chatbot.basemodel import Base
from chatbot.manifest import RewardRecord, hash_file
from chatbot.policy import Policy
from data import runs, versions
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.records import Version
from tests.adapter_files import make_version
from tests.learners import CPU, shake
from trainer.config import RefreshConfig
from trainer.preferences import read_rows
from trainer.reward import scores_of, tokenise
from trainer.scoring import as_lines, reward_folders, score_file, train_and_evaluate

CONFIG = RefreshConfig(
    rank=4, reward_epochs=4, reward_lr=5e-3, reward_batch=4, reward_steps=1, members=2, precision="float32"
)
NAMED = ("accuracy", "accuracy_interval", "always_longest", "pairs", "seconds")


def likes_z(path: Path, count: int, first: int = 0) -> Path:
    """Rows by people who want the letter z, wherever it stands."""
    pairs = [("zz z", "qq"), ("az", "a"), ("qz", "q"), ("bz", "bb")]
    rows = [
        {"id": f"z{i}", "prompt": f"question {i}", "replies": list(pairs[i % 4]), "ranking": [0, 1]}
        for i in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report_on(base: Base, data: Path, *evaluate: Path, **options: Any) -> dict[str, Any]:
    heard: list[float] = []
    report = train_and_evaluate(
        base,
        [data],
        evaluate,
        CONFIG,
        tell=lambda name, step, fraction, metrics: heard.append(fraction),
        **options,
    )
    assert heard == sorted(heard) and heard[-1] == 1
    return report


def test_what_one_file_teaches_is_examined_on_another(tiny_base: Base, tmp_path: Path) -> None:
    data, others = likes_z(tmp_path / "data.jsonl", 24), likes_z(tmp_path / "others.jsonl", 16, first=100)
    report = report_on(tiny_base, data, others)
    assert report["accuracy"] > 0.9 and report["accuracy_interval"][0] > 0.5
    assert (report["pairs"], report["trained_on"], report["members"]) == (16, 24, 2)
    assert (report["always_longest"], report["seen_prompts"]) == (0.875, 0)
    assert report["disagreement"] > 0 and report["paraphrase_flip_rate"] is not None
    assert json.loads(json.dumps(report)).keys() >= set(NAMED)


def test_without_a_second_file_a_fifth_of_the_conversations_is_held_out(
    tiny_base: Base, tmp_path: Path
) -> None:
    report = report_on(tiny_base, likes_z(tmp_path / "data.jsonl", 40))
    assert report["trained_on"] + report["rankings"] == 40
    assert 2 <= report["rankings"] <= 16
    assert report["seen_prompts"] == 0


def test_prompts_that_were_trained_on_are_counted(tiny_base: Base, tmp_path: Path) -> None:
    data, others = likes_z(tmp_path / "data.jsonl", 8), likes_z(tmp_path / "others.jsonl", 8, first=5)
    report = report_on(tiny_base, data, others)
    assert report["seen_prompts"] == 3
    assert any("3 rankings have a prompt that was trained on too" in line for line in as_lines(report))


def test_a_limit_is_of_each_file(tiny_base: Base, tmp_path: Path) -> None:
    data, others = likes_z(tmp_path / "data.jsonl", 24), likes_z(tmp_path / "others.jsonl", 16, first=100)
    report = report_on(tiny_base, data, others, limit=6)
    assert (report["trained_on"], report["pairs"]) == (6, 6)


def test_too_little_to_part_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    data = likes_z(tmp_path / "data.jsonl", 1)
    with pytest.raises(Refused, match="too few rows to split by conversation, 1 - give a file"):
        report_on(tiny_base, data)
    with pytest.raises(Refused, match="nothing to examine on with a split of None - use one between"):
        report_on(tiny_base, data, split=None)


def test_a_reply_scores_in_a_file_what_it_scored_in_the_night(tiny_base: Base, tmp_path: Path) -> None:
    """The heads and their normalisation survive the round trip."""
    policy = Policy(tiny_base, device=CPU, dtype=torch.float32)
    folders = [tmp_path / f"reward-{i}" for i in range(2)]
    for seed, folder in enumerate(folders):
        policy.add(folder.name, seed=seed, rank=4, with_head=True)
        shake(policy, folder.name, 0.1, seed)
        policy.heads[folder.name].mean.fill_(0.3 + seed)
        policy.heads[folder.name].std.fill_(1.7 - seed)
        policy.save(folder.name, folder)
    file = likes_z(tmp_path / "rows.jsonl", 5)
    replies = [reply for t in tokenise(read_rows([file]), tiny_base.format) for reply in t.replies]
    one, other = (torch.tensor(scores_of(policy, folder.name, replies)) for folder in folders)
    rows = score_file(tiny_base, folders, file, CONFIG)
    assert [row["id"] for row in rows] == [f"z{i}" for i in range(5)]
    scores = torch.tensor([score for row in rows for score in row["scores"]])
    spread = torch.tensor([std for row in rows for std in row["std"]])
    torch.testing.assert_close(scores, (one + other) / 2, atol=1e-4, rtol=0)
    torch.testing.assert_close(spread, (one - other).abs() / 2, atol=1e-4, rtol=0)


def test_the_models_are_kept_where_asked_and_score_later(tiny_base: Base, tmp_path: Path) -> None:
    data = likes_z(tmp_path / "data.jsonl", 24)
    report_on(tiny_base, data, data, folder=tmp_path / "kept")
    folders = [tmp_path / "kept" / f"reward-{i}" for i in range(2)]
    (tmp_path / "bare.jsonl").write_text('{"id": 7, "prompt": "new", "replies": ["bz", "bb", ""]}\n')
    (row,) = score_file(tiny_base, folders, tmp_path / "bare.jsonl", CONFIG)
    assert row["id"] == "7"
    assert row["scores"][0] > row["scores"][1]
    assert len(row["scores"]) == len(row["std"]) == 3


def made_with(db: Database, home: Home, base: Base, names: Sequence[str]) -> Version:
    """A version whose manifest names reward models of a run's folder, each with a file."""
    run = runs.claim(db, "tonight", config={})
    assert run is not None
    rewards: list[RewardRecord] = []
    for name in names:
        folder = home.runs / run.id / name
        folder.mkdir(parents=True)
        (folder / "head.safetensors").write_text(name)
        files = {"head.safetensors": hash_file(folder / "head.safetensors")}
        numbers = {"mean": 0.0, "std": 1.0, "usual_length": 4.5, "length": -0.25}
        rewards.append(cast(RewardRecord, {"name": name, "files": files, **numbers}))
    return make_version(db, home, base, run=run, rewards=rewards)


def test_the_reward_models_of_a_version_are_those_of_its_manifest(
    db: Database, home: Home, tiny_base: Base
) -> None:
    version = made_with(db, home, tiny_base, ["reward-0", "reward-2", "reward-10", "judge"])
    found = reward_folders(home, version, tiny_base)
    assert [folder.name for folder in found] == ["reward-0", "reward-2", "reward-10"]


def test_a_reward_model_that_changed_since_is_refused(db: Database, home: Home, tiny_base: Base) -> None:
    version = made_with(db, home, tiny_base, ["reward-0"])
    (home.runs / str(version.run_id) / "reward-0" / "head.safetensors").write_text("another mean")
    with pytest.raises(Refused, match="'reward-0' of version 'v000001' is not what it was"):
        reward_folders(home, version, tiny_base)


def test_a_version_without_reward_models_or_of_another_base_is_refused(
    db: Database, home: Home, tiny_base: Base
) -> None:
    version = made_with(db, home, tiny_base, ["reward-0"])
    with pytest.raises(Refused, match=r"of 'v000001' belong to another base model, .* - give it as --model"):
        reward_folders(home, replace(version, base_sha256="other"), tiny_base)
    shutil.rmtree(home.runs / str(version.run_id) / "reward-0")
    for bare in (version, versions.get(db, "base")):
        with pytest.raises(Refused, match="has no reward models - name one"):
            reward_folders(home, bare, tiny_base)
