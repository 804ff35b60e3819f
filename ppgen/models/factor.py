r"""Factor analysis and probabilistic PCA: Gaussian latents, a linear decoder, and everything in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import FullNormal, LowRankNormal, marginal
from ppgen.models.rows import check_rows
from ppgen.numbers import positive_integer, positive_number
from ppgen.pair import data_plate, expose_parameters, observed, sample

__all__ = ["FactorAnalysis", "ProbabilisticPCA"]

ROWS = 4096  # data whose posteriors are held at once


def _posterior(
    x: Tensor, mask: Tensor | None, loadings: Tensor, loc: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and precision of p(z | x), the precision one for all rows where everything was observed."""
    scaled = loadings / variance.unsqueeze(-1)  # Ψ⁻¹ W
    identity = torch.eye(loadings.shape[-1], dtype=loadings.dtype, device=loadings.device)
    if mask is None:
        precision = identity + loadings.T @ scaled
    else:  # each observed coordinate of a row adds its own w wᵀ / ψ
        precision = identity + _weighted_sums(mask.to(x.dtype), loadings.unsqueeze(-1) * scaled.unsqueeze(-2))
    projected = observed(x - loc, mask) @ scaled
    mean = torch.cholesky_solve(projected.unsqueeze(-1), torch.linalg.cholesky(precision)).squeeze(-1)
    return mean, precision


def _weighted_sums(weights: Tensor, matrices: Tensor) -> Tensor:
    """Symmetric matrices (B, Q, Q) summed with weights (A, B) to (A, Q, Q): one product, of one triangle."""
    row, column = torch.tril_indices(*matrices.shape[1:], device=matrices.device)
    triangles = weights @ matrices[:, row, column]
    sums = triangles.new_empty(len(weights), *matrices.shape[1:])
    sums[:, row, column] = triangles
    sums[:, column, row] = triangles
    return sums


def _log_prob(
    x: Tensor, mask: Tensor | None, mean: Tensor, precision: Tensor, loadings: Tensor, loc: Tensor, variance: Tensor
) -> Tensor:
    """Log-density p(x), as p(x | z) p(z) / p(z | x) at the posterior's mean: the ratio is the same at every z."""
    joint = -0.5 * (observed(x - loc - mean @ loadings.T, mask).square() / variance).sum(-1)
    joint = joint - 0.5 * mean.square().sum(-1) - 0.5 * torch.logdet(precision)
    normalisers = 0.5 * (2 * math.pi * variance).log()
    return joint - (normalisers.sum() if mask is None else mask.to(x.dtype) @ normalisers)


class FactorAnalysis(nn.Module):
    r"""Factor analysis: a linear decoder of Gaussian latents, with a noise of its own in every coordinate.

    .. math::
        z \sim \mathcal{N}(0, I), \qquad x \mid z \sim \mathcal{N}(W z + \mu, \Psi), \qquad
        \Psi = \mathrm{diag}(\psi_1, \dots, \psi_D) \;\text{ or }\; \sigma^2 I

    An infinite mixture of Gaussians whose means fill a plane, which is itself a Gaussian,
    :math:`x \sim \mathcal{N}(\mu, W W^\top + \Psi)`. The guide is the exact posterior,

    .. math::
        q(z \mid x) = \mathcal{N}\bigl(z;\ G W^\top \Psi^{-1} (x - \mu),\ G\bigr), \qquad
        G = (I + W^\top \Psi^{-1} W)^{-1},

    so every importance weight equals p(x): the ELBO is the log-likelihood, and one sample is exact. Missing entries
    (``mask``) are marginalised exactly, in the likelihood, in the posterior and in training.

    Use it where relations are linear: as a baseline for every deeper model, to find and explain a few common causes
    of many measurements whose noises differ, to learn from incomplete rows and fill them in. The isotropic noise of
    probabilistic PCA suits coordinates of one kind (pixels); factor analysis does not care about their units. W is
    determined up to a rotation.

    ``EM(model)`` trains it, from probabilistic PCA's closed form (which with an isotropic noise and complete data is
    the optimum already), by parameter-expanded EM: the latents' fitted mean and covariance are moved into μ and W,
    which reaches the optimum in far fewer steps. ``fit`` trains it, too: the gradient of the ELBO is that of the
    log-likelihood, without noise.

    References:
        EM algorithms for ML factor analysis (Rubin & Thayer, 1982), https://doi.org/10.1007/BF02293851
        Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), https://doi.org/10.1111/1467-9868.00196
        Parameter expansion to accelerate EM: the PX-EM algorithm (Liu, Rubin & Wu, 1998),
        https://doi.org/10.1093/biomet/85.4.755

    Args:
        dim: D, the number of coordinates of x.
        latent_dim: number of factors, at most D.
        isotropic: one noise variance for all coordinates, which is probabilistic PCA.
        min_variance: smallest noise variance, in squared units of the data. Where factors explain a coordinate
            completely (a Heywood case, or a coordinate that never varies) the likelihood grows without end without it.

    Shape:
        ``x``: (N, D), ``mask``: (N, D), boolean, True where x was observed; ``z``: (N, latent_dim).

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a size that is not a positive whole number, more factors than coordinates, a ``min_variance`` that
            is not positive, or data of another width.

    Example:
        >>> import torch
        >>> fa = FactorAnalysis(5, 2)
        >>> x = torch.randn(100, 5)
        >>> fa.initialize(x)
        >>> before = fa.score(x)
        >>> for _ in range(10):
        ...     fa.maximization(fa.expectation(x))
        >>> fa.score(x) > before
        True
        >>> fa.posterior(x).mean.shape
        torch.Size([100, 2])
    """

    origin: Tensor

    def __init__(self, dim: int, latent_dim: int, *, isotropic: bool = False, min_variance: float = 1e-6) -> None:
        super().__init__()
        self.dim = positive_integer("dim", dim)
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        if latent_dim > dim:
            raise ValueError(
                f"latent_dim={latent_dim} is more than dim={dim}: so many factors cannot be told apart. "
                f"Take at most {dim}."
            )
        self.isotropic = isotropic
        self.min_variance = positive_number("min_variance", min_variance)
        self.loadings = nn.Parameter(torch.randn(dim, latent_dim) / math.sqrt(latent_dim))
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(1 if isotropic else dim))
        # What data are counted from: terms of x² cancel, and a common offset would eat their digits.
        self.register_buffer("origin", torch.zeros(dim))

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate's noise, shape (D,)."""
        return ((2 * self.log_scale).exp() + self.min_variance).expand(self.dim)

    def prior(self) -> Distribution:
        """p(z)."""
        return dist.Normal(self.loc.new_zeros(self.latent_dim), 1.0).to_event(1)

    def decoder(self, z: Tensor) -> Distribution:
        """p(x | z)."""
        return dist.Normal(z @ self.loadings.T + self.loc, self.variance.sqrt()).to_event(1)

    def posterior(self, x: Tensor, mask: Tensor | None = None) -> Distribution:
        """p(z | x), exactly, given what was observed of each row."""
        check_rows(type(self).__name__, self.dim, x, mask)
        mean, precision = _posterior(x.double() - self.origin, mask, *self._theta())
        scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
        dtype = self.loc.dtype
        return FullNormal(mean.to(dtype), scale_tril.to(dtype), validate_args=False)

    def marginal(self) -> Distribution:
        """p(x), the Gaussian that all of this amounts to."""
        return LowRankNormal(self.loc, self.loadings, self.variance, validate_args=False)

    def model(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """p(z) p(x | z). With nothing given: one draw for each plate that is open."""
        expose_parameters(self)
        with data_plate(x):
            z = sample("z", self.prior())
            return sample("x", marginal(self.decoder(z), mask), obs=x)

    def guide(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """p(z | x): exact, hence every weight equals p(x)."""
        expose_parameters(self)
        with data_plate(x):
            return sample("z", self.posterior(x, mask))

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-density of each row, of what was observed of it, exactly: shape (N,), in nats."""
        theta = self._theta()
        blocks = [_log_prob(*rows, *_posterior(*rows, *theta), *theta) for rows in self._blocks(x, mask)]
        return torch.cat(blocks).to(self.loc.dtype)

    @torch.no_grad()
    def score(self, x: Tensor, mask: Tensor | None = None) -> float:
        """The mean of log p(x) over the rows, in nats, as scikit-learn's ``score``."""
        return self.log_prob(x, mask).double().mean().item()

    @torch.no_grad()
    def initialize(self, x: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None) -> None:
        """Probabilistic PCA's closed form, of standardised data unless the noise is isotropic, gaps filled with means.

        Nothing about it is random: every restart begins here.

        Raises:
            TypeError: a mask that is not boolean.
            ValueError: data or a mask of another shape, or data that are not finite.
        """
        check_rows(type(self).__name__, self.dim, x, mask)
        x = x.double()
        seen = torch.ones_like(x) if mask is None else mask.double()
        loc = observed(x, mask).sum(0) / seen.sum(0).clamp(min=1)
        centred = observed(x - loc, mask)
        if not centred.isfinite().all():
            raise ValueError("x holds values that are not finite: drop the rows, or mask the entries.")
        self.origin.copy_(loc)
        scale = torch.ones_like(loc)
        if not self.isotropic:
            scale = (centred.square().sum(0) / seen.sum(0).clamp(min=1)).sqrt()
            scale = torch.where(scale > self.min_variance**0.5, scale, 1.0)
        eigenvalues, axes = torch.linalg.eigh((centred / scale).T @ (centred / scale) / len(x))  # ascending
        explained, left = eigenvalues[-self.latent_dim :], eigenvalues[: -self.latent_dim]
        noise = left.mean().clamp(min=self.min_variance) if len(left) else explained.new_tensor(self.min_variance)
        # A column of zeros would stay one for ever: where there is nothing to explain, a little is left to be refuted.
        loadings = axes[:, -self.latent_dim :] * (explained - noise).clamp(min=1e-3 * noise).sqrt()
        unique = (axes.square() @ eigenvalues - loadings.square().sum(-1)).clamp(min=1e-3 * noise)
        self._set(loadings * scale.unsqueeze(-1), loc, noise if self.isotropic else unique * scale.square())

    @torch.no_grad()
    def expectation(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Averages of the expected sufficient statistics, with h = (z, 1), in float64.

        x is counted from ``origin``. ``hh``: E[h hᵀ] over all rows, (Q + 1, Q + 1). Over the rows in which each
        coordinate was observed: ``hh_seen``: E[h hᵀ], (D or 1, Q + 1, Q + 1), ``xh``: x E[h]ᵀ, (D, Q + 1), and ``xx``:
        x², (D,). ``log_likelihood``: the mean of log p(x) in nats, ().
        """
        theta = self._theta()
        sums = [self._sums(*rows, theta) for rows in self._blocks(x, mask)]
        return {name: torch.stack([each[name] for each in sums]).sum(0) / len(x) for name in sums[0]}

    def _sums(self, x: Tensor, mask: Tensor | None, theta: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        mean, precision = _posterior(x, mask, *theta)
        h = torch.nn.functional.pad(mean, (0, 1), value=1.0)
        covariance = torch.nn.functional.pad(torch.cholesky_inverse(torch.linalg.cholesky(precision)), (0, 1, 0, 1))
        if mask is None:
            hh = len(x) * covariance + h.T @ h
            hh_seen = hh.unsqueeze(0)
        else:
            each = covariance + h.unsqueeze(-1) * h.unsqueeze(-2)  # (N, Q + 1, Q + 1)
            hh = each.sum(0)
            hh_seen = _weighted_sums(mask.to(x.dtype).T, each)
        x_seen = observed(x, mask)
        log_likelihood = _log_prob(x, mask, mean, precision, *theta).sum()
        return {
            "hh": hh,
            "hh_seen": hh_seen,
            "xh": x_seen.T @ h,
            "xx": x_seen.square().sum(0),
            "log_likelihood": log_likelihood,
        }

    @torch.no_grad()
    def maximization(self, statistics: dict[str, Tensor]) -> None:
        """W and μ by regression on the latents, Ψ from what it leaves; then the latents' own mean and covariance."""
        hh, xh, xx = statistics["hh"], statistics["xh"], statistics["xx"]
        hh_seen = statistics["hh_seen"].expand(self.dim, *hh.shape)
        share = hh_seen[:, -1, -1]  # of the rows in which a coordinate was observed
        seen = share > 0
        regression = torch.where(seen[:, None, None], hh_seen, torch.eye(len(hh), dtype=hh.dtype, device=hh.device))
        weights = torch.cholesky_solve(xh.unsqueeze(-1), torch.linalg.cholesky(regression)).squeeze(-1)
        left = xx - (weights * xh).sum(-1)
        old_loadings, old_loc, old_variance = self._theta()
        if self.isotropic:
            variance = left.sum() / share.sum()
        else:
            variance = torch.where(seen, left / share.clamp(min=torch.finfo(share.dtype).tiny), old_variance)
        loadings = torch.where(seen.unsqueeze(-1), weights[:, :-1], old_loadings)
        loc = torch.where(seen, weights[:, -1], old_loc)
        # Parameter expansion: p(x) is the same if z is standard again and its mean and covariance are in μ and W.
        latent_loc = hh[:-1, -1]
        latent_tril = torch.linalg.cholesky(hh[:-1, :-1] - latent_loc.outer(latent_loc))
        self._set(loadings @ latent_tril, self.origin + loc + loadings @ latent_loc, variance)

    def _theta(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, μ and ψ in float64: where noises are small, precisions are too far apart for float32.

        μ is counted from the origin, as x is wherever it meets these.
        """
        return self.loadings.double(), self.loc.double() - self.origin, self.variance.double()

    def _set(self, loadings: Tensor, loc: Tensor, variance: Tensor) -> None:
        above = (variance - self.min_variance).clamp(min=1e-3 * self.min_variance)
        self.loadings.copy_(loadings)
        self.loc.copy_(loc)
        self.log_scale.copy_(0.5 * above.log())

    def _blocks(self, x: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The rows, some thousands at a time, so that memory stays bounded however many data there are."""
        check_rows(type(self).__name__, self.dim, x, mask)
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            yield x[rows].double() - self.origin, None if mask is None else mask[rows]


class ProbabilisticPCA(FactorAnalysis):
    r"""Probabilistic principal component analysis: factor analysis with one noise variance.

    .. math::
        z \sim \mathcal{N}(0, I), \qquad x \mid z \sim \mathcal{N}(W z + \mu, \sigma^2 I)

    At the maximum of the likelihood W spans the principal axes and :math:`\sigma^2` is the mean of the variances left
    over; :meth:`initialize` goes there at once where nothing is missing, EM where something is. The guide is the exact
    posterior. Everything else is as for :class:`FactorAnalysis`.

    References:
        Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), https://doi.org/10.1111/1467-9868.00196

    Args:
        dim: D, the number of coordinates of x.
        latent_dim: number of principal components, at most D.
        min_variance: smallest noise variance, in squared units of the data.

    Shape:
        ``x``: (N, D), ``mask``: (N, D), boolean, True where x was observed; ``z``: (N, latent_dim).

    Raises:
        TypeError, ValueError: as for :class:`FactorAnalysis`.

    Example:
        >>> import torch
        >>> ppca = ProbabilisticPCA(5, 2)
        >>> ppca.initialize(torch.randn(100, 5))
        >>> ppca.variance.unique().shape
        torch.Size([1])
    """

    def __init__(self, dim: int, latent_dim: int, *, min_variance: float = 1e-6) -> None:
        super().__init__(dim, latent_dim, isotropic=True, min_variance=min_variance)
