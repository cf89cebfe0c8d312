"""A frozen base model that wears named LoRA adapters, one at a time, chosen by name.

One copy of the base in memory plays every role of a night: `policy`, `start`, `value`, `reward-0` and its
fellows, `judge`, and `reference`, or without such an adapter the base wearing nothing. An adapter may have a
scalar head, which turns hidden states and the number of tokens into a score. The only file that touches peft.

This is the training copy, in which base and LoRA stand side by side. For generating there are plain models
with the adapter merged in (models.py).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chatbot.adapters import TENSORS
from chatbot.basemodel import Base, quiet_transformers
from chatbot.batch import TokenBatch
from chatbot.head import ScalarHead
from chatbot.logits import logits_in_parts
from chatbot.models import load_model, merge_layer
from chatbot.packing import Rectangle, attends_to_all
from chatbot.trunk import Trunk
from data.errors import Refused

HEAD_FILE = "head.safetensors"


class Policy:
    """The training copy: one base, many adapters. Nothing here is thread-safe."""

    def __init__(
        self,
        base: Base,
        *,
        device: torch.device,
        dtype: torch.dtype,
        four_bit: bool = False,
    ) -> None:
        """`dtype` is that of the frozen base, or with `four_bit` the one in which its NF4 weights compute."""
        self.base = base
        self.device = device
        self.dtype = dtype
        self._plain = load_model(base, device=device, dtype=dtype, four_bit=four_bit)
        self._has_a_choice = self._plain.config._attn_implementation == "sdpa"  # Gemma 2 is always eager
        self._trunk = Trunk(self._plain, may_pack=self._has_a_choice and attends_to_all(self._plain))
        self._peft: PeftModel | None = None
        self._below: dict[str, int] = {}
        self._lora: list[LoraLayer] = []
        self._is_wearing = False
        self._plain_layers = 0
        """Of what is worn: so many layers from the first are as in the base."""
        self.heads: dict[str, ScalarHead] = {}

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""
        return int(self._plain.config.get_text_config().hidden_size)

    @property
    def adapters(self) -> list[str]:
        """The names that can be worn."""
        return list(self._peft.peft_config) if self._peft else []

    def add(
        self, name: str, *, seed: int, rank: int = 16, with_head: bool = False, depth: float = 1.0
    ) -> None:
        """A fresh adapter on every linear map: B = 0, so it changes nothing yet. Weights are float32.

        depth: the share of the layers that get one, from the last one down; one layer at least.
        Raises Refused for a base whose maps are of a kind that nothing can be merged into or added to.
        """
        if any(isinstance(module, Conv1D) for module in self._plain.modules()):
            raise Refused(
                f"{self.base.name!r} keeps its weights transposed (Conv1D), as GPT-2 does, and cannot learn "
                "here - choose a newer model."
            )
        targets = self._trunk.targets(depth)
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, task_type="CAUSAL_LM", **targets)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self._add(name, settings)
        if with_head:
            generator = torch.Generator().manual_seed(seed)
            self.heads[name] = ScalarHead(self.hidden_size, generator).to(self.device)

    def copy(self, source: str, name: str) -> None:
        """A new adapter, equal to `source`, head included."""
        assert self._peft is not None, f"{source!r} was never added"
        self._add(name, cast(LoraConfig, self._peft.peft_config[source]))
        self._set_state(name, self.state(source))
        if source in self.heads:
            self.heads[name] = ScalarHead(self.hidden_size).to(self.device)
            self.heads[name].load_state_dict(self.heads[source].state_dict())

    def drop(self, name: str) -> None:
        """Forget an adapter and its head."""
        assert self._peft is not None, f"{name!r} was never added"
        others = [other for other in self.adapters if other != name]
        with quiet_transformers():  # it warns that the adapter was worn
            if others:  # peft would put on one that the lowest layer has, which may have none
                self._peft.set_adapter(others[0])
            self._peft.delete_adapter(name)
        self._unfreeze()
        del self._below[name]
        if name in self.heads:
            del self.heads[name]

    def _add(self, name: str, settings: LoraConfig) -> None:
        with quiet_transformers():
            if self._peft is not None:
                self._peft.add_adapter(name, settings)
            else:
                try:
                    self._peft = cast(PeftModel, get_peft_model(self._plain, settings, adapter_name=name))
                except (AttributeError, ValueError) as error:  # for layers that PEFT does not know
                    raise Refused(
                        f"{self.base.name!r} chats but cannot learn: PEFT adds no adapter to its layers "
                        f"({error}) - choose another model."
                    ) from error
        self._peft.eval()
        self._lora = [module for module in self._plain.modules() if isinstance(module, LoraLayer)]
        for layer in self._lora:
            layer.cast_input_dtype_enabled = self.dtype != torch.bfloat16
        self._unfreeze()
        self._below[name] = self._first_changed(name)

    def _unfreeze(self) -> None:
        """All adapters may learn; what is not worn is in no pass and gets no gradient. PEFT freezes them."""
        for layer in self._lora:
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.requires_grad_(True)

    def _first_changed(self, name: str) -> int:
        """The first layer in which the adapter changes something; 0 where it also does outside of them."""
        mine = [
            sum(isinstance(part, LoraLayer) and name in part.lora_A for part in layer.modules())
            for layer in self._trunk.layers
        ]
        is_within = 0 < sum(mine) == sum(1 for _ in self._lora_layers(name))
        return next(i for i, count in enumerate(mine) if count) if is_within else 0

    def _set_state(self, name: str, state: dict[str, Tensor]) -> None:
        assert self._peft is not None, f"{name!r} was never added"
        set_peft_model_state_dict(self._peft, state, adapter_name=name)

    @contextmanager
    def wear(self, name: str | None) -> Iterator[None]:
        """Inside, the forward pass goes through adapter `name`, or the bare base for None. Does not nest."""
        assert not self._is_wearing, "wear() stands inside wear()"
        self._put_on(name)
        self._is_wearing, self._plain_layers = True, self._plain_under(name)
        try:
            yield
        finally:
            self._is_wearing, self._plain_layers = False, 0

    def _put_on(self, name: str | None) -> None:
        """Does what PEFT's `set_adapter` and `disable_adapter` do to its layers, and nothing to all others:
        those walk through the whole model each time, 25 ms with thirty layers on a CPU."""
        assert name is None or name in self.adapters, f"{name!r} was never added"
        for layer in self._lora:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]

    def _plain_under(self, name: str | None) -> int:
        """How many first layers are as in the base; with nothing worn, the most that an adapter leaves so."""
        return self._below[name] if name else max(self._below.values(), default=0)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What an optimiser of this adapter moves: its LoRA weights and, where it has one, its head."""
        mine = (layer for layer in self._lora if name in layer.lora_A)
        parts = (part[name] for layer in mine for part in (layer.lora_A, layer.lora_B))
        lora = [cast(nn.Parameter, part.weight) for part in parts]
        return [*lora, *(self.heads[name].parameters() if name in self.heads else [])]

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Last hidden states, (B, T, D), through what is worn.

        On a bfloat16 base the float32 LoRA weights are cast on the way in (autocast), not the activations on
        the way out: a third less time a token.
        """
        return self._trunk.read(batch, self._plain_layers, self._run)

    def tokens_read(self, sequences: list[list[int]]) -> int:
        """How many tokens a pass over them computes: with padding, or packed (packing.py)."""
        return self._trunk.layout_of(TokenBatch.of(sequences, self.device)).tokens

    def remembering(self) -> AbstractContextManager[None]:
        """Inside, what adapters leave alone is computed once for each sequence (trunk.py)."""
        return self._trunk.remembering()

    def _run(self, layout: Rectangle) -> Tensor:
        trunk = self._plain.get_decoder()
        if self._has_a_choice and self._plain.config._attn_implementation != layout.attention:
            self._plain.set_attn_implementation(layout.attention)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            out = trunk(**layout.inputs, use_cache=False)
        # On CUDA autocast leaves float32 behind a plain LayerNorm.
        return cast(Tensor, out.last_hidden_state).to(self.dtype)

    def logits_in_parts(self, hidden: Tensor) -> Iterator[Tensor]:
        """Float32 logits of chosen hidden states, (N, D), a few rows at a time: (n, V), in their order."""
        return logits_in_parts(self._plain, hidden)

    def state(self, name: str) -> dict[str, Tensor]:
        """The adapter's LoRA tensors under PEFT's names."""
        assert self._peft is not None, f"{name!r} was never added"
        state = get_peft_model_state_dict(self._peft, adapter_name=name, save_embedding_layers=False)
        return cast(dict[str, Tensor], state)

    def keep(self, name: str) -> dict[str, Tensor]:
        """A copy of the adapter's tensors, to come back to with `bring_back`."""
        return {key: tensor.detach().clone() for key, tensor in self.state(name).items()}

    def bring_back(self, name: str, kept: dict[str, Tensor]) -> None:
        """Set the adapter to what `keep` gave."""
        self._set_state(name, kept)

    def _lora_layers(self, name: str) -> Iterator[tuple[str, Tensor, Tensor, float, Tensor]]:
        for path, module in self._plain.named_modules():
            if isinstance(module, LoraLayer) and name in module.lora_A:
                a = cast(Tensor, module.lora_A[name].weight).detach()
                b = cast(Tensor, module.lora_B[name].weight).detach()
                yield path, a, b, float(module.scaling[name]), cast(Tensor, module.get_base_layer().weight)

    @torch.no_grad()
    def write_merged(self, name: str, target: PreTrainedModel) -> None:
        """Set `target`, a plain copy of the base, to this base with `name` merged in.

        A copy in four bits is given the adapter's tensors instead, beside its weights.
        """
        for path, a, b, scale, weight in self._lora_layers(name):
            merge_layer(target, path, weight, a, b, scale)

    def save(self, name: str, directory: Path) -> None:
        """Write PEFT's two files, and `head.safetensors` where there is a head."""
        assert self._peft is not None, f"{name!r} was never added"
        directory.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.detach().float().cpu().contiguous() for key, tensor in self.state(name).items()}
        save_file(state, directory / TENSORS)
        settings = self._peft.peft_config[name]
        settings.base_model_name_or_path = self.base.name
        was, settings.inference_mode = settings.inference_mode, True
        settings.save_pretrained(str(directory))
        settings.inference_mode = was
        if name in self.heads:
            head = {
                key: tensor.detach().cpu().contiguous()
                for key, tensor in self.heads[name].state_dict().items()
            }
            save_file(head, directory / HEAD_FILE)

    def load(self, name: str, directory: Path, *, with_head: bool = False) -> None:
        """Add the adapter saved in `directory` under `name`.

        Raises Refused where a head is asked for and `directory` has none: scores without their head and
        normalisation would be noise.
        """
        if with_head and not (directory / HEAD_FILE).is_file():
            raise Refused(f"{str(directory)!r} has no {HEAD_FILE} - it is no reward model; train one again.")
        settings = LoraConfig.from_pretrained(str(directory))
        settings.inference_mode = False
        self._add(name, cast(LoraConfig, settings))
        self._set_state(name, load_file(directory / TENSORS))
        if with_head:
            self.heads[name] = ScalarHead(self.hidden_size).to(self.device)
            self.heads[name].load_state_dict(load_file(directory / HEAD_FILE))
