"""The prior of grids of codes, place by place."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.nn.shapes import Shape, as_shape
from ppgen.numbers import positive_integer


class CategoricalGrid(nn.Module):
    r"""Independent categorical variables on a grid, as integers: uniform, or with learned probabilities.

    .. math:: p(z) = \prod_{ij} \pi_{ij z_{ij}}, \qquad z_{ij} \in \{0, \dots, K - 1\}

    What a :class:`ppgen.models.VQVAE` starts with: every grid of codes alike. Learned, each place has its own
    frequencies, but no place knows of another.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017),
        https://arxiv.org/abs/1711.00937

    Args:
        num_categories: K.
        shape: of the grid, such as (7, 7).
        learn: whether the logits are learned.

    Shape:
        batch: (), event: the shape of the grid.

    Raises:
        ValueError: a size that is not a positive whole number.

    Example:
        >>> prior = CategoricalGrid(512, (7, 7))
        >>> z = prior().sample((3,))
        >>> z.shape, prior().log_prob(z) / 49
        (torch.Size([3, 7, 7]), tensor([-6.2383, -6.2383, -6.2383]))
    """

    logits: Tensor

    def __init__(self, num_categories: int, shape: Shape, *, learn: bool = False) -> None:
        super().__init__()
        self.num_categories = positive_integer("num_categories", num_categories)
        self.shape = as_shape(shape)
        logits = torch.zeros(*self.shape, num_categories)
        if learn:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def forward(self, *context: Tensor) -> Distribution:
        return dist.Categorical(logits=self.logits).to_event(len(self.shape))
