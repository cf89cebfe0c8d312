"""Several processes that train one model: who is who, and the few things they tell each other.

    accelerate launch --num_processes 2 -m trainer refresh

Every process goes through the same steps with the same numbers; each takes its share of a batch, and what is
summed is the same for all, so that two processes take the step that one would have taken with the whole
batch. All run on one machine, which SQLite asks for; the chief alone writes to the database and makes
versions. Without a launcher a team has one member, and nothing is sent.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from data.errors import Problem, Refused, out_of_memory

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)
"""How long members wait for one that works alone: to read a million rankings or examine a model may take more
than the 10 or 30 minutes of torch. Where one has ended, the launcher ends the others at once."""


class Deserted(Problem):
    """Another process of the team has ended, and nothing can be sent to it."""


@dataclass(frozen=True)
class Team:
    """The processes of one run; `rank` 0 is the chief."""

    rank: int = 0
    size: int = 1

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This member's part of `items`: every `size`-th, so that all parts are alike in length."""
        return list(items[self.rank :: self.size])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every member's gradients become the sum of all; a missing one counts as 0."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([cast(Tensor, p.grad).flatten() for p in parameters])
        with _together():
            torch.distributed.all_reduce(flat)
        for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            cast(Tensor, parameter.grad).copy_(summed.view_as(parameter))

    def summed_norm(self, parameters: Sequence[nn.Parameter]) -> float:
        """Sums the gradients as `sum_gradients` does; returns the norm of all that came out."""
        self.sum_gradients(parameters)
        return float(get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over all members of each of `values`."""
        if self.size == 1:
            return list(values)
        return [sum(column) for column in zip(*self._gather(list(values)), strict=True)]

    def collect(self, shares: Sequence[T]) -> list[T]:
        """Reassemble the list that `share` gave out in parts; each member gives its own part, `shares`."""
        if self.size == 1:
            return list(shares)
        parts = self._gather(list(shares))
        return [parts[i % self.size][i // self.size] for i in range(sum(len(part) for part in parts))]

    def broadcast(self, value: T) -> T:
        """What the chief's `value` is, for all; the others' own is ignored."""
        return cast(T, self._gather(value)[0]) if self.size > 1 else value

    def wait(self) -> None:
        """Until every member has come this far."""
        if self.size > 1:
            with _together():
                torch.distributed.barrier()

    def leave(self) -> None:
        """All members part, at about the same time: from here on each works alone, nothing can be sent."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        with _together():
            torch.distributed.all_gather_object(found, value)
        return found


@contextmanager
def _together() -> Iterator[None]:
    """What the libraries say where a member is gone means nothing to a person."""
    try:
        yield
    except RuntimeError as error:
        # A fault of this process's own kernels shows where members wait for each other.
        if out_of_memory(error) or isinstance(error, torch.AcceleratorError):
            raise
        log.warning("What this process was told: %s", error)
        raise Deserted("Another process of the team ended - see what it said, launch all again.") from error


SOLO = Team()
"""One process by itself."""


def join() -> Team:
    """The team that `accelerate launch` started this process in; SOLO where nobody launched it.

    Raises Refused where there are GPUs, but fewer than members: two cannot share one.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    has_gpu, members = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1"))
    if has_gpu and (gpus := torch.cuda.device_count()) < members:
        raise Refused(
            f"{members} processes need a GPU each and {gpus} {'is' if gpus == 1 else 'are'} here - launch "
            f"{gpus}, by --num_processes."
        )
    state = PartialState(cpu=not has_gpu, timeout=_PATIENCE)
    return Team(state.process_index, state.num_processes)
