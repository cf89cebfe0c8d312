"""A tiny real model: a random 2-layer Llama with a byte-level tokenizer and a chat template."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from chatbot.basemodel import Base, load_base
from data.home import Home

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ASCII = slice(len(CONTROL), len(CONTROL) + 94)
"""Token ids of the printable ASCII characters, which come first in the alphabet."""


def byte_tokenizer(eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """Ids 0 to 2 are control tokens, 3 to 258 the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*CONTROL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=TEMPLATE,
    )


def make_tiny_model(
    directory: Path, *, seed: int = 0, layers: int = 2, hidden: int = 32, eos: str = "<|im_end|>"
) -> Path:
    """Write the tiny model to `directory`, as `--model` takes it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # louder rows for ASCII, so that most replies are text and survive being decoded
        model.get_input_embeddings().weight[ASCII] *= 1.6
    model.save_pretrained(directory)
    byte_tokenizer(eos).save_pretrained(directory)
    return directory


def base_of(config: PreTrainedConfig, home: Home) -> Base:
    """A random model of another kind, with the same tokenizer."""
    directory = home.root / "other"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return load_base(str(directory), home, lambda text: None)
