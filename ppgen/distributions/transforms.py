"""Planar, radial and Sylvester transforms, with the inverses that Pyro's lack.

Pyro's transforms of these names invert only what they just computed, and start where their raw parameters are zero at
something other than the identity. Here zeros are the identity, and any value is inverted: by a formula (radial), or
by monotone scalar equations (planar, Sylvester) that are solved by bisection and differentiated implicitly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

# How far a Jacobian's factors are kept from zero.
MARGIN = 1e-3


def above_minus_one(raw: Tensor) -> Tensor:
    """A number above -1 for any real number, with 0 for 0."""
    return MARGIN - 1 + (1 - MARGIN) * softplus(raw + math.log(math.e - 1))


def reflection_vectors(raw: Tensor) -> Tensor:
    r"""Normals (\*, T, D) of T Householder reflections from any real numbers: the coordinate axes in turn, moved.

    Zeros are reflections along the axes, which leave a diagonal covariance diagonal; without the axes they would be
    directions of length zero.
    """
    count, d = raw.shape[-2:]
    return raw + torch.eye(d, dtype=raw.dtype, device=raw.device)[torch.arange(count, device=raw.device) % d]


def solve_tanh(target: Tensor, r: Tensor, s: Tensor, e: Tensor) -> Tensor:
    r"""The solution v of :math:`v + r \tanh(s v + e) = t`, which is unique where :math:`r s > -1`.

    Bisection of :math:`[t - |r|, t + |r|]`, then a Newton step, whose gradient is that of the implicit function.

    Args:
        target: t.
        r: amplitude.
        s: slope.
        e: offset; all four broadcast.

    Example:
        >>> v = solve_tanh(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(-0.2), torch.tensor(1.0))
        >>> (v + 3 * (-0.2 * v + 1).tanh()).item()
        2.0...
    """
    with torch.no_grad():
        low, high = target - r.abs(), target + r.abs()
        for _ in range(52 if target.dtype == torch.float64 else 26):  # bits of precision
            middle = (low + high) / 2
            below = middle + r * (s * middle + e).tanh() < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        v = (low + high) / 2
    h = (s * v + e).tanh()
    slope = (1 + r * s * (1 - h.square())).detach()
    return v - (v + r * h - target) / slope


class _OnePass(Transform):
    """A transform of vectors that computes its value and its log-determinant together."""

    domain: constraints.Constraint = constraints.real_vector
    codomain: constraints.Constraint = constraints.real_vector
    bijective = True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]


class Planar(_OnePass):
    r"""Planar transform.

    .. math:: f(x) = x + \hat u \tanh(w^\top x + b), \qquad
        \log |\det J| = \log\bigl(1 + w^\top \hat u \, (1 - \tanh^2(w^\top x + b))\bigr)

    where :math:`\hat u` is u moved along w so that :math:`w^\top \hat u > -1`. For the inverse,
    :math:`\alpha = w^\top x` solves :math:`\alpha + w^\top \hat u \tanh(\alpha + b) = w^\top y`.

    References:
        Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Args:
        u: shape (\*, D).
        w: shape (\*, D).
        b: shape (\*,).

    Example:
        >>> f = Planar(torch.randn(3), torch.randn(3), torch.zeros(()))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(f.inv(f(x).clone()), x, atol=1e-4)
        True
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        product = (u * w).sum(-1)
        self.wu = above_minus_one(product)
        norm = w.square().sum(-1) + torch.finfo(w.dtype).tiny
        self.u = u + ((self.wu - product) / norm).unsqueeze(-1) * w
        self.w, self.b = w, b

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = ((self.w * x).sum(-1) + self.b).tanh()
        return x + self.u * h.unsqueeze(-1), (self.wu * (1 - h.square())).log1p()

    def _inverse(self, y: Tensor) -> Tensor:
        along = solve_tanh((self.w * y).sum(-1), self.wu, torch.ones_like(self.wu), self.b)
        return y - self.u * (along + self.b).tanh().unsqueeze(-1)


class Radial(_OnePass):
    r"""Radial transform.

    .. math:: f(x) = x + \frac{\beta}{\alpha + r} (x - x_0), \quad r = \lVert x - x_0 \rVert, \qquad
        \log |\det J| = (D - 1) \log\Bigl(1 + \frac{\beta}{\alpha + r}\Bigr)
        + \log\Bigl(1 + \frac{\alpha \beta}{(\alpha + r)^2}\Bigr)

    with :math:`\alpha > 0` and :math:`\beta > -\alpha`. The distance r of the inverse is the positive root of a
    quadratic equation.

    References:
        Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Args:
        center: :math:`x_0`, shape (\*, D).
        raw_alpha: any real numbers, shape (\*,); 0 is :math:`\alpha = 1`.
        raw_beta: any real numbers, shape (\*,); 0 is :math:`\beta = 0`, the identity.

    Example:
        >>> f = Radial(torch.randn(3), torch.zeros(()), torch.tensor(2.0))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(f.inv(f(x).clone()), x, atol=1e-4)
        True
    """

    def __init__(self, center: Tensor, raw_alpha: Tensor, raw_beta: Tensor) -> None:
        super().__init__()
        self.center = center
        self.alpha = 1 + above_minus_one(raw_alpha)
        self.beta = self.alpha * above_minus_one(raw_beta)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        difference = x - self.center
        reach = self.alpha + torch.linalg.vector_norm(difference, dim=-1)
        stretch = self.beta / reach
        log_det = (x.shape[-1] - 1) * stretch.log1p() + (self.alpha * stretch / reach).log1p()
        return x + stretch.unsqueeze(-1) * difference, log_det

    def _inverse(self, y: Tensor) -> Tensor:
        difference = y - self.center
        distance = torch.linalg.vector_norm(difference, dim=-1)
        # r^2 + p r - alpha * distance = 0, solved without cancellation
        p = self.alpha + self.beta - distance
        q = p.abs() + (p.square() + 4 * self.alpha * distance).sqrt()
        r = torch.where(p > 0, 2 * self.alpha * distance / q, q / 2)
        return self.center + difference / (1 + self.beta / (self.alpha + r)).unsqueeze(-1)


class Sylvester(_OnePass):
    r"""Sylvester transform, a planar transform of many units.

    .. math:: f(x) = x + Q R \tanh(\tilde R Q^\top x + b), \qquad
        \log |\det J| = \sum_m \log\bigl(1 + R_{mm} \tilde R_{mm} (1 - h_m^2)\bigr)

    with orthonormal columns in Q, upper triangular R and :math:`\tilde R`, and h the hyperbolic tangent's value. In the
    coordinates :math:`v = Q^\top x` the inverse is M scalar equations, from the last to the first.

    References:
        Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018),
        https://arxiv.org/abs/1803.05649

    Args:
        q: orthonormal columns, shape (\*, D, M).
        r: upper triangular, shape (\*, M, M).
        r_tilde: upper triangular, shape (\*, M, M); the products of the diagonals exceed -1.
        b: shape (\*, M).

    Example:
        >>> r = 0.5 * torch.randn(2, 3, 3).triu()
        >>> f = Sylvester(torch.eye(3), r[0].tanh(), r[1].tanh(), torch.randn(3))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(f.inv(f(x).clone()), x, atol=1e-4)
        True
    """

    def __init__(self, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> None:
        super().__init__()
        self.q, self.r, self.r_tilde, self.b = q, r, r_tilde, b
        self.diagonals = torch.diagonal(r, dim1=-2, dim2=-1) * torch.diagonal(r_tilde, dim1=-2, dim2=-1)

    def _matmul(self, matrix: Tensor, vector: Tensor) -> Tensor:
        return torch.einsum("...ij,...j->...i", matrix, vector)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = self._matmul(self.q.mT, x)
        h = (self._matmul(self.r_tilde, v) + self.b).tanh()
        log_det = (self.diagonals * (1 - h.square())).log1p().sum(-1)
        return x + self._matmul(self.q, self._matmul(self.r, h)), log_det

    def _inverse(self, y: Tensor) -> Tensor:
        target = self._matmul(self.q.mT, y)
        num_units = target.shape[-1]
        v: list[Tensor] = []  # from unit m + 1 to the last
        h: list[Tensor] = []
        for m in reversed(range(num_units)):
            t, e = target[..., m], self.b[..., m]
            if v:
                t = t - (self.r[..., m, m + 1 :] * torch.stack(h, -1)).sum(-1)
                e = e + (self.r_tilde[..., m, m + 1 :] * torch.stack(v, -1)).sum(-1)
            v.insert(0, solve_tanh(t, self.r[..., m, m], self.r_tilde[..., m, m], e))
            h.insert(0, (self.r_tilde[..., m, m] * v[0] + e).tanh())
        return y - self._matmul(self.q, self._matmul(self.r, torch.stack(h, -1)))
