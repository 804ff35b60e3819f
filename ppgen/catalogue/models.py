"""Models built from the names of their parts: a function a model, whose keywords are its settings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ppgen import models, posteriors, priors
from ppgen.catalogue import parts
from ppgen.catalogue.parts import Latent, Observed
from ppgen.nn import ConvNet, DeconvNet, GatedBranches, GatedMLP
from ppgen.nn.shapes import Shape

Network = Callable[[Shape], nn.Module]


def latent_of(
    x: Observed,
    posterior: str,
    encoder: Network,
    dim: int,
    components: int,
    conditional: bool = False,
) -> Latent:
    """A latent with its posterior, of an encoder that is made anew for each posterior that needs one."""
    q = parts.posterior(posterior, encoder, dim)
    return Latent(dim, components, x, q, lambda: parts.posterior("diagonal", encoder, dim), conditional)


def vae(
    x: Observed,
    *,
    prior: str = "standard",
    posterior: str = "diagonal",
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    num_components: int = 500,
    hidden: tuple[int, ...] = (300, 300),
) -> models.VAE:
    """Gated dense networks in both directions."""

    def encoder(outputs: Shape) -> nn.Module:
        return GatedMLP(x.shape, *hidden, outputs, levels=x.rescaled_levels)

    def generator(outputs: Shape) -> nn.Module:
        return GatedMLP(latent_dim, *reversed(hidden), outputs)

    z = latent_of(x, posterior, encoder, latent_dim, num_components)
    return models.VAE(parts.prior(prior, z), parts.decoder(decoder, generator, x), z.posterior)


def cvae(
    x: Observed,
    *,
    prior: str = "standard",
    posterior: str = "diagonal",
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    num_components: int = 500,
    hidden: tuple[int, ...] = (300, 300),
) -> models.VAE:
    """Networks that read the class, one-hot, beside their other input."""
    z, generator = _with_class(x, posterior, latent_dim, num_components, hidden)
    return models.VAE(parts.prior(prior, z), parts.decoder(decoder, generator, x), z.posterior)


def ss_vae(
    x: Observed,
    *,
    prior: str = "standard",
    posterior: str = "diagonal",
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    num_components: int = 500,
    hidden: tuple[int, ...] = (300, 300),
) -> models.SemiSupervisedVAE:
    """The parts of a conditional VAE, and a classifier."""
    z, generator = _with_class(x, posterior, latent_dim, num_components, hidden)
    return models.SemiSupervisedVAE(
        parts.prior(prior, z),
        parts.decoder(decoder, generator, x),
        z.posterior,
        classifier=GatedMLP(x.shape, *hidden, x.classes, levels=x.rescaled_levels),
        num_classes=x.classes,
    )


def _with_class(
    x: Observed, posterior: str, latent_dim: int, num_components: int, hidden: tuple[int, ...]
) -> tuple[Latent, Network]:
    def encoder(outputs: Shape) -> nn.Module:
        return GatedBranches([x.shape, x.classes], *hidden, outputs, levels=x.rescaled_levels)

    def generator(outputs: Shape) -> nn.Module:
        return GatedBranches([latent_dim, x.classes], *reversed(hidden), outputs)

    return latent_of(x, posterior, encoder, latent_dim, num_components, True), generator


def hvae(
    x: Observed,
    *,
    prior: str = "standard",
    posterior: str = "diagonal",
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    num_components: int = 500,
    hidden: tuple[int, ...] = (300, 300),
) -> models.HierarchicalVAE:
    """Two layers of dense networks; the prior and the posterior named are those of the upper one."""

    def top(outputs: Shape) -> nn.Module:
        return GatedMLP(x.shape, *hidden, outputs, levels=x.rescaled_levels)

    def bottom(outputs: Shape) -> nn.Module:
        return GatedBranches([x.shape, latent_dim], *hidden, outputs, levels=x.rescaled_levels)

    def generator(outputs: Shape) -> nn.Module:
        return GatedBranches([latent_dim, latent_dim], *reversed(hidden), outputs)

    z2 = latent_of(x, posterior, top, latent_dim, num_components)
    return _two_layers(prior, z2, bottom, parts.decoder(decoder, generator, x), hidden)


def conv_hvae(
    x: Observed,
    *,
    prior: str = "standard",
    posterior: str = "diagonal",
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    num_components: int = 500,
    channels: tuple[int, ...] = (32, 64),
    hidden: tuple[int, ...] = (300,),
) -> models.HierarchicalVAE:
    """Two layers of gated convolutions, which meet the upper latent in dense layers behind them."""

    def top(outputs: Shape) -> nn.Module:
        return ConvNet(x.shape, outputs, channels=channels, hidden=hidden, gated=True, levels=x.rescaled_levels)

    def bottom(outputs: Shape) -> nn.Module:
        return ConvNet(
            x.shape, outputs, channels=channels, hidden=hidden, gated=True, levels=x.rescaled_levels,
            context_dim=latent_dim,
        )  # fmt: skip

    def generator(outputs: Shape) -> nn.Module:
        return DeconvNet(
            latent_dim, outputs, channels=channels[::-1], hidden=hidden[::-1], gated=True, context_dim=latent_dim
        )

    z2 = latent_of(x, posterior, top, latent_dim, num_components)
    return _two_layers(prior, z2, bottom, parts.decoder(decoder, generator, x), hidden)


def _two_layers(
    prior: str, z2: Latent, bottom: Network, decoder: nn.Module, hidden: tuple[int, ...]
) -> models.HierarchicalVAE:
    # The paper's bounds of log σ. Without them the scales of one layer, fed to the next, explode at the start.
    bounds = (-3.0, 1.0)
    below = priors.DiagNormal(z2.dim, GatedMLP(z2.dim, *hidden, 2 * z2.dim), log_scale_range=bounds)  # p(z1 | z2)
    q1 = posteriors.DiagNormal(bottom(2 * z2.dim), log_scale_range=bounds)  # q(z1 | x, z2)
    return models.HierarchicalVAE(parts.prior(prior, z2), [below], decoder, [q1, z2.posterior])


def density(
    x: Observed,
    *,
    decoder: str = "bernoulli",
    latent_dim: int = 2,
    hidden: tuple[int, ...] = (300, 300),
) -> models.DensityNetwork:
    """A gated dense network, with a standard normal as the prior and the proposal."""

    def generator(outputs: Shape) -> nn.Module:
        return GatedMLP(latent_dim, *reversed(hidden), outputs)

    return models.DensityNetwork(priors.StandardNormal(latent_dim), parts.decoder(decoder, generator, x))


def gmm(x: Observed, *, num_components: int = 10, covariance: str = "full") -> models.GaussianMixture:
    """Of the data as vectors."""
    return models.GaussianMixture(num_components, x.size, covariance)


def fa(x: Observed, *, latent_dim: int = 40) -> models.FactorAnalysis:
    """Of the data as vectors."""
    return models.FactorAnalysis(x.size, latent_dim)


def ppca(x: Observed, *, latent_dim: int = 40) -> models.ProbabilisticPCA:
    """Of the data as vectors."""
    return models.ProbabilisticPCA(x.size, latent_dim)
