"""The checks that stand between a version directory and the served model.

A version is a directory `adapters/v000012/` with exactly three files: PEFT's `adapter_config.json` and
`adapter_model.safetensors`, and our `manifest.json`. PEFT loads most damaged or foreign adapters without
an exception and attention hides NaN, so nothing is handed to it that `verify` has not read: hashes, the
exact tensor names and shapes of this base, finite numbers, a change that is not zero, no path outside.

Left out on purpose: peft itself (only safetensors is read here), and the canary's forward pass: the
manifest carries log-probabilities, the engine compares them with its own build.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from chatbot.basemodel import hollow_model
from chatbot.manifest import MANIFEST, Manifest, hash_file, read_json, read_manifest, refusal, refuse

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG, TENSORS)

_PEFT_PREFIX = "base_model.model."
_PLAIN_LORA_KEYS = {
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "target_modules",
    "task_type",
}
"""What a plain LoRA may set. Anything else in PEFT's config (DoRA, biases, rank patterns, saved modules,
a module to import) would change what is loaded in ways that are not checked here, so it is refused."""


@dataclass(frozen=True)
class Lora:
    """What `adapter_config.json` says of a plain LoRA."""

    rank: int
    scale: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    """Those that it changes; None is all."""


def verify(
    directory: Path, *, base_sha256: str, template_sha256: str, model_config: PreTrainedConfig
) -> Manifest:
    """Reads a version directory and refuses it, in a sentence, unless it is whole and made for this base."""
    _check_listing(directory)
    manifest = read_manifest(directory)
    _check_files(directory, manifest)
    if manifest.base_sha256 != base_sha256:
        refuse(directory, f"it was trained on another base model ({manifest.base_model!r})")
    if manifest.template_sha256 != template_sha256:
        refuse(directory, "it was trained with another chat template")
    lora = read_lora(directory)
    tensors = _read_tensors(directory)
    _check_tensors(directory, tensors, expected_shapes(directory, lora, model_config))
    if delta_norm(tensors, lora) <= 0:
        refuse(directory, "it changes nothing: the norm of its delta is 0")
    return manifest


def hash_files(directory: Path) -> dict[str, str]:
    """What a manifest says of the adapter's files."""
    return {name: hash_file(directory / name) for name in ADAPTER_FILES}


def measure_delta(directory: Path) -> float:
    """The norm of what the adapter in `directory` adds to the base (for the manifest)."""
    return delta_norm(_read_tensors(directory), read_lora(directory))


def delta_norm(tensors: dict[str, Tensor], lora: Lora) -> float:
    """sqrt of the sum over modules of |scale B A|^2, without ever building B A: tr(B'B AA')."""
    total = 0.0
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace(".lora_A.", ".lora_B.")].double()  # (out, r)
            total += float(((b.T @ b) * (a.double() @ a.double().T)).sum())
    return lora.scale * math.sqrt(max(total, 0.0))


def read_lora(directory: Path) -> Lora:
    """Rank, scale and target modules of a plain LoRA; Refused for anything else that PEFT might load."""
    row = read_json(directory, CONFIG)
    extra = sorted(key for key, value in row.items() if value and key not in _PLAIN_LORA_KEYS)
    if row.get("bias") == "none":
        extra.remove("bias")
    if isinstance(row.get("init_lora_weights"), str):
        extra.append("init_lora_weights")
    if row.get("peft_type") != "LORA" or extra:
        refuse(directory, f"it is not a plain LoRA adapter ({', '.join(extra) or row.get('peft_type')!r})")
    rank, alpha, targets = row.get("r"), row.get("lora_alpha"), row.get("target_modules")
    if not (isinstance(rank, int) and rank > 0):
        refuse(directory, f"its rank r is {rank!r}")
    if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0):
        refuse(directory, f"its lora_alpha is {alpha!r}, so that it would have no effect")
    if not (isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)):
        refuse(directory, "its target_modules are not a list of names")
    layers = row.get("layers_to_transform")
    if layers is None:
        return Lora(rank, alpha / rank, tuple(targets))
    if not (isinstance(layers, list) and layers and all(type(number) is int for number in layers)):
        refuse(directory, "its layers_to_transform are not a list of numbers")
    return Lora(rank, alpha / rank, tuple(targets), tuple(layers))


def expected_shapes(
    directory: Path, lora: Lora, model_config: PreTrainedConfig
) -> dict[str, tuple[int, int]]:
    """Name and shape of every tensor that this LoRA must have on this base."""
    model = hollow_model(model_config)
    # PEFT may save whole module names; a kind of module is adapted in each of the layers or in none.
    kinds = {target.rsplit(".", 1)[-1] for target in lora.targets}
    shapes = {}
    for name, module in model.named_modules():
        is_target = isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in kinds
        if is_target and (lora.layers is None or _layer_of(name) in lora.layers):
            shapes[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = (lora.rank, module.in_features)
            shapes[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = (module.out_features, lora.rank)
    if not shapes:
        where = "" if lora.layers is None else f" in layers {list(lora.layers)!r}"
        refuse(directory, f"this base has none of its target modules {sorted(kinds)!r}{where}")
    return shapes


def _layer_of(name: str) -> int | None:
    """The number in a module's name, as PEFT finds it; None outside of the layers."""
    found = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return int(found[1]) if found else None


def _check_listing(directory: Path) -> None:
    """Exactly the three files, each a real one: no link leads outside, nothing waits to be unpickled."""
    if directory.is_symlink() or not directory.is_dir():
        refuse(directory, "it is not a directory")
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            refuse(directory, f"its file {path.name!r} is a link")
        if path.name not in (MANIFEST, *ADAPTER_FILES) or not path.is_file():
            refuse(directory, f"it holds {path.name!r}, which is no part of a version")
    for name in (MANIFEST, *ADAPTER_FILES):
        if not (directory / name).exists():
            refuse(directory, f"its file {name!r} is missing")


def _check_files(directory: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if name not in ADAPTER_FILES:
            refuse(directory, f"its {MANIFEST} names the file {name!r}, which is no part of a version")
    for name in ADAPTER_FILES:
        if manifest.files.get(name) != hash_file(directory / name):
            refuse(directory, f"its file {name!r} is damaged: the sha256 differs from the manifest's")


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    try:
        return load_file(directory / TENSORS)
    except (SafetensorError, OSError) as error:
        raise refusal(directory, f"its file {TENSORS!r} cannot be read ({error})") from error


def _check_tensors(directory: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, int]]) -> None:
    for name in sorted(expected.keys() - tensors.keys()):
        refuse(directory, f"the tensor {name!r} is missing")
    for name in sorted(tensors.keys() - expected.keys()):
        refuse(directory, f"the tensor {name!r} has no place in this base")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            refuse(directory, f"the tensor {name!r} is {tuple(tensor.shape)}, not {expected[name]}")
        if not tensor.is_floating_point():
            refuse(directory, f"the tensor {name!r} is of type {tensor.dtype}, not floating point")
        if not torch.isfinite(tensor).all():
            refuse(directory, f"the tensor {name!r} holds numbers that are not finite")
