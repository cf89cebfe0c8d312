"""The peer: updates of TRL's PPO (trl.experimental.ppo). A child of ppo.py, in a venv of its own.

    python benchmarks/trl_ppo.py --model DIR --prompts FILE.json --updates 2 --value lora

FILE is a list of prompts as token ids, sixteen an update, asked in this order, as ours are. The policy wears
LoRA on every linear layer and is its own reference without it. `--value full` trains a whole copy of the
model for the values, as TRL's own example does; `--value lora` one that is frozen but for LoRA and its head.
The reward model is one more frozen copy. Replies have exactly `--tokens` tokens (no stop token). Prints one
line of JSON: seconds of each update by phase, peak memory.

In bfloat16 the weights are held in it and training runs under autocast. Dropout is off, as TRL sees to.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peers import peak_memory_gib
from peft import LoraConfig, inject_adapter_in_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def main() -> None:
    """Run the updates and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of the base model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON: a list of lists of token ids")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--replies", type=int, default=16, help="prompts in an update, one reply each")
    parser.add_argument("--minibatch", type=int, default=8, help="replies in an optimiser step")
    parser.add_argument("--epochs", type=int, default=4, help="passes over each batch of replies")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of every reply")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--value", choices=["full", "lora"], default="full")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()

    prompts = json.loads(arguments.prompts.read_text())[: arguments.updates * arguments.replies]
    if arguments.precision == "bfloat16":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # PPOTrainer does not hand on its bf16 option
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = make_trainer(arguments, prompts, folder, clock)
        clock.start()
        trainer.train()
    print(json.dumps({"updates": clock.updates, "peak_memory_gib": peak_memory_gib()}))


class Clock(TrainerCallback):
    """Cuts each update into sampling, measuring (reference, value, reward) and training."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []
        self._sampled = self._measured = self._began = 0.0
        ppo_trainer.batch_generation = self._after(ppo_trainer.batch_generation, "_sampled")
        ppo_trainer.get_reward = self._after(ppo_trainer.get_reward, "_measured")

    def start(self) -> None:
        self._began = time.monotonic()

    def _after(self, function: Callable[..., Any], mark: str) -> Callable[..., Any]:
        """`function`, which leaves the time of its last return in `mark`."""

        def timed(*given: Any, **named: Any) -> Any:
            result = function(*given, **named)
            setattr(self, mark, time.monotonic())
            return result

        return timed

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.monotonic()
        self.updates.append(
            {
                "sampling": self._sampled - self._began,
                "measuring": self._measured - self._sampled,
                "training": now - self._measured,
                "seconds": now - self._began,
            }
        )
        self._began = now


def make_trainer(
    arguments: argparse.Namespace, prompts: list[list[int]], folder: str, clock: Clock
) -> PPOTrainer:
    """Policy, value and reward model, each a copy of the base; one reply to each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    tokenizer.pad_token = pad_token(tokenizer, prompts)
    reward, value = (with_head(arguments.model, arguments.precision) for _ in range(2))
    reward.requires_grad_(False)
    for model in (reward, value):
        model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(
        r=arguments.rank,
        lora_alpha=2 * arguments.rank,
        target_modules="all-linear",
        exclude_modules=["score"],
        task_type="CAUSAL_LM",
    )
    if arguments.value == "lora":
        wear_lora(value, lora)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=arguments.replies,
            num_mini_batches=arguments.replies // arguments.minibatch,
            gradient_accumulation_steps=1,
            local_rollout_forward_batch_size=arguments.replies,
            total_episodes=arguments.updates * arguments.replies,
            num_ppo_epochs=arguments.epochs,
            response_length=arguments.tokens,
            temperature=arguments.temperature,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=arguments.precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.precision),
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in prompts]),
        peft_config=lora,
        callbacks=[clock],
    )
    # PPOTrainer shuffles; as the first update is left out, the others would read other prompts than ours.
    in_order = DataLoader(
        trainer.train_dataset, arguments.replies, collate_fn=trainer.data_collator, drop_last=True
    )
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    return trainer


def with_head(directory: str, precision: str) -> PreTrainedModel:
    """The base with a head of one number."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=1, dtype=precision
    )
    return model


def wear_lora(value: PreTrainedModel, lora: LoraConfig) -> None:
    """Freeze `value` but for float32 LoRA weights and its head; in place, as PPOTrainer needs its layout."""
    inject_adapter_in_model(lora, value)
    for name, parameter in value.named_parameters():
        is_lora = "lora_" in name
        parameter.requires_grad_(is_lora or name.startswith("score"))
        if is_lora:
            parameter.data = parameter.data.float()


def pad_token(tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> str:
    """A token that no prompt holds: TRL takes every one of them for padding."""
    used = {token for prompt in prompts for token in prompt} | {tokenizer.eos_token_id}
    ids = {tokenizer.convert_tokens_to_ids(token): token for token in tokenizer.all_special_tokens}
    return str(next((token for i, token in ids.items() if i not in used), tokenizer.unk_token))


if __name__ == "__main__":
    main()
