"""Distributions that torch and Pyro lack, or have in a form that does not scale."""

from .autoregressive import AutoregressiveImage, MultiScaleImage
from .flow import AffineFlow, NormalizingFlow, compose
from .gaussian import LOG_SCALE_RANGE, FullNormal, LowRankNormal, diagonal_normal
from .implicit import Implicit
from .levels import CategoricalLevels, DiscretizedLogistic, LogisticMixture
from .marginal import Marginal, marginal
from .mixture import Mixture, as_diagonal_normal
from .one_hot import RelaxedOneHot
from .univariate import Bernoulli, ContinuousBernoulli

__all__ = [
    "LOG_SCALE_RANGE",
    "AffineFlow",
    "AutoregressiveImage",
    "Bernoulli",
    "CategoricalLevels",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FullNormal",
    "Implicit",
    "LogisticMixture",
    "LowRankNormal",
    "Marginal",
    "Mixture",
    "MultiScaleImage",
    "NormalizingFlow",
    "RelaxedOneHot",
    "as_diagonal_normal",
    "compose",
    "diagonal_normal",
    "marginal",
]
