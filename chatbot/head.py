"""The scalar head of a reward model or of a value: hidden states and a number of tokens -> a score."""

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """Hidden states -> score, in float32, with the shift and scale that make reference replies score 0 +- 1.

    A reply is scored by the mean over its tokens, which cannot tell how many they are, and by their number:

        score = (weight . mean_t h_t + bias + length (log n - usual_length) - mean) / std,   length <= 0

    Brevity needs a reward of its own. Length must have none: it comes with most of what people like, and a
    policy could have it for nothing by never ending. A longer reply must earn more by what it says.

    Weight ~ N(0, (0.1 / sqrt(d + 1))^2); bias 0. That is a tenth of what "The N+ implementation details of
    RLHF with PPO" (arXiv 2403.17031) uses: with theirs the scores of a ranking differ by 1.3 before anything
    is learned, and unlearning that costs a small night most of its steps.
    """

    mean: Tensor
    std: Tensor
    usual_length: Tensor
    """The mean of log n over replies of the reference, n in tokens."""

    def __init__(self, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, generator=generator) * 0.1 / (hidden + 1) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(()))
        self.length = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))
        self.register_buffer("usual_length", torch.tensor(0.0))

    def forward(self, hidden: Tensor) -> Tensor:
        """What is said: (..., D) -> (...), normalised."""
        return (hidden.float() @ self.weight + self.bias - self.mean) / self.std

    def of_length(self, tokens: Tensor) -> Tensor:
        """What the number of tokens, (...), at least 1 each, adds to that: (...)."""
        return self.length * (tokens.float().log() - self.usual_length) / self.std

    @torch.no_grad()
    def make_raw(self) -> float:
        """Take the normalisation off; returns the raw mean score of the replies it was made for."""
        level = float(self.mean + self.length * self.usual_length)
        self.usual_length.zero_()
        self.mean.zero_()
        self.std.fill_(1.0)
        return level

    @torch.no_grad()
    def fold(self) -> None:
        """Write shift and scale into the weights: the value head starts as the normalised reward."""
        self.weight.div_(self.std)
        self.length.div_(self.std)
        self.bias.sub_(self.mean).div_(self.std)
        self.mean.zero_()
        self.std.fill_(1.0)
