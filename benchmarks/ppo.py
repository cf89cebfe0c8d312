"""One PPO update, ours and TRL's in turn: 16 prompts, 48 new tokens each, 4 inner epochs, LoRA policy.

    python -m venv var/trl-ppo && var/trl-ppo/bin/pip install -r benchmarks/requirements-ppo.txt
    python benchmarks/ppo.py --peer var/trl-ppo/bin/python --quick     # about 15 minutes on two cores
    python benchmarks/ppo.py --peer var/trl-ppo/bin/python             # about half an hour

Every side has the same prompts, replies of the same length (none may end early), minibatches of 8, LoRA of
rank 16 on every linear map, and no dropout. The first update is left out of the figures. TRL's adapters are
in every layer. Ours are where a night has them, in the upper layers; those of `ours-whole` are in all.

Not the same work in one point, which counts against us: ours also scores each reply with the judge and keeps
the best checkpoint. TRL's value model is either a whole copy that is trained in full, as in its own example
("as its users run it"), or a copy with LoRA; ours is a LoRA adapter of its own on the one base that all
roles share. Results are kept in `--out`, so that an interrupted run goes on; another model, or changed code,
wants another file: below the tables stands which commit each figure is of. `--sides trl-lora` and the like
measure a part.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

from peers import Result, figure, measured, options, origins, peak_memory_gib, ratio, sides_of, table

from chatbot.basemodel import Base, load_base
from chatbot.models import merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from data.cli import ENVIRONMENT
from data.home import open_home
from data.prompts import practice_prompts
from data.records import Sampling
from trainer.config import RefreshConfig
from trainer.ppo import train_ppo
from trainer.rollout import Roles, Task
from trainer.sampler import MergedSampler

ROOT = Path(__file__).parent.parent
REPLIES, MINIBATCH, EPOCHS, TOKENS, TEMPERATURE = 16, 8, 4, 48, 0.8
LONGEST_PROMPT = 96
PHASES = ("sampling", "measuring", "training")
SIDES = {
    "ours": "ours",
    "ours-whole": "ours, adapters in all layers",
    "trl-lora": "TRL, LoRA value model",
    "trl-full": "TRL, its own full value model",
}


def main() -> None:
    """Write the prompts down, measure each side in both precisions, print the tables."""
    parser = options(__doc__)
    parser.add_argument("--sides", default=",".join(SIDES), help="which sides to measure")
    parser.add_argument("--quick", action="store_true", help="two updates a side instead of four")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "benchmarks" / "ppo.json")
    parser.add_argument(
        "--ours", type=Path, help=argparse.SUPPRESS
    )  # the child: use these prompts, print JSON
    parser.add_argument("--updates", type=int, default=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    base = load_base(arguments.model, open_home(), tell=lambda line: print(line, file=sys.stderr))
    if arguments.ours:
        prompts = json.loads(arguments.ours.read_text())
        print(json.dumps(run_ours(base, prompts, arguments)))
        return
    sides = sides_of(arguments, SIDES)
    arguments.out = arguments.out.absolute()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    updates = 2 if arguments.quick else arguments.updates
    prompts = write_prompts(base, updates, arguments.out.parent / f"ppo-prompts-{updates}.json")
    found = {
        (side, precision): run_side(base, side, precision, updates, prompts, arguments)
        for precision in arguments.precisions.split(",")
        for side in sides
    }
    print_tables(found)
    print(origins(found.values()))


def write_prompts(base: Base, updates: int, path: Path) -> Path:
    """Practice prompts of at most 96 tokens, as token ids, sixteen an update."""
    prompts = [base.format.encode(prompt.messages) for prompt in practice_prompts()]
    fitting = [ids for ids in prompts if len(ids) <= LONGEST_PROMPT]
    random.Random(0).shuffle(fitting)
    path.write_text(json.dumps(fitting[: updates * REPLIES]))
    return path


def run_side(
    base: Base, side: str, precision: str, updates: int, prompts: Path, arguments: argparse.Namespace
) -> Result:
    """What one side measures, in a process of its own."""
    same = ["--model", str(base.directory), "--updates", str(updates)]
    if side in ("ours", "ours-whole"):
        command = [sys.executable, __file__, *same, "--precisions", precision, "--ours", str(prompts)]
        command += ["--depth", "1"] * (side == "ours-whole")
    else:
        command = [str(arguments.peer), str(Path(__file__).with_name("trl_ppo.py")), *same]
        command += ["--precision", precision, "--prompts", str(prompts), "--value", side.removeprefix("trl-")]
        command += f"--replies {REPLIES} --minibatch {MINIBATCH} --epochs {EPOCHS} --tokens {TOKENS}".split()
        command += ["--temperature", str(TEMPERATURE)]
    settings = ENVIRONMENT if side.startswith("ours") else {}
    return measured(arguments.out, f"{side}, {precision}, {updates} updates", command, settings)


def run_ours(base: Base, prompts: list[list[int]], arguments: argparse.Namespace) -> Result:
    """The trainer's own PPO with one reward model, replies of exactly 48 tokens: seconds by phase."""
    base.format.end_of_turn = -1  # no token, so no reply ends early
    device = pick_device()
    dtype = pick_dtype(arguments.precisions, device)
    policy = Policy(base, device=device, dtype=dtype)
    merged = merged_model(base, None, device=device, dtype=dtype)
    depth = arguments.depth or RefreshConfig().depth
    for seed, name in enumerate(("reward-0", "judge")):
        policy.add(name, seed=seed, with_head=True, depth=depth)
    policy.add("policy", seed=2, depth=depth)
    config = RefreshConfig(
        updates=arguments.updates,
        prompts_per_update=REPLIES,
        minibatch=MINIBATCH,
        inner_epochs=EPOCHS,
        max_new_tokens=TOKENS,
        temperature=TEMPERATURE,
        members=1,
        ppo_lr=1e-5,  # time does not depend on it, and no guard should stop a measurement
    )
    times = [time.monotonic()]
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=TOKENS)
    task = Task(MergedSampler(merged), prompts, config, sampling, Roles(("reward-0",)))
    result = train_ppo(policy, task, tell=lambda update, fraction, metrics: times.append(time.monotonic()))
    if result.stopped:
        sys.exit(f"A guard stopped the measurement: {result.stopped}")
    return {
        "updates": [
            {phase: metrics[f"seconds_{phase}"] for phase in PHASES} | {"seconds": end - start}
            for metrics, start, end in zip(result.history[:-1], times, times[1:], strict=False)
        ],
        "peak_memory_gib": peak_memory_gib(),
    }


def print_tables(found: dict[tuple[str, str], Result]) -> None:
    """Each side by phase (measuring: reference, reward, value); then the ratios that have targets."""
    rows = [
        [SIDES[side], precision]
        + [figure(mean(result, name)) for name in ("seconds", *PHASES)]
        + [figure(result["peak_memory_gib"]), f"{result['load']}"]
        for (side, precision), result in found.items()
    ]
    head = "side,precision,s an update,sampling,measuring,optimisation,peak GiB,load at the start"
    print(table(head.split(","), rows))
    compared = [
        ("float32, both with a LoRA value model", ("ours", "float32"), ("trl-lora", "float32")),
        ("the same, adapters in all layers", ("ours-whole", "float32"), ("trl-lora", "float32")),
        ("bfloat16, both with a LoRA value model", ("ours", "bfloat16"), ("trl-lora", "bfloat16")),
        ("the same, adapters in all layers", ("ours-whole", "bfloat16"), ("trl-lora", "bfloat16")),
        ("bfloat16, TRL with its own full value model", ("ours", "bfloat16"), ("trl-full", "bfloat16")),
        (
            "ours in bfloat16, TRL as its users run it (float32)",
            ("ours", "bfloat16"),
            ("trl-full", "float32"),
        ),
    ]
    rows = [
        [what] + [ratio(read(found.get(ours)), read(found.get(theirs))) for read in (seconds_of, memory_of)]
        for what, ours, theirs in compared
    ]
    print(table(["TRL / ours", "time", "memory"], rows))


def mean(result: Result, name: str) -> float:
    """Over all updates but the first."""
    updates = result["updates"][1:] or result["updates"]
    return float(sum(update[name] for update in updates) / len(updates))


def seconds_of(result: Result | None) -> float | None:
    return mean(result, "seconds") if result else None


def memory_of(result: Result | None) -> float | None:
    return float(result["peak_memory_gib"]) if result else None


if __name__ == "__main__":
    main()
