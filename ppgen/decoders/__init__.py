r"""Decoders p(x | z, y): a network in front of a distribution of the observation.

Each takes its network first. ``Decoder.outputs_shape(shape, ...)`` says which output shape the network must have for
data of a shape.
"""

from .continuous import Bernoulli, ContinuousBernoulli, Normal
from .levels import Categorical, DiscretizedLogistic, LogisticMixture
from .outputs import bits_per_dim
from .pixelcnn import Autoregressive, MultiScale

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "LogisticMixture",
    "MultiScale",
    "Normal",
    "bits_per_dim",
]
