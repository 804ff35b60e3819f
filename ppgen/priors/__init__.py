r"""Priors p(z), and p(z | y) where they take a context: modules whose ``forward(*y)`` returns a distribution.

An unconditional prior ignores what it is called with and returns an empty batch shape.
"""

from .categorical import Categorical
from .flow import Autoregressive, Flow
from .gaussian import DiagNormal, MixtureOfGaussians, StandardNormal
from .grid import CategoricalGrid
from .vamp import VampPrior

__all__ = [
    "Autoregressive",
    "Categorical",
    "CategoricalGrid",
    "DiagNormal",
    "Flow",
    "MixtureOfGaussians",
    "StandardNormal",
    "VampPrior",
]
