"""The peer: TRL's RewardTrainer on the pairs of given rankings. A child of reward.py, in a venv of its own.

    python benchmarks/trl_reward.py --model DIR --data FILE.json --precision bfloat16

FILE holds `train` and `test`: lists of {"sequences": [token ids of prompt + reply, ...], "pairs": [[better,
worse], ...]}, made by reward.py, so that both sides read the same tokens. TRL trains on all pairs; a reply
that stands in five of them passes through the model five times. Prints one line of JSON: seconds (of training
after its first step) and their pairs, the score of each reply in `test`, peak memory.

LoRA on every linear layer, as on our side. Everything else that is not named here is TRL's default.
`--checkpointing` puts gradient checkpointing back on, which TRL does by default and which is slower.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peers import peak_memory_gib
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer


def main() -> None:
    """Train once, score the test replies, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of the base model")
    parser.add_argument("--data", type=Path, required=True, help="token ids and pairs, from reward.py")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=8, help="pairs in one optimiser step")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate")
    parser.add_argument("--warmup", type=float, default=0.0, help="share of the steps over which it rises")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, TRL's default")
    arguments = parser.parse_args()

    data = json.loads(arguments.data.read_text())
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.pad_token = pad_token(tokenizer)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=arguments.model,
            args=settings(arguments, folder),
            train_dataset=Dataset.from_list(all_pairs(data["train"])),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=arguments.rank,
                lora_alpha=2 * arguments.rank,
                target_modules="all-linear",
                task_type="SEQ_CLS",
                modules_to_save=["score"],
            ),
            callbacks=[clock],
        )
        trainer.train()
    pairs = sum(len(row["pairs"]) for row in data["train"])
    result = {
        "seconds": clock.times[-1] - clock.times[0],
        "pairs": pairs - min(arguments.batch, pairs),
        "seconds_in_all": clock.times[-1] - clock.started,
        "peak_memory_gib": peak_memory_gib(),
        "scores": score(trainer, data["test"]),
    }
    print(json.dumps(result))


class Clock(TrainerCallback):
    """When training began and when each optimiser step was done."""

    def __init__(self) -> None:
        self.started = 0.0
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.monotonic())


def settings(arguments: argparse.Namespace, folder: str) -> RewardConfig:
    """One epoch. In bfloat16 the frozen base is held in it too: the faster of the two ways TRL has here."""
    is_bf16 = arguments.precision == "bfloat16"
    return RewardConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.lr,
        warmup_steps=arguments.warmup,
        max_length=None,
        gradient_checkpointing=arguments.checkpointing,
        bf16=is_bf16,
        model_init_kwargs={"dtype": arguments.precision},
        seed=arguments.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A padding token that ends no reply: a score is read at the last token that is not padding."""
    ends = {tokenizer.eos_token, tokenizer.bos_token}
    spare = [token for token in tokenizer.all_special_tokens if token not in ends]
    return str(spare[0] if spare else tokenizer.unk_token)


def all_pairs(rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """The C(K, 2) pairs of every ranking, each with both its sequences."""
    return [
        {"chosen_ids": row["sequences"][better], "rejected_ids": row["sequences"][worse]}
        for row in rows
        for better, worse in row["pairs"]
    ]


@torch.no_grad()
def score(trainer: RewardTrainer, rows: list[dict[str, Any]]) -> list[list[float]]:
    """The score of each reply, in float32: bfloat16 would round close ones to ties."""
    flat = [sequence for row in rows for sequence in row["sequences"]]
    order = sorted(range(len(flat)), key=lambda i: len(flat[i]))
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval().float()
    pad = trainer.processing_class.pad_token_id
    scores = [0.0] * len(flat)
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        width = max(len(flat[i]) for i in chosen)
        ids = torch.tensor([flat[i] + [pad] * (width - len(flat[i])) for i in chosen])
        mask = torch.tensor([[1] * len(flat[i]) + [0] * (width - len(flat[i])) for i in chosen])
        out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for i, value in zip(chosen, out.flatten().tolist(), strict=True):
            scores[i] = value
    parts = iter(scores)
    return [[next(parts) for _ in row["sequences"]] for row in rows]


if __name__ == "__main__":
    main()
