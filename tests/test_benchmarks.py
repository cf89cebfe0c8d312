"""What a benchmark does before and after its hours: it says what is missing, and draws what there is."""

import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from shutil import which

import pytest
import torch

from benchmarks import peers
from benchmarks.curves import as_svg
from benchmarks.peers import commit, measured, origins, sides_of
from chatbot.engine import Engine
from chatbot.runner import LlamaRunner
from data.cli import ENVIRONMENT
from data.records import Sampling

ROOT = Path(__file__).parent.parent


def test_a_missing_peer_is_told_before_anything_is_measured() -> None:
    known = ("ours", "trl")
    assert sides_of(Namespace(sides="ours", peer=None), known) == ["ours"]
    assert sides_of(Namespace(sides="ours,trl", peer=Path("python")), known) == ["ours", "trl"]
    with pytest.raises(SystemExit, match="Where is TRL"):
        sides_of(Namespace(sides="ours,trl", peer=None), known)
    with pytest.raises(SystemExit, match="no side 'vllm' - use ours, trl"):
        sides_of(Namespace(sides="vllm", peer=None), known)


def test_a_side_is_measured_once_with_the_settings_of_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "9")  # what somebody has set wins
    told = "{name: os.environ.get(name) for name in ('GOMP_SPINCOUNT', 'LRU_CACHE_CAPACITY')}"
    command = [sys.executable, "-c", f"import json, os; print(json.dumps({told}))"]
    ours = measured(tmp_path / "cache.json", "ours", command, ENVIRONMENT)
    assert (ours["GOMP_SPINCOUNT"], ours["LRU_CACHE_CAPACITY"]) == (ENVIRONMENT["GOMP_SPINCOUNT"], "9")
    assert measured(tmp_path / "cache.json", "ours", ["false"], {}) == ours
    assert measured(tmp_path / "cache.json", "theirs", command, {})["GOMP_SPINCOUNT"] is None


def test_each_result_is_told_with_the_commit_and_threads_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text('{"theirs": {"seconds": 2.0, "threads": 1}, "older": {"seconds": 3.0}}')
    monkeypatch.setattr(peers, "commit", lambda: "abc1234")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    command = [sys.executable, "-c", "print('{}')", "--model", "models/tiny"]
    names = ("ours", "ours again", "theirs", "older")
    told = origins(measured(cache, name, command, {}) for name in names).splitlines()
    assert told[0].startswith("This is commit abc1234 ")
    assert told[2:] == [
        "- commit abc1234, 2 threads, tiny: ours; ours again",
        "- commit unknown, 1 thread: theirs",
        "- commit unknown, ? threads: older",
    ]


@pytest.mark.skipif(not which("git"), reason="there is no git")
def test_changed_files_are_told_with_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    (tmp_path / "code.py").write_text("1")
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-qm", "One."]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = commit()
    (tmp_path / "code.py").write_text("2")
    assert clean != "unknown"
    assert commit() == f"{clean}-dirty"


@pytest.mark.parametrize("name", ["formats", "preferences", "stage3", "swaps"])
def test_what_computes_here_has_the_settings_of_our_commands(name: str) -> None:
    """libgomp tells what it has read when it is loaded."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"],
        env={**kept, "OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        assert f"{key} = '{ENVIRONMENT[key]}'" in done.stderr


def test_too_few_rankings_to_time_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # where its neighbours lie when it is run
    from benchmarks.reward import check_enough

    with pytest.raises(SystemExit, match="Only 0 rankings of 9 replies fit into 64 tokens"):
        check_enough([], 9, 64)


def test_a_paced_server_answers_at_its_pace(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.served import hold_back

    monkeypatch.setattr(LlamaRunner, "step", LlamaRunner.step)  # put back afterwards
    hold_back(rate=50.0)
    sampling = Sampling(temperature=0, max_new_tokens=6)
    started = time.monotonic()
    generation = engine.submit([{"role": "user", "content": "Hello."}], sampling=sampling)
    generation.wait()
    [reply] = generation.replies
    assert reply.finish_reason in ("stop", "length")
    assert time.monotonic() - started >= (reply.tokens - 1) / 50


LINE = {
    "name": "concise-0",
    "night": 1,
    "commit": "906a97f",
    "refresh_seconds": 720,
    "was_interrupted": False,
    "reward": {"accuracy": 0.9},
    "judge": {"accuracy": 0.8},
    "state": "refused",
    "against_base": None,
    "against_before": None,
}
"""A line of learning.py."""


def test_each_night_is_told_with_its_own_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.learning import as_table

    resumed = {**LINE, "night": 2, "commit": "aed1af0-dirty", "was_interrupted": True}
    rows = [line.split(" | ") for line in as_table([LINE, resumed])[2:]]
    assert [row[2:4] for row in rows] == [["906a97f", "12.0 min"], ["aed1af0-dirty", "in parts"]]


def test_a_row_is_run_by_its_whole_name_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks import learning

    ran: list[str] = []
    monkeypatch.setattr(learning, "run_row", lambda row, home, out: ran.append(row.name))
    monkeypatch.setattr(sys, "argv", ["", "--only", "concise-0", "--out", str(tmp_path / "out.jsonl")])
    learning.main()
    assert ran == ["concise-0"]
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--only", "concise-0"])
    with pytest.raises(SystemExit):
        learning.main()
    assert ran == ["concise-0"]


def test_a_night_is_known_by_the_rankings_it_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.night_growth import as_table, report_of

    runs = [{"id": "killed"}, {"id": "first"}, {"id": "second"}]
    for run, read in (("first", 50), ("second", 100)):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "report.json").write_text(f'{{"rankings": {read}, "run": "{run}"}}')
    assert report_of(100, runs, tmp_path) == {"rankings": 100, "run": "second"}
    assert report_of(200, runs, tmp_path) is None
    older = {"rankings": 100, "seconds": {"reward": 5.0}, "processor_seconds": 7, "was_interrupted": False}
    newer = {**older, "was_interrupted": True, "commit": "906a97f"}
    rows = [line.split(" | ") for line in as_table([older, newer]).splitlines()[2:]]
    assert [row[1] for row in rows] == ["unknown", "906a97f, in parts"]
    assert [row[-1].split()[0] for row in rows] == ["7", "7"]


def test_too_few_swaps_are_told_before_any_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks import swaps

    monkeypatch.setattr(sys, "argv", ["", "--swaps", "3"])
    assert swaps.parse().swaps == 3
    monkeypatch.setattr(sys, "argv", ["", "--swaps", "2"])
    with pytest.raises(SystemExit):
        swaps.parse()
    assert "--swaps 2 is too few to see memory grow - give 3 or more." in capsys.readouterr().err


def test_unknown_and_unprepared_ways_of_stage_3_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.stage3 import rows_of

    assert rows_of("ppo,sft,sft-long", []) == ["ppo", "sft", "sft-long"]
    assert rows_of("sft-long", ["ppo", "sft"]) == ["sft-long"]
    with pytest.raises(SystemExit, match="no way 'pppo' - use ppo,bestofk"):
        rows_of("pppo", [])
    with pytest.raises(SystemExit, match="sft-long needs the time of ppo - put"):
        rows_of("sft,sft-long,ppo", [])


@pytest.mark.parametrize(("device", "also"), [("cpu", "int8"), ("cuda", "")])
def test_only_a_cpu_is_asked_for_int8(device: str, also: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks import serving

    monkeypatch.setattr(serving, "pick_device", lambda: torch.device(device))
    monkeypatch.setattr(sys, "argv", ["", "--sides", "ours,static", "--precisions", "bfloat16"])
    wanted = [("ours", "bfloat16"), ("static", "bfloat16"), *([("ours", also)] if also else [])]
    assert list(serving.sides(serving.parse())) == wanted
    monkeypatch.setattr(sys, "argv", ["", "--ours-also", "float32"])
    assert serving.parse().ours_also == "float32"


def test_rows_without_a_curve_are_a_picture_without_lines() -> None:
    assert "polyline" not in as_svg([{"row": "sft", "curve": []}])
    points = [{"kl": 0.0, "taste": 1.0, "score": 0.0}, {"kl": 4.0, "taste": 2.0, "score": 1.0}]
    assert as_svg([{"row": "sft", "curve": []}, {"row": "ppo", "curve": points}]).count("polyline") == 2
