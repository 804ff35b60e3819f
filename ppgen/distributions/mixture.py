"""Mixtures of many components in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, constraints

# Numbers that one block of a computation over (values x components) may hold: 8 MB in double precision.
BLOCK = 2**20


class Mixture(TorchDistribution):
    r"""Mixture of a batch of components.

    .. math:: p(z) = \sum_{k=1}^K \pi_k \, p_k(z)

    torch's ``MixtureSameFamily`` forms a tensor of values x components x dimensions: 2 GB for 25,000 values, 500
    components and 40 dimensions. Here the quadratic form of diagonal Gaussian components is expanded,

    .. math:: \sum_d \frac{(z_d - \mu_{kd})^2}{\sigma_{kd}^2} = \sum_d z_d^2 \sigma_{kd}^{-2}
        - 2 \sum_d z_d \mu_{kd} \sigma_{kd}^{-2} + \sum_d \mu_{kd}^2 \sigma_{kd}^{-2},

    into a matrix product, in double precision since its terms cancel. Other components are scored block by block.

    Draws from diagonal Gaussian components are reparameterised: they carry the pathwise gradient of all parameters,
    the weights included. With the conditional distribution functions
    :math:`F_d(z_d \mid z_{<d})` of the mixture, :math:`F(z; \phi) = u` is uniform noise whatever :math:`\phi` is, so
    :math:`\nabla_\phi z = -(\nabla_z F)^{-1} \nabla_\phi F`, with a triangular :math:`\nabla_z F`.

    References:
        Implicit Reparameterization Gradients (Figurnov et al., 2018), https://arxiv.org/abs/1805.08498

    Args:
        logits: unnormalised log-weights, shape (\*, K).
        components: distribution with batch shape (\*, K).

    Shape:
        batch: the leading axes of both, broadcast; event: the components'.

    Raises:
        ValueError: logits and components differ in the number of components.

    Example:
        >>> components = torch.distributions.Independent(torch.distributions.Normal(torch.randn(500, 40), 1.), 1)
        >>> mixture = Mixture(torch.zeros(500), components)
        >>> mixture.log_prob(torch.randn(250, 100, 40)).shape
        torch.Size([250, 100])
        >>> mixture.expand((250, 100)).sample().shape, mixture.mean.shape
        (torch.Size([250, 100, 40]), torch.Size([40]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, components: Distribution, validate_args: bool | None = None) -> None:
        if components.batch_shape[-1:] != logits.shape[-1:] or not logits.dim():
            raise ValueError(
                f"A mixture needs as many components as logits on the last batch axis, but the logits have shape "
                f"{tuple(logits.shape)} and the components batch shape {tuple(components.batch_shape)}."
            )
        self.logits = logits
        self.components = components
        batch_shape = torch.broadcast_shapes(logits.shape[:-1], components.batch_shape[:-1])
        self._own_dim = len(batch_shape)  # axes that the parameters have; expand adds others in front
        super().__init__(batch_shape, components.event_shape, validate_args=validate_args)

    @property
    def num_components(self) -> int:
        return self.logits.shape[-1]

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint | None:
        return self.components.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch declares a class attribute
        return as_diagonal_normal(self.components) is not None

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Mixture:
        new = Mixture(self.logits, self.components, validate_args=False)  # parameters keep their shape
        new._validate_args = self._validate_args
        new._batch_shape = torch.broadcast_shapes(self.batch_shape, torch.Size(batch_shape))
        return new

    @property
    def mean(self) -> Tensor:
        weights = self.logits.softmax(-1)
        weights = weights.reshape(*weights.shape, *[1] * self.event_dim)
        mean = (weights * self.components.mean).sum(-1 - self.event_dim)
        return mean.expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_weights = self.logits.log_softmax(-1)
        diagonal = as_diagonal_normal(self.components)
        # float64 is missing on Apple's GPUs, where Gaussians too are scored directly.
        if diagonal is not None and value.device.type != "mps":
            loc, scale = diagonal.loc, diagonal.scale

            def score(block: Tensor) -> Tensor:
                return (log_weights + _log_normal(block, loc, scale)).logsumexp(-1)

            width = 1
        else:

            def score(block: Tensor) -> Tensor:
                log_prob = self.components.log_prob(block.unsqueeze(-1 - self.event_dim))
                return (log_weights + log_prob).logsumexp(-1)

            width = self.event_shape.numel()

        lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - self.event_dim])
        own = lead[len(lead) - self._own_dim :]
        rows = value.expand(*lead, *self.event_shape).reshape(-1, *own, *self.event_shape)
        return torch.cat([score(block) for block in rows.split(self._block(own, width))]).reshape(lead)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            lead = torch.Size(sample_shape) + self.batch_shape
            index = self._sample_index(lead)
            diagonal = as_diagonal_normal(self.components)
            if diagonal is not None:
                parameters = (diagonal.loc, diagonal.scale)
                index = index[..., None, None].expand(*lead, 1, *self.event_shape)
                loc, scale = (
                    p.expand(*lead, *p.shape[-2:]).gather(-2, index).squeeze(-2) for p in parameters
                )  # fmt: skip
                return torch.normal(loc, scale)
            # All components are drawn, block by block, and the chosen one kept.
            own = lead[len(lead) - self._own_dim :]
            components = self.components.expand((*own, self.num_components))
            index = index.reshape(-1, *own)
            blocks = []
            for chosen in index.split(self._block(own, self.event_shape.numel())):
                draws = components.sample(torch.Size(chosen.shape[:1]))
                chosen = chosen.reshape(*chosen.shape, 1, *[1] * self.event_dim)
                chosen = chosen.expand(*chosen.shape[: 1 + len(own)], 1, *self.event_shape)
                blocks.append(draws.gather(1 + len(own), chosen).squeeze(1 + len(own)))
            return torch.cat(blocks).reshape(*lead, *self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        diagonal = as_diagonal_normal(self.components)
        if diagonal is None:
            raise NotImplementedError("Only mixtures of diagonal Gaussians are reparameterised; use sample().")
        value = self.sample(sample_shape)
        parameters = (self.logits, diagonal.loc, diagonal.scale)
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in parameters):
            return value
        return _implicit_reparameterization(value, *parameters)

    def _sample_index(self, lead: torch.Size) -> Tensor:
        if self.logits.dim() == 1:
            return Categorical(logits=self.logits).sample(lead)
        return Categorical(logits=self.logits.expand(*lead, self.num_components)).sample()

    def _block(self, own: torch.Size, width: int) -> int:
        return max(1, BLOCK // max(1, own.numel() * self.num_components * width))


def as_diagonal_normal(distribution: Distribution) -> Normal | None:
    r"""The ``Normal`` with batch shape (\*, D) behind a diagonal Gaussian, None behind anything else."""
    d = distribution
    if isinstance(d, Independent) and len(d.event_shape) == 1 and isinstance(d.base_dist, Normal):
        return d.base_dist
    return None


def _log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log-densities of values (S, *B, D) under diagonal Gaussians (*B, K, D), of shape (S, *B, K)."""
    v, m, precision = value.double(), loc.double(), scale.double().pow(-2)
    powers = torch.cat([v.square(), v], -1)  # (S, *B, 2 D)
    weights = torch.cat([-0.5 * precision, m * precision], -1)  # (*B, K, 2 D)
    log_norm = scale.double().log().sum(-1) + 0.5 * math.log(2 * math.pi) * value.shape[-1]
    constant = -0.5 * (m.square() * precision).sum(-1) - log_norm
    if loc.dim() == 2 and value.dim() == 2:
        log_prob = torch.addmm(constant, powers, weights.T)
    else:
        log_prob = torch.einsum("s...d,...kd->s...k", powers, weights) + constant
    return log_prob.to(torch.promote_types(value.dtype, loc.dtype))  # values may be whole numbers


def _implicit_reparameterization(value: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""A draw (\*, D) of the mixture, given the gradient of all its parameters (\*, K), (\*, K, D), (\*, K, D)."""
    wide = _wide(value)
    z, logits, loc, scale = (wide(t) for t in (value.unsqueeze(-2), logits, loc, scale))
    component = Normal(loc, scale, validate_args=False)
    log_prob = component.log_prob(z)  # (*, K, D)
    # log p(k | z_<d): the components' log-weights after the dimensions before d were seen
    weights = (logits.log_softmax(-1).unsqueeze(-1) + log_prob.cumsum(-1) - log_prob).softmax(-2)
    cdf = component.cdf(z)
    conditional_cdf = (weights * cdf).sum(-2)  # F_d(z_d | z_<d), shape (*, D)
    with torch.no_grad():
        score = (loc - z) / scale.square()  # d log_prob / dz
        jacobian = torch.einsum("...ki,...kj->...ij", weights * cdf, score)
        jacobian -= conditional_cdf.unsqueeze(-1) * torch.einsum("...ki,...kj->...ij", weights, score)
        density = (weights * log_prob.exp()).sum(-2).clamp(min=torch.finfo(z.dtype).tiny)
        jacobian = jacobian.tril(-1) + torch.diag_embed(density)
    residual = (conditional_cdf - conditional_cdf.detach()).unsqueeze(-1)  # zero, with the gradient of F
    step = torch.linalg.solve_triangular(jacobian, residual, upper=False).squeeze(-1)
    return value - step.to(value.dtype)


def _wide(like: Tensor) -> Callable[[Tensor], Tensor]:
    """The conversion to double precision, where the device has it."""
    return (lambda t: t) if like.device.type == "mps" else Tensor.double
