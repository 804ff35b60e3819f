"""Distributions that torch and Pyro lack."""

from .flow import AffineFlow, NormalizingFlow
from .mixture import Mixture

__all__ = ["AffineFlow", "Mixture", "NormalizingFlow"]
