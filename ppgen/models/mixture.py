"""The mixture of Gaussians: one discrete latent, which is always summed out exactly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.distributions import marginal
from ppgen.models.components import COVARIANCES, TINY, Dense, Factorized
from ppgen.models.rows import check_rows
from ppgen.numbers import positive_integer, positive_number
from ppgen.pair import data_plate, expose_parameters, observed, sample

__all__ = ["GaussianMixture"]


class GaussianMixture(nn.Module):
    r"""A finite mixture of K Gaussians, with full, tied, diagonal or spherical covariances.

    .. math::
        k \sim \mathrm{Categorical}(\pi), \qquad x \mid k \sim \mathcal{N}(\mu_k, \Sigma_k), \qquad
        p(x) = \sum_{k=1}^K \pi_k \, \mathcal{N}(x; \mu_k, \Sigma_k)

    The guide is empty: ``k`` is marked for enumeration and summed out, so the ELBO is the log-likelihood, its gradient
    is exact, and one sample is as good as many. What is known of ``k`` afterwards are the :meth:`responsibilities`
    :math:`p(k \mid x)`. Missing entries (``mask``) are integrated out exactly, in training too.

    Use it to cluster, as a density of low-dimensional data (or of the codes of a network), and as the first thing that
    a deeper model must beat. :meth:`bic` chooses K and the kind of covariance.

    ``train(EM(gmm), x, epochs=100, batch_size=len(x))`` is exact EM, with smaller batches stepwise EM; incomplete rows
    are trained on as ``(x, mask)``, with any finite number where nothing was observed. ``gmm.initialize(x)`` and then
    ``fit`` is gradient ascent on the same likelihood. Who comes from scikit-learn finds ``score_samples`` as
    :meth:`log_prob` and ``predict_proba`` as :meth:`responsibilities`; all is computed in float64, and to keep the
    parameters in it, too, say ``GaussianMixture(…).double()``.

    References:
        Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin, 1977),
        https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
        Supervised learning from incomplete data via an EM approach (Ghahramani & Jordan, 1994),
        https://papers.nips.cc/paper/767
        k-means++: The Advantages of Careful Seeding (Arthur & Vassilvitskii, 2007),
        https://dl.acm.org/doi/10.5555/1283383.1283494

    Args:
        num_components: K.
        dim: D, the number of coordinates of x.
        covariance: "full" (a matrix for each component), "tied" (one matrix for all), "diag" (a variance for each
            component and coordinate) or "spherical" (a variance for each component).
        reg_covar: what EM adds to every variance, in squared units of x, so that no component can collapse onto a
            point, where the likelihood has no bound.

    Shape:
        ``x``: (N, D); ``mask``: (N, D), boolean, True where x was observed; ``k``: (N,), whole numbers below K.

    Raises:
        ValueError: a size that is not a positive whole number, another name of a covariance, a ``reg_covar`` that is
            not positive, or data of another width.
        TypeError: a mask that is not boolean.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.cat([torch.randn(200, 2), torch.randn(100, 2) + 8])
        >>> gmm = GaussianMixture(2, 2)
        >>> labels = gmm.fit_predict(x)
        >>> bool((labels[:200] == labels[0]).all() and (labels[200:] != labels[0]).all())
        True
        >>> gmm.weights.sort().values
        tensor([0.3333, 0.6667], grad_fn=<SortBackward0>)
    """

    decoder: Dense | Factorized

    def __init__(self, num_components: int, dim: int, covariance: str = "full", *, reg_covar: float = 1e-6) -> None:
        super().__init__()
        self.num_components = positive_integer("num_components", num_components)
        self.dim = positive_integer("dim", dim)
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(map(repr, COVARIANCES))}, got {covariance!r}.")
        self.reg_covar = positive_number("reg_covar", reg_covar)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.decoder = COVARIANCES[covariance](num_components, dim)

    def model(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """p(k) p(x | k). With nothing given: one draw for each plate that is open."""
        expose_parameters(self)
        if x is not None:
            check_rows(type(self).__name__, self.dim, x)
        with data_plate(x):
            k = sample("k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            return sample("x", marginal(self.decoder(k), mask), obs=x)

    def guide(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Nothing is left to propose: k is summed out."""
        expose_parameters(self)

    @property
    def weights(self) -> Tensor:
        """The components' shares, shape (K,)."""
        return self.logits.softmax(-1)

    @property
    def loc(self) -> Tensor:
        """The components' means, shape (K, D)."""
        return self.decoder.loc

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices, (K, D, D) full or (1, D, D) tied; or variances, (K, D) diag or (K, 1) spherical."""
        return self.decoder.covariances

    @property
    def num_parameters(self) -> int:
        """How many numbers are free: what :meth:`bic` and :meth:`aic` count."""
        return self.num_components - 1 + self.decoder.loc.numel() + self.decoder.num_covariance_parameters

    @torch.no_grad()
    def set_parameters(self, weights: Tensor, loc: Tensor, covariances: Tensor) -> None:
        """Puts a mixture of known parameters here: a start of your own, or what another library has learned.

        Args:
            weights: shape (K,), positive; normalised here. scikit-learn's ``weights_``.
            loc: shape (K, D); ``means_``.
            covariances: as :attr:`covariances`, where axes of length one may be left out; ``covariances_``.

        Raises:
            ValueError: another shape, weights or variances that are not positive, or matrices that are not positive
                definite.
        """
        given = {"weights": weights, "loc": loc, "covariances": covariances}
        own = {"weights": self.logits, "loc": self.loc, "covariances": self.covariances}
        for name, value in given.items():
            value = torch.as_tensor(value, dtype=torch.float64, device=self.logits.device)
            shape = own[name].shape
            if value.squeeze().shape != own[name].squeeze().shape or not value.isfinite().all():
                raise ValueError(f"{name} must be finite and of shape {tuple(shape)}, got shape {tuple(value.shape)}.")
            given[name] = value.reshape(shape)
        if not (given["weights"] > 0).all():
            raise ValueError(f"weights must be positive, got {given['weights'].tolist()}.")
        self.decoder.set_covariances(given["covariances"])
        self.decoder.loc.copy_(given["loc"])
        self.decoder.origin.copy_(given["loc"].mean(0))
        self.logits.copy_(given["weights"].log().log_softmax(-1))

    @torch.no_grad()
    def initialize(self, x: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None) -> None:
        """A start from the data: k-means from a k-means++ start, and one M-step.

        The clusters are softened by a tenth, so that one of few (or duplicate) points does not begin as a spike. For
        this start alone, missing entries are filled with their coordinate's mean.

        Args:
            x: shape (N, D), with N at least K.
            mask: True where x was observed.
            generator: of the k-means++ draws; torch's own if not given.

        Raises:
            ValueError: fewer rows than components, or rows that are not finite.
        """
        if len(x) < self.num_components:
            raise ValueError(
                f"A start with num_components={self.num_components} needs at least as many rows, got {len(x)}: give "
                "more data (a larger batch), or take fewer components."
            )
        x = self._checked(x, mask)
        if not x.isfinite().all():
            raise ValueError("x holds values that are not finite: drop the rows, or mask the entries.")

        from sklearn.cluster import KMeans  # slow to import, and only a start needs it
        from sklearn.exceptions import ConvergenceWarning

        seen = torch.ones_like(x) if mask is None else mask.double()
        origin = x.sum(0) / seen.sum(0).clamp(min=1)
        x = observed(x - origin, mask)
        seed = int(torch.randint(2**31, (), generator=generator))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
            labels = KMeans(self.num_components, n_init=1, random_state=seed).fit_predict(x.cpu().numpy())
        hard = nn.functional.one_hot(torch.as_tensor(labels, dtype=torch.int64), self.num_components).to(x)
        soft = hard.lerp(torch.full_like(hard, 1 / self.num_components), 0.1)
        self.decoder.origin.copy_(origin)
        rows = self.decoder.rows_of_a_block(complete=True)
        parts = [self.decoder.statistics(a, None, b) for a, b in zip(x.split(rows), soft.split(rows), strict=True)]
        first, second = (torch.stack(sums).sum(0) for sums in zip(*parts, strict=True))
        self.maximization({"weight": soft.mean(0), "first": first / len(x), "second": second / len(x)})

    @torch.no_grad()
    def expectation(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The E-step, in float64: averages over the rows of the expected sufficient statistics.

        Gives ``weight`` (K,), ``first`` (K, D) and ``second`` (the covariances' shape): the expected 1, x and
        x xᵀ of each component, x counted from a fixed origin; and ``log_likelihood``, the mean of log p(x) in nats.
        """
        total: dict[str, Tensor] = {}
        for block, seen in self._blocks(x, mask):
            log_joint = self._log_joint(block, seen)
            log_prob = log_joint.logsumexp(-1, keepdim=True)
            responsibilities = (log_joint - log_prob).exp()
            first, second = self.decoder.statistics(block, seen, responsibilities)
            part = {"weight": responsibilities.sum(0), "first": first, "second": second}
            part["log_likelihood"] = log_prob.sum()
            total = {name: total[name] + value if total else value for name, value in part.items()}
        return {name: value / len(x) for name, value in total.items()}

    @torch.no_grad()
    def maximization(self, statistics: dict[str, Tensor]) -> None:
        """The M-step: the parameters that are most probable given the statistics of :meth:`expectation`."""
        weight, first, second = (statistics[name] for name in ("weight", "first", "second"))
        self.decoder.maximize(weight, first, second, self.reg_covar)
        self.logits.copy_(weight.clamp(min=TINY).log().log_softmax(-1))

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log p(x) of each row, of what was observed of it, exactly: shape (N,), in nats."""
        return torch.cat([self._log_joint(*block).logsumexp(-1) for block in self._blocks(x, mask)]).to(self.loc.dtype)

    def responsibilities(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """p(k | x) of each row, exactly: shape (N, K)."""
        return torch.cat([self._log_joint(*block).softmax(-1) for block in self._blocks(x, mask)]).to(self.loc.dtype)

    @torch.no_grad()
    def predict(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The most probable component of each row, shape (N,)."""
        return self.responsibilities(x, mask).argmax(-1)

    def fit_predict(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        num_iterations: int = 100,
        tolerance: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """EM from one start until the log-likelihood gains less than ``tolerance`` nats a datum; then :meth:`predict`.

        In the manner of scikit-learn's. Restarts, batches and a record of the course: ``train(EM(gmm), x, …)``.
        """
        positive_integer("num_iterations", num_iterations)
        self.initialize(x, mask, generator=generator)
        before = -math.inf
        for _ in range(num_iterations):
            statistics = self.expectation(x, mask)
            self.maximization(statistics)
            now = statistics["log_likelihood"].item()
            if abs(now - before) < tolerance:
                break
            before = now
        return self.predict(x, mask)

    @torch.no_grad()
    def score(self, x: Tensor, mask: Tensor | None = None) -> float:
        """The mean of log p(x) over the rows, in nats, as scikit-learn's ``score``."""
        return self.log_prob(x, mask).double().mean().item()

    def bic(self, x: Tensor, mask: Tensor | None = None) -> float:
        """The Bayesian information criterion on the data that the mixture was fitted to; lower is better."""
        return -2 * len(x) * self.score(x, mask) + self.num_parameters * math.log(len(x))

    def aic(self, x: Tensor, mask: Tensor | None = None) -> float:
        """Akaike's information criterion on the data that the mixture was fitted to; lower is better."""
        return -2 * len(x) * self.score(x, mask) + 2 * self.num_parameters

    def _checked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Rows in float64, zero where nothing was observed."""
        check_rows(type(self).__name__, self.dim, x, mask)
        return observed(x.double(), mask)

    def _blocks(self, x: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows as the decoder scores them, counted from its origin; a block at a time, so that memory stays bounded."""
        x = observed(self._checked(x, mask) - self.decoder.origin, mask)
        rows = self.decoder.rows_of_a_block(mask is None)
        masks = [None] * math.ceil(len(x) / rows) if mask is None else mask.split(rows)
        return zip(x.split(rows), masks, strict=True)

    def _log_joint(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Log p(k, x), shape (N, K)."""
        return self.logits.double().log_softmax(-1) + self.decoder.log_prob(x, mask)
