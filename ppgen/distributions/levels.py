"""Distributions of integer levels 0, ..., L - 1, such as the 256 values of 8-bit images.

All are exact probabilities: they sum to 1 over the levels. Levels may be given as any type that holds integers, and
are drawn as floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from ppgen.nn.levels import rescale
from ppgen.numbers import several_levels


class CategoricalLevels(dist.Categorical):
    r"""Categorical distribution whose categories are numbers, and so have a mean and a variance.

    Args:
        logits: shape (\*, L).

    Example:
        >>> CategoricalLevels(logits=torch.zeros(256)).mean
        tensor(127.5000)
    """

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        return self.logits.softmax(-1) @ levels

    @property
    def variance(self) -> Tensor:
        levels = torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.softmax(-1) * (levels - self.mean.unsqueeze(-1)).square()).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)


def log_mass(unit: Tensor, loc: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    r"""Log-probability of levels under a logistic distribution on [-1, 1] that is cut into bins, the outer ones open.

    With the bin's edges a < b in standard units, :math:`\sigma(b) - \sigma(a) = \sigma(b) \sigma(-a) (1 - e^{a - b})`
    has no cancellation.
    """
    half = 1 / (num_levels - 1)
    inverse_scale = (-log_scale).exp()
    below = (unit - half - loc) * inverse_scale
    above = (unit + half - loc) * inverse_scale
    first, last = unit < half - 1, unit > 1 - half
    log_prob_below_upper_edge = torch.where(last, 0.0, logsigmoid(above))
    log_prob_above_lower_edge = torch.where(first, 0.0, logsigmoid(-below))
    width = 2 * half * inverse_scale
    log_cut = torch.where(first | last, 0.0, (-(-width).expm1()).log())
    return log_prob_below_upper_edge + log_prob_above_lower_edge + log_cut


def draw_logistic(loc: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    """Levels drawn from the same, as floating-point numbers."""
    uniform = torch.rand_like(loc).clamp(min=torch.finfo(loc.dtype).tiny)
    unit = loc + log_scale.exp() * (uniform.log() - (-uniform).log1p())
    return ((unit + 1) * ((num_levels - 1) / 2) + 0.5).floor().clamp(0, num_levels - 1)


def mean_level(loc: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    r"""The exact mean, :math:`\sum_{v \geq 1} P(V \geq v)`."""
    inverse_scale = (-log_scale).exp()
    mean = torch.zeros_like(loc)
    for v in range(1, num_levels):
        edge = (2 * v - 1) / (num_levels - 1) - 1
        mean = mean + ((loc - edge) * inverse_scale).sigmoid()
    return mean


class DiscretizedLogistic(TorchDistribution):
    r"""Logistic distribution cut into bins around the levels, the two outer bins open.

    .. math:: P(v) = \sigma\Bigl(\frac{x_v + h - \mu}{s}\Bigr) - \sigma\Bigl(\frac{x_v - h - \mu}{s}\Bigr),
        \qquad x_v = \frac{2 v}{L - 1} - 1, \quad h = \frac{1}{L - 1}

    with the first term 1 for the last level and the second 0 for the first, so the levels' probabilities sum to 1.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Args:
        loc: μ, where levels run over [-1, 1].
        log_scale: log s; both broadcast.
        num_levels: L.

    Example:
        >>> d = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(-2.0))
        >>> round(d.log_prob(torch.arange(256)).exp().sum().item(), 5)
        1.0
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "log_scale": constraints.real,
    }

    def __init__(
        self, loc: Tensor, log_scale: Tensor, num_levels: int = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.num_levels = several_levels("num_levels", num_levels)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        loc, log_scale = self.loc.expand(shape), self.log_scale.expand(shape)
        new = DiscretizedLogistic(loc, log_scale, self.num_levels, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return mean_level(self.loc, self.log_scale, self.num_levels)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return log_mass(rescale(value, self.num_levels, self.loc.dtype), self.loc, self.log_scale, self.num_levels)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            return draw_logistic(self.loc.expand(shape), self.log_scale.expand(shape), self.num_levels)


class LogisticMixture(TorchDistribution):
    r"""Mixture of discretized logistics for each pixel, its channels one after the other.

    .. math:: P(x) = \prod_{ij} \sum_k \pi_{kij} \prod_c P\Bigl(x_{cij} \Bigm| \mu_{kcij}
        + \sum_{b < c} \tanh(a_{kcbij}) \, x_{bij}, \; s_{kcij}\Bigr)

    The mixture is chosen once a pixel, and a channel's location depends linearly on the channels before it.

    References:
        PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Args:
        logits: of the components, shape (\*, K, H, W).
        loc: shape (\*, K, C, H, W), where levels run over [-1, 1].
        log_scale: shape (\*, K, C, H, W).
        coefficients: a before the hyperbolic tangent, shape (\*, K, C(C - 1)/2, H, W), in the order (1, 0), (2, 0),
            (2, 1), ... of channel and earlier channel.
        num_levels: L.

    Shape:
        batch \*, event (C, H, W).

    Example:
        >>> k, c, h, w = 10, 3, 32, 32
        >>> shapes = [(k, h, w), (k, c, h, w), (k, c, h, w), (k, 3, h, w)]
        >>> d = LogisticMixture(*(torch.randn(100, *shape) for shape in shapes))
        >>> d.log_prob(d.sample()).shape
        torch.Size([100])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        coefficients: Tensor,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.log_scale, self.coefficients = logits, loc, log_scale, coefficients
        self.num_levels = several_levels("num_levels", num_levels)
        self.num_channels = loc.shape[-3]
        super().__init__(logits.shape[:-3], loc.shape[-3:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.num_levels - 1), 3)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> LogisticMixture:
        shape = torch.Size(batch_shape)
        logits = self.logits.expand(*shape, *self.logits.shape[-3:])
        loc, log_scale, coefficients = (
            p.expand(*shape, *p.shape[-4:]) for p in (self.loc, self.log_scale, self.coefficients)
        )
        new = LogisticMixture(logits, loc, log_scale, coefficients, self.num_levels, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _location(self, c: int, loc: Tensor, coefficients: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Location of channel c given the earlier channels, from loc (*, C, H, W) and its coefficients."""
        location = loc[..., c, :, :]
        for b, channel in enumerate(earlier):
            location = location + coefficients[..., c * (c - 1) // 2 + b, :, :].tanh() * channel
        return location

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_pixels(value).sum((-1, -2))

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        r"""The log-probability of each pixel, all its channels together, of shape (\*, H, W)."""
        unit = rescale(value, self.num_levels, self.loc.dtype).unsqueeze(-4)  # (*, 1, C, H, W)
        channels = unit.unbind(-3)
        log_prob = self.logits.log_softmax(-3)
        for c, channel in enumerate(channels):
            location = self._location(c, self.loc, self.coefficients, channels[:c])
            log_prob = log_prob + log_mass(channel, location, self.log_scale[..., c, :, :], self.num_levels)
        return log_prob.logsumexp(-3)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            new = self.expand(torch.Size(sample_shape) + self.batch_shape)
            index = torch.distributions.Categorical(logits=new.logits.movedim(-3, -1)).sample()
            index = index[..., None, None, :, :]  # (*, 1, 1, H, W)
            loc, log_scale, coefficients = (
                p.take_along_dim(index, -4).squeeze(-4) for p in (new.loc, new.log_scale, new.coefficients)
            )
            levels: list[Tensor] = []
            for c in range(self.num_channels):
                earlier = [rescale(level, self.num_levels, loc.dtype) for level in levels]
                location = self._location(c, loc, coefficients, earlier)
                levels.append(draw_logistic(location, log_scale[..., c, :, :], self.num_levels))
            return torch.stack(levels, -3)

    @property
    def mean(self) -> Tensor:
        """Mean levels: exact for the first channel; the others take the means of those before them for their values."""
        weights = self.logits.softmax(-3)
        means: list[Tensor] = []  # per component, (*, K, H, W)
        for c in range(self.num_channels):
            earlier = [rescale(mean, self.num_levels, self.loc.dtype) for mean in means]
            location = self._location(c, self.loc, self.coefficients, earlier)
            means.append(mean_level(location, self.log_scale[..., c, :, :], self.num_levels))
        return torch.stack([(weights * mean).sum(-3) for mean in means], -3)
