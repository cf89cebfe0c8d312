"""The trainer's command line: every command helps, prints JSON when asked, and fails in sentences."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbot.adapters import TENSORS
from chatbot.basemodel import Base
from chatbot.flags import run_cli
from data import rankings, runs, schedules, versions
from data.database import Database
from data.home import Home
from data.records import Sampling
from tests.adapter_files import make_version
from trainer.__main__ import run

COMMANDS = ["refresh", "watch", "schedule", "simulate", "measure", "versions", "publish", "rollback", "runs"]

Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def call(db: Database, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command with `--json`; gives its exit code and what it printed."""

    def run_it(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = run_cli(run, [*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run_it


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: trainer {command}" in out and "--json" in out
    assert re.search(r"\n\n[A-Z][^\n]+", out), "a sentence on what it does"


def test_looking_is_quick_because_torch_stays_out(home: Home) -> None:
    code = "import sys; from trainer.__main__ import run; run(['versions']); print('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    # Well under 2 s on an idle machine; the bound leaves room for a busy one.
    assert time.monotonic() - started < 10


def test_the_schedule_is_shown_and_set_with_the_next_five_times(call: Call, db: Database) -> None:
    code, shown = call("schedule")
    assert code == 0 and shown["cron"] == "30 3 * * *" and len(shown["next"]) == 5
    code, shown = call("schedule", "--cron", "0 2 * * 1-5", "--zone", "Europe/Berlin", "--min-rankings", "7")
    assert code == 0 and all("T02:00" in time for time in shown["next"])
    stored = schedules.get(db)
    assert (stored.cron, stored.zone, stored.min_rankings) == ("0 2 * * 1-5", "Europe/Berlin", 7)


def test_the_schedule_is_paused_and_resumed(call: Call, db: Database) -> None:
    assert call("schedule", "--pause")[1]["is_paused"] is True
    assert call("schedule")[1]["is_paused"] is True
    assert call("schedule", "--resume")[1]["is_paused"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["schedule", "--cron", "25:00"], "'25:00' is not a cron expression - give"),
        (["schedule", "--zone", "Mars"], "No time zone 'Mars' - give"),
        (["schedule", "--min-rankings", "-1"], "out of range - use"),
        (["publish", "v000099"], "No version 'v000099' - run \"trainer versions\""),
        (["rollback"], "The base model serves already - "),
        (["runs", "nobody"], "No run 'nobody' - run \"trainer runs\""),
        (["refresh", "--run", "nobody"], "No run 'nobody' - "),
        (["refresh", "--updates", "0"], "updates is 0 - use 1 or more"),
        (["refresh", "--model", "no/such/dir"], "No directory 'no/such/dir' - give"),
        (["simulate", "--taste", "warmth"], "No taste 'warmth' - use one of"),
        (["simulate", "--taste", "nowhere.py:f"], "No file 'nowhere.py' - give"),
        (["measure", "--taste", "concise", "--versions", "base,v000099"], "No version 'v000099' - run"),
        (["measure", "--taste", "concise", "--prompts", "none.jsonl"], "no file 'none.jsonl' - check"),
    ],
)
def test_bad_input_is_a_sentence_and_changes_nothing(
    arguments: list[str], sentence: str, call: Call, db: Database
) -> None:
    before = schedules.get(db)
    code, printed = call(*arguments)
    assert code == 2 and sentence in printed["error"]
    assert schedules.get(db) == before and runs.list_all(db) == []


def test_versions_are_listed_with_what_serves(
    call: Call, db: Database, home: Home, tiny_base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    make_version(db, home, tiny_base)
    _, listed = call("versions")
    assert [row["name"] for row in listed["versions"]] == ["base", "v000001"]
    assert listed["serving"]["current"] == "base"
    assert run_cli(run, ["versions"]) == 0
    assert re.search(r"\* base +accepted", capsys.readouterr().out)


def test_publish_and_roll_back_end_at_the_base(call: Call, db: Database, home: Home, tiny_base: Base) -> None:
    make_version(db, home, tiny_base)
    make_version(db, home, tiny_base, seed=1, parent="v000001")
    assert call("publish", "v000001")[1]["current"] == "v000001"
    assert call("publish", "v000002", "--reason", "Better.")[1]["reason"] == "Better."
    assert [call("rollback")[1]["current"] for _ in range(2)] == ["v000001", "base"]
    code, printed = call("rollback")
    assert code == 2 and "nothing to roll back to" in printed["error"]
    assert versions.history(db)[0].person == "command line"


def test_a_refused_version_is_published_by_force_only(
    call: Call, db: Database, home: Home, tiny_base: Base
) -> None:
    make_version(db, home, tiny_base, status="refused")
    code, printed = call("publish", "v000001")
    assert code == 2 and "The gate refused v000001" in printed["error"]
    assert call("publish", "v000001", "--force")[1]["current"] == "v000001"


def test_a_damaged_version_is_not_published(call: Call, db: Database, home: Home, tiny_base: Base) -> None:
    version = make_version(db, home, tiny_base)
    with (home.adapters / version.path / TENSORS).open("r+b") as file:
        file.truncate(100)
    code, printed = call("publish", "v000001")
    assert code == 2 and "are damaged" in printed["error"] and versions.serving(db).current == "base"


def test_runs_are_listed_and_one_is_shown_with_its_figures(
    call: Call, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    claimed = runs.claim(db, "manual-1", config={"seed": 3})
    assert claimed is not None
    runs.log(db, claimed.id, "ppo", 2, {"kl": 1.25, "entropy": float("nan")})
    assert call("runs")[1][0]["key"] == "manual-1"
    figures = {row["name"]: row["value"] for row in call("runs", claimed.id)[1]["metrics"]}
    assert figures == {"kl": 1.25, "entropy": None}
    run_cli(run, ["runs", claimed.id])
    assert "ppo 2 kl: 1.25" in capsys.readouterr().out


def test_a_refresh_without_rankings_says_so_and_is_recorded(
    call: Call, db: Database, tiny_directory: Path
) -> None:
    code, printed = call("refresh", "--model", str(tiny_directory))
    assert code != 0 and "rank more replies" in printed["error"]
    assert runs.list_all(db)[0].state == "nothing_to_learn"


def test_a_second_refresh_waits_for_the_first(call: Call, db: Database, tiny_directory: Path) -> None:
    runs.claim(db, "manual-1", config={})
    code, printed = call("refresh", "--model", str(tiny_directory))
    assert code != 0 and printed["error"].startswith("Another refresh is running - wait for it")


def test_simulate_and_measure_work_on_any_chat_model(
    call: Call, db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    model = ["--model", str(tiny_base.directory)]
    code, printed = call("simulate", "--taste", "concise", "--turns", "3", "--replies", "2", *model)
    assert code == 0 and printed["turns"] == rankings.count(db) == 3 and printed["versions"] == ["base"]
    make_version(db, home, tiny_base)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "Hi"}]}\n')
    names = ["--versions", "base,v000001", "--prompts", str(file)]
    code, printed = call("measure", "--taste", "concise", *names, *model)
    assert code == 0 and set(printed["versions"]) == {"base", "v000001"}
    assert printed["sampling"]["temperature"] == Sampling().temperature


def test_the_module_runs_from_a_plain_checkout(home: Home) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "publish", "v000099"],
        capture_output=True,
        text=True,
        env={**os.environ, "NIGHTSCHOOL_HOME": str(home.root)},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "No version 'v000099' - run \"trainer versions\" to list them.\n"
