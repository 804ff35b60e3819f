"""The components of a Gaussian mixture: p(x | k), with what EM needs of it, as matrix products in float64.

Two classes hold four kinds of covariance. What is shared is one row that broadcasts: a tied covariance is one matrix
for all components, a spherical one is one variance for all coordinates; ``sum_to_size`` pools the statistics likewise.
In all methods x is float64, counted from ``origin`` (terms of x² cancel, and a common offset would eat their digits)
and zero where nothing was observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to

__all__ = ["COVARIANCES", "TINY", "Dense", "Factorized"]

LOG_2PI = math.log(2 * math.pi)
TINY = torch.finfo(torch.float32).tiny  # a component with less weight has no data, and stays where it is
BLOCK = 2**18  # numbers that a block of a computation holds at once: they stay in a core's cache


class Dense(nn.Module):
    r"""Gaussians with covariance matrices :math:`\Sigma_k = L_k L_k^\top`, one for each component or one for all.

    Args:
        num_components: K.
        dim: D.
        rows: number of matrices, K or 1.
    """

    origin: Tensor

    def __init__(self, num_components: int, dim: int, rows: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(num_components, dim))
        self.unconstrained_tril = nn.Parameter(torch.zeros(rows, dim, dim))
        self.register_buffer("origin", torch.zeros(dim))
        self.num_covariance_parameters = rows * dim * (dim + 1) // 2

    @property
    def scale_tril(self) -> Tensor:
        """L, shape (K or 1, D, D)."""
        return transform_to(constraints.lower_cholesky)(self.unconstrained_tril)

    @property
    def covariances(self) -> Tensor:
        """Σ, shape (K or 1, D, D)."""
        return self.scale_tril @ self.scale_tril.mT

    def set_covariances(self, covariances: Tensor) -> None:
        """Takes covariance matrices over."""
        scale_tril, info = torch.linalg.cholesky_ex(covariances)
        if info.any():
            raise ValueError(f"covariances: matrix {int(info.nonzero()[0])} is not positive definite.")
        self._set(scale_tril)

    def forward(self, k: Tensor) -> Distribution:
        scale_tril = self.scale_tril.expand(len(self.loc), -1, -1)
        return dist.MultivariateNormal(self.loc[k], scale_tril=scale_tril[k], validate_args=False)

    def rows_of_a_block(self, complete: bool) -> int:
        """How many rows make a block of :meth:`log_prob` and :meth:`statistics`."""
        if complete:
            return max(256, BLOCK // self.loc.numel())
        return max(1, 2 * BLOCK // (self.loc.numel() * self.loc.shape[-1]))

    def log_prob(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Log p(x | k), shape (B, K)."""
        if mask is not None:
            _, which, factor, white = self._whiten(x, mask)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[which]
            return -log_det - 0.5 * (white.square().sum(-1) + LOG_2PI * mask.sum(-1, keepdim=True, dtype=white.dtype))
        scale_tril, loc = self.scale_tril.double(), self.loc.double() - self.origin
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        whitening = torch.linalg.solve_triangular(scale_tril, identity, upper=False)  # L⁻¹
        white = (x @ whitening.flatten(0, 1).T).unflatten(-1, whitening.shape[:2])  # (B, K or 1, D)
        white = white - (whitening @ loc.unsqueeze(-1)).squeeze(-1)  # (B, K, D)
        log_det = whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * (white.square().sum(-1) + x.shape[-1] * LOG_2PI)

    def statistics(self, x: Tensor, mask: Tensor | None, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over rows and what is expected of them: of x, (K, D), and of x xᵀ, (K or 1, D, D)."""
        rows = len(self.unconstrained_tril)
        if mask is None:
            pooled = responsibilities.sum_to_size(len(x), rows)
            weighted = (pooled.unsqueeze(-1) * x.unsqueeze(1)).flatten(1)
            return responsibilities.T @ x, (weighted.T @ x).unflatten(0, (rows, -1))
        # With P the precision of what was observed and zeros in the gaps, a row's conditional mean is μ + Σ P (x − μ),
        # and the conditional covariance, zero where it was observed, Σ − Σ P Σ.
        patterns, which, factor, white = self._whiten(x, mask)
        back = torch.linalg.solve_triangular(factor.mT[which], white.unsqueeze(-1), upper=True).squeeze(-1)
        back = torch.where(mask.unsqueeze(1), back, 0.0)
        covariance = self.covariances.double()
        completed = (self.loc.double() - self.origin).unsqueeze(1) + back.transpose(0, 1) @ covariance  # (K, B, D)
        weighted = responsibilities.T.unsqueeze(-1) * completed
        second = (weighted.mT @ completed).sum_to_size(self.unconstrained_tril.shape)
        shares = x.new_zeros(len(factor), rows).index_add_(0, which, responsibilities.sum_to_size(len(x), rows))
        precision = torch.cholesky_inverse(factor).mul_(shares[:, :, None, None]).sum(0)  # (K or 1, D, D)
        precision.diagonal(dim1=-2, dim2=-1).sub_(shares.T @ (1 - patterns))  # the gaps' standard normals
        uncertainty = shares.sum(0)[:, None, None] * covariance - covariance @ precision @ covariance
        return weighted.sum(1), second + uncertainty

    def maximize(self, weight: Tensor, first: Tensor, second: Tensor, reg_covar: float) -> None:
        """Sets loc and Σ to the maximum given averages over data, with ``reg_covar`` added to Σ's diagonal."""
        loc = _means(self, weight, first)
        shape = self.unconstrained_tril.shape
        pooled = weight.sum_to_size(shape[0])[:, None, None]
        outer = weight[:, None, None] * loc.unsqueeze(-1) * loc.unsqueeze(-2)
        covariance = (second - outer.sum_to_size(shape)) / pooled.clamp(min=TINY)
        self._set(torch.where(pooled > TINY, _cholesky(covariance, reg_covar), self.scale_tril.double()))
        self.loc.copy_(loc + self.origin)

    def _set(self, scale_tril: Tensor) -> None:
        self.unconstrained_tril.copy_(transform_to(constraints.lower_cholesky).inv(scale_tril))

    def _whiten(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The patterns (P, D) of missing entries, each row's, their Cholesky factors (P, K or 1, D, D), and L⁻¹(x − μ).

        With M the diagonal matrix of a row's mask, M Σ M + (I − M) is the covariance of what was observed, with a
        standard normal in each gap: so rows of different patterns stay one batch. Rows of one pattern share a factor.
        """
        distinct, which = mask.unique(dim=0, return_inverse=True)
        patterns = distinct.to(x.dtype)
        seen = patterns.unsqueeze(1)
        covariance = self.covariances.double() * seen.unsqueeze(-1) * seen.unsqueeze(-2)
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(1 - seen))
        error = torch.where(mask.unsqueeze(1), x.unsqueeze(1) - (self.loc.double() - self.origin), 0.0)
        white = torch.linalg.solve_triangular(factor[which], error.unsqueeze(-1), upper=False)
        return patterns, which, factor, white.squeeze(-1)


class Factorized(nn.Module):
    r"""Gaussians with independent coordinates, with a variance for each coordinate or one for all.

    Args:
        num_components: K.
        dim: D.
        columns: number of variances of a component, D or 1.
    """

    origin: Tensor

    def __init__(self, num_components: int, dim: int, columns: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(num_components, dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, columns))
        self.register_buffer("origin", torch.zeros(dim))
        self.num_covariance_parameters = num_components * columns

    @property
    def covariances(self) -> Tensor:
        """σ², shape (K, D or 1)."""
        return (2 * self.log_scale).exp()

    def set_covariances(self, covariances: Tensor) -> None:
        """Takes variances over."""
        if not (covariances > 0).all():
            raise ValueError(f"covariances: variances must be positive, got {covariances.min().item():g}.")
        self.log_scale.copy_(0.5 * covariances.log())

    def forward(self, k: Tensor) -> Distribution:
        return dist.Normal(self.loc[k], self.log_scale.exp()[k], validate_args=False).to_event(1)

    def rows_of_a_block(self, complete: bool) -> int:
        """How many rows make a block of :meth:`log_prob` and :meth:`statistics`."""
        return max(256, BLOCK // (len(self.loc) + self.loc.shape[-1]))

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """loc, σ² and log σ, float64 and of shape (K, D)."""
        loc, log_scale = self.loc.double() - self.origin, self.log_scale.double().expand_as(self.loc)
        return loc, (2 * log_scale).exp(), log_scale

    def log_prob(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Log p(x | k), shape (B, K)."""
        loc, variance, log_scale = self._moments()
        squares = x.square() @ (1 / variance).T - 2 * x @ (loc / variance).T
        constant = loc.square() / variance + 2 * log_scale + LOG_2PI
        return -0.5 * (squares + (constant.sum(-1) if mask is None else mask.double() @ constant.T))

    def statistics(self, x: Tensor, mask: Tensor | None, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over rows and what is expected of them: of x and of x², both (K, D)."""
        first, second = responsibilities.T @ x, responsibilities.T @ x.square()
        if mask is not None:
            loc, variance, _ = self._moments()
            missing = responsibilities.T @ (~mask).double()
            first, second = first + missing * loc, second + missing * (loc.square() + variance)
        return first, second

    def maximize(self, weight: Tensor, first: Tensor, second: Tensor, reg_covar: float) -> None:
        """Sets loc and σ² to the maximum given averages over data, with ``reg_covar`` added to every σ²."""
        loc = _means(self, weight, first)
        weight = weight.unsqueeze(-1)
        variance = (second / weight.clamp(min=TINY) - loc.square()).clamp(min=0)
        variance = variance.sum_to_size(self.log_scale.shape) * self.log_scale.numel() / loc.numel() + reg_covar
        self.log_scale.copy_(torch.where(weight > TINY, 0.5 * variance.log(), self.log_scale.double()))
        self.loc.copy_(loc + self.origin)


def _means(components: Dense | Factorized, weight: Tensor, first: Tensor) -> Tensor:
    """The weighted means, counted from the origin; that of a component without data is where it was."""
    weight = weight.unsqueeze(-1)
    return torch.where(weight > TINY, first / weight.clamp(min=TINY), components.loc.double() - components.origin)


def _cholesky(covariance: Tensor, reg_covar: float) -> Tensor:
    """The Cholesky factor of Σ + εI, also where rounding has made Σ's smallest eigenvalues negative."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    scale_tril, info = torch.linalg.cholesky_ex(covariance + reg_covar * identity)
    if info.any():
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * (values.clamp(min=0) + reg_covar).sqrt().unsqueeze(-2)).mT  # Σ = rootᵀ root, root = Q R
        upper = torch.linalg.qr(root).R
        repaired = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
        scale_tril = torch.where((info > 0)[:, None, None], repaired, scale_tril)
    return scale_tril


# The kinds of covariance by name, as scikit-learn calls them: each makes the components from K and D.
COVARIANCES: dict[str, Callable[[int, int], Dense | Factorized]] = {
    "full": lambda num_components, dim: Dense(num_components, dim, rows=num_components),
    "tied": lambda num_components, dim: Dense(num_components, dim, rows=1),
    "diag": lambda num_components, dim: Factorized(num_components, dim, columns=dim),
    "spherical": lambda num_components, dim: Factorized(num_components, dim, columns=1),
}
