"""The base as an adapter that changes nothing, so that a vLLM server is asked for adapters alone.

Asked for its base beside requests for adapters, vLLM on a CPU answers with the adapter in its last slot
(seen with 0.32; pull requests 48421 and 49656). A reply of the base that begins while a version serves, or
still runs when the first version begins to, would be that version's. Here every request names an adapter.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from chatbot.adapters import CONFIG, TENSORS, Lora, expected_shapes
from chatbot.basemodel import Base, hollow_model


def null_adapter(base: Base, parent: Path) -> Path:
    """Its directory below `parent`, made on the first call."""
    directory = parent / f"base-{base.sha256[:12]}"
    if not directory.is_dir():
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent) as temporary:
            part = Path(temporary) / directory.name
            _write(base, part)
            part.chmod(0o755)  # the servers may be another account's
            try:
                os.rename(part, directory)
            except OSError:  # another process was faster, and what it wrote is the same
                if not directory.is_dir():
                    raise
    return directory


def _write(base: Base, directory: Path) -> None:
    """Rank 1 on one kind of layer: the least that vLLM takes."""
    modules = hollow_model(base.config).named_modules()
    linear = (name for name, module in modules if isinstance(module, torch.nn.Linear))
    target = next(linear).rsplit(".", 1)[-1]
    directory.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": [target],
    }
    (directory / CONFIG).write_text(json.dumps(settings))
    shapes = expected_shapes(directory, Lora(1, 1.0, (target,)), base.config)
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, directory / TENSORS)
