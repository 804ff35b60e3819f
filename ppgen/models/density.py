r"""Densities without inference: the density network, which proposes from its prior, and explicit densities."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ppgen.distributions import marginal
from ppgen.models.parts import CONDITIONAL, check_modules
from ppgen.pair import data_plate, expose_parameters, sample

__all__ = ["DensityNetwork", "ExplicitDensity"]


class DensityNetwork(nn.Module):
    r"""A density network: a neural decoder whose latents are proposed by the prior.

    .. math::
        z \sim p(z \mid y), \qquad x \sim p(x \mid z, y), \qquad \text{guide } q(z \mid x, y) = p(z \mid y)

    The weights are then p(x | z), and the objective is the Monte-Carlo log-likelihood,

    .. math::
        \log p(x) \approx \log \frac{1}{S} \sum_{s=1}^{S} p(x \mid z_s), \qquad z_s \sim p(z),

    which is ``fit(pair, x, loss=iwae(S))`` and, with many draws, ``log_likelihood(pair, x, num_samples=S)``. Nothing is
    inferred and there is no encoder to train: a mixture of S components at once, with new ones at every step, tied
    together by a network.

    Use it with a latent of one to three dimensions, for maps of data and curved manifolds, where S of some tens to
    hundreds covers the latent space. It stops working as the latent grows: the share of the prior in which a datum
    lies falls exponentially, a single draw then carries nearly all the weight (watch ``log_likelihood(...).ess``), the
    objective becomes that of the best of S random guesses, and the decoder learns a blur of few components. Beyond that
    point the guide must look at x: that is a :class:`VAE`. The ELBO is no objective here, with the prior as its guide:
    it is largest for a decoder that ignores z.

    References:
        Bayesian neural networks and density networks (MacKay, 1995), https://doi.org/10.1016/0168-9002(94)00931-7
        GTM: The Generative Topographic Mapping (Bishop, Svensén & Williams, 1998),
        https://doi.org/10.1162/089976698300017953

    Args:
        prior: called as ``prior(*y)``; the distribution of the latent site ``z``, and the guide's.
        decoder: called as ``decoder(z, *y)``; the distribution of the observed site ``x``.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), ``mask``: (N, *event), ``z``: (N, latent_dim); a particle axis may stand
        before N.

    Raises:
        TypeError: a part that is not a module.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn, priors
        >>> pair = DensityNetwork(priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 16, 64)))
        >>> pair.model(torch.zeros(5, 64)).shape
        torch.Size([5, 64])
        >>> pair.guide(torch.zeros(5, 64)).shape
        torch.Size([5, 2])
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        check_modules("DensityNetwork", CONDITIONAL, prior=prior, decoder=decoder)
        self.prior = prior
        self.decoder = decoder

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z | y) p(x | z, y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        with data_plate(x, *y):
            z = sample("z", self.prior(*y))
            return sample("x", marginal(self.decoder(z, *y), mask), obs=x)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z | y), whatever x is."""
        expose_parameters(self)
        with data_plate(x, *y):
            return sample("z", self.prior(*y))


class ExplicitDensity(nn.Module):
    r"""An explicit density: a distribution of the data that can be scored as it is, without latents.

    .. math:: x \sim p(x \mid y), \qquad \text{no latents, an empty guide}

    Whatever is a distribution becomes a pair: a normalizing flow, an autoregressive network, a Gaussian. ``fit`` is
    maximum likelihood under any of the losses, and ``log_likelihood`` is exact at any number of samples, since all
    weights are equal. Use it to compare such densities with models of latents, datum by datum.

    References:
        Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021),
        https://arxiv.org/abs/1912.02762

    Args:
        density: called as ``density(*y)``; the distribution of the observed site ``x``. Any prior is one.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), ``mask``: (N, *event), for densities that can be marginalised.

    Raises:
        TypeError: a density that is not a module.

    Example:
        >>> import torch
        >>> from ppgen import priors
        >>> from ppgen.inference import log_likelihood
        >>> pair = ExplicitDensity(priors.Flow.maf(2))
        >>> x = torch.randn(5, 2)
        >>> bool((log_likelihood(pair, x, num_samples=1).values == pair.density().log_prob(x)).all())
        True
    """

    def __init__(self, density: nn.Module) -> None:
        super().__init__()
        check_modules("ExplicitDensity", CONDITIONAL, density=density)
        self.density = density

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(x | y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        with data_plate(x, *y):
            return sample("x", marginal(self.density(*y), mask), obs=x)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> None:
        """Nothing: there are no latents to propose."""
