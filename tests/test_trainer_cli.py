"""The trainer's command line: every command helps, prints JSON when asked, and fails in sentences."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbot.adapters import TENSORS
from chatbot.basemodel import Base
from data import rankings, runs, schedules, versions
from data.cli import run_cli
from data.database import Database
from data.home import Home
from data.records import Sampling
from tests.adapter_files import make_version
from tests.flags import to_flags
from tests.nights import tiny_night
from tests.waiting import until
from trainer.__main__ import run
from trainer.reasons import SHUT_DOWN

COMMANDS = [
    *("refresh", "watch", "schedule", "simulate", "measure", "sft", "reward", "score", "ppo", "gate"),
    *("versions", "publish", "reference", "rollback", "runs"),
]

Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def call(home: Home, capsys: pytest.CaptureFixture[str]) -> Call:
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
    code = (
        "import sys, time; from trainer.__main__ import run; run(['versions']);"
        "print(); print('torch' in sys.modules, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    has_torch, seconds = done.stdout.split()[-2:]
    assert has_torch == "False"
    # Of a core, not of a clock: what else the machine does counts little. Well under 2 s.
    assert float(seconds) < 10


OF_A_HOME = [
    *("refresh", "sft", "reward", "ppo 1", "gate 1", "schedule", "versions", "publish base", "reference"),
    *("rollback", "runs", "prune", "measure --taste concise", "score --version v000001 --data rows.jsonl"),
]


@pytest.mark.parametrize("command", OF_A_HOME)
def test_in_another_directory_there_is_nothing_to_learn_from(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trainer versions` made an empty home there, and said that the base serves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSCHOOL_HOME", raising=False)
    assert run_cli(run, command.split()) == 2
    assert capsys.readouterr().err.startswith(f"There is no Night School in {str(tmp_path / 'var')!r} - run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("simulate --taste none", "taste"),
        ("watch --judging none.jsonl", "There is no file 'none.jsonl' - "),
        ("reward --data none.jsonl", "There is no file 'none.jsonl' - "),
    ],
)
def test_simulated_raters_a_watcher_and_files_may_begin_a_home(
    command: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSCHOOL_HOME", raising=False)
    assert run_cli(run, command.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said and "no Night School" not in said
    assert (tmp_path / "var" / "runs").is_dir()


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


def test_old_runs_are_pruned_by_hand(call: Call, db: Database, home: Home) -> None:
    for key in ("manual-1", "manual-2"):
        run = runs.claim(db, key, config={})
        assert run is not None
        (home.runs / run.id).mkdir()
        (home.runs / run.id / "snapshot.jsonl").write_text("words")
        runs.finish(db, run, state="failed", reason="A test.")
    for flags in (["--dry-run"], []):
        assert len(list(home.runs.glob("*/snapshot.jsonl"))) == 2
        code, done = call("prune", "--keep", "1", *flags)
        assert code == 0 and (done["bytes"], len(done["runs"]), done["is_dry_run"]) == (5, 1, bool(flags))
    assert [path.parent.name for path in home.runs.glob("*/snapshot.jsonl")] == [run.id]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["prune", "--keep", "0"], "keep is 0 - use 1 or more."),
        (["schedule", "--cron", "25:00"], "'25:00' is not a cron expression - give"),
        (["schedule", "--zone", "Mars"], "No time zone 'Mars' - give"),
        (["schedule", "--min-rankings", "-1"], "out of range - use"),
        (["publish", "v000099"], "No version 'v000099' - run \"trainer versions\""),
        (["rollback"], "The base model serves already - "),
        (["runs", "nobody"], "No run 'nobody' - run \"trainer runs\""),
        (["refresh", "--run", "nobody"], "No run 'nobody' - "),
        (["refresh", "--updates", "0"], "updates is 0 - use 1 or more"),
        (["refresh", "--model", "no/such/dir"], "No directory 'no/such/dir' - give"),
        (["watch", "--judging", "none.jsonl"], "There is no file 'none.jsonl' - "),
        (["watch", "--ptx-data", "none.txt"], "There is no file 'none.txt' - "),
        (["watch", "--model", "no/such/dir"], "No directory 'no/such/dir' - give"),
        (["reward", "--data", "none.jsonl", "--model", "no/such/dir"], "There is no file 'none.jsonl' - "),
        (["reward", "--data", __file__, "--evaluate", "none.jsonl"], "There is no file 'none.jsonl' - "),
        (["score", "--version", "base", "--data", "none.jsonl"], "There is no file 'none.jsonl' - check"),
        (["simulate", "--taste", "warmth"], "No taste 'warmth' - use one of"),
        (["simulate", "--taste", "nowhere.py:f"], "No file 'nowhere.py' - give"),
        (["simulate", "--taste", "warm", "--model", "no/such/dir", "--prompts", "none"], "no file 'none' -"),
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
    assert re.search(r"\* base +base model +- +0\b", capsys.readouterr().out), "no gate has judged it"


def test_publish_and_roll_back_end_at_the_base(call: Call, db: Database, home: Home, tiny_base: Base) -> None:
    make_version(db, home, tiny_base)
    make_version(db, home, tiny_base, seed=1, parent="v000001")
    assert call("publish", "v000001")[1]["current"] == "v000001"
    assert call("publish", "v000002", "--reason", "Better.")[1]["reason"] == "Better."
    assert [call("rollback")[1]["current"] for _ in range(2)] == ["v000001", "base"]
    code, printed = call("rollback")
    assert code == 2 and "nothing to roll back to" in printed["error"]
    assert versions.history(db)[0].person == "command line"


def test_the_reference_is_shown_set_and_given_up(
    call: Call, db: Database, home: Home, tiny_base: Base
) -> None:
    make_version(db, home, tiny_base)
    assert call("reference") == (0, {"reference": "base"})
    assert call("reference", "v000001") == (0, {"reference": "v000001"})
    anchor = versions.reference(db, tiny_base.sha256)
    assert anchor is not None and anchor.name == "v000001"
    assert call("reference", "base") == (0, {"reference": "base"})
    assert call("reference", "v000009")[0] == 2


def test_what_is_chosen_is_not_said_to_serve_where_no_server_runs(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str], tiny_base: Base
) -> None:
    make_version(db, home, tiny_base)
    for command, chosen in ((["publish", "v000001"], "v000001"), (["rollback"], "base")):
        assert run_cli(run, command) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{chosen} is chosen: a running server answers") and "serves" not in said


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
    runs.log(db, claimed, "ppo", 2, {"kl": 1.25, "entropy": float("nan")})
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
    assert code != 0 and printed["error"].startswith("Another run is under way - wait for it")


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


ROWS = [
    {
        "id": f"{i}",
        "prompt": [{"role": "user", "content": f"say {i}"}],
        "replies": ["zzz", "a"],
        "ranking": [0, 1],
    }
    for i in range(12)
]


def test_reward_models_are_trained_and_examined_on_files(
    call: Call, db: Database, tiny_directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "source": "test"}) + "\n" for row in ROWS))
    settings = ["--model", str(tiny_directory), "--members=1", "--reward-steps=4", "--rank=4"]
    code, printed = call("reward", "--data", str(file), "--evaluate", str(file), *settings)
    assert code == 0 and printed["pairs"] == 12 and runs.list_all(db) == []
    assert {"accuracy", "accuracy_interval", "always_longest", "seconds"} <= set(printed)
    code, printed = call("reward", "--evaluate", str(file), *settings)
    assert code == 2 and "--evaluate needs something to train on" in printed["error"]


@pytest.mark.parametrize("content", [None, b"this is no database"])
def test_reward_models_from_files_need_no_database_and_make_none(
    home: Home,
    tiny_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "source": "test"}) + "\n" for row in ROWS))
    if content:
        home.database.write_bytes(content)
    flags = ["--model", str(tiny_directory), "--members=1", "--reward-steps=4", "--rank=4", "--json"]
    assert run_cli(run, ["reward", "--data", str(file), "--evaluate", str(file), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 12
    assert (home.database.read_bytes() if home.database.exists() else None) == content


def test_the_stages_of_a_night_are_commands_and_its_version_scores_replies(
    call: Call, ranked: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    config = tiny_night(home, gate_prompts=8)
    code, rewards = call("reward", f"--model={tiny_base.directory}", *to_flags(config))
    assert code == 0 and rewards["state"] == "interrupted"
    code, printed = call("gate", rewards["id"])
    assert code == 2 and f'no candidate yet - go on with "trainer ppo {rewards["id"]}"' in printed["error"]
    code, improved = call("ppo", rewards["id"])
    assert code == 0 and f"trainer gate {rewards['id']}" in improved["reason"]
    code, judged = call("gate", rewards["id"])
    assert code in (0, 5) and judged["state"] in ("published", "refused")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    version = versions.list_all(ranked)[0].name
    code, scored = call("score", f"--version={version}", f"--data={file}", f"--model={tiny_base.directory}")
    assert code == 0 and [row["id"] for row in scored] == ["0", "1"] and len(scored[0]["scores"]) == 2


def test_a_machine_that_shuts_down_interrupts_a_night_which_can_go_on_at_once(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    flags = [f"--model={tiny_base.directory}", *to_flags(tiny_night(home, reward_epochs=10_000))]
    night = subprocess.Popen([sys.executable, "-m", "trainer", "refresh", *flags])
    try:
        until(lambda: (run := runs.latest(ranked)) is not None and run.message.startswith("Training"), 120)
        night.terminate()
        assert night.wait(60) == 130
    finally:
        night.kill()
    stopped = runs.latest(ranked)
    assert stopped is not None and stopped.state == "interrupted"
    assert stopped.reason == SHUT_DOWN
    assert runs.resume(ranked, stopped.id) is not None


def test_what_is_over_is_not_gone_on_with(call: Call, db: Database, tiny_directory: Path) -> None:
    run = runs.claim(db, "manual-1", config={"model": str(tiny_directory)})
    assert run is not None
    assert "under way" in call("gate", run.id)[1]["error"]
    assert "not at this stage" in call("ppo", run.id)[1]["error"]
    runs.interrupt_expired(db, run.lease_until)
    assert 'go on with "trainer refresh --resume' in call("gate", run.id)[1]["error"]
    run = runs.resume(db, run.id)
    assert run is not None
    runs.finish(db, run, state="published", reason="A test.")
    assert "start a new refresh" in call("refresh", "--resume", run.id)[1]["error"]
    run = runs.claim(db, "sft-1", config={"model": str(tiny_directory)})
    assert run is not None
    for command in (["refresh", "--resume"], ["ppo"], ["gate"]):
        assert 'which always begins anew - run "trainer sft"' in call(*command, run.id)[1]["error"]


def test_fine_tuning_without_demonstrations_says_so(call: Call, db: Database, tiny_directory: Path) -> None:
    code, printed = call("sft", f"--model={tiny_directory}")
    assert code == 3 and "edit more replies" in printed["error"]
    assert runs.list_all(db)[0].state == "nothing_to_learn"


def test_the_module_runs_from_a_plain_checkout(home: Home) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "publish", "v000099"],
        capture_output=True,
        text=True,
        env={**os.environ, "NIGHTSCHOOL_HOME": str(home.root)},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "No version 'v000099' - run \"trainer versions\" to list them.\n"
