r"""Amortised posteriors q(z | x, y): a network in front of a distribution of the latent.

Each takes its network first. ``Posterior.num_outputs(latent_dim, ...)`` says how many outputs the network must have;
``scores_foreign_values`` whether it scores values drawn elsewhere cheaply, as the components of a VampPrior must.
"""

from .autoregressive import IAF, Spline
from .categorical import Categorical
from .flows import Planar, Radial, Sylvester
from .gaussian import DiagNormal, FullNormal, Householder, LowRankNormal, MixtureOfGaussians

__all__ = [
    "IAF",
    "Categorical",
    "DiagNormal",
    "FullNormal",
    "Householder",
    "LowRankNormal",
    "MixtureOfGaussians",
    "Planar",
    "Radial",
    "Spline",
    "Sylvester",
]
