"""trainer/sft.py: what is imitated, when it stops, and how the result becomes the reference."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from chatbot.basemodel import Base, load_base
from chatbot.models import merged_model
from chatbot.policy import Policy
from data import conversations, runs, versions
from data.database import Database, connect, open_database
from data.errors import NotFound, Refused
from data.exchange import import_rows
from data.home import Home, open_home
from data.records import Run, Sampling
from tests.adapter_files import make_version
from tests.learners import CPU, END, a_learner, delta_norm, some_replies
from tests.nights import known_conversations, tiny_night
from tests.stories import a_turn, somebody
from tests.test_outcome import held_after_canaries, hold
from tests.test_team import launcher
from trainer import publish, sft
from trainer.config import RefreshConfig
from trainer.forward import TOKENS_PER_PASS, Reply, logprobs_of
from trainer.progress import Cancelled
from trainer.publish import check_files, verify_for
from trainer.sampler import sample_replies
from trainer.sft import TooFewDemonstrations, fine_tune, mean_loss, reply_losses, train_sft
from trainer.team import SOLO, Team

CONFIG = RefreshConfig(rank=4, minibatch=4, sft_epochs=3, sft_lr=1e-2)


def a_policy(base: Base) -> Policy:
    return Policy(base, device=CPU, dtype=torch.float32)


def learn(policy: Policy, examples: Sequence[Reply], held_out: Sequence[Reply] = (), **more: Any) -> Any:
    config = more.pop("config", CONFIG)
    return train_sft(policy, "reference", examples, held_out, config, tell=lambda *_: None, **more)


def says_ok(count: int, first: int = 0) -> list[Reply]:
    """To whatever is asked, somebody replied the same two letters."""
    return [Reply([1, 10 + i, 11 + i], [82, 78, END], True) for i in range(first, first + count)]


def its_own(base: Base, prompts: Sequence[list[int]]) -> list[Reply]:
    """What the base says by itself, greedily: nothing else is as likely."""
    model = merged_model(base, None, device=CPU, dtype=torch.float32)
    return sample_replies(model, prompts, sampling=Sampling(0, 1, 8), end_of_turn=END, seed=0)


def test_a_reply_costs_minus_the_log_probability_of_its_own_tokens(tiny_base: Base) -> None:
    policy, replies = a_learner(tiny_base), some_replies()
    model = merged_model(tiny_base, None, device=CPU, dtype=torch.float32)
    policy.write_merged("policy", model)
    for temperature in (1.0, 0.8):
        slow = logprobs_of(model, [r.prompt for r in replies], [r.reply for r in replies], temperature)
        with torch.no_grad():
            costs = reply_losses(policy, "policy", replies, temperature)
        assert costs.tolist() == pytest.approx([-float(logprob.sum()) for logprob in slow], abs=1e-3)


def test_the_mean_loss_is_over_tokens_not_over_replies(tiny_base: Base) -> None:
    policy, replies = a_learner(tiny_base), some_replies()
    with torch.no_grad():
        costs = reply_losses(policy, "policy", replies)
    tokens = sum(len(reply.reply) for reply in replies)
    assert mean_loss(policy, "policy", replies) == pytest.approx(float(costs.sum()) / tokens, abs=1e-4)


def test_it_learns_to_imitate_and_to_end_the_turn(tiny_base: Base) -> None:
    policy, every = a_policy(tiny_base), says_ok(72)
    held_out = every[::9]
    taught = [reply for reply in every if reply not in held_out]
    report = learn(policy, taught, held_out, config=replace(CONFIG, sft_epochs=8))
    losses = report["held_out_loss"]
    assert losses[0] > 2
    assert losses[report["best_epoch"]] < 0.5
    assert mean_loss(policy, "reference", held_out) == pytest.approx(min(losses), abs=1e-4)
    ending = [Reply(reply.ids[:-1], [END], True) for reply in held_out]
    assert mean_loss(policy, "reference", ending) < 1.0


def test_it_stops_where_the_held_out_loss_rises_and_keeps_the_best_pass(tiny_base: Base) -> None:
    policy = a_policy(tiny_base)
    other = [replace(reply, reply=[82, 90, 91, END]) for reply in says_ok(6, first=100)]
    report = learn(policy, says_ok(8), other, config=replace(CONFIG, sft_epochs=20))
    losses = report["held_out_loss"]
    assert report["stopped_early"] and len(losses) < 21
    assert losses[report["best_epoch"]] == min(losses) < losses[-1]
    assert mean_loss(policy, "reference", other) == pytest.approx(min(losses), abs=1e-4)


def test_a_first_pass_that_only_harms_is_taken_back(tiny_base: Base) -> None:
    policy = a_policy(tiny_base)
    held_out = its_own(tiny_base, [[1, 30 + i] for i in range(8)])
    report = learn(policy, says_ok(32), held_out, config=replace(CONFIG, sft_lr=0.1))
    assert (report["best_epoch"], report["stopped_early"]) == (0, True)
    assert delta_norm(policy, "reference") == 0
    assert mean_loss(policy, "reference", held_out) == pytest.approx(report["held_out_loss"][0], abs=1e-4)


def test_without_anything_held_out_every_pass_is_made(tiny_base: Base) -> None:
    heard: list[tuple[int, float]] = []
    report = train_sft(
        a_policy(tiny_base), "reference", says_ok(6), [], CONFIG,
        tell=lambda step, fraction, metrics: heard.append((step, fraction)),
    )  # fmt: skip
    assert (len(report["loss"]), report["held_out_loss"], report["best_epoch"]) == (3, [], 3)
    assert heard == [(step, step / 6) for step in range(1, 7)]


def test_an_example_that_weighs_nothing_teaches_nothing(tiny_base: Base) -> None:
    once = replace(CONFIG, sft_epochs=1)
    both, alone = a_policy(tiny_base), a_policy(tiny_base)
    learn(both, [*says_ok(1), some_replies()[0]], weights=[0.5, 0.0], config=once)
    learn(alone, says_ok(1), config=once)
    for key, tensor in alone.state("reference").items():
        torch.testing.assert_close(both.state("reference")[key], tensor, atol=1e-3, rtol=0)


def test_how_a_step_is_cut_into_passes_changes_nothing(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = a_policy(tiny_base), a_policy(tiny_base)
    said = learn(whole, some_replies())
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1)
    assert learn(cut, some_replies())["loss"] == pytest.approx(said["loss"], abs=1e-4)


def test_only_the_adapter_that_learns_moves(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    before = {name: policy.keep(name) for name in ("reward-0", "judge")}
    start = policy.keep("policy")
    train_sft(policy, "policy", says_ok(8), [], CONFIG, tell=lambda *_: None)
    assert any(not torch.equal(tensor, start[key]) for key, tensor in policy.state("policy").items())
    for name, kept in before.items():
        assert all(torch.equal(tensor, kept[key]) for key, tensor in policy.state(name).items())


def test_a_loss_that_is_no_number_ends_it_with_the_remedy(tiny_base: Base) -> None:
    policy = a_policy(tiny_base)
    policy.add("reference", seed=0, rank=4)
    with torch.no_grad():
        policy.parameters("reference")[0].fill_(float("nan"))
    with pytest.raises(Refused, match="not finite - lower --sft-lr"):
        learn(policy, says_ok(4))


def a_lesson(model: str, home: str, team: Team) -> list[float]:
    """The losses of a few steps on five replies, the last step of each pass on one of them alone."""
    policy = a_policy(load_base(model, open_home(Path(home)), lambda text: None))
    report = learn(policy, some_replies(), says_ok(3), config=replace(CONFIG, sft_lr=1e-3), team=team)
    return [*report["loss"], *report["held_out_loss"]]


def member(rank: int, model: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    losses = a_lesson(model, f"{folder}/home-{rank}", Team(rank, 2))
    Path(folder, f"{rank}.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_does(tiny_directory: Path, tmp_path: Path) -> None:
    spawn: Any = mp.spawn
    spawn(member, args=(str(tiny_directory), str(tmp_path)), nprocs=2)
    alone = a_lesson(str(tiny_directory), str(tmp_path / "home"), SOLO)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(alone, abs=1e-4)


# The stage as a recorded run


@pytest.mark.slow
def test_processes_that_were_launched_together_fine_tune_as_one_run(
    db: Database, home: Home, tiny_base: Base
) -> None:
    """The chief claims it, and the other member writes nothing."""
    import_politeness(db)
    command = [*launcher(2), "trainer", "sft", f"--model={tiny_base.directory}", "--sft-lr=0.01"]
    environment = {**os.environ, "NIGHTSCHOOL_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = runs.list_all(db)
    assert (run.state, run.version, versions.serving(db).reference) == ("published", *["v000001"] * 2)


def a_stage(db: Database, home: Home, base: Base, **changes: Any) -> Run:
    run = runs.claim(db, f"sft-{len(runs.list_all(db))}", config={})
    assert run is not None, "no other run holds the lease"
    config = tiny_night(home, **({"sft_lr": 1e-2, "minibatch": 8} | changes))
    return fine_tune(db, home, base, config, run, quiet=True)


def import_politeness(db: Database, count: int = 24) -> None:
    """Imported rows in which every question has the same short reply."""
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "ok sir"}]}
        for i in range(count)
    ]
    assert import_rows(db, rows, "sft").added == count


def test_imported_replies_become_the_reference_and_what_serves_stays(
    db: Database, home: Home, tiny_base: Base
) -> None:
    import_politeness(db)
    run = a_stage(db, home, tiny_base, sft_epochs=12)
    assert (run.state, run.version, run.stage) == ("published", "v000001", "publish")
    assert "imitates 24 demonstrations and is the reference now" in run.reason
    version = versions.get(db, "v000001")
    assert versions.reference(db, tiny_base.sha256) == version
    assert (versions.serving(db).current, version.status, version.parent) == ("base", "candidate", "base")
    check_files(home, version)
    policy = a_policy(tiny_base)
    policy.load("reference", home.adapters / version.path)
    chat = tiny_base.format
    asked = chat.encode([{"role": "user", "content": "q99"}])
    unseen = [Reply(asked, chat.encode_reply("ok sir"), True)]
    assert mean_loss(policy, "reference", unseen) < 0.5
    report = version.report
    assert (report["demonstrations"], report["left_out"]) == (24, 0)
    assert (report["sources"], report["people"]) == ({"imported": 24}, 1)
    assert (report["sft"]["examples"], report["sft"]["held_out"]) == (21, 3)
    names = {metric.name for metric in runs.metrics(db, run.id, "sft")}
    assert names == {"loss", "grad_norm", "held_out_loss"}
    assert run.snapshot_hash and (home.runs / run.id / "demonstrations.jsonl").is_file()


def test_a_second_fine_tuning_begins_with_the_base_again(db: Database, home: Home, tiny_base: Base) -> None:
    import_politeness(db)
    first = versions.get(db, str(a_stage(db, home, tiny_base).version))
    second = versions.get(db, str(a_stage(db, home, tiny_base).version))
    assert versions.reference(db, tiny_base.sha256) == second
    assert (second.name, second.parent) == ("v000002", "base")
    assert first.report["sft"] == second.report["sft"]


def test_too_few_demonstrations_are_a_recorded_outcome(db: Database, home: Home, tiny_base: Base) -> None:
    import_politeness(db, 3)
    with pytest.raises(TooFewDemonstrations, match="3 demonstrations to imitate and fine-tuning needs 16"):
        a_stage(db, home, tiny_base)
    (run,) = runs.list_all(db)
    assert (run.state, run.version) == ("nothing_to_learn", None)
    assert "import some, or lower --min-demonstrations" in run.reason
    assert versions.reference(db, tiny_base.sha256) is None


def test_a_file_to_judge_on_that_is_none_costs_no_training(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_politeness(db)
    monkeypatch.setattr(sft, "training_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(NotFound, match="nowhere"):
        a_stage(db, home, tiny_base, judging="nowhere.jsonl")
    assert runs.list_all(db)[0].state == "failed"


def test_imitation_that_helps_nothing_leaves_the_reference(db: Database, home: Home, tiny_base: Base) -> None:
    chat = tiny_base.format
    questions = [{"role": "user", "content": f"q{i}"} for i in range(16)]
    replies = its_own(tiny_base, [chat.encode([question]) for question in questions])
    rows = [
        {"messages": [question, {"role": "assistant", "content": chat.decode(said.reply)}]}
        for question, said in zip(questions, replies, strict=True)
    ]
    with known_conversations(0):
        assert import_rows(db, rows, "sft").added == 16
    run = a_stage(db, home, tiny_base, sft_lr=0.5)
    assert (run.state, run.version) == ("refused", None)
    assert "the reference stays" in run.reason
    assert versions.list_all(db) == []


def test_a_cancelled_fine_tuning_leaves_no_version(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_politeness(db)
    really = sft.train_sft

    def cancelled(*rest: Any, **more: Any) -> Any:
        runs.request_cancel(db, runs.list_all(db)[0].id)
        return really(*rest, **more)

    monkeypatch.setattr(sft, "train_sft", cancelled)
    with pytest.raises(Cancelled):
        a_stage(db, home, tiny_base)
    assert runs.list_all(db)[0].state == "cancelled"
    assert versions.list_all(db) == [] and versions.serving(db).reference is None


def test_a_run_that_lost_its_lease_sets_no_reference(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_politeness(db)
    really = sft.canaries

    def late(*rest: Any, **more: Any) -> Any:
        runs.interrupt_expired(db, runs.list_all(db)[0].lease_until + 1)
        return really(*rest, **more)

    monkeypatch.setattr(sft, "canaries", late)
    with pytest.raises(Refused, match="lease was lost"):
        a_stage(db, home, tiny_base)
    assert runs.list_all(db)[0].state == "interrupted"
    assert versions.serving(db).reference is None


def test_a_fine_tuning_whose_database_others_hold_waits_to_say_why_it_failed(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_politeness(db)
    other = connect(home.database)

    def diverge(*_: Any, **__: Any) -> Any:
        hold(other)
        raise Refused("The loss is not finite.")

    monkeypatch.setattr("data.database.BUSY_SECONDS", 0.2)
    monkeypatch.setattr(sft, "train_sft", diverge)
    with pytest.raises(Refused, match="The loss is not finite"):
        a_stage(db, home, tiny_base)
    (run,) = runs.list_all(db)
    assert (run.state, run.reason) == ("failed", "The loss is not finite.")
    other.close()


def test_what_was_learned_is_not_lost_to_whoever_holds_the_database_at_the_end(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_politeness(db)
    with held_after_canaries(sft, home, monkeypatch):
        assert a_stage(db, home, tiny_base).state == "published"
    assert versions.serving(db).reference == "v000001"


def test_a_reference_that_was_chosen_meanwhile_stays(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_politeness(db)
    chosen = make_version(db, home, tiny_base)

    def verified(*rest: Any) -> Any:  # somebody else can write while the files are looked at
        elsewhere = open_database(home)
        versions.set_reference(elsewhere, chosen.name, actor="ada")
        elsewhere.close()
        return verify_for(*rest)

    monkeypatch.setattr(publish, "verify_for", verified)
    run = a_stage(db, home, tiny_base)
    assert (run.state, run.version) == ("refused", "v000002")
    assert "While it learned, v000001 was made the reference and stays it" in run.reason
    assert 'run "trainer reference v000002"' in run.reason
    assert versions.serving(db).reference == "v000001"
    assert versions.set_reference(db, "v000002", actor="ada").reference == "v000002"


def test_what_a_person_edited_teaches_with_what_was_imported(
    db: Database, home: Home, tiny_base: Base
) -> None:
    import_politeness(db, 15)
    ada = somebody(db)
    conversations.add_edit(db, a_turn(db, ada, ["no"], question="q50")[0].id, "ok sir", ada.id)
    run = a_stage(db, home, tiny_base)
    report = versions.get(db, str(run.version)).report
    assert (report["sources"], report["people"]) == ({"imported": 15, "human": 1}, 2)
