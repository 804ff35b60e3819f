r"""Vector-quantised variational autoencoders: latents are grids of codes from a learned codebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppgen.distributions import marginal
from ppgen.models.hierarchical import checked_layers
from ppgen.models.parts import CONDITIONAL, NETWORK, check_modules
from ppgen.nn import VectorQuantizer, feed
from ppgen.pair import data_plate, expose_parameters, observed, sample
from ppgen.priors import CategoricalGrid

__all__ = ["VQVAE", "HierarchicalVQVAE"]


def _propose(name: str, quantizer: VectorQuantizer, h: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """The guide's site of the codes nearest to h, all its mass on them, and their vectors.

    While the pair trains, h travels to the model as a site of its own, so that a gradient can come back to it: also
    through a codebook that is frozen, ``quantizer.eval()``.
    """
    codes = quantizer(h)
    if training:
        h = sample(f"{name}_encoded", dist.Delta(h, event_dim=3))
        codes = sample(name, dist.Delta(codes, event_dim=2))
        return codes, quantizer.straight_through(h, codes)
    codes = sample(name, dist.Delta(codes, event_dim=2))
    return codes, quantizer.embed(codes)


def _embedded(name: str, quantizer: VectorQuantizer, codes: Tensor, training: bool) -> Tensor:
    """The vectors of the model's codes; while the pair trains, with the penalty and the straight-through gradient."""
    if not training:
        return quantizer.embed(codes)
    grid = (quantizer.code_dim, *codes.shape[-2:])
    # Unscored: it takes what the guide encoded, and is no part of the generative process.
    h = sample(f"{name}_encoded", dist.Normal(quantizer.codebook.new_zeros(grid), 1.0).to_event(3).mask(False))
    pyro.factor(f"{name}_penalty", -quantizer.penalty(h, codes))
    return quantizer.straight_through(h, codes)


def _check_level(owner: str, encoder: nn.Module, quantizer: nn.Module, prior: nn.Module | None) -> nn.Module:
    """The prior of a level, uniform if none is given, once it is sure that encoder and quantizer fit."""
    check_modules(owner, NETWORK, encoder=encoder)
    if not isinstance(quantizer, VectorQuantizer):
        raise TypeError(f"{owner}: a quantizer must be an nn.VectorQuantizer, got {type(quantizer).__name__}.")
    grid = getattr(encoder, "out_shape", None)
    if grid is not None and (len(grid) != 3 or grid[0] != quantizer.code_dim):
        raise ValueError(
            f"{owner}: an encoder gives {tuple(grid)}, but its quantizer takes grids of vectors "
            f"({quantizer.code_dim}, H, W): make the encoder's first output axis code_dim={quantizer.code_dim}."
        )
    if prior is not None:
        check_modules(owner, f"{CONDITIONAL} of grids", prior=prior)
        return prior
    if grid is None:
        raise TypeError(
            f"{owner}: an encoder, a {type(encoder).__name__}, states no out_shape, so the size of its grid is not "
            "known: give the prior, for example priors.CategoricalGrid(codebook_size, (H, W))."
        )
    return CategoricalGrid(quantizer.codebook_size, grid[1:])


class VQVAE(nn.Module):
    r"""A vector-quantised variational autoencoder: the latent is a grid of codes from a learned codebook.

    .. math::
        z \sim p(z \mid y), \quad z_{ij} \in \{0, \dots, K - 1\}, \qquad x \sim p(x \mid e_z, y)

    with the guide a point, the codes nearest to what the encoder gives:

    .. math::
        q(z \mid x, y) = \delta\bigl(z, z_q(x, y)\bigr), \qquad
        z_q(x, y)_{ij} = \arg\min_k \lVert h(x, y)_{ij} - e_k \rVert

    All of the guide's probability is on one grid, so its ELBO, which is what ``log_likelihood`` gives, is the bound

    .. math:: \log p(x) \ge \log p(x \mid e_{z_q(x)}) + \log p(z_q(x)),

    **a lower bound that no number of samples tightens**: other grids are never proposed. It is computed once, and the
    estimate says that it is a bound.

    Training (``fit``) maximises it, in training mode minus the codebook's and the encoder's penalty
    (:class:`ppgen.nn.VectorQuantizer`), in squared units of the codes summed over the grid, and with the gradient that
    reaches the decoder's input handed straight through to the encoder. Validation and evaluation are the bound alone.
    ``monitors["perplexity"]`` says how many codes are in use.

    The prior is uniform, which costs log K nats a code, until one is fitted to the codes and takes its place; a strong
    one is an autoregressive network::

        prior = ...  # a conditional: prior(*y) is a distribution of integer grids
        fit(models.ExplicitDensity(prior), encode(vqvae, x), epochs=20)  # or (encode(vqvae, x, y), y)
        vqvae.prior = prior
        sample(vqvae, 64)  # z from the prior, then x from the decoder

    Use it where a stack of Gaussians blurs: for images and sound at real size, for compression, and as the first stage
    in front of a powerful prior. Incomplete data are trained on and evaluated with a mask: the encoder sees zeros where
    nothing was observed, and the bound is that of the observed elements.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017),
        https://arxiv.org/abs/1711.00937

    Args:
        encoder: a network, called as ``encoder(x, *y)``, that gives grids of vectors (D, H, W).
        quantizer: the codebook, of vectors of D numbers.
        decoder: called as ``decoder(e, *y)`` with the grid of the codes' vectors; the distribution of ``x``.
        prior: called as ``prior(*y)``; the distribution of the latent site ``z``, a grid of integers 0, ..., K − 1.
            Uniform if not given.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), ``mask``: (N, *event), ``z``: (N, H, W); a particle axis may stand before
        N.

    Raises:
        TypeError: a part that is not one, or an encoder without ``out_shape`` where no prior is given.
        ValueError: an encoder whose vectors are not those of the codebook.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn
        >>> from ppgen.inference import encode, fit, log_likelihood
        >>> vqvae = VQVAE(
        ...     nn.ResidualConvNet((1, 8, 8), (16, 4, 4)),
        ...     nn.VectorQuantizer(32, 16),
        ...     decoders.Bernoulli(nn.ResidualConvNet((16, 4, 4), (1, 8, 8))),
        ... )
        >>> x = torch.bernoulli(torch.full((20, 1, 8, 8), 0.5))
        >>> history = fit(vqvae, x, epochs=1)
        >>> encode(vqvae, x).shape
        torch.Size([20, 4, 4])
        >>> log_likelihood(vqvae, x, num_samples=1).is_lower_bound
        True
    """

    def __init__(
        self, encoder: nn.Module, quantizer: VectorQuantizer, decoder: nn.Module, prior: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_modules("VQVAE", CONDITIONAL, decoder=decoder)
        self.prior = _check_level("VQVAE", encoder, quantizer, prior)
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z | y) p(x | e_z, y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        with data_plate(x, *y):
            z = sample("z", self.prior(*y))
            e = _embedded("z", self.quantizer, z, self.training and x is not None)
            return sample("x", marginal(self.decoder(e, *y), mask), obs=x)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> Tensor:
        """The point z_q(x, y)."""
        expose_parameters(self)
        with data_plate(x, *y):
            z, _ = _propose("z", self.quantizer, feed(self.encoder, observed(x, mask), *y), self.training)
            return z

    @property
    def monitors(self) -> dict[str, float]:
        """The perplexity of the codebook's average use over the last batches of training."""
        return {"perplexity": self.quantizer.perplexity}


class HierarchicalVQVAE(nn.Module):
    r"""A vector-quantised variational autoencoder with L levels of codes, the VQ-VAE-2.

    .. math::
        z_L \sim p(z_L \mid y), \qquad
        z_l \sim p(z_l \mid e_{z_{l+1}}, \dots, e_{z_L}, y), \qquad
        x \sim p(x \mid e_{z_1}, \dots, e_{z_L}, y)

    with the guide a point that is found from the top down: :math:`z_L` nearest to :math:`h_L(x, y)`, then each
    :math:`z_l` nearest to :math:`h_l(x, e_{z_{l+1}}, \dots, e_{z_L}, y)`. Small grids at the top hold the shape of the
    whole, large ones below the detail. Lists follow the subscripts, **from the bottom to the top**, as in
    :class:`ppgen.models.HierarchicalVAE`. Everything else is as for :class:`VQVAE`, with the bound
    :math:`\log p(x \mid e_{z_1}, \dots) + \sum_l \log p(z_l \mid \dots)`, which is a lower bound at any number of
    samples. Priors are fitted level by level and set in place::

        z = encode(pair, x)  # {"z2": ..., "z1": ...}
        fit(models.ExplicitDensity(top), z["z2"], epochs=20)
        fit(models.ExplicitDensity(bottom), (z["z1"], pair.quantizers[1].embed(z["z2"])), epochs=20)
        pair.priors[0], pair.priors[1] = bottom, top

    References:
        Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord & Vinyals, 2019),
        https://arxiv.org/abs/1906.00446

    Args:
        encoders: networks h_l for l = 1, ..., L, each called as ``encoders[l - 1](x, e_{l+1}, ..., e_L, *y)``.
        quantizers: the codebook of each level.
        decoder: called as ``decoder(e_1, ..., e_L, *y)``; the distribution of ``x``.
        priors: of each level, called as ``priors[l - 1](e_{l+1}, ..., e_L, *y)`` with the vectors of the codes above;
            distributions of grids of integers. None in place of one, or of the list, makes it uniform.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), ``mask``: (N, *event), the latent sites ``z1``, ..., ``zL`` (a single one
        is ``z``): (N, H_l, W_l); a particle axis may stand before N.

    Raises:
        TypeError: a part that is not one, or a single module where a list is expected.
        ValueError: lists of different lengths, or an encoder whose vectors are not those of its codebook.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn
        >>> from ppgen.inference import encode
        >>> top, bottom = (16, 2, 2), (16, 4, 4)
        >>> pair = HierarchicalVQVAE(
        ...     [
        ...         nn.ResidualConvNet((1, 8, 8), bottom, context_shapes=[top]),
        ...         nn.ResidualConvNet((1, 8, 8), top),
        ...     ],
        ...     [nn.VectorQuantizer(32, 16), nn.VectorQuantizer(32, 16)],
        ...     decoders.Bernoulli(nn.ResidualConvNet(bottom, (1, 8, 8), context_shapes=[top])),
        ... )
        >>> {name: tuple(z.shape) for name, z in encode(pair, torch.zeros(5, 1, 8, 8)).items()}
        {'z2': (5, 2, 2), 'z1': (5, 4, 4)}
    """

    def __init__(
        self,
        encoders: Iterable[nn.Module],
        quantizers: Iterable[VectorQuantizer],
        decoder: nn.Module,
        priors: Sequence[nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        encoders = checked_layers("HierarchicalVQVAE", "encoders", encoders)
        codebooks = checked_layers("HierarchicalVQVAE", "quantizers", quantizers)
        given: list[Any] = [None] * len(encoders) if priors is None else list(priors)
        if not (len(encoders) == len(codebooks) == len(given) > 0):
            raise ValueError(
                f"HierarchicalVQVAE: there are {len(encoders)} encoders, {len(codebooks)} quantizers and {len(given)} "
                "priors, but each of the L ≥ 1 levels needs one of each."
            )
        check_modules("HierarchicalVQVAE", CONDITIONAL, decoder=decoder)
        levels = zip(encoders, codebooks, given, strict=True)
        self.priors = nn.ModuleList(_check_level("HierarchicalVQVAE", *level) for level in levels)
        self.encoders = nn.ModuleList(encoders)
        self.quantizers = nn.ModuleList(codebooks)
        self.decoder = decoder

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z_L | y) ... p(x | e_1, ..., y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        embedded: tuple[Tensor, ...] = ()
        with data_plate(x, *y):
            for name, i, quantizer in self._from_the_top():
                z = sample(name, self.priors[i](*embedded, *y))
                embedded = (_embedded(name, quantizer, z, self.training and x is not None), *embedded)
            return sample("x", marginal(self.decoder(*embedded, *y), mask), obs=x)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The points, from the top down; returns z_1, ..., z_L."""
        expose_parameters(self)
        x = observed(x, mask)
        latents: tuple[Tensor, ...] = ()
        embedded: tuple[Tensor, ...] = ()
        with data_plate(x, *y):
            for name, i, quantizer in self._from_the_top():
                z, e = _propose(name, quantizer, feed(self.encoders[i], x, *embedded, *y), self.training)
                latents, embedded = (z, *latents), (e, *embedded)
        return latents

    def _from_the_top(self) -> list[tuple[str, int, VectorQuantizer]]:
        quantizers: list[Any] = list(self.quantizers)
        names = [f"z{i + 1}" for i in range(len(quantizers))] if len(quantizers) > 1 else ["z"]
        return list(zip(names, range(len(names)), quantizers, strict=True))[::-1]

    @property
    def monitors(self) -> dict[str, float]:
        """The perplexity of each codebook's average use over the last batches of training."""
        return {f"perplexity {name}": quantizer.perplexity for name, _, quantizer in self._from_the_top()}
