"""A small adapter in PEFT's format, written by hand, and a version made of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig

from chatbot import adapters
from chatbot.adapters import CONFIG, TENSORS
from chatbot.basemodel import Base
from chatbot.manifest import RewardRecord
from data.database import Database
from data.home import Home
from data.records import Run, Version, VersionStatus
from trainer.publish import write_candidate


def write_adapter(directory: Path, config: PreTrainedConfig, *, seed: int = 0, size: float = 1.0) -> Path:
    """Rank 4 on q_proj and v_proj, with random numbers of standard deviation `size`."""
    directory.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    }
    (directory / CONFIG).write_text(json.dumps(settings))
    shapes = adapters.expected_shapes(directory, adapters.read_lora(directory), config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) * size for name, shape in shapes.items()}
    save_file(tensors, directory / TENSORS)
    return directory


def make_version(
    db: Database,
    home: Home,
    base: Base,
    *,
    seed: int = 0,
    size: float = 0.3,
    status: VersionStatus = "accepted",
    parent: str = "base",
    run: Run | None = None,
    rewards: Sequence[RewardRecord] = (),
) -> Version:
    """A real version of `base` that serves nobody yet."""
    adapter = write_adapter(home.runs / f"hand-{seed}-{parent}", base.config, seed=seed, size=size)
    with write_candidate(
        db,
        home,
        base,
        adapter_dir=adapter,
        run=run,
        parent=parent,
        canary=[],
        snapshot_sha256=None,
        rankings=12,
        rewards=rewards,
    ) as candidate:
        return candidate.appear(report={"why": "a test"}, status=status)
