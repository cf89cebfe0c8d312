"""A decoder whose lower layers are read once for all that changes only the upper ones.

What enters layer n of a frozen base depends on the tokens alone, for every adapter that begins there. So the
layers below keep no gradient graph, and within `remembering` a sequence passes through them once, whatever
the number of adapters that read it and of passes over it.

The layers that a pass leaves out hand on what they are given. Not every model lets them; one that does not is
found by trying, and is always read whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatbot.batch import TokenBatch
from chatbot.packing import Rectangle, lay_out

MOST_BYTES = 2**30
"""Of what is remembered; sequences beyond it are read each time."""

Run = Callable[[Rectangle], Tensor]
"""A pass through the whole decoder: states as it gives them."""


class Trunk:
    """The decoder of a plain model, in layers."""

    def __init__(self, model: PreTrainedModel, *, may_pack: bool = False) -> None:
        """may_pack: where sequences begin alike, the model can read that part once (packing.py)."""
        self._may_pack = may_pack
        lists = [part for part in model.get_decoder().children() if isinstance(part, nn.ModuleList)]
        longest = max(lists, key=len, default=nn.ModuleList())
        self.layers: Sequence[nn.Module] = list(longest)
        """From the embedding on; none where the decoder has no list of them."""
        self._kinds = {
            path.rsplit(".", 1)[-1]
            for layer in self.layers
            for path, part in layer.named_modules()
            if isinstance(part, nn.Linear)
        }
        self._kept: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._kept_bytes = 0
        self._is_remembering = False
        self._is_divisible: dict[int, bool] = {}

    def targets(self, depth: float) -> dict[str, Any]:
        """PEFT's settings for an adapter on every linear map of the upper `depth` of the layers."""
        count = len(self.layers)
        below = max(0, min(count - 1, round((1 - depth) * count)))
        if not below:
            return {"target_modules": "all-linear"}
        return {"target_modules": sorted(self._kinds), "layers_to_transform": list(range(below, count))}

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside, what enters the upper layers is kept for each sequence. May nest; the outermost forgets."""
        if self._is_remembering:
            yield
            return
        self._is_remembering = True
        try:
            yield
        finally:
            self._is_remembering, self._kept_bytes = False, 0
            self._kept.clear()

    def layout_of(self, batch: TokenBatch) -> Rectangle:
        """How a pass over `batch` computes it."""
        return lay_out(batch, self._may_pack)

    def read(self, batch: TokenBatch, below: int, run: Run) -> Tensor:
        """What `run` gives for `batch`, (B, T, D), where nothing in the layers under `below` can learn."""
        layout = self.layout_of(batch)
        if not below or not self._may_divide(batch, below, run):
            return layout.unpack(run(layout))
        states = layout.pack(self._states(layout, below, run))
        with _standing_in(self.layers[:below], lambda *_, **__: states):
            return layout.unpack(run(layout))

    def _may_divide(self, batch: TokenBatch, below: int, run: Run) -> bool:
        """Whether two halves of this model give what it gives whole; tried once for each place to cut it."""
        if below not in self._is_divisible:
            row = Rectangle(TokenBatch(batch.ids[:1], batch.mask[:1], batch.positions[:1]))
            with torch.no_grad():
                whole = run(row)
                halves = self._in_halves(row, below, run)
            self._is_divisible[below] = halves is not None and _are_the_same(whole, halves)
        return self._is_divisible[below]

    def _in_halves(self, row: Rectangle, below: int, run: Run) -> Tensor | None:
        """None where the upper layers cannot do without the lower ones, like those that share their keys."""
        try:
            states = self._enter(row, below, run)
            with _standing_in(self.layers[:below], lambda *_, **__: states):
                halves = run(row)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return None
        return halves if states.shape == halves.shape else None

    def _states(self, layout: Rectangle, below: int, run: Run) -> Tensor:
        """(B, T, D): what enters layer `below`, of each sequence from memory where it is there."""
        if not self._is_remembering:
            return self._enter(layout, below, run)
        batch = layout.batch
        keys = [(below, tuple(ids)) for ids in _sequences(batch)]
        new = {key: i for i, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key not in new}
        if new:
            rows = list(new.values())
            part = TokenBatch(batch.ids[rows], batch.mask[rows], batch.positions[rows])
            entering = self._enter(self.layout_of(part), below, run)
            for key, states, mask in zip(new, entering, part.mask, strict=True):
                found[key] = self._keep(key, states[mask])
        some = found[keys[0]]
        states = torch.zeros(*batch.mask.shape, some.shape[-1], dtype=some.dtype, device=some.device)
        states[batch.mask] = torch.cat([found[key] for key in keys])
        return states

    def _keep(self, key: tuple[int, tuple[int, ...]], states: Tensor) -> Tensor:
        if (total := self._kept_bytes + states.nbytes) <= MOST_BYTES:
            self._kept[key], self._kept_bytes = states, total
        return states

    @torch.no_grad()
    def _enter(self, layout: Rectangle, below: int, run: Run) -> Tensor:
        """(B, T, D): what enters layer `below`, by a pass that leaves out all from there on."""
        seen: list[Tensor] = []

        def hand_on(states: Tensor, *_: Any, **__: Any) -> Tensor:
            seen.append(states)
            return states

        with _standing_in(self.layers[below:], hand_on):
            run(layout)
        return layout.unpack(seen[0])


def _are_the_same(one: Tensor, other: Tensor) -> bool:
    """But for rounding."""
    return one.shape == other.shape and bool((one - other).abs().max() <= 0.01 * one.abs().max())


def _sequences(batch: TokenBatch) -> list[list[int]]:
    """The real tokens of each row."""
    rows = zip(batch.ids.tolist(), batch.mask.tolist(), strict=True)
    return [[token for token, is_real in zip(ids, mask, strict=True) if is_real] for ids, mask in rows]


@contextmanager
def _standing_in(layers: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, `layers` compute `forward` instead."""
    for layer in layers:
        layer.forward = forward  # an attribute of the instance hides the class's method
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # which brings that back
