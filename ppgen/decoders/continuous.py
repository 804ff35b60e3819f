"""Decoders of binary and of continuous data."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import distributions
from ppgen.nn import as_shape, feed
from ppgen.nn.shapes import Shape
from ppgen.numbers import interval, positive_number

from .outputs import check_channels, event_rank, parameters, widen


class Bernoulli(nn.Module):
    r"""Independent Bernoulli variables on logits, for binary data.

    .. math:: p(x \mid z) = \prod_i \sigma(l_i)^{x_i} \, (1 - \sigma(l_i))^{1 - x_i}, \qquad l = l(z)

    Grey values are outside its support, and scoring them is an error.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114

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

    @staticmethod
    def outputs_shape(shape: Shape) -> tuple[int, ...]:
        """The output shape that the network must have for data of this shape: the same."""
        return as_shape(shape)

    def forward(self, *context: Tensor) -> Distribution:
        return distributions.Bernoulli(logits=feed(self.net, *context)).to_event(event_rank(self.net))


class ContinuousBernoulli(nn.Module):
    r"""Independent continuous Bernoulli variables, for data in [0, 1].

    .. math:: p(x \mid z) = \prod_i C(l_i) \, \sigma(l_i)^{x_i} (1 - \sigma(l_i))^{1 - x_i}, \qquad l = l(z)

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem and Cunningham, 2019), https://arxiv.org/abs/1907.06845

    Args:
        net: gives the logits; its ``out_shape`` is the shape of x (a vector if it states none).

    Shape:
        batch: leading axes of z, event: the shape of x.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> ContinuousBernoulli(nn.MLP(40, 300, 784))(torch.zeros(5, 40)).event_shape
        torch.Size([784])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @staticmethod
    def outputs_shape(shape: Shape) -> tuple[int, ...]:
        """The output shape that the network must have for data of this shape: the same."""
        return as_shape(shape)

    def forward(self, *context: Tensor) -> Distribution:
        return distributions.ContinuousBernoulli(feed(self.net, *context)).to_event(event_rank(self.net))


class Normal(nn.Module):
    r"""Independent Gaussians, with a scale that is fixed, learned or predicted.

    .. math:: p(x \mid z) = \mathcal{N}\bigl(x; \mu(z), \sigma^2 I\bigr)
        \quad\text{or}\quad \mathcal{N}\bigl(x; \mu(z), \mathrm{diag}(\sigma^2(z))\bigr)

    A predicted scale needs a bound, since a density has none: a pixel that is constant in the training data would take
    its scale to zero.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021),
        https://arxiv.org/abs/2006.13202

    Args:
        net: gives the means; with a predicted scale also, as many channels again, the log-scales. Its ``out_shape``
            says the rank of x (a vector if it states none).
        scale: σ, in the data's units; None if the network predicts it for each number.
        learn_scale: whether σ, which then starts at ``scale``, is one learned number for all.
        log_scale_range: where log σ is clamped to, if it is learned or predicted.

    Shape:
        batch: leading axes of z, event: the shape of x.

    Raises:
        ValueError: a scale that is not positive and finite, a learned scale that starts nowhere or outside of its
            range, or a network with an odd number of channels for a predicted scale.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> z = torch.zeros(5, 40)
        >>> Normal(nn.MLP(40, 784), scale=0.1)(z).event_shape
        torch.Size([784])
        >>> Normal(nn.MLP(40, (2, 28, 28)))(z).event_shape
        torch.Size([1, 28, 28])
    """

    def __init__(
        self,
        net: nn.Module,
        scale: float | None = None,
        *,
        learn_scale: bool = False,
        log_scale_range: tuple[float, float] = (-5.0, 10.0),
    ) -> None:
        super().__init__()
        if scale is None and learn_scale:
            raise ValueError(
                "A learned scale starts somewhere: give scale, for example Normal(net, 1.0, learn_scale=True)."
            )
        if scale is not None:  # which the network predicts
            positive_number("scale", scale)
        self.log_scale_range = low, high = interval("log_scale_range", log_scale_range)
        if scale is not None and learn_scale and not low <= math.log(scale) <= high:
            raise ValueError(
                f"A learned scale that starts at scale={scale:g} has log σ = {math.log(scale):.2f}, outside "
                f"log_scale_range={log_scale_range}, where it would have no gradient: widen the range, or start inside."
            )
        self.net = net
        self.learn_scale = learn_scale
        self.log_scale: Tensor | None
        if scale is None:
            check_channels("decoders.Normal with a predicted scale", net, 2)
            self.log_scale = None
        elif learn_scale:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        else:
            self.register_buffer("log_scale", torch.tensor(math.log(scale)), persistent=False)

    @staticmethod
    def outputs_shape(shape: Shape, scale: float | None = None) -> tuple[int, ...]:
        """The output shape that the network must have for data of this shape: twice the channels if it predicts σ."""
        return widen(shape, 2 if scale is None else 1)

    def forward(self, *context: Tensor) -> Distribution:
        output, rank = feed(self.net, *context), event_rank(self.net)
        if self.log_scale is not None:
            log_scale = self.log_scale.clamp(*self.log_scale_range) if self.learn_scale else self.log_scale
            return dist.Normal(output, log_scale.exp()).to_event(rank)
        loc, log_scale = parameters("decoders.Normal with a predicted scale", output, 2, rank).unbind(-1 - rank)
        return dist.Normal(loc, log_scale.clamp(*self.log_scale_range).exp()).to_event(rank)
