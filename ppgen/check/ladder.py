r"""Cases whose likelihoods are known exactly, from the simplest up: rungs that an estimator must stand on.

Each rung builds its own pairs and data. What it tests passes through ``change`` first, which leaves it as it is, or
breaks it, so that it can be seen that the rung notices.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as nets
from ppgen.inference import bdmc, log_likelihood
from ppgen.inference.distributed import processes
from ppgen.inference.modes import seeded
from ppgen.pair import Custom, data_plate

__all__ = ["RUNGS", "Rung", "climb"]


Change = Callable[[Any], Any]


def unchanged(part: Any) -> Any:
    """What every rung is shown with, unless it shall be seen to notice what is broken."""
    return part


class Rung(NamedTuple):
    """What was measured in an exact case, and what it may be.

    Attributes:
        name: of the case.
        quantity: what was measured, in words.
        measured: its value; nats where nothing else is said.
        bound: the largest value that passes, or the smallest.
        at_least: whether the bound is the smallest.
    """

    name: str
    quantity: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the bound holds. Not for NaN."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}  {self.name}: {self.quantity} {self.measured:.3g}, {relation} {self.bound:g}"


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


def _drawn(pair: Any, n: int) -> Tensor:
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
    x = _drawn(vae, 30)
    axis = torch.linspace(-7, 7, 201)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        conditional = torch.stack([vae.decoder(z).log_prob(row) for row in x])
        truth = (vae.prior().log_prob(z) + conditional).double().logsumexp(1) + 2 * math.log(14 / 200)
    error = (log_likelihood(change(vae), x, num_samples=10_000).values - truth).abs().mean().item()
    return Rung("neural decoder of 2 latents, by quadrature", "mean error (nats)", error, 0.03)


def flow_priors(change: Change = unchanged) -> Rung:
    """Flows over a plane integrate to one: a log-determinant that is wrong would show."""
    flows = [priors.Flow.realnvp, priors.Flow.maf, priors.Flow.nsf, priors.Autoregressive]
    built = [change(flow(2, hidden=(16,))) for flow in flows]
    axis = torch.linspace(-20, 20, 1001)
    worst = 0.0
    with torch.no_grad():
        for prior in built:
            log_p = torch.cat([prior().log_prob(z) for z in torch.cartesian_prod(axis, axis).split(50_000)])
            worst = max(worst, abs(log_p.double().exp().sum().item() * (40 / 1000) ** 2 - 1))
    return Rung("flow priors, by quadrature", "largest |∫p − 1|", worst, 2e-3)


def _images(shape: tuple[int, ...], levels: int) -> Tensor:
    """All images of a shape."""
    return torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).reshape(-1, *shape)


def _total(likelihood: Distribution, images: Tensor) -> float:
    with torch.no_grad():
        return likelihood.log_prob(images).double().exp().sum().item()


def discretized(change: Change = unchanged) -> Rung:
    """Likelihoods of levels sum to one over all images of 2 × 2 pixels, or of two channels."""
    worst = 0.0
    for shape in ((1, 2, 2), (2, 1, 2)):
        images = _images(shape, 4).float()
        kinds: list[tuple[Any, Any]] = [
            (decoders.Categorical.outputs_shape(shape, 4), lambda net: decoders.Categorical(net, 4)),
            (decoders.DiscretizedLogistic.outputs_shape(shape), lambda net: decoders.DiscretizedLogistic(net, 4)),
            (
                decoders.LogisticMixture.outputs_shape(shape, num_components=3),
                lambda net, c=shape[0]: decoders.LogisticMixture(net, c, num_components=3, num_levels=4),
            ),
        ]
        for out_shape, make in kinds:
            likelihood = change(make(nets.MLP(3, 8, out_shape))(2 * torch.randn(1, 3)))
            worst = max(worst, abs(_total(likelihood, images) - 1))
    return Rung("likelihoods of levels, all tiny images", "largest |Σp − 1|", worst, 1e-5)


def autoregressive(change: Change = unchanged) -> Rung:
    """PixelCNNs sum to one over all images: a pixel that saw itself or what follows would show."""
    worst, shape = 0.0, (1, 2, 2)
    images = _images(shape, 3)
    for kind in (nets.PixelCNN, nets.GatedPixelCNN):
        out_shape = decoders.Categorical.outputs_shape(shape, 3)
        net = kind(shape, out_shape, channels=6, num_layers=2, levels=3)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.3 * torch.randn_like(p))  # some start at zero, and would hide what they do
        decoder = decoders.Autoregressive(decoders.Categorical(net, 3))
        worst = max(worst, abs(_total(change(decoder)(), images) - 1))
    return Rung("PixelCNNs, all tiny images", "largest |Σp − 1|", worst, 1e-5)


def bidirectional(change: Change = unchanged) -> Rung:
    """Bounds from both sides meet in the easy case."""
    exact, _ = factor_analysis()
    bounds = bdmc(change(Proposed(exact, diagonal=True)), 40, num_temperatures=100, num_chains=16)
    return Rung("bidirectional Monte Carlo, easy case", "gap (nats)", bounds.gap, 0.05)


def bracketed() -> Rung:
    """The exact value lies between the bounds, on the average over the data."""
    exact, _ = factor_analysis()
    bounds = bdmc(Proposed(exact, diagonal=True), 40, num_temperatures=20, num_chains=16)
    truth = exact.log_prob(*bounds.data).double().detach()
    sides = bounds.lower - truth, truth - bounds.upper
    outside = max((side.mean() / side.std() * math.sqrt(len(side))).item() for side in sides)
    return Rung("bidirectional Monte Carlo, exact value", "distance outside the bounds (standard errors)", outside, 4.0)


def chunking() -> Rung:
    """The same values in slices of one sample, and for the first data alone."""
    vae = neural()
    x = _drawn(vae, 250)
    whole = log_likelihood(vae, x, num_samples=1000).values
    sliced = log_likelihood(vae, x, num_samples=1000, memory=1).values
    part = log_likelihood(vae, x[:200], num_samples=1000).values
    difference = max((whole - sliced).abs().max().item(), (whole[:200] - part).abs().max().item())
    return Rung("size of batches and slices", "largest difference (nats)", difference, 1e-4)


def _shared(rank: int, port: int, threads: int, vae: models.VAE, x: Tensor, results: Any) -> None:
    torch.set_num_threads(threads)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    with processes(timeout=60.0) as group:
        values = log_likelihood(vae, x, num_samples=500).values
    if group.leads:
        results.put(values.tolist())


def num_processes(change: Change = unchanged) -> Rung:
    """Two processes give the values of one, for what they are given."""
    vae = neural()
    x = _drawn(vae, 250)
    alone = log_likelihood(vae, x, num_samples=500).values
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, torch.get_num_threads(), vae, change(x), results)
    workers = [context.Process(target=_shared, args=(rank, *given)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    failed = any(worker.exitcode != 0 for worker in workers)
    difference = math.nan if failed else (alone - torch.tensor(results.get(), dtype=torch.float64)).abs().max().item()
    return Rung("number of processes", "largest difference of two from one (nats)", difference, 0.0)


def plate_scale() -> Rung:
    """A plate that says that these are 64 of 60,000 data changes nothing."""

    def pair(total: int | None) -> Custom:
        def model(x: Tensor) -> None:
            with _plate(x, total):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with _plate(x, total):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

        return Custom(model, guide)

    x = torch.randn(64)
    one, other = (log_likelihood(pair(total), x, num_samples=200).values for total in (None, 60_000))
    return Rung("a plate's subsampling scale", "largest difference (nats)", (one - other).abs().max().item(), 1e-5)


def _plate(x: Tensor, total: int | None) -> Any:
    return data_plate(x) if total is None else pyro.plate("data", total, subsample=torch.arange(len(x)), dim=-1)


RUNGS: dict[str, Callable[..., Rung]] = {
    rung.__name__: rung
    for rung in (
        exact_guide,
        constant_weights,
        perturbed_guide,
        coverage,
        mixture,
        enumerable,
        quadrature,
        flow_priors,
        discretized,
        autoregressive,
        bidirectional,
        bracketed,
        chunking,
        num_processes,
        plate_scale,
    )
}


def climb(name: str, *change: Any, seed: int = 0) -> Rung:
    """One rung of the ladder, by its name in :data:`RUNGS`; torch's generator is left as it was.

    Args:
        name: of the rung.
        change: what breaks it on purpose, if it takes that.
        seed: of parameters, data and noise.

    Example:
        >>> climb("mixture").passed
        True
    """
    with seeded(seed):
        return RUNGS[name](*change)
