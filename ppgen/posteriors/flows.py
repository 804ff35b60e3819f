"""Flow posteriors whose transforms' parameters all come from the encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import LOG_SCALE_RANGE, NormalizingFlow, compose, diagonal_normal, transforms
from ppgen.nn import feed
from ppgen.numbers import interval, positive_integer

from .outputs import check_width, split


class Planar(nn.Module):
    r"""Planar flow.

    .. math:: z^{(t)} = z^{(t-1)} + u_t \tanh(w_t^\top z^{(t-1)} + b_t), \qquad z^{(0)} = \mu + \sigma \odot \epsilon

    A value drawn elsewhere is scored through one monotone scalar equation a step.

    References:
        Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Args:
        net: gives μ, log σ and for each step u, w and b: 2d + T(2d + 1) outputs.
        latent_dim: d.
        num_transforms: T.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = Planar(nn.MLP(64, Planar.num_outputs(8, num_transforms=2)), 8, num_transforms=2)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = False

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_transforms: int = 8,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, num_transforms=num_transforms)
        check_width(f"Planar of latent_dim {latent_dim} with {num_transforms} transforms", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.num_transforms = num_transforms
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(latent_dim: int, *, num_transforms: int = 8) -> int:
        """How many outputs the network must have: 2d + T(2d + 1)."""
        d = positive_integer("latent_dim", latent_dim)
        return 2 * d + positive_integer("num_transforms", num_transforms) * (2 * d + 1)

    def forward(self, *context: Tensor) -> Distribution:
        d, count = self.latent_dim, self.num_transforms
        loc, log_scale, rest = split("Planar", feed(self.net, *context), d, d, count * (2 * d + 1))
        steps = [
            transforms.Planar(u, w, b.squeeze(-1))
            for u, w, b in (step.split((d, d, 1), -1) for step in rest.chunk(count, -1))
        ]
        return NormalizingFlow(diagonal_normal(loc, log_scale, self.log_scale_range), compose(*steps))


class Radial(nn.Module):
    r"""Radial flow.

    .. math:: z^{(t)} = z^{(t-1)} + \frac{\beta_t}{\alpha_t + \lVert z^{(t-1)} - c_t \rVert} (z^{(t-1)} - c_t), \qquad
        z^{(0)} = \mu + \sigma \odot \epsilon

    The centres :math:`c_t` are stated relative to μ. A value drawn elsewhere is scored in closed form.

    References:
        Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Args:
        net: gives μ, log σ and for each step c, α and β: 2d + T(d + 2) outputs.
        latent_dim: d.
        num_transforms: T.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = Radial(nn.MLP(64, Radial.num_outputs(8, num_transforms=2)), 8, num_transforms=2)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = True

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_transforms: int = 8,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, num_transforms=num_transforms)
        check_width(f"Radial of latent_dim {latent_dim} with {num_transforms} transforms", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.num_transforms = num_transforms
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(latent_dim: int, *, num_transforms: int = 8) -> int:
        """How many outputs the network must have: 2d + T(d + 2)."""
        d = positive_integer("latent_dim", latent_dim)
        return 2 * d + positive_integer("num_transforms", num_transforms) * (d + 2)

    def forward(self, *context: Tensor) -> Distribution:
        d, count = self.latent_dim, self.num_transforms
        loc, log_scale, rest = split("Radial", feed(self.net, *context), d, d, count * (d + 2))
        steps = [
            transforms.Radial(loc + center, alpha.squeeze(-1), beta.squeeze(-1))
            for center, alpha, beta in (step.split((d, 1, 1), -1) for step in rest.chunk(count, -1))
        ]
        return NormalizingFlow(diagonal_normal(loc, log_scale, self.log_scale_range), compose(*steps))


class Sylvester(nn.Module):
    r"""Sylvester flow, of the triangular, Householder or orthogonal kind.

    .. math:: z^{(t)} = z^{(t-1)} + Q_t R_t \tanh(\tilde R_t Q_t^\top z^{(t-1)} + b_t), \qquad
        z^{(0)} = \mu + \sigma \odot \epsilon

    What :math:`Q_t` is makes the kind. Triangular, the default: the identity and the reversal of the coordinates in
    turn. Householder: a product of ``num_reflections`` reflections. Orthogonal: ``num_columns`` orthonormal columns, by
    a QR decomposition where the paper iterates towards one. A value drawn elsewhere is scored through as many monotone
    scalar equations a step as there are columns, one after the other.

    References:
        Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018),
        https://arxiv.org/abs/1803.05649

    Args:
        net: gives μ, log σ and for each step the triangles, b and Q: 2d + T(M² + 2M + q) outputs, where M is
            ``num_columns`` or else d, and q is 0, ``num_reflections`` · d or d · ``num_columns``.
        latent_dim: d.
        num_transforms: T.
        num_reflections: makes the kind Householder.
        num_columns: makes the kind orthogonal; at most d.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width, both kinds at once, or more columns than dimensions.

    Example:
        >>> from ppgen import nn
        >>> q = Sylvester(nn.MLP(64, Sylvester.num_outputs(8, num_columns=4)), 8, num_columns=4)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = False

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_transforms: int = 4,
        num_reflections: int | None = None,
        num_columns: int | None = None,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        self.num_reflections, self.num_columns = num_reflections, num_columns
        options: dict[str, Any] = {
            "num_transforms": num_transforms,
            "num_reflections": num_reflections,
            "num_columns": num_columns,
        }
        needed = self.num_outputs(latent_dim, **options)
        check_width(f"Sylvester of latent_dim {latent_dim} with {options}", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.num_transforms = num_transforms
        self.num_units = num_columns or latent_dim
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(
        latent_dim: int,
        *,
        num_transforms: int = 4,
        num_reflections: int | None = None,
        num_columns: int | None = None,
    ) -> int:
        """How many outputs the network must have: 2d + T(M² + 2M + q)."""
        d = positive_integer("latent_dim", latent_dim)
        if num_reflections is not None and num_columns is not None:
            raise ValueError("A Sylvester flow is of one kind: give num_reflections, num_columns or neither, not both.")
        units, extra = d, 0
        if num_columns is not None:
            units = positive_integer("num_columns", num_columns)
            extra = d * units
            if units > d:
                raise ValueError(f"num_columns = {units} orthonormal columns do not fit into latent_dim = {d}.")
        if num_reflections is not None:
            extra = d * positive_integer("num_reflections", num_reflections)
        return 2 * d + positive_integer("num_transforms", num_transforms) * (units * units + 2 * units + extra)

    def forward(self, *context: Tensor) -> Distribution:
        d, count, m = self.latent_dim, self.num_transforms, self.num_units
        width = m * m + 2 * m
        extra = d * ((self.num_columns or 0) + (self.num_reflections or 0))
        loc, log_scale, rest = split("Sylvester", feed(self.net, *context), d, d, count * (width + extra))
        steps = []
        for t, step in enumerate(rest.chunk(count, -1)):
            square, diagonal, b, raw_q = step.split((m * m, m, m, extra), -1)
            square = square.unflatten(-1, (m, m))
            # One square holds both triangles: one above its diagonal, the other below, transposed.
            bound = 1 - transforms.MARGIN
            r = square.triu(1) + torch.diag_embed(bound * torch.diagonal(square, dim1=-2, dim2=-1).tanh())
            r_tilde = square.mT.triu(1) + torch.diag_embed(bound * diagonal.tanh())
            steps.append(transforms.Sylvester(self._orthonormal(raw_q, t), r, r_tilde, b))
        return NormalizingFlow(diagonal_normal(loc, log_scale, self.log_scale_range), compose(*steps))

    def _orthonormal(self, raw: Tensor, t: int) -> Tensor:
        """Orthonormal columns (*, d, M) from the network's outputs for step t."""
        d = self.latent_dim
        identity = torch.eye(d, dtype=raw.dtype, device=raw.device)
        if self.num_columns is not None:
            return torch.linalg.qr(raw.unflatten(-1, (d, self.num_columns)) + identity[:, : self.num_columns]).Q
        if self.num_reflections is None:
            return identity if t % 2 == 0 else identity.flip(0)
        q = identity
        for v in transforms.reflection_vectors(raw.unflatten(-1, (self.num_reflections, d))).unbind(-2):
            v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
            q = q - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ q)
        return q
