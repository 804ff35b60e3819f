r"""Decoders p(x | z, y): a network in front of a distribution of the observation."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.nn import feed

__all__ = ["Bernoulli"]


class Bernoulli(nn.Module):
    r"""Independent Bernoulli variables on logits, for binary data.

    .. math:: p(x \mid z) = \prod_i \sigma(l_i)^{x_i} \, (1 - \sigma(l_i))^{1 - x_i}, \qquad l = l(z)

    Grey values are outside its support, and scoring them is an error.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Args:
        net: gives the logits; its ``out_shape`` is the shape of x (a vector if it states none).

    Shape:
        batch: leading axes of z, event: the shape of x.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> Bernoulli(nn.MLP(40, 300, (1, 28, 28)))(torch.zeros(5, 40)).event_shape
        torch.Size([1, 28, 28])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *context: Tensor) -> Distribution:
        rank = len(getattr(self.net, "out_shape", (1,)))
        return dist.Bernoulli(logits=feed(self.net, *context)).to_event(rank)
