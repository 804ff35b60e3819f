r"""From the mixture to the VAE: Gaussians at K places, along a line, along a curve.

    mixture of Gaussians   p(x) = Σₖ πₖ N(x; μₖ, σₖ²)            k is one of K places
    factor analysis        p(x) = ∫ N(z; 0, 1) N(x; w z + μ, Ψ) dz    z is a place on a line
    VAE                    p(x) = ∫ N(z; 0, 1) N(x; f(z), σ²) dz       z is a place on a curve

The data lie on an arm of a spiral, whose own log-likelihood nobody can beat by much.
"""

import math
import sys
from pathlib import Path

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import EM, fit, iwae, log_likelihood, train

NOISE, TURN = 0.08, 3 * math.pi


def spiral(t: Tensor) -> Tensor:
    return (0.15 + 0.85 * t.sqrt()).unsqueeze(-1) * torch.stack([(TURN * t.sqrt()).cos(), (TURN * t.sqrt()).sin()], -1)


def along(components: Distribution, x: Tensor) -> Tensor:
    """The log-density of equally many Gaussians at many places."""
    return components.log_prob(x.unsqueeze(1)).logsumexp(-1) - math.log(components.batch_shape[0])


def main(quick: bool, out: Path) -> None:
    torch.manual_seed(0)
    x, x_test = (spiral(torch.rand(n)) + NOISE * torch.randn(n, 2) for n in (2000, 1000))

    mixtures = {}
    for K in (1, 5, 20):
        mixtures[K] = models.GaussianMixture(K, 2, "spherical")
        train(EM(mixtures[K], num_restarts=3, seed=0), x, epochs=100, batch_size=len(x), progress=False)
    line = models.FactorAnalysis(2, 1)
    train(EM(line), x, epochs=100, batch_size=len(x), progress=False)
    vae = models.VAE(
        priors.StandardNormal(1),
        decoders.Normal(nn.MLP(1, 64, 64, 64, 2), scale=0.5, learn_scale=True),
        posteriors.DiagNormal(nn.MLP(2, 64, 64, 2)),
    )
    adam = torch.optim.Adam(vae.parameters(), 3e-3)
    fit(vae, x, loss=iwae(20), epochs=2 if quick else 150, optimizer=adam, seed=0, progress=False)

    curve = vae.decoder(torch.special.ndtri(torch.linspace(0.001, 0.999, 500)).unsqueeze(-1))
    grid = torch.cartesian_prod(torch.linspace(-1.4, 1.4, 120), torch.linspace(-1.4, 1.4, 120))
    spirals = dist.Normal(spiral(torch.linspace(0, 1, 500)), NOISE).to_event(1)
    with torch.no_grad():
        panels = {f"mixture of {K}": (gmm.score(x_test), gmm.log_prob(grid), gmm.loc) for K, gmm in mixtures.items()}
        on_line = line.loc + torch.linspace(-2.5, 2.5, 2).unsqueeze(-1) * line.loadings.squeeze(-1)
        panels["factor analysis: along a line"] = (line.score(x_test), line.log_prob(grid), on_line)
        estimate = log_likelihood(vae, x_test, num_samples=100 if quick else 2000)
        panels["VAE: along a curve"] = (estimate.mean, along(curve, grid), curve.mean)

    figure = Figure(figsize=(15, 3.9), layout="constrained")
    for axes, (name, (score, log_density, places)) in zip(figure.subplots(1, 5), panels.items(), strict=True):
        print(f"{name}: log p(x) = {score:.3f} nats")
        picture = log_density.exp().reshape(120, 120).T
        axes.imshow(picture.numpy(), extent=(-1.4, 1.4, -1.4, 1.4), origin="lower", cmap="Blues")
        axes.scatter(*x_test[:300].T.numpy(), s=2, color="gray", alpha=0.5)
        axes.plot(*places.detach().T.numpy(), "o" if "mixture" in name else "-", color="C3", markersize=4)
        axes.set(title=f"{name}\n{score:.2f} nats", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[])
    print(f"the spiral itself: log p(x) = {along(spirals, x_test).mean():.3f} nats; VAE: {estimate}")
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "infinite_mixture.png"))
