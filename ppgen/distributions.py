"""The distributions that torch, Pyro and zuko lack, or have in a form that does not scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, Transform, constraints

__all__ = ["Mixture", "TransformedSample"]

# Elements of a (values × components × event) tensor above which, without gradients, values are scored in chunks.
CHUNK = 2**25


class Mixture(TorchDistribution):
    r"""A finite mixture, :math:`p(z) = \sum_k \pi_k \, p_k(z)`.

    torch's ``MixtureSameFamily`` forms a tensor of values × components × event; with 25,000 values, 500 components and
    40 coordinates that is 2 GB. Here the exponents of Gaussians with a diagonal covariance are matrix products (in
    float64 where no gradient is asked for), and other components are scored in chunks.

    Args:
        logits: unnormalised log weights, (K,) or (..., K).
        components: a distribution whose last batch axis is K.

    Shape:
        batch (...), event that of the components.

    Example:
        >>> components = Independent(Normal(torch.tensor([[-1.0], [1.0]]), 1.0), 1)
        >>> Mixture(torch.zeros(2), components).log_prob(torch.zeros(1)).item()  # doctest: +ELLIPSIS
        -1.4189...
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor, components: Distribution, _batch_shape: torch.Size | None = None) -> None:
        if logits.shape[-1] != components.batch_shape[-1]:
            raise ValueError(
                f"Mixture: {logits.shape[-1]} weights and {components.batch_shape[-1]} components: give as many."
            )
        self.logits = logits
        self.components = components
        own = torch.broadcast_shapes(logits.shape[:-1], components.batch_shape[:-1])
        super().__init__(own if _batch_shape is None else _batch_shape, components.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        weights = self.logits.softmax(-1).reshape(*self.logits.shape, *[1] * self.event_dim)
        mean = (weights * self.components.mean).sum(-1 - self.event_dim)
        return mean.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        return Mixture(self.logits, self.components, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            own = torch.broadcast_shapes(self.logits.shape[:-1], self.components.batch_shape[:-1])
            index = (
                Categorical(logits=self.logits.expand(*own, -1))
                .expand(self.batch_shape)
                .sample(torch.Size(sample_shape))
            )
            if isinstance(normal := _diagonal(self.components), Normal) and not own:
                loc, scale = normal.loc[index], normal.scale[index]
                return torch.normal(loc, scale)
            draws = self.components.expand(shape + self.logits.shape[-1:]).sample()
            index = index.reshape(*shape, 1, *[1] * self.event_dim).expand(*shape, 1, *self.event_shape)
            return draws.gather(len(shape), index).squeeze(len(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        log_weights = self.logits.log_softmax(-1)
        normal = _diagonal(self.components)
        if isinstance(normal, Normal) and normal.loc.dim() == 2:
            scores = _normal_scores(value, normal)
        else:
            value = value.unsqueeze(-1 - self.event_dim)
            size = value.numel() * self.logits.shape[-1]
            if (
                torch.is_grad_enabled() or size <= CHUNK or value.dim() <= self.event_dim + 1 or len(value) == 1
            ) or len(self.components.batch_shape) > 1:
                scores = self.components.log_prob(value)
            else:
                pieces = value.reshape(-1, 1, *self.event_shape).split(max(1, CHUNK * value[0].numel() // size))
                scores = torch.cat([self.components.log_prob(piece) for piece in pieces])
                scores = scores.reshape(*value.shape[: value.dim() - self.event_dim - 1], -1)
        result = (log_weights + scores).logsumexp(-1)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))


def _diagonal(components: Distribution) -> Distribution | None:
    """The univariate distribution behind independent coordinates of a vector."""
    if isinstance(components, Independent) and components.reinterpreted_batch_ndims == 1:
        return components.base_dist
    return None


def _normal_scores(value: Tensor, normal: Normal) -> Tensor:
    r"""Log N(z; m_k, diag(s_k²)) for all k by matrix products: (..., d) and (K, d) to (..., K)."""
    dtype = value.dtype if torch.is_grad_enabled() else torch.float64
    center = normal.loc.mean(0)  # keeps the two large terms of (z − m)² small
    z, loc = (value - center).to(dtype), (normal.loc - center).to(dtype)
    precision = normal.scale.to(dtype).square().reciprocal()
    weighted = loc * precision
    constant = (
        (loc * weighted).sum(-1) + 2 * normal.scale.to(dtype).log().sum(-1) + loc.shape[-1] * math.log(2 * math.pi)
    )
    exponent = z.square() @ precision.mT - 2 * (z @ weighted.mT) + constant
    return (-0.5 * exponent).to(value.dtype)


class TransformedSample(TorchDistribution):
    r"""A flow :math:`z = f_T \circ \dots \circ f_1(\epsilon)` that remembers what it drew.

    The value that was just drawn is scored from the base value and the log-determinants of its own forward pass, so
    that a flow whose inverse is slow (inverse autoregressive) scores its own samples in one pass, exactly and with
    gradients. Any other value goes through the inverses. torch's ``TransformedDistribution`` with cached transforms
    does the first too, but loses the cache in Pyro's ``expand``.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Args:
        base: distribution of ε, with vectors for events.
        transforms: applied in this order.

    Shape:
        batch and event those of the base.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, base: Distribution, transforms: Sequence[Transform]) -> None:
        self.base = base
        self.transforms = tuple(transforms)
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> TransformedSample:
        shape = torch.Size(batch_shape)
        return self if shape == self.batch_shape else TransformedSample(self.base.expand(shape), self.transforms)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        start = value = self.base.rsample(torch.Size(sample_shape))
        log_det = value.new_zeros(value.shape[:-1])
        for transform in self.transforms:
            before = value
            value = transform(value)
            log_det = log_det + transform.log_abs_det_jacobian(before, value)
        self._drawn = (value, start, log_det)
        return value

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and value is self._drawn[0]:
            _, start, log_det = self._drawn
            return self.base.log_prob(start) - log_det
        log_det = value.new_zeros(())
        for transform in reversed(self.transforms):
            before = transform.inv(value)
            log_det = log_det + transform.log_abs_det_jacobian(before, value)
            value = before
        return self.base.log_prob(value) - log_det
