"""Decoders of integer levels, such as the 256 values of 8-bit images: exact probabilities."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import distributions
from ppgen.nn import as_shape, feed
from ppgen.nn.shapes import Shape
from ppgen.numbers import positive_integer, several_levels

from .outputs import check_channels, event_rank, parameters, widen

# Logistic scales, where levels run over [-1, 1]: at -7 all mass is in one bin.
LOG_SCALE_RANGE = (-7.0, 5.0)


class Categorical(nn.Module):
    r"""Independent categorical variables over integer levels.

    .. math:: P(x \mid z) = \prod_i \mathrm{softmax}(l_i)_{x_i}, \qquad l = l(z)

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759

    Args:
        net: gives for each level as many logits as the data have numbers, so ``num_levels`` times their channels.
        num_levels: L; the data hold integers 0, ..., L - 1.

    Shape:
        batch: leading axes of z, event: the shape of x.

    Raises:
        ValueError: a network whose number of channels is no multiple of ``num_levels``.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> net = nn.MLP(40, 300, Categorical.outputs_shape((3, 8, 8)))
        >>> Categorical(net)(torch.zeros(5, 40)).event_shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, net: nn.Module, num_levels: int = 256) -> None:
        super().__init__()
        self.net = net
        self.num_levels = positive_integer("num_levels", num_levels)
        check_channels("decoders.Categorical", net, num_levels)

    @staticmethod
    def outputs_shape(shape: Shape, num_levels: int = 256) -> tuple[int, ...]:
        """The output shape that the network must have for data of this shape: ``num_levels`` times the channels."""
        return widen(shape, num_levels)

    def forward(self, *context: Tensor) -> Distribution:
        rank = event_rank(self.net)
        logits = parameters("decoders.Categorical", feed(self.net, *context), self.num_levels, rank)
        return distributions.CategoricalLevels(logits=logits.movedim(-1 - rank, -1)).to_event(rank)


class DiscretizedLogistic(nn.Module):
    r"""Independent logistic variables cut into bins around integer levels, the outer bins open.

    .. math:: P(x \mid z) = \prod_i \sigma\Bigl(\frac{x_i + h - \mu_i}{s_i}\Bigr)
        - \sigma\Bigl(\frac{x_i - h - \mu_i}{s_i}\Bigr), \qquad \mu, \log s = \text{net}(z)

    where x is scaled to [-1, 1] and h is half a bin.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Args:
        net: gives the locations, then the log-scales, so twice the channels of the data.
        num_levels: L; the data hold integers 0, ..., L - 1.

    Shape:
        batch: leading axes of z, event: the shape of x.

    Raises:
        ValueError: a network with an odd number of channels, or less than two levels.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> DiscretizedLogistic(nn.MLP(40, 300, (2, 28, 20)))(torch.zeros(5, 40)).event_shape
        torch.Size([1, 28, 20])
    """

    def __init__(self, net: nn.Module, num_levels: int = 256) -> None:
        super().__init__()
        self.net = net
        self.num_levels = several_levels("num_levels", num_levels)
        check_channels("decoders.DiscretizedLogistic", net, 2)

    @staticmethod
    def outputs_shape(shape: Shape) -> tuple[int, ...]:
        """The output shape that the network must have for data of this shape: twice the channels."""
        return widen(shape, 2)

    def forward(self, *context: Tensor) -> Distribution:
        rank = event_rank(self.net)
        output = parameters("decoders.DiscretizedLogistic", feed(self.net, *context), 2, rank)
        loc, log_scale = output.unbind(-1 - rank)
        log_scale = log_scale.clamp(*LOG_SCALE_RANGE)
        return distributions.DiscretizedLogistic(loc, log_scale, self.num_levels).to_event(rank)


class LogisticMixture(nn.Module):
    r"""Mixture of discretized logistics for each pixel of an image, its channels one after the other.

    .. math:: P(x \mid z) = \prod_{ij} \sum_k \pi_{kij} \prod_c P\Bigl(x_{cij} \Bigm| \mu_{kcij}
        + \sum_{b < c} \tanh(a_{kcbij}) \, x_{bij}, \; s_{kcij}\Bigr)

    References:
        PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Args:
        net: gives K(1 + 2C + C(C - 1)/2) channels for images of C channels; 10 K for colours.
        num_channels: C.
        num_components: K.
        num_levels: L; the data hold integers 0, ..., L - 1.

    Shape:
        batch: leading axes of z, event: (C, H, W).

    Raises:
        ValueError: a network with another number of channels, or less than two levels.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> net = nn.MLP(40, 300, LogisticMixture.outputs_shape((3, 8, 8), num_components=5))
        >>> LogisticMixture(net, 3, num_components=5)(torch.zeros(2, 40)).event_shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, net: nn.Module, num_channels: int, *, num_components: int = 10, num_levels: int = 256) -> None:
        super().__init__()
        self.net = net
        self.num_channels = positive_integer("num_channels", num_channels)
        self.num_components = positive_integer("num_components", num_components)
        self.num_levels = several_levels("num_levels", num_levels)
        out_shape = getattr(net, "out_shape", None)
        if out_shape is not None:
            needed = self._width(num_channels, num_components)
            if len(out_shape) != 3 or out_shape[0] != needed:
                raise ValueError(
                    f"decoders.LogisticMixture of {num_components} components for images of {num_channels} channels "
                    f"needs a network with output shape ({needed}, height, width), but net.out_shape is "
                    f"{tuple(out_shape)}: outputs_shape((C, H, W)) says what to make it."
                )

    @staticmethod
    def _width(num_channels: int, num_components: int) -> int:
        return num_components * (1 + 2 * num_channels + num_channels * (num_channels - 1) // 2)

    @classmethod
    def outputs_shape(cls, shape: Shape, *, num_components: int = 10) -> tuple[int, ...]:
        """The output shape that the network must have for images of this shape (C, H, W)."""
        shape = as_shape(shape)
        if len(shape) != 3:
            raise ValueError(f"decoders.LogisticMixture is for images (C, H, W), but the data have shape {shape}.")
        return (cls._width(shape[0], num_components), *shape[1:])

    def forward(self, *context: Tensor) -> Distribution:
        c, k = self.num_channels, self.num_components
        output = feed(self.net, *context)
        if output.dim() < 3 or output.shape[-3] != self._width(c, k):
            raise ValueError(
                f"decoders.LogisticMixture of {k} components for images of {c} channels needs a network that gives "
                f"{self._width(c, k)} channels, but it gave a tensor of shape {tuple(output.shape)}."
            )
        pairs = c * (c - 1) // 2
        logits, loc, log_scale, coefficients = output.split((k, k * c, k * c, k * pairs), -3)
        loc, log_scale = loc.unflatten(-3, (k, c)), log_scale.unflatten(-3, (k, c)).clamp(*LOG_SCALE_RANGE)
        coefficients = coefficients.unflatten(-3, (k, pairs))
        return distributions.LogisticMixture(logits, loc, log_scale, coefficients, self.num_levels)
