"""Neural components built by name, as in :mod:`ppgen.catalogue.models`: a function a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ppgen import decoders, models, priors
from ppgen.catalogue import parts
from ppgen.catalogue.models import latent_of
from ppgen.catalogue.parts import Observed
from ppgen.nn import (
    MLP,
    ConvNet,
    DCGANDiscriminator,
    DCGANGenerator,
    DeconvNet,
    DiagonalBiLSTM,
    GatedMLP,
    GatedPixelCNN,
    PixelRNN,
    ResidualConvNet,
    RowLSTM,
    VectorQuantizer,
)
from ppgen.nn.shapes import Shape

ROWS = {"row": RowLSTM, "diagonal": DiagonalBiLSTM}


def _raster(network: Callable[..., nn.Module], decoder: str, x: Observed) -> decoders.Autoregressive:
    """Pixels in raster order, of a masked network; a logistic mixture's channels depend on each other by themselves."""
    in_turn = decoder != "logistic-mixture"
    return decoders.Autoregressive(parts.decoder(decoder, partial(network, channels_in_turn=in_turn), x))


def pixelcnn(
    x: Observed,
    *,
    decoder: str = "bernoulli",
    filters: int = 32,
    num_layers: int = 7,
) -> models.ExplicitDensity:
    """Gated, with a vertical and a horizontal stack."""
    network = partial(GatedPixelCNN, x.shape, channels=filters, num_layers=num_layers, levels=x.rescaled_levels)
    return models.ExplicitDensity(_raster(network, decoder, x))


def pixelrnn(
    x: Observed,
    *,
    decoder: str = "bernoulli",
    layer: str = "diagonal",
    filters: int = 16,
    num_layers: int = 4,
) -> models.ExplicitDensity:
    """Of Row LSTMs, or of Diagonal BiLSTMs."""
    kind = ROWS[parts.lookup("layer", layer, ROWS)]
    network = partial(PixelRNN, x.shape, layer=kind, channels=filters, num_layers=num_layers, levels=x.rescaled_levels)
    return models.ExplicitDensity(_raster(network, decoder, x))


def pixelvae(
    x: Observed,
    *,
    prior: str = "standard",
    posterior: str = "diagonal",
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    num_components: int = 500,
    hidden: tuple[int, ...] = (300, 300),
    filters: int = 32,
    num_layers: int = 3,
) -> models.VAE:
    """A VAE whose decoder is a PixelCNN, which sees the latent as a map."""

    def encoder(outputs: Shape) -> nn.Module:
        return GatedMLP(x.shape, *hidden, outputs, levels=x.rescaled_levels)

    features = (8, *x.shape[1:])
    network = partial(
        GatedPixelCNN, x.shape, channels=filters, num_layers=num_layers, levels=x.rescaled_levels,
        context_shapes=[features],
    )  # fmt: skip
    pixels = _raster(network, decoder, x)
    pixels.features = DeconvNet(latent_dim, features, gated=True)
    z = latent_of(x, posterior, encoder, latent_dim, num_components)
    return models.VAE(parts.prior(prior, z), pixels, z.posterior)


def ae(
    x: Observed,
    *,
    decoder: str = "bernoulli",
    latent_dim: int = 40,
    channels: tuple[int, ...] = (32, 64),
    hidden: tuple[int, ...] = (300,),
) -> models.Autoencoder:
    """Convolutional in both directions."""

    def generator(outputs: Shape) -> nn.Module:
        return DeconvNet(latent_dim, outputs, channels=channels[::-1], hidden=hidden[::-1])

    encoder = ConvNet(x.shape, latent_dim, channels=channels, hidden=hidden, levels=x.rescaled_levels)
    return models.Autoencoder(encoder, parts.decoder(decoder, generator, x))


def vqvae(
    x: Observed,
    *,
    decoder: str = "bernoulli",
    codebook_size: int = 64,
    code_dim: int = 16,
    filters: int = 32,
    num_layers: int = 5,
) -> models.VQVAE:
    """Residual networks, a grid of codes of a quarter of the image's side (a half of small ones), a PixelCNN prior."""
    height, width = (-(-side // (4 if min(x.shape[1:]) > 16 else 2)) for side in x.shape[1:])
    grid = (code_dim, height, width)

    def generator(outputs: Shape) -> nn.Module:
        return ResidualConvNet(grid, outputs, channels=filters)

    prior = GatedPixelCNN(
        (1, height, width), (codebook_size, height, width), categories=codebook_size, channels=filters,
        num_layers=num_layers, first_kernel_size=5,
    )  # fmt: skip
    return models.VQVAE(
        ResidualConvNet(x.shape, grid, channels=filters, levels=x.rescaled_levels),
        VectorQuantizer(codebook_size, code_dim),
        parts.decoder(decoder, generator, x),
        decoders.Autoregressive(decoders.Categorical(prior, codebook_size), event_shape=(height, width)),
    )


def gan(x: Observed, *, latent_dim: int = 64, filters: int = 32) -> models.GAN:
    """The bodies of the DCGAN for images, dense ones for vectors."""
    return _gan(x, latent_dim, filters, nn.BatchNorm2d)


def wgan_gp(x: Observed, *, latent_dim: int = 64, filters: int = 32) -> models.GAN:
    """The same without batch normalisation in the critic, whose slope is that of each image by itself."""
    return _gan(x, latent_dim, filters, None)


def acgan(x: Observed, *, latent_dim: int = 64, filters: int = 32) -> models.ACGAN:
    """The bodies of :func:`gan`, the generator given the class, the discriminator with a guess of it."""
    k = x.classes
    generator, discriminator = _players(x, latent_dim, filters, nn.BatchNorm2d, given=k, guessed=k)
    return models.ACGAN(priors.StandardNormal(latent_dim), generator, discriminator, num_classes=k, levels=x.num_levels)


def _gan(x: Observed, latent_dim: int, filters: int, critic_norm: type[nn.BatchNorm2d] | None) -> models.GAN:
    generator, critic = _players(x, latent_dim, filters, critic_norm)
    return models.GAN(priors.StandardNormal(latent_dim), generator, critic, levels=x.num_levels)


def _players(
    x: Observed, latent_dim: int, filters: int, norm: type[nn.BatchNorm2d] | None, *, given: int = 0, guessed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator, images halved down to about 4 × 4; how many classes one is given, one tells."""
    scores = 1 + guessed
    if len(x.shape) == 3:
        channels = tuple(filters * 2**i for i in range(3 if min(x.shape[1:]) > 16 else 2))
        return (
            DCGANGenerator(latent_dim, x.shape, channels=channels[::-1], context_dim=given),
            DCGANDiscriminator(x.shape, scores, channels=channels, norm=norm),
        )
    widths = (2 * filters,) * 3
    return MLP(latent_dim, *widths, x.shape, context_dim=given), MLP(x.shape, *widths, scores)
