"""Estimates of likelihoods that are known exactly: in closed form, as a sum by hand, by quadrature, from both sides."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as nets
from ppgen.check.rung import Change, Rung, unchanged
from ppgen.inference import bdmc, log_likelihood
from ppgen.inference.evaluation.paths import Start
from ppgen.models import Custom
from ppgen.pair import data_plate

__all__ = [
    "bidirectional",
    "bracketed",
    "constant_weights",
    "coverage",
    "drawn",
    "enumerable",
    "exact_guide",
    "mixture",
    "neural",
    "perturbed_guide",
    "quadrature",
]


class Proposed(nn.Module):
    """Factor analysis with another guide: the exact posterior, or its diagonal, widened and shifted."""

    def __init__(self, exact: models.FactorAnalysis, *, scale: float = 1.0, shift: float = 0.0, diagonal: bool = False):
        super().__init__()
        self.exact, self.scale, self.shift, self.diagonal = exact, scale, shift, diagonal

    def model(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.exact.model(x, mask)

    def guide(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q: Any = self.exact.posterior(x, mask)
        tril = q.scale_tril
        if self.diagonal:
            tril = torch.diag_embed(q.precision_matrix.diagonal(dim1=-1, dim2=-2) ** -0.5)  # what the ELBO learns
        loc = q.mean + self.shift * tril.diagonal(dim1=-1, dim2=-2)
        with data_plate(x):
            return pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.scale * tril))


def factor_analysis(num_data: int = 250) -> tuple[models.FactorAnalysis, Tensor]:
    """A model of 20 coordinates and 4 factors, and data that it draws."""
    exact = models.FactorAnalysis(20, 4)
    return exact, exact.marginal().sample((num_data,)).detach()


def neural(latent_dim: int = 2) -> models.VAE:
    """A neural decoder far from linear, behind a guide that is about the prior."""
    decoder, encoder = nets.MLP(latent_dim, 16, 12), nets.MLP(12, 2 * latent_dim)
    with torch.no_grad():
        for p in decoder.parameters():
            p.mul_(3)
        for p in encoder.parameters():
            p.mul_(0.1)
    return models.VAE(priors.StandardNormal(latent_dim), decoders.Bernoulli(decoder), posteriors.DiagNormal(encoder))


def drawn(pair: Any, n: int) -> Tensor:
    """Data that a pair draws."""
    with torch.no_grad(), pyro.plate("drawn", n, dim=-1):
        return pair.model()


def exact_guide(change: Change = unchanged) -> Rung:
    """One weight equals p(x)."""
    exact, x = factor_analysis()
    values = log_likelihood(change(exact), x, num_samples=25).values
    error = (values - exact.log_prob(x)).abs().max().item()
    return Rung("factor analysis, exact guide", "largest error (nats)", error, 1e-4)


def constant_weights(change: Change = unchanged) -> Rung:
    """Weights have no variance, and k-hat says so."""
    exact, x = factor_analysis()
    k_hat = log_likelihood(change(exact), x, num_samples=100).k_hat
    share = (k_hat == -math.inf).double().mean().item()
    return Rung("factor analysis, weights without variance", "share of data with k-hat −∞", share, 1.0, at_least=True)


def perturbed_guide(change: Change = unchanged) -> Rung:
    """A guide that is off leaves the estimate where it was."""
    exact, x = factor_analysis()
    estimate = log_likelihood(change(Proposed(exact, scale=1.1, shift=0.3)), x, num_samples=2000)
    error = abs(estimate.mean - exact.log_prob(x).double().mean().item())
    return Rung("factor analysis, perturbed guide", "error of the mean (nats)", error, 2e-3)


def coverage(claimed: float = 1.0) -> Rung:
    """Of the intervals of 95 % that are stated (where k-hat is good), so many hold the truth.

    Args:
        claimed: multiplies the stated standard errors.
    """
    hits = []
    for scale, shift, diagonal in ((1.1, 0.3, False), (1.5, 0.0, False), (1.3, 0.3, True)):
        exact, x = factor_analysis(100)
        truth = exact.log_prob(x).double()
        for seed in range(5):
            pair = Proposed(exact, scale=scale, shift=shift, diagonal=diagonal)
            estimate = log_likelihood(pair, x, num_samples=1000, seed=seed)
            inside = (estimate.values - truth).abs() < 1.96 * claimed * estimate.mc_standard_error
            hits.append(inside[estimate.reliable])
    share = torch.cat(hits).double().mean().item()
    return Rung("stated intervals of 95 %", f"share of {len(torch.cat(hits))} that hold the truth", share, 0.9, True)


def mixture(change: Change = unchanged) -> Rung:
    """A mixture against the sum over its components by hand."""
    gmm = models.GaussianMixture(4, 3)
    a = torch.randn(4, 3, 3)
    loc, covariances = 2 * torch.randn(4, 3), a @ a.mT + 0.3 * torch.eye(3)
    weights = torch.rand(4) + 0.1
    gmm.set_parameters(weights, loc, covariances)
    x = 3 * torch.randn(100, 3)
    terms = dist.MultivariateNormal(loc.double(), covariances.double()).log_prob(x.double().unsqueeze(1))
    truth = (terms + (weights / weights.sum()).double().log()).logsumexp(1)
    error = (log_likelihood(change(gmm), x, num_samples=1).values - truth).abs().max().item()
    return Rung("mixture, summed by hand", "largest error (nats)", error, 1e-3)


def enumerable() -> Rung:
    """A chain of two discrete latents and a continuous one: sums by hand, the integral in closed form."""
    first, second = torch.randn(3), torch.randn(3, 4)
    loc = torch.tensor([[i - 2.0 * j for j in range(4)] for i in range(3)])

    def model(x: Tensor) -> None:
        with data_plate(x):
            i = pyro.sample("i", dist.Categorical(logits=first), infer={"enumerate": "parallel"})
            j = pyro.sample("j", dist.Categorical(logits=second[i]), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc[i, j] + z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with data_plate(x):
            pyro.sample("z", dist.Normal(0.0, 1.5))

    x = torch.linspace(-8, 4, 60)
    weights = first.log_softmax(-1).unsqueeze(-1) + second.log_softmax(-1)
    terms = dist.Normal(loc, 1.25**0.5).log_prob(x[:, None, None]) + weights
    estimate = log_likelihood(Custom(model, guide), x, num_samples=5000)
    error = (estimate.values - terms.flatten(1).double().logsumexp(1)).abs().mean().item()
    return Rung("enumerable latents, summed by hand", "mean error (nats)", error, 0.02)


def quadrature(change: Change = unchanged) -> Rung:
    """Two latents behind a network, against the trapezoid rule."""
    vae = neural()
    x = drawn(vae, 30)
    axis = torch.linspace(-7, 7, 201)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        conditional = torch.stack([vae.decoder(z).log_prob(row) for row in x])
        truth = (vae.prior().log_prob(z) + conditional).double().logsumexp(1) + 2 * math.log(14 / 200)
    error = (log_likelihood(change(vae), x, num_samples=10_000).values - truth).abs().mean().item()
    return Rung("neural decoder of 2 latents, by quadrature", "mean error (nats)", error, 0.03)


def bidirectional(change: Change = unchanged) -> Rung:
    """Bounds from both sides meet in the easy case."""
    exact, _ = factor_analysis()
    bounds = bdmc(change(Proposed(exact, diagonal=True)), 40, num_temperatures=100, num_chains=16)
    return Rung("bidirectional Monte Carlo, easy case", "gap (nats)", bounds.gap, 0.05)


def bracketed(change: Change = unchanged) -> Rung:
    """The exact value lies between the bounds, on the average over the data.

    From a guide near the posterior, where the bounds are so tight that hundredths of a nat show; and from the prior,
    where they are not, so that weights which belong to the other end of a step would pass the exact value.
    """
    exact, _ = factor_analysis()
    outside = -math.inf
    cases: list[tuple[Start, int, int]] = [("guide", 200, 50), ("prior", 50, 20)]
    for start, n, steps in cases:
        pair = change(Proposed(exact, diagonal=True))
        bounds = bdmc(pair, n, start=start, num_temperatures=steps, num_chains=16)
        truth = exact.log_prob(*bounds.data).double().detach()
        outside = max(outside, (bounds.lower - truth).mean().item(), (truth - bounds.upper).mean().item())
    return Rung("bidirectional Monte Carlo, exact value", "distance outside the bounds (nats)", outside, 0.015)
