"""Whatever is wrong with a version directory, it is refused before anything loads it."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from chatbot import adapters
from chatbot.adapters import CONFIG, TENSORS
from chatbot.manifest import MANIFEST, Manifest, write_manifest
from data.errors import Refused
from tests.adapter_files import write_adapter

BASE, TEMPLATE = "b" * 64, "c" * 64


def llama(layers: int = 2, hidden: int = 32) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def seal(directory: Path, **changes: Any) -> Manifest:
    """Writes a manifest that fits the files as they are now, so that only deeper checks can object."""
    manifest = Manifest(
        name=directory.name,
        parent="base",
        base_model="tiny",
        base_sha256=BASE,
        template_sha256=TEMPLATE,
        files=adapters.hash_files(directory),
        run_id=None,
        snapshot_sha256=None,
        rankings=12,
        delta_norm=1.0,
        canary=[{"ids": [1, 2, 3], "reply_start": 1, "logprob": -4.5}],
        created_at=1.0,
    )
    manifest = replace(manifest, **changes)
    write_manifest(directory, manifest)
    return manifest


def verify(directory: Path, config: LlamaConfig | None = None) -> Manifest:
    return adapters.verify(
        directory, base_sha256=BASE, template_sha256=TEMPLATE, model_config=config or llama()
    )


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A whole version directory."""
    directory = write_adapter(tmp_path / "v000001", llama())
    seal(directory)
    return directory


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / TENSORS)
    change(tensors)
    save_file(tensors, directory / TENSORS)
    seal(directory)


def change_config(directory: Path, **changes: Any) -> None:
    settings = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**settings, **changes}))
    seal(directory)


def first(tensors: dict[str, Tensor], kind: str = "lora_A") -> str:
    return next(name for name in sorted(tensors) if kind in name)


def test_a_whole_version_is_accepted_and_says_where_it_comes_from(version: Path) -> None:
    assert verify(version) == seal(version)


def test_an_adapter_of_the_upper_layers_alone_is_accepted(version: Path) -> None:
    upper = {name: t for name, t in load_file(version / TENSORS).items() if ".layers.1." in name}
    save_file(upper, version / TENSORS)
    change_config(version, layers_to_transform=[1])
    assert verify(version).name == "v000001"
    change_tensors(version, lambda tensors: tensors.pop(first(tensors)))
    with pytest.raises(Refused, match="is missing"):
        verify(version)


def test_a_manifest_of_before_reward_models_were_named_is_read(version: Path) -> None:
    row = json.loads((version / MANIFEST).read_text())
    del row["rewards"]
    (version / MANIFEST).write_text(json.dumps(row))
    assert verify(version).rewards == []


REWARD: Any = {"name": "r", "files": {}, "mean": 0.0, "std": 1.0, "usual_length": 4.5, "length": -0.25}


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "reward-0"},
        REWARD | {"mean": "0"},
        REWARD | {"length": None},
        REWARD | {"x": 1.0},
        7,
    ],
)
def test_a_manifest_with_an_odd_reward_model_is_refused(version: Path, odd: object) -> None:
    seal(version, rewards=[REWARD])
    assert verify(version).rewards == [REWARD]
    seal(version, rewards=[odd])
    with pytest.raises(Refused, match="fields of the wrong type"):
        verify(version)


# PEFT 0.21 asks transformers 5.23 for a name that transformers has since renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_peft_saves_is_accepted(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(llama()), settings)
    directory = tmp_path / "v000002"
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink()
    seal(directory)
    verify(directory)
    deltas = [m.get_delta_weight("default") for m in model.modules() if hasattr(m, "get_delta_weight")]
    norm = torch.stack([delta.detach().norm() for delta in deltas]).norm()
    assert adapters.measure_delta(directory) == pytest.approx(float(norm), rel=1e-5)


def flip_one_bit(directory: Path) -> None:
    data = bytearray((directory / TENSORS).read_bytes())
    data[-3] ^= 4
    (directory / TENSORS).write_bytes(bytes(data))


def truncate(directory: Path) -> None:
    data = (directory / TENSORS).read_bytes()
    (directory / TENSORS).write_bytes(data[: len(data) // 2])


def truncate_and_seal(directory: Path) -> None:
    truncate(directory)
    seal(directory)


def put_nan(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors[first(tensors)].view(-1)[3].fill_(float("nan")))


def put_infinity(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors[first(tensors)].view(-1)[0].fill_(float("inf")))


def drop_a_tensor(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.pop(first(tensors)))


def add_a_tensor(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update(stranger=torch.zeros(1)))


def transpose_a_tensor(directory: Path) -> None:
    change_tensors(
        directory, lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].T.contiguous()})
    )


def make_integers(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].int()}))


def zero_the_delta(directory: Path) -> None:
    change_tensors(directory, lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])


def link_the_tensors(directory: Path) -> None:
    outside = directory.parent / "outside.safetensors"
    os.rename(directory / TENSORS, outside)
    (directory / TENSORS).symlink_to(outside)


def point_outside(directory: Path) -> None:
    files = {**adapters.hash_files(directory), "../../etc/passwd": "0" * 64}
    seal(directory, files=files)


def mention_a_pickle(directory: Path) -> None:
    seal(directory, files={**adapters.hash_files(directory), "adapter_model.bin": "0" * 64})


def bring_a_pickle(directory: Path) -> None:
    (directory / "adapter_model.bin").write_bytes(b"\x80\x04.")


def break_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"name": "v000001"')


def nest_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text("[" * 100_000)


def forget_a_field(directory: Path) -> None:
    row = json.loads((directory / MANIFEST).read_text())
    del row["base_sha256"]
    (directory / MANIFEST).write_text(json.dumps(row))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("bit rot", flip_one_bit, "is damaged"),
    ("truncated", truncate, "is damaged"),
    ("truncated before it was hashed", truncate_and_seal, "cannot be read"),
    ("NaN", put_nan, "not finite"),
    ("infinity", put_infinity, "not finite"),
    ("missing tensor", drop_a_tensor, "is missing"),
    ("extra tensor", add_a_tensor, "has no place"),
    ("wrong shape", transpose_a_tensor, r"is \(32, 4\), not \(4, 32\)"),
    ("integers", make_integers, "not floating point"),
    ("zero delta", zero_the_delta, "changes nothing"),
    ("symlink", link_the_tensors, "is a link"),
    ("path traversal", point_outside, "no part of a version"),
    ("pickle in the manifest", mention_a_pickle, "no part of a version"),
    ("pickle in the directory", bring_a_pickle, "no part of a version"),
    ("manifest missing", lambda d: (d / MANIFEST).unlink(), "'manifest.json' is missing"),
    ("tensors missing", lambda d: (d / TENSORS).unlink(), "is missing"),
    ("manifest too deep", nest_the_manifest, "cannot be read .it is nested too deeply"),
    ("manifest cut", break_the_manifest, "cannot be read"),
    ("manifest without a field", forget_a_field, "base_sha256"),
    ("field of the wrong type", lambda d: seal(d, rankings="many"), "wrong type"),
    ("canary of the wrong type", lambda d: seal(d, canary=[{"ids": "x"}]), "wrong type"),
    ("another version's manifest", lambda d: seal(d, name="v000002"), "that of 'v000002'"),
    ("another base", lambda d: seal(d, base_sha256="0" * 64), "another base model"),
    ("another template", lambda d: seal(d, template_sha256="0" * 64), "another chat template"),
    ("alpha 0", lambda d: change_config(d, lora_alpha=0), "lora_alpha is 0"),
    ("rank 0", lambda d: change_config(d, r=0), "rank r is 0"),
    ("rank of another adapter", lambda d: change_config(d, r=8), r"not \(8, 32\)"),
    ("DoRA", lambda d: change_config(d, use_dora=True), "plain LoRA"),
    ("a module to import", lambda d: change_config(d, megatron_config={"a": 1}), "megatron_config"),
    ("saved modules", lambda d: change_config(d, modules_to_save=["lm_head"]), "modules_to_save"),
    ("no target here", lambda d: change_config(d, target_modules=["conv1d"]), "none of its target modules"),
    ("target as a pattern", lambda d: change_config(d, target_modules=".*"), "not a list"),
    ("layers as a pattern", lambda d: change_config(d, layers_to_transform="1"), "not a list of numbers"),
    ("truth for a layer", lambda d: change_config(d, layers_to_transform=[True]), "not a list of numbers"),
    ("fewer layers than tensors", lambda d: change_config(d, layers_to_transform=[1]), "has no place"),
    ("no such layer", lambda d: change_config(d, layers_to_transform=[7]), r"in layers \[7\]"),
]


@pytest.mark.parametrize(("damage", "sentence"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_version_is_refused_with_a_sentence(
    version: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(version)
    with pytest.raises(Refused, match=sentence) as refused:
        verify(version)
    assert str(refused.value).startswith("Version 'v000001' is not loaded: ")
    assert " - what serves stays" in str(refused.value)


@pytest.mark.parametrize("config", [llama(layers=3), llama(layers=1), llama(hidden=64)])
def test_an_adapter_of_another_depth_or_width_is_refused(version: Path, config: LlamaConfig) -> None:
    with pytest.raises(Refused, match=r"is missing|has no place|, not \("):
        verify(version, config)


def test_a_directory_that_is_a_link_or_not_there_is_refused(version: Path) -> None:
    link = version.parent / "v000003"
    link.symlink_to(version)
    for directory in (link, version.parent / "v000009"):
        with pytest.raises(Refused, match="not a directory"):
            verify(directory)
