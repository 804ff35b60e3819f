"""Probabilistic programming with deep generative models: priors, posteriors and decoders that swap, on Pyro."""

from ppgen import data, decoders, inference, models, nn, posteriors, priors
from ppgen.inference import SVI, elbo, fit, iwae, log_likelihood, log_weights, sample, warmup
from ppgen.models import Custom
from ppgen.pair import Pair

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "Custom",
    "Pair",
    "__version__",
    "data",
    "decoders",
    "elbo",
    "fit",
    "inference",
    "iwae",
    "log_likelihood",
    "log_weights",
    "models",
    "nn",
    "posteriors",
    "priors",
    "sample",
    "warmup",
]
