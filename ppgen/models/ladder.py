"""The ladder variational autoencoder: what the data say of a layer is weighed against what the layers above say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from ppgen.distributions import as_diagonal_normal
from ppgen.models.hierarchical import check_hierarchy, checked_layers, generate, top_down
from ppgen.nn import feed
from ppgen.pair import data_plate, expose_parameters, observed

__all__ = ["LadderVAE", "precision_weighted"]


class LadderVAE(nn.Module):
    r"""A hierarchical variational autoencoder whose guide corrects the model's own top-down distributions.

    The model is that of :class:`HierarchicalVAE`:

    .. math::
        z_L \sim p(z_L \mid y), \qquad
        z_l \sim p(z_l \mid z_{>l}, y) = \mathcal{N}(\mu_{p,l}, \sigma_{p,l}^2), \qquad
        x \sim p(x \mid z_1, \dots, z_L, y)

    A deterministic path leads upward, and from each of its stages a Gaussian that says what the data alone know of the
    layer:

    .. math::
        d_1 = f_1(x, y), \qquad d_l = f_l(d_{l-1}), \qquad
        \mathcal{N}(\hat\mu_l, \hat\sigma_l^2) = g_l(d_l)

    The guide draws from the top down; below the top, the two Gaussians are multiplied, each weighing as much as its
    precision:

    .. math::
        q(z_L \mid x) = \mathcal{N}(\hat\mu_L, \hat\sigma_L^2), \qquad
        q(z_l \mid x, z_{>l}) = \mathcal{N}\left(
            \frac{\hat\mu_l \hat\sigma_l^{-2} + \mu_{p,l} \sigma_{p,l}^{-2}}{\hat\sigma_l^{-2} + \sigma_{p,l}^{-2}}, \;
            \frac{1}{\hat\sigma_l^{-2} + \sigma_{p,l}^{-2}} \right)

    A layer about which the data say nothing (:math:`\hat\sigma_l \to \infty`) costs nothing: q is p there. So deep
    hierarchies train that a guide of free networks leaves to collapse; ``markov=True`` is the published model,
    a chain. Lists go **from the bottom to the top**, as in :class:`HierarchicalVAE`. For a VampPrior on top, the
    bottom-up path as one posterior: ``DiagNormal(torch.nn.Sequential(*encoders, top_net))``, of the same modules.

    References:
        Ladder Variational Autoencoders (Sønderby et al., 2016), https://arxiv.org/abs/1602.02282

    Args:
        prior: called as ``prior(*y)``; the distribution of the top latent.
        conditionals: p(z_l | ...) for l = 1, ..., L − 1, each called as ``conditionals[l - 1](z_{l+1}, ..., z_L, *y)``,
            diagonal Gaussians.
        decoder: called as ``decoder(z_1, ..., z_L, *y)``; the distribution of ``x``.
        encoders: the networks f_1, ..., f_L; the first takes x and the contexts y.
        posteriors: g_1, ..., g_L, called as ``posteriors[l - 1](d_l)``: diagonal Gaussians, the top one anything.
        markov: whether conditionals and decoder see only the nearest latent above them, p(z_l | z_{l+1}) and
            p(x | z_1), in place of all of them.

    Shape:
        as of :class:`HierarchicalVAE`.

    Raises:
        TypeError: a part that is no module, a single module where a list is expected, or (when called) a conditional
            or a posterior below the top that is not a diagonal Gaussian.
        ValueError: lists whose lengths do not fit, or layers whose parts state different numbers of coordinates.

    Example:
        >>> from ppgen import decoders, nn, posteriors, priors
        >>> ladder = LadderVAE(
        ...     priors.StandardNormal(2),
        ...     [priors.DiagNormal(4, nn.MLP(2, 16, 8))],  # p(z1 | z2)
        ...     decoders.Bernoulli(nn.MLP(4, 32, 64)),  # p(x | z1)
        ...     [nn.MLP(64, 32, 32), nn.MLP(32, 16, 16)],
        ...     [posteriors.DiagNormal(nn.MLP(32, 8)), posteriors.DiagNormal(nn.MLP(16, 4))],
        ...     markov=True,
        ... )
        >>> [z.shape[-1] for z in ladder.guide(torch.zeros(5, 64))]
        [4, 2]
    """

    def __init__(
        self,
        prior: nn.Module,
        conditionals: Iterable[nn.Module],
        decoder: nn.Module,
        encoders: Iterable[nn.Module],
        posteriors: Iterable[nn.Module],
        *,
        markov: bool = False,
    ) -> None:
        super().__init__()
        conditionals = checked_layers("LadderVAE", "conditionals", conditionals)
        encoders = checked_layers("LadderVAE", "encoders", encoders)
        posteriors = checked_layers("LadderVAE", "posteriors", posteriors)
        check_hierarchy("LadderVAE", prior, conditionals, decoder, posteriors)
        if len(encoders) != len(posteriors):
            raise ValueError(
                f"LadderVAE: {len(posteriors)} posteriors make {len(posteriors)} layers, which need as many encoders, "
                f"one a stage of the path upward, but encoders has {len(encoders)}."
            )
        self.prior = prior
        self.conditionals = nn.ModuleList(conditionals)
        self.decoder = decoder
        self.encoders = nn.ModuleList(encoders)
        self.posteriors = nn.ModuleList(posteriors)
        self.markov = markov

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z_L | y) ... p(x | z_1, ...). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        return generate(self, x, *y, mask=mask)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Up without noise, then q(z_L | x, y) ... q(z_1 | x, z_2, ..., y); returns z_1, ..., z_L."""
        expose_parameters(self)
        first, *others = self.encoders
        with data_plate(x, *y):
            stages = [feed(first, observed(x, mask), *y)]
            for encoder in others:
                stages.append(encoder(stages[-1]))
            bottom_up = [posterior(d) for posterior, d in zip(self.posteriors, stages, strict=True)]

            def layer(i: int, *above: Tensor) -> Distribution:
                return precision_weighted(bottom_up[i], self.conditionals[i](*above, *y)) if above else bottom_up[i]

            return top_down(layer, len(bottom_up), self.markov)


def precision_weighted(p: Distribution, q: Distribution) -> Distribution:
    r"""The normalised product of two diagonal Gaussians.

    .. math:: \mathcal{N}\left(z; \frac{\mu_1 \sigma_1^{-2} + \mu_2 \sigma_2^{-2}}{\sigma_1^{-2} + \sigma_2^{-2}},
        \frac{1}{\sigma_1^{-2} + \sigma_2^{-2}}\right) \propto
        \mathcal{N}(z; \mu_1, \sigma_1^2) \, \mathcal{N}(z; \mu_2, \sigma_2^2)

    Args:
        p: a diagonal Gaussian, ``Normal(...).to_event(1)``.
        q: another, whose batch shape broadcasts with the first's.

    Raises:
        TypeError: one of them is something else.

    Example:
        >>> p, q = (dist.Normal(torch.tensor([m]), 1.0).to_event(1) for m in (0.0, 1.0))
        >>> precision_weighted(p, q).mean
        tensor([0.5000])
    """
    a, b = _normal(p), _normal(q)
    both = torch.hypot(a.scale, b.scale)
    share = (a.scale / both).square()  # of the second mean: the first's variance in the sum of the two
    return dist.Normal(a.loc + share * (b.loc - a.loc), a.scale / both * b.scale).to_event(1)


def _normal(distribution: Distribution) -> Normal:
    normal = as_diagonal_normal(distribution)
    if normal is None:
        raise TypeError(
            f"LadderVAE weighs diagonal Gaussians against each other, but a layer below the top gave "
            f"{type(distribution).__name__}: take priors.DiagNormal and posteriors.DiagNormal there, or "
            "HierarchicalVAE, which takes any distributions."
        )
    return normal
