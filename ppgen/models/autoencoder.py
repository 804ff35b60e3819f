r"""The autoencoder: a code and its decoder, without a distribution of codes."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.distributions import marginal
from ppgen.models.parts import CONDITIONAL, NETWORK, check_modules
from ppgen.nn import as_shape, check_event, feed
from ppgen.nn.shapes import Shape
from ppgen.pair import data_plate, expose_parameters, observed, sample

__all__ = ["Autoencoder"]


class _NoPrior(dist.ImproperUniform):
    """All codes alike, over all of space: scored as zero, and nothing to draw from."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError(
            "An autoencoder has no distribution of codes, so there is nothing to draw them from. Fit a prior to the "
            "codes, fit(models.ExplicitDensity(prior), encode(ae, x), ...), and sample "
            "models.DensityNetwork(prior, ae.decoder); or train a models.VAE, which has one."
        )


class Autoencoder(nn.Module):
    r"""An autoencoder: a deterministic code of each datum, and a decoder that gives the datum back.

    .. math::
        z = f(x), \qquad x \sim p(x \mid z), \qquad \text{trained by } \max \; \log p(x \mid f(x))

    As a pair it has a flat prior of the latent, which is improper, and the guide is a point, :math:`f(x)`; the ELBO is
    the reconstruction's log-likelihood and no more, and ``fit`` minimises the reconstruction error that goes with the
    decoder: squared for :class:`ppgen.decoders.Normal` with a fixed scale, cross-entropy for
    :class:`ppgen.decoders.Bernoulli`. What the networks are, the autoencoder is: linear ones find the subspace of
    principal component analysis, dense or convolutional ones curved surfaces (see the examples).

    Use it for features, for a picture of the data in two dimensions and for compression. **It has no density of x**: a
    flat prior has no draws, :math:`\int p(x \mid z) \, dz` is no probability, and a point of a continuous latent has
    none either. ``sample`` and ``log_likelihood`` therefore raise an error that says so. Both work for
    ``DensityNetwork(prior, ae.decoder)`` after a prior has been fitted to the codes. Features are ``encode(ae, x)``,
    reconstructions ``reconstruct(ae, x)``, decodings of any code ``decode(ae, z)``.

    Incomplete data are trained on with a mask: the encoder sees zeros where nothing was observed, and only what was
    observed is to be reconstructed.

    References:
        Reducing the Dimensionality of Data with Neural Networks (Hinton & Salakhutdinov, 2006),
        https://doi.org/10.1126/science.1127647
        Neural networks and principal component analysis (Baldi & Hornik, 1989),
        https://doi.org/10.1016/0893-6080(89)90014-2

    Args:
        encoder: a network f, called as ``encoder(x, *y)``.
        decoder: called as ``decoder(z, *y)``; the distribution of the observed site ``x``. Any decoder.
        latent_shape: event shape of z, if the encoder does not state it as ``out_shape``.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), ``mask``: (N, *event), ``z``: (N, *latent_shape).

    Raises:
        TypeError: a part that is no module, or an encoder that states no output shape where none is given.
        ValueError: an encoder whose codes have another shape, or, from ``log_likelihood``, that there is none.
        NotImplementedError: from ``sample``, that there is nothing to draw from.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn
        >>> from ppgen.inference import encode, fit
        >>> x = torch.randn(200, 64)
        >>> linear = Autoencoder(nn.MLP(64, 2), decoders.Normal(nn.MLP(2, 64), scale=1.0))
        >>> dense = Autoencoder(nn.MLP(64, 128, 2), decoders.Normal(nn.MLP(2, 128, 64), scale=1.0))
        >>> convolutional = Autoencoder(nn.ConvNet((1, 8, 8), 2), decoders.Bernoulli(nn.DeconvNet(2, (1, 8, 8))))
        >>> history = fit(dense, x, epochs=1)
        >>> encode(dense, x).shape
        torch.Size([200, 2])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_shape: Shape | None = None) -> None:
        super().__init__()
        check_modules("Autoencoder", NETWORK, encoder=encoder)
        check_modules("Autoencoder", CONDITIONAL, decoder=decoder)
        if latent_shape is None:
            latent_shape = getattr(encoder, "out_shape", None)
        if latent_shape is None:
            raise TypeError(
                f"Autoencoder: the encoder, a {type(encoder).__name__}, states no out_shape: give latent_shape, the "
                "shape of its codes."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.latent_shape = as_shape(latent_shape, "latent_shape")

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(x | z, y), with a flat prior of z: nothing to draw from, it must be given."""
        expose_parameters(self)
        rank = len(self.latent_shape)
        with data_plate(x, *y):
            z = sample("z", _NoPrior(constraints.independent(constraints.real, rank), (), self.latent_shape))
            return sample("x", marginal(self.decoder(z, *y), mask), obs=x)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> Tensor:
        """The point f(x, y)."""
        expose_parameters(self)
        z = feed(self.encoder, observed(x, mask), *y)
        check_event(z, self.latent_shape, f"Autoencoder(latent_shape={self.latent_shape})")
        with data_plate(x, *y):
            return sample("z", dist.Delta(z, event_dim=len(self.latent_shape)))
