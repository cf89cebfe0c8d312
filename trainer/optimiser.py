"""AdamW for reward models and imitation; its rate rises first and then falls linearly.

Left out on purpose: weight decay, which would pull an adapter back to the bare base. PPO makes its own
optimiser and warms up by updates (ppo.py).
"""

from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(
    parameters: Sequence[nn.Parameter],
    rate: float,
    steps: int,
    others: Sequence[tuple[nn.Parameter, float]] = (),
) -> tuple[AdamW, LambdaLR]:
    """An optimiser that reaches `rate` after a tenth of `steps`, and its schedule, to be stepped after it.

    others: parameters that reach a rate of their own at the same time.
    """
    groups = [{"params": list(parameters), "lr": rate}, *({"params": [p], "lr": own} for p, own in others)]
    optimiser = AdamW(groups, weight_decay=0.0)
    return optimiser, LambdaLR(optimiser, lambda step: _warm_up_and_decay(step, steps))


def _warm_up_and_decay(step: int, steps: int) -> float:
    """The share of the rate that `step`, counted from 0, has; a twentieth at least."""
    rise = max(1, steps // 10)
    return (step + 1) / rise if step < rise else max(0.05, (steps - step) / max(1, steps - rise))
