"""The hierarchical variational autoencoder: L layers of latents, inferred from the top down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ppgen.distributions import marginal
from ppgen.models.parts import CONDITIONAL, check_modules
from ppgen.pair import data_plate, expose_parameters, observed, sample

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(nn.Module):
    r"""A variational autoencoder with L layers of latents, conditional where the batch is ``(x, y)``.

    .. math::
        z_L \sim p(z_L \mid y), \qquad
        z_l \sim p(z_l \mid z_{l+1}, \dots, z_L, y), \qquad
        x \sim p(x \mid z_1, \dots, z_L, y)

    The guide goes the same way down:

    .. math::
        q(z_L \mid x, y) \prod_{l=L-1}^{1} q(z_l \mid x, z_{l+1}, \dots, z_L, y)

    so that the ELBO is the reconstruction minus one KL divergence a layer, which
    :func:`ppgen.inference.latent_report` lists. Lists follow the subscripts, **from the bottom to the top**:
    ``posteriors[0]`` is the layer next to the data and ``posteriors[-1]`` the top, which sees x alone and is what a
    VampPrior takes. Two layers are the HVAE of the VampPrior paper; convolutional networks make it the convHVAE. With
    one layer it is :class:`VAE`, number for number.

    To be preferred to a VAE where one layer of independent Gaussians leaves likelihood on the table: the lower layer's
    distribution is then flexible, being a mixture over the upper. Upper layers are easily ignored at first: anneal
    the KL term, ``elbo(beta=warmup(100))``, give each layer ``free_bits``, or put a VampPrior on top.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models
        (Rezende, Mohamed & Wierstra, 2014), https://arxiv.org/abs/1401.4082

    Args:
        prior: called as ``prior(*y)``; the distribution of the top latent.
        conditionals: p(z_l | ...) for l = 1, ..., L − 1, each called as ``conditionals[l - 1](z_{l+1}, ..., z_L, *y)``,
            such as ``priors.DiagNormal(40, nn.GatedMLP(40, 300, 300, 80))``.
        decoder: called as ``decoder(z_1, ..., z_L, *y)``; the distribution of ``x``.
        posteriors: q(z_l | ...) for l = 1, ..., L, each called as ``posteriors[l - 1](x, z_{l+1}, ..., z_L, *y)``.
        markov: whether every part sees only the nearest latent above it, p(z_l | z_{l+1}), p(x | z_1) and
            q(z_l | x, z_{l+1}), in place of all of them.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), the latent sites ``z1``, ..., ``zL`` (a single one is ``z``):
        (N, latent_dim), each layer of its own; a particle axis may stand before N.

    Raises:
        TypeError: a part that is no module, or a single module where a list is expected.
        ValueError: no posterior, another number of conditionals than L − 1, or layers whose parts state different
            numbers of coordinates.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn, posteriors, priors
        >>> q2 = posteriors.DiagNormal(nn.GatedMLP(64, 32, 4))  # q(z2 | x)
        >>> hvae = HierarchicalVAE(
        ...     priors.VampPrior(q2, num_components=10),
        ...     [priors.DiagNormal(3, nn.GatedMLP(2, 32, 6))],  # p(z1 | z2)
        ...     decoders.Bernoulli(nn.GatedBranches([3, 2], 32, 64)),  # p(x | z1, z2)
        ...     [posteriors.DiagNormal(nn.GatedBranches([64, 2], 32, 6)), q2],  # q(z1 | x, z2) first
        ... )
        >>> hvae.model(torch.zeros(5, 64)).shape
        torch.Size([5, 64])
        >>> [z.shape[-1] for z in hvae.guide(torch.zeros(5, 64))]
        [3, 2]

        The same with convolutions, an image and a vector meeting behind them:

        >>> q2 = posteriors.DiagNormal(nn.ConvNet((1, 8, 8), 4, channels=(8, 16), hidden=(), gated=True))
        >>> q1 = posteriors.DiagNormal(nn.ConvNet((1, 8, 8), 6, channels=(8, 16), gated=True, context_dim=2))
        >>> conv_hvae = HierarchicalVAE(
        ...     priors.VampPrior(q2, num_components=10),
        ...     [priors.DiagNormal(3, nn.GatedMLP(2, 32, 6))],
        ...     decoders.Bernoulli(nn.DeconvNet(3, (1, 8, 8), channels=(16, 8), gated=True, context_dim=2)),
        ...     [q1, q2],
        ... )
        >>> conv_hvae.model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        prior: nn.Module,
        conditionals: Iterable[nn.Module],
        decoder: nn.Module,
        posteriors: Iterable[nn.Module],
        *,
        markov: bool = False,
    ) -> None:
        super().__init__()
        conditionals = checked_layers("HierarchicalVAE", "conditionals", conditionals)
        posteriors = checked_layers("HierarchicalVAE", "posteriors", posteriors)
        check_hierarchy("HierarchicalVAE", prior, conditionals, decoder, posteriors)
        self.prior = prior
        self.conditionals = nn.ModuleList(conditionals)
        self.decoder = decoder
        self.posteriors = nn.ModuleList(posteriors)
        self.markov = markov

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z_L | y) ... p(x | z_1, ...). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        return generate(self, x, *y, mask=mask)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """q(z_L | x, y) ... q(z_1 | x, z_2, ..., y); returns z_1, ..., z_L."""
        expose_parameters(self)
        x = observed(x, mask)
        with data_plate(x, *y):
            return top_down(lambda i, *above: self.posteriors[i](x, *above, *y), len(self.posteriors), self.markov)


def top_down(layer: Callable[..., Any], num_layers: int, markov: bool) -> tuple[Tensor, ...]:
    """Draws z_L, then each latent from ``layer(index, *above)`` given those above it; z_1, ..., z_L, bottom first."""
    latents: tuple[Tensor, ...] = ()
    for i in reversed(range(num_layers)):
        above = latents[:1] if markov else latents
        name = f"z{i + 1}" if num_layers > 1 else "z"
        latents = (sample(name, layer(i, *above)), *latents)
    return latents


def generate(pair: Any, x: Tensor | None, *y: Any, mask: Tensor | None) -> Tensor:
    """The program of a pair with a prior, conditionals and a decoder, down from the top latent to the observation."""
    layers = (*pair.conditionals, pair.prior)
    with data_plate(x, *y):
        latents = top_down(lambda i, *above: layers[i](*above, *y), len(layers), pair.markov)
        seen = latents[:1] if pair.markov else latents
        return sample("x", marginal(pair.decoder(*seen, *y), mask), obs=x)


def checked_layers(owner: str, name: str, layers: Any) -> list[nn.Module]:
    """A list of modules, from the bottom to the top."""
    if (isinstance(layers, nn.Module) and not isinstance(layers, nn.ModuleList)) or not isinstance(layers, Iterable):
        raise TypeError(
            f"{owner}: {name} must be a list of modules, one a layer from the bottom (next to the data) to the top, "
            f"got a single {type(layers).__name__}: write [{name[0]}1, ...]."
        )
    found = list(layers)
    check_modules(owner, "a module", **{f"{name}[{i}]": part for i, part in enumerate(found)})
    return found


def check_hierarchy(
    owner: str, prior: nn.Module, conditionals: list[nn.Module], decoder: nn.Module, posteriors: list[nn.Module]
) -> None:
    """Makes sure that the parts are modules, and that each layer of the model has its posterior, of the same width."""
    check_modules(owner, CONDITIONAL, prior=prior, decoder=decoder)
    if not posteriors:
        raise ValueError(f"{owner}: posteriors is empty, but each of the L ≥ 1 layers needs one.")
    if len(conditionals) != len(posteriors) - 1:
        raise ValueError(
            f"{owner}: {len(posteriors)} posteriors make {len(posteriors)} layers, which need {len(posteriors) - 1} "
            f"conditionals p(z_l | z_l+1, ...), but conditionals has {len(conditionals)}: the top layer has the prior "
            "in place of one."
        )
    names = [*(f"conditionals[{i}]" for i in range(len(conditionals))), "prior"]
    for i, (name, p, q) in enumerate(zip(names, (*conditionals, prior), posteriors, strict=True)):
        widths = getattr(p, "latent_dim", None), getattr(q, "latent_dim", None)
        if None not in widths and widths[0] != widths[1]:
            raise ValueError(
                f"{owner}: {name} has latent_dim {widths[0]}, but posteriors[{i}] has latent_dim {widths[1]}, and both "
                f"are distributions of z{i + 1}. Lists go from the bottom (next to the data) to the top."
            )
