"""In which format a base decodes fastest on this machine: measured once, and remembered.

What is timed is a step of one row and a step of four, on a few layers of the base and its head. int8 rounds
the weights (benchmarks/RESULTS.md says how far that goes), so it must be faster by a quarter to be chosen. On
another processor, or with another PyTorch, it is measured anew.
"""

import hashlib
import platform
import statistics
import time
from pathlib import Path
from typing import Any, cast

import torch

from chatbot.attention import Piece
from chatbot.basemodel import Base
from chatbot.kernels import KERNELS, Format
from chatbot.llama import Llama, can_run
from chatbot.models import load_model, pick_device, pick_dtype
from chatbot.remembered import recall, remember
from data.home import Home

FORMATS: tuple[Format, ...] = ("float32", "bfloat16", "int8")
_LAYERS, _ROWS, _STEPS = 4, (1, 4), 8
_PROMPT = 64
_WORTH_ROUNDING = 1.25


def choose(base: Base, home: Home) -> Format:
    """The format to serve `base` in. The first call on a machine takes some seconds."""
    device = pick_device()
    if device.type != "cpu":
        return "float32" if pick_dtype("auto", device) == torch.float32 else "bfloat16"
    file = home.models / "formats.json"
    key = f"{base.sha256[:16]} {machine()} {torch.get_num_threads()} threads, kernels {KERNELS}"
    known = recall(file)
    remembered = known.get(key)
    if isinstance(remembered, dict) and remembered.get("format") in FORMATS:
        return cast(Format, remembered["format"])
    milliseconds = measure(base)
    known[key] = {"milliseconds": milliseconds, "format": fastest(milliseconds)}
    remember(file, known)
    return cast(Format, known[key]["format"])


def machine() -> str:
    """What a measurement holds for besides the threads: processor, instructions, PyTorch and which it uses.

    Linux names its instruction sets, `flags` or `Features`, in /proc/cpuinfo; elsewhere the processor's name
    has to do.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = hashlib.sha256(told.get("flags", told.get("Features", "")).encode()).hexdigest()[:8]
    return f"{name} {flags} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def fastest(milliseconds: dict[Format, float]) -> Format:
    """The fastest one measured; where none was (transformers decodes the model), the hardware's own."""
    if not milliseconds:
        return "float32" if pick_dtype("auto", torch.device("cpu")) == torch.float32 else "bfloat16"
    exact = min(("float32", "bfloat16"), key=lambda form: milliseconds[cast(Format, form)])
    is_worth_it = milliseconds[cast(Format, exact)] > _WORTH_ROUNDING * milliseconds["int8"]
    return "int8" if is_worth_it else cast(Format, exact)


@torch.inference_mode()
def measure(base: Base) -> dict[Format, float]:
    """Format -> milliseconds of a step of one row and one of four; empty where Llama cannot run the model."""
    model = load_model(base, device=torch.device("cpu"), dtype=torch.bfloat16)
    if not can_run(model):
        return {}
    trunk = cast(Any, model.get_decoder())
    trunk.layers = trunk.layers[:_LAYERS]
    return {form: round(_time(Llama(model, form)), 2) for form in FORMATS}


def _time(llama: Llama) -> float:
    """The sum over the widths of the median time of a step."""
    total = 0.0
    for rows in _ROWS:
        shelves = llama.shelves()
        place = shelves.take(_PROMPT, rows=rows)
        llama.forward(shelves, {}, [Piece(place, [0] * _PROMPT)])
        places = [place, *shelves.fork(place, rows - 1)]
        seconds = []
        for _ in range(_STEPS):
            shelves.make_room(places)
            started = time.perf_counter()
            llama.forward(shelves, dict.fromkeys(places, 0), [])
            seconds.append(time.perf_counter() - started)
        total += statistics.median(seconds) * 1000
    return total
