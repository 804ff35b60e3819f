"""Distributions that torch and Pyro lack, or have in a form that does not scale."""

from .flow import AffineFlow, NormalizingFlow, compose
from .gaussian import LOG_SCALE_RANGE, diagonal_normal
from .mixture import Mixture

__all__ = ["LOG_SCALE_RANGE", "AffineFlow", "Mixture", "NormalizingFlow", "compose", "diagonal_normal"]
