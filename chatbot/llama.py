"""A Llama-like model for generating: transformers' weights, fused and packed, on shelves of keys and values.

One pass takes tokens of many rows at once: the next token of each row that is being decoded, and pieces of
prompts. Everything but attention sees them as one flat list, so nothing is padded and weights are read once.

    h = h + W_o attention(rope(W_q n(h)), rope(W_k n(h)), W_v n(h))        n = RMSNorm
    h = h + W_down (silu(W_gate n'(h)) * W_up n'(h))

Qwen 3 also has an RMSNorm of each head of its queries and keys, before they are rotated.

Left out: sliding windows, experts, scaled logits, heads that are rotated in part, or by angles that change
with the length. `can_run` says which models remain; the others transformers decodes itself (padded.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatbot.attention import NextTokens, Piece, PieceTokens, Span
from chatbot.kernels import Format, Linear, linear
from chatbot.packing import attends_to_all
from chatbot.shelves import Place, Shape, Shelves

_FIXED_ROPE = ("default", "linear", "llama3", "yarn")


def can_run(model: PreTrainedModel) -> bool:
    """Whether this file computes what `model` does. Only kinds that were compared with it are taken."""
    config = model.config.get_text_config()
    if not attends_to_all(model):
        return False
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    layers = model.get_decoder().layers
    linears = [module for module in layers.modules() if "Linear" in type(module).__name__]
    return (
        rope.get("rope_type", "default") in _FIXED_ROPE
        and config.hidden_act == "silu"
        and all(type(m) is torch.nn.Linear for m in linears)  # four bits are not merged into
    )


@dataclass(frozen=True)
class _Layer:
    norm: Tensor
    qkv: Linear
    head_norm: Tensor | None  # (H + H_kv, D), where queries and keys have norms
    o: Linear
    norm_2: Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """The weights of one version, ready to generate. They are copies: the model they came from may go."""

    def __init__(self, model: PreTrainedModel, form: Format, *, takes: bool = False) -> None:
        """`model` is a merged one that `can_run` accepts. With `takes` each of its layers goes once it is
        copied, so that memory need not hold them all twice."""
        assert can_run(model), f"{model.config.model_type} is not a model of this kind"
        config, trunk = model.config.get_text_config(), cast(Any, model.get_decoder())
        self.dtype = torch.float32 if form == "float32" else torch.bfloat16
        self.device = model.device
        self.context = int(config.max_position_embeddings)
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._dim = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        self._eps = config.rms_norm_eps
        self._embedding = trunk.embed_tokens.weight.detach().to(self.dtype, copy=True)
        self._layers = []
        for layer in trunk.layers:
            self._layers.append(self._fuse(layer, form))
            if takes:
                layer.to("meta")
        self._norm = trunk.norm.weight.detach().to(self.dtype, copy=True)
        head = cast(Any, model.get_output_embeddings())
        is_tied = head.weight is trunk.embed_tokens.weight
        self._head = linear(self._embedding if is_tied else head.weight.detach().clone(), head.bias, form)
        self._cos, self._sin = self._rotations(trunk.rotary_emb)

    def _fuse(self, layer: Any, form: Format) -> _Layer:
        """One matrix for queries, keys and values, one for gate and up."""
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            norm=layer.input_layernorm.weight.detach().to(self.dtype, copy=True),
            qkv=_joined((attention.q_proj, attention.k_proj, attention.v_proj), form),
            head_norm=self._head_norm(attention) if hasattr(attention, "q_norm") else None,
            o=_joined((attention.o_proj,), form),
            norm_2=layer.post_attention_layernorm.weight.detach().to(self.dtype, copy=True),
            gate_up=_joined((mlp.gate_proj, mlp.up_proj), form),
            down=_joined((mlp.down_proj,), form),
        )

    def _head_norm(self, attention: Any) -> Tensor:
        """(H + H_kv, D): the weights of its two norms, once for each head."""
        weights = [attention.q_norm.weight] * self._heads + [attention.k_norm.weight] * self._kv_heads
        return torch.stack(weights).detach().to(self.dtype)

    def _rotations(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos and sin of every position, (context, 1, D), the sine with the sign of rotate_half in it."""
        positions = torch.arange(self.context, device=self.device)[None]
        cos, sin = rotary(torch.zeros(1, dtype=self.dtype, device=self.device), positions)
        half = self._dim // 2
        sign = torch.cat([-torch.ones(half), torch.ones(half)]).to(sin)
        return cos[0, :, None], (sin[0] * sign)[:, None]

    def shelves(self) -> Shelves:
        """Empty shelves for rows of this model."""
        shape = Shape(len(self._layers), self._kv_heads, self._dim, self.dtype, self.device)
        return Shelves(shape, self.context)

    @torch.inference_mode()
    def forward(self, shelves: Shelves, tokens: dict[Place, int], pieces: Sequence[Piece]) -> Tensor:
        """One pass. Float32 logits after the last token of each row that decodes, in the order of the
        shelves, then after the last token of each piece: (R + P, V). Lengths grow by what was fed.

        tokens: the next token of every row on the shelves that is not in `pieces` and decodes.
        """
        hidden, ends = self._trunk(shelves, tokens, pieces)
        return self._head(hidden[ends]).float()

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int], start: int) -> Tensor:
        """log p(ids[t] | ids[:t]) at temperature 1 for t >= `start`, float32."""
        shelves = self.shelves()
        piece = Piece(shelves.take(len(ids)), ids[:-1])
        hidden, _ = self._trunk(shelves, {}, [piece])
        logprobs = torch.log_softmax(self._head(hidden[start - 1 :]).float(), dim=-1)
        return logprobs.gather(1, torch.tensor(ids[start:], device=self.device)[:, None])[:, 0]

    def _trunk(
        self, shelves: Shelves, tokens: dict[Place, int], pieces: Sequence[Piece]
    ) -> tuple[Tensor, list[int]]:
        """Hidden states of all tokens of a pass, (N, d), and the indices of those whose logits are wanted."""
        spans: list[Span] = []
        ids: list[int] = []
        for shelf in shelves.occupied():
            if places := [place for place in shelf.places if place in tokens]:
                spans.append(NextTokens.of(shelf, places, len(ids), self._heads // self._kv_heads))
                ids += [tokens[place] for place in places]
        ends = list(range(len(ids)))
        for piece in pieces:
            spans.append(PieceTokens.of(piece, len(ids), self.device))
            ids += piece.token_ids
            ends.append(len(ids) - 1)
        positions = torch.cat([span.positions for span in spans])
        hidden = F.embedding(torch.tensor(ids, device=self.device), self._embedding)
        cos, sin = self._cos[positions], self._sin[positions]
        for number, layer in enumerate(self._layers):
            hidden = hidden + layer.o(self._attention(number, layer, hidden, cos, sin, spans))
            gate, up = layer.gate_up(self._normed(hidden, layer.norm_2)).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        for span in spans:
            span.lengthen()
        return self._normed(hidden, self._norm), ends

    def _attention(
        self, number: int, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor, spans: Sequence[Span]
    ) -> Tensor:
        """(N, heads * D). Keys and values of all tokens are put on their shelves first."""
        qkv = layer.qkv(self._normed(hidden, layer.norm)).unflatten(-1, (-1, self._dim))
        rotated, values = qkv.split([self._heads + self._kv_heads, self._kv_heads], dim=1)
        if layer.head_norm is not None:
            rotated = F.rms_norm(rotated, (self._dim,), None, self._eps) * layer.head_norm
        half = self._dim // 2
        rotated = torch.addcmul(rotated * cos, rotated.roll(half, -1), sin)
        queries, keys = rotated.split([self._heads, self._kv_heads], dim=1)
        out = [span.attend(number, queries[span.rows], keys[span.rows], values[span.rows]) for span in spans]
        return (out[0] if len(out) == 1 else torch.cat(out)).flatten(1)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self._eps)


def _joined(parts: Sequence[torch.nn.Linear], form: Format) -> Linear:
    """Several linear layers on the same input as one."""
    biases = [part.bias for part in parts]
    bias = None if biases[0] is None else torch.cat([cast(Tensor, b).detach() for b in biases])
    return linear(torch.cat([part.weight.detach() for part in parts]), bias, form)
